"""Ranges of console output and of archives, against the whole."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from services.queue import jobs, logs, packages
from services.queue.jobs import JobView
from services.queue.packages import ListPackages, Upload
from sis.packages import archive, shipped
from sis.queue.v1 import job_pb2, package_service_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import Api, fields, refusal
from tests.integration.queue.rig import Rig, of

PIECES = [b"a", b"", b"bcd", b"ef", b"", b"", b"ghijk", b"l"]
WHOLE = b"".join(PIECES)


async def written(rig: Rig, **changes: Any) -> int:
    """A job whose output is in small frames, with others in between."""
    key, spool = await rig.started(**changes)
    for n, piece in enumerate(PIECES):
        channel = job_pb2.CHANNEL_STDERR if n % 3 else job_pb2.CHANNEL_STDOUT
        await rig.report(key, of(spool.notice("between"), spool.output(piece, channel), spool.notice("them")))
    return key.job_id


async def output(api: Api, job_id: int, offset: int = 0, length: int = 0) -> bytes:
    """The bytes, which are as many as the first response makes one expect."""
    request = pb.GetConsoleOutputRequest(job_id=job_id, offset=offset, length=length)
    log, *chunks = await api(api.jobs.GetConsoleOutput, request)
    assert all(part.chunk.data for part in chunks)
    found = b"".join(part.chunk.data for part in chunks)
    rest = log.log.output_bytes - offset
    assert len(found) == (min(length, rest) if length else rest)
    return found


async def viewed(rig: Rig, job_id: int) -> JobView:
    async with rig.database.begin() as connection:
        return await jobs.get(connection, job_id)


@pytest.mark.parametrize("without", ["false", "true", "sequence < 11", "sequence > 11", "sequence % 2 = 0"])
async def test_every_range_of_the_output_is_that_of_the_whole(api: Api, served: Rig, without: str) -> None:
    """Also where frames have no offset: they were written before it was noted, by a replica of that version."""
    job_id = await written(served)
    await served.execute(
        f"UPDATE queue.log SET output_offset = NULL WHERE job_id = :job_id AND {without}",
        job_id=job_id,
    )
    for offset, length in itertools.product(range(len(WHOLE) + 1), (0, 1, 4, 100)):
        found = await output(api, job_id, offset, length)
        assert found == WHOLE[offset : offset + length if length else None], (offset, length)


async def test_the_beginning_is_found_by_halves(served: Rig) -> None:
    key, spool = await served.started()
    for _ in range(4):
        await served.report(key, of(*(spool.output(b"%d" % n) for n in range(40))))
    view = await viewed(served, key.job_id)
    offsets = [0, *itertools.accumulate(len(b"%d" % (n % 40)) for n in range(160))]
    async with served.database.begin() as connection:
        for offset in range(1, offsets[-1]):
            first, before = await logs.output_start(connection, view, offset)
            # The first frame is the process that was started.
            assert before == offsets[first - 2] <= offset < offsets[first - 1]


async def test_what_is_appended_meanwhile_is_not_in_the_range(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    await served.report(key, spool.output(b"x" * 50))
    stream = aiter(api.stream(api.jobs.GetConsoleOutput, pb.GetConsoleOutputRequest(job_id=key.job_id, offset=10)))
    log = await anext(stream)
    await served.report(key, spool.output(b"y" * 50))
    found = b"".join([part.chunk.data async for part in stream])
    assert (log.log.output_bytes, found) == (50, b"x" * 40)
    view = await viewed(served, key.job_id)
    await served.report(key, spool.output(b"z" * 50))
    rows = [row async for rows in logs.console_output(served.database, view, 1) for row in rows]
    assert rows[-1].sequence == view.attempt.sequence


@pytest.mark.parametrize(
    ("wrong", "offset", "length"),
    [(["offset"], -1, 0), (["length"], 0, -1), (["offset", "length"], -5, -5), (["offset"], len(WHOLE) + 1, 0)],
)
async def test_a_range_that_cannot_be_is_refused(
    api: Api, served: Rig, wrong: list[str], offset: int, length: int
) -> None:
    job_id = await written(served)
    request = pb.GetConsoleOutputRequest(job_id=job_id, offset=offset, length=length)
    assert fields(await refusal(api(api.jobs.GetConsoleOutput, request))) == wrong


async def test_a_job_without_output_has_an_empty_range(api: Api, served: Rig) -> None:
    job_id = await served.create()
    assert await output(api, job_id) == await output(api, job_id, 0, 7) == b""
    request = pb.GetConsoleOutputRequest(job_id=job_id, offset=1)
    assert fields(await refusal(api(api.jobs.GetConsoleOutput, request))) == ["offset"]


# Archives.


async def download(api: Api, **request: Any) -> tuple[package_service_pb2.PackageArchive, bytes]:
    info, *chunks = await api(api.packages.DownloadPackage, package_service_pb2.DownloadPackageRequest(**request))
    return info.info, b"".join(part.chunk for part in chunks)


async def test_a_package_is_downloaded_as_it_was_pushed(api: Api) -> None:
    content = archive.pack(shipped() / "core.shell")
    info, found = await download(api, name="core.shell")
    assert found == content
    assert (info.name, info.digest, info.size_bytes) == ("core.shell", archive.digest(content), len(content))
    assert await download(api, name="core.shell", version=info.version) == (info, content)
    size = len(content)
    for offset, length in ((0, 1), (5, 0), (5, 10), (size - 1, 0), (size - 1, 9), (size, 0), (size, 3)):
        found = (await download(api, name="core.shell", offset=offset, length=length))[1]
        assert found == content[offset : offset + length if length else None]


async def test_what_cannot_be_downloaded_is_refused(api: Api) -> None:
    assert (await refusal(download(api, name="core.none"))).reason == "PACKAGE_NOT_FOUND"
    assert (await refusal(download(api, name="core.shell", version="0.0.1"))).reason == "PACKAGE_NOT_FOUND"
    assert fields(await refusal(download(api))) == ["name"]
    for wrong in ({"offset": -1}, {"offset": 2**40}):
        assert fields(await refusal(download(api, name="core.shell", **wrong))) == ["offset"]
    assert fields(await refusal(download(api, name="core.shell", length=-1))) == ["length"]


async def test_every_range_of_an_archive_in_small_parts(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "CHUNK_BYTES", 30)
    await rig.push(tmp_path, MANIFEST.format(name="test.parts", version="1.0.0"))
    content = archive.pack(tmp_path)
    boundaries = [at + by for at in range(0, 91, 30) for by in (-1, 0, 1)][1:]
    for start, stop in itertools.combinations([*boundaries, len(content)], 2):
        parts = packages.archive_chunks(rig.database, archive.digest(content), start, stop - start)
        assert b"".join([part async for part in parts]) == content[start:stop]


MANIFEST = 'name: {name}\nversion: {version}\noperations:\n  run:\n    command: ["true"]\n'


async def push(api: Api, content: bytes, **upload: Any) -> package_service_pb2.PushPackageResponse:
    async def messages() -> Any:
        yield package_service_pb2.PushPackageRequest(upload=package_service_pb2.PackageUpload(**upload))
        for start in range(0, len(content), 100):
            yield package_service_pb2.PushPackageRequest(chunk=content[start : start + 100])

    found: package_service_pb2.PushPackageResponse = await api(api.packages.PushPackage, messages())
    return found


async def test_a_package_is_pushed_without_saying_what_comes(api: Api, tmp_path: Path) -> None:
    (tmp_path / "package.yaml").write_text(MANIFEST.format(name="test.unannounced", version="1.0.0"))
    content = archive.pack(tmp_path)
    told = await push(api, content)
    assert (told.package.digest, told.existed) == (archive.digest(content), False)
    for announced in ({}, {"size_bytes": len(content)}, {"digest": archive.digest(content)}):
        assert (await push(api, content, **announced)).existed
    for wrong, announced in (
        ("upload.size_bytes", {"size_bytes": len(content) + 1}),
        ("chunk", {"size_bytes": len(content) - 1}),
        ("upload.digest", {"digest": "0" * 64}),
        ("upload.size_bytes", {"size_bytes": -1}),
    ):
        assert fields(await refusal(push(api, content, **announced))) == [wrong]
    assert (await refusal(push(api, b""))).reason == "INVALID_PACKAGE"


def test_an_upload_is_bounded_whatever_was_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_PACKED_BYTES", 10)
    upload = Upload()
    upload.add(bytes(10))
    with pytest.raises(Exception, match="exceeds the 10 bytes"):
        upload.add(b"x")


async def test_the_versions_of_one_package_are_listed(rig: Rig, api: Api, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        await rig.push(tmp_path, MANIFEST.format(name="test.versions", version=version))
    pages, token = [], ""
    while True:
        async with rig.database.begin() as connection:
            found, token = await packages.list_page(connection, ListPackages("test.versions", 1, token))
        pages.append([(package.name, package.version) for package in found])
        if not token:
            break
        async with rig.database.begin() as connection:
            with pytest.raises(packages.paging.InvalidToken):
                await packages.list_page(connection, ListPackages("core.shell", 1, token))
    assert pages == [[("test.versions", version)] for version in ("1.10.0", "1.9.0", "1.0.0")]
    request = package_service_pb2.ListPackagesRequest(name="core.shell")
    assert [p.name for p in (await api(api.packages.ListPackages, request)).packages] == ["core.shell"]
    request = package_service_pb2.ListPackagesRequest(name="core.shel")
    assert not (await api(api.packages.ListPackages, request)).packages
