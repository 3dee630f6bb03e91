"""Packages are fetched once, checked, and there completely or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.runtime.errors import NotFound, SisError, Unavailable
from services.sis_agent.agent import package_cache as module
from services.sis_agent.agent.errors import PackageUnavailable
from services.sis_agent.agent.package_cache import PackageCache
from sis.packages import archive

MANIFEST = """
name: test.package-{number}
version: 1.0.0
publisher: SIS
description: Does nothing.
platforms: [linux]
operations:
  run:
    description: Does nothing.
    command: ["true"]
"""


LIMIT = 1 << 30


class Library:
    """Where the archives come from; it gives `step` bytes at a time and can be made to fail."""

    def __init__(self, scratch: Path) -> None:
        self.archives: dict[str, bytes] = {}
        self.calls: list[int] = []
        self.called = asyncio.Event()
        self.failures: list[SisError] = []
        self.step = 100
        self._scratch = scratch

    def add(self, number: int, size: int = 0) -> str:
        package = self._scratch / str(number)
        (package / "data").mkdir(parents=True)
        (package / "package.yaml").write_text(MANIFEST.replace("{number}", str(number)))
        (package / "data" / "zeros").write_bytes(bytes(size))
        packed = archive.pack(package)
        self.archives[archive.digest(packed)] = packed
        return archive.digest(packed)

    async def fetch(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        self.calls.append(offset)
        self.called.set()
        await asyncio.sleep(0)
        if digest not in self.archives:
            raise NotFound("no such package", reason="PACKAGE_NOT_FOUND")
        content = self.archives[digest]
        for start in range(offset, len(content), self.step):
            if self.failures and start > offset:
                raise self.failures.pop()
            yield content[start : start + self.step]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "packages"


async def test_several_callers_share_one_fetch(root: Path, library: Library) -> None:
    cache = PackageCache(root, library.fetch, LIMIT)
    digest = library.add(1)
    assert cache.find(digest) is None
    paths = await asyncio.gather(*(cache.get(digest) for _ in range(5)))
    assert set(paths) == {root / digest}
    assert library.calls == [0]
    assert (root / digest / "package.yaml").is_file()
    assert cache.find(digest) == await cache.get(digest) == root / digest
    assert os.listdir(root) == [digest]


async def test_a_fetch_goes_on_where_it_was_cut(root: Path, library: Library) -> None:
    library.failures = [Unavailable("cut"), Unavailable("cut")]
    cache = PackageCache(root, library.fetch, LIMIT)
    await cache.get(library.add(1))
    assert library.calls == [0, 100, 200]


async def test_a_caller_that_gives_up_leaves_the_fetch_to_the_others(root: Path, library: Library) -> None:
    cache = PackageCache(root, library.fetch, LIMIT)
    digest = library.add(1)
    first, second = (asyncio.create_task(cache.get(digest)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == root / digest
    assert first.cancelled()


async def test_closing_ends_what_is_under_way(root: Path, library: Library) -> None:
    library.failures = [Unavailable("cut")] * 100
    cache = PackageCache(root, library.fetch, LIMIT)
    fetching = asyncio.create_task(cache.get(library.add(1)))
    await library.called.wait()
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert os.listdir(root) == []


async def test_what_an_earlier_agent_left_unfinished_is_removed(root: Path, library: Library) -> None:
    digest = library.add(1)
    await PackageCache(root, library.fetch, LIMIT).get(digest)
    (root / f"{digest}.archive").write_bytes(b"half")
    (root / f"{'ab' * 32}.unpacked").mkdir()
    PackageCache(root, library.fetch, LIMIT)
    assert os.listdir(root) == [digest]


async def test_those_used_least_recently_make_room_unless_they_are_held(
    root: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    cache = PackageCache(root, library.fetch, LIMIT)
    digests = [library.add(number) for number in range(5)]
    with cache.holding(digests[0]):
        for age, digest in enumerate(digests[:3]):
            os.utime(await cache.get(digest), (1_000 + age, 1_000 + age))
        await cache.get(digests[3])
        assert sorted(os.listdir(root)) == sorted([digests[0], digests[2], digests[3]])
    await cache.get(digests[4])
    assert sorted(os.listdir(root)) == sorted([digests[2], digests[3], digests[4]])


async def test_the_bytes_are_bounded_as_the_number_is(root: Path, library: Library) -> None:
    """A limit of a bit less than three of them."""
    digests = [library.add(number, size=100_000) for number in range(5)]
    cache = PackageCache(root, library.fetch, 300_000)
    for age, digest in enumerate(digests[:2]):
        os.utime(await cache.get(digest), (1_000 + age, 1_000 + age))
    cache.find(digests[0])  # which makes it the one that was used last
    await cache.get(digests[2])
    assert sorted(os.listdir(root)) == sorted([digests[0], digests[2]])
    # What an earlier agent had is measured too.
    cache = PackageCache(root, library.fetch, 300_000)
    with cache.holding(digests[0]), cache.holding(digests[2]):
        path = await cache.get(digests[3])
        assert sorted(os.listdir(root)) == sorted([digests[0], digests[2], digests[3]])
    await cache.get(digests[4])
    assert {digests[4]} < set(os.listdir(root)) < set(digests)
    assert len(os.listdir(root)) == 2
    assert path == root / digests[3]
    await cache.close()


async def test_one_that_is_larger_than_the_cache_stays_while_it_is_held(root: Path, library: Library) -> None:
    large, small = library.add(1, size=200_000), library.add(2)
    cache = PackageCache(root, library.fetch, 100_000)
    with cache.holding(large), cache.holding(large):
        path = await cache.get(large)
        with cache.holding(small):
            await cache.get(small)
        assert (path / "data" / "zeros").stat().st_size == 200_000
        await emptied(cache)
        assert os.listdir(root) == [large]
    await emptied(cache)
    assert os.listdir(root) == []
    assert await cache.get(small) == root / small


async def emptied(cache: PackageCache) -> None:
    """Wait until what was let go is removed."""
    await asyncio.gather(*cache._tasks)


async def test_what_cannot_be_removed_costs_nobody_a_package(
    root: Path, library: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, target: Path) -> Path:
        if "leaving" in target.name:
            raise PermissionError(1, "no", str(path))
        os.rename(path, target)
        return target

    cache = PackageCache(root, library.fetch, 0)
    monkeypatch.setattr(Path, "rename", refuse)
    first, second = library.add(1), library.add(2)
    await cache.get(first)
    assert await cache.get(second) == root / second
    assert "packages could not be removed" in caplog.text


async def test_what_is_not_what_its_digest_says_is_refused(root: Path, library: Library) -> None:
    digest, other = library.add(1), library.add(2)
    library.archives[digest] = library.archives[other]
    with pytest.raises(PackageUnavailable, match=f"what arrived as package {digest} has the digest {other}"):
        await PackageCache(root, library.fetch, LIMIT).get(digest)
    assert os.listdir(root) == []


async def test_what_is_too_large_is_refused(root: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = library.add(1)
    monkeypatch.setattr(archive, "MAX_PACKED_BYTES", 150)
    with pytest.raises(PackageUnavailable, match="larger than a package can be"):
        await PackageCache(root, library.fetch, LIMIT).get(digest)
    assert os.listdir(root) == []


@pytest.mark.parametrize("text", ["", "..", "ab" * 31 + "a/", "AB" * 32, "ab" * 32 + "\n"])
def test_only_a_digest_is_a_digest(text: str) -> None:
    assert not module.is_digest(text)
    assert module.is_digest("ab" * 32)
