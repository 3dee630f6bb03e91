"""Packages that are deleted: what keeps them, what is left of them, and who comes first of two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2
from sqlalchemy import func, select, text

from services.queue import bulk, creation, packages, tables
from services.queue.bulk import ApplyVerb, Verb
from services.queue.convert.repeats import to_request
from services.queue.errors import PackageInUse, PackageNotFound, PackageVersionExists
from services.queue.model import Actor
from services.queue.packages import ListPackages, Package
from services.queue.reports import Accepted
from services.queue.tables import package_chunks
from services.queue.wakes import Wakes
from sis.queue.v1 import package_service_pb2 as pb
from tests.integration.queue.api import Api, fields, refusal
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig
from tests.integration.queue.test_races import ROUNDS, race
from tests.support.frames import Spool

MANIFEST = """
name: {name}
version: {version}
description: {about}
operations:
  use:
    command: ["true"]
"""
BOB = Actor("bob", "10.0.0.2")


class Library:
    """A package of the test's own, called as the rig's group."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        self.rig = rig
        self.name = f"own.{rig.group}"
        self._directory = directory

    async def push(self, version: str = "1.0.0", about: str = "as it was") -> None:
        await self.rig.push(self._directory, MANIFEST.format(name=self.name, version=version, about=about))

    async def create(self, version: str = "", **changes: Any) -> int:
        values = {"package_name": self.name, "package_version": version, "operation": "use", "parameters": {}}
        return await self.rig.create(**(values | changes))

    async def delete(self, version: str = "1.0.0") -> None:
        async with self.rig.database.begin() as connection:
            await packages.remove(connection, self.name, version, BOB)

    async def versions(self) -> list[str]:
        async with self.rig.database.begin() as connection:
            found, _ = await packages.list_page(connection, ListPackages(self.name, 50, ""))
        return [package.version for package in found]

    async def find(self, version: str = "") -> Package:
        async with self.rig.database.begin() as connection:
            return await packages.find(connection, self.name, version)


@pytest.fixture
async def library(rig: Rig, tmp_path: Path) -> Library:
    """With one version in it."""
    found = Library(rig, tmp_path)
    await found.push()
    return found


async def test_a_push_that_is_repeated_is_more_than_a_look(rig: Rig, library: Library) -> None:
    """It writes a lock, as a look would not, and so waits for the standby that has to have the package."""
    await library.push()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%packages%'"

    async def waits() -> bool:
        async with rig.database.begin() as connection:
            return bool((await connection.execute(text(waiting))).scalar_one())

    async with rig.database.begin() as connection:
        await connection.execute(
            select(tables.packages).where(tables.packages.c.name == library.name).with_for_update()
        )
        again = asyncio.create_task(library.push())
        async with asyncio.timeout(20):
            while not await waits():
                assert not again.done()
                await asyncio.sleep(0.01)
    await again
    assert await library.versions() == ["1.0.0"]


async def test_a_version_is_gone_with_its_archive_and_the_others_stay(library: Library, rig: Rig) -> None:
    await library.push("1.1.0")
    digest = (await library.find("1.1.0")).digest
    await library.delete("1.1.0")
    assert await library.versions() == ["1.0.0"]
    assert (await library.find()).version == "1.0.0"
    async with rig.database.begin() as connection:
        left = select(func.count()).select_from(package_chunks).where(package_chunks.c.digest == digest)
        assert (await connection.execute(left)).scalar_one() == 0
    assert (await rig.job(await library.create())).package_version == "1.0.0"


async def test_whoever_asks_later_is_told_who_deleted_it_and_when(library: Library, clock: Clock) -> None:
    await library.delete()
    time = clock.now.isoformat(timespec="seconds").replace("+00:00", "Z")
    told = f"{library.name}@1.0.0 was deleted by bob at {time}"
    for again in (library.delete(), library.find("1.0.0"), library.create("1.0.0")):
        with pytest.raises(PackageNotFound, match=told) as caught:
            await again
        assert caught.value.metadata == {"deleted_by": "bob", "delete_time": time}
    with pytest.raises(PackageNotFound, match=f"there is no package {library.name};"):
        await library.create()


async def test_of_jobs_that_have_not_ended_it_says_how_many_and_which(library: Library, rig: Rig) -> None:
    await library.push("2.0.0")
    await library.create("2.0.0")
    job_ids = [await library.create("1.0.0", deferred=n == 2) for n in range(7)]
    with pytest.raises(PackageInUse) as caught:
        await library.delete()
    first = ", ".join(str(job_id) for job_id in job_ids[:5])
    assert f"7 jobs that have not ended need {library.name} 1.0.0: {first} and others;" in str(caught.value)
    for job_id in job_ids[1:]:
        await rig.cancel(job_id)
    with pytest.raises(PackageInUse, match=f"1 job that has not ended needs {library.name} 1.0.0: {job_ids[0]};"):
        await library.delete()
    await rig.cancel(job_ids[0])
    await library.delete()
    assert await library.versions() == ["2.0.0"]


async def test_a_job_needs_it_until_it_has_ended(library: Library, rig: Rig) -> None:
    await rig.hello()
    job_id = await library.create(agent="a")
    (key,) = await rig.claim()
    spool = Spool()
    for status, move in {
        "STARTING": rig.report(key, Accepted()),
        "RUNNING": rig.report(key, spool.process_started(1)),
        "PROCESSING_OUTPUT": rig.report(key, spool.payload_ended(0)),
    }.items():
        await move
        assert await rig.status(job_id) == status
        with pytest.raises(PackageInUse):
            await library.delete()
    await rig.report(key, spool.finished("SUCCEEDED"))
    await library.delete()


async def test_a_job_that_is_lost_from_sight_may_come_back_for_it(library: Library, rig: Rig) -> None:
    await rig.hello()
    job_id = await library.create(agent="a")
    (key,) = await rig.claim()
    await rig.accept(key)
    await rig.hello(in_hand=[], journal_id="another")
    assert await rig.status(job_id) == "AWOL"
    with pytest.raises(PackageInUse):
        await library.delete()
    await rig.delete(job_id)
    await library.delete()


async def test_jobs_that_have_ended_keep_what_they_know_and_cannot_be_rerun(library: Library, rig: Rig) -> None:
    old = await library.create()
    await rig.cancel(old)
    before = await rig.whole(old), await rig.events(old)
    await library.delete()
    with pytest.raises(PackageNotFound, match=f"{library.name}@1.0.0 was deleted by bob"):
        await rig.rerun(old)
    # A copy is what was asked for; it may name another version.
    assert to_request(await rig.whole(old)).package.version == "1.0.0"
    command = ApplyVerb(Verb.RERUN, [old])
    _, result = [each async for each in bulk.apply(rig.database, Wakes(), command, ALICE)]
    assert isinstance(result, bulk.Result) and isinstance(result.error, PackageNotFound)
    assert (await rig.whole(old), await rig.events(old)) == before
    await library.push()
    assert (await rig.rerun(old)).job.package_version == "1.0.0"


async def test_a_version_keeps_its_content_also_after_it_was_deleted(library: Library) -> None:
    digest = (await library.find()).digest
    await library.delete()
    with pytest.raises(PackageVersionExists, match=r"1\.0\.0 was pushed with other content, and deleted;"):
        await library.push(about="something else")
    await library.push()
    assert (await library.find("1.0.0")).digest == digest
    await library.delete()
    assert await library.versions() == []


async def blocks(rig: Rig, task: asyncio.Task[Any]) -> None:
    while not await rig.blocked():
        assert not task.done(), task.result()


@pytest.mark.parametrize("repeated", [False, True], ids=["create", "rerun"])
async def test_a_job_that_is_being_created_holds_the_deletion_up(library: Library, rig: Rig, repeated: bool) -> None:
    old = await library.create()
    await rig.cancel(old)
    command = rig.command(package_name=library.name, operation="use", parameters={})
    async with asyncio.timeout(30):
        async with rig.database.begin() as connection:
            made = await (
                creation.rerun(connection, old, "", ALICE) if repeated else creation.create(connection, command, ALICE)
            )
            deletion = asyncio.create_task(library.delete())
            await blocks(rig, deletion)
        with pytest.raises(PackageInUse, match=f"1.0.0: {made.job.job_id};"):
            await deletion
    assert await library.versions() == ["1.0.0"]


@pytest.mark.parametrize("repeated", [False, True], ids=["create", "rerun"])
async def test_a_job_that_is_created_during_the_deletion_finds_it_gone(
    library: Library, rig: Rig, repeated: bool
) -> None:
    old = await library.create()
    await rig.cancel(old)
    async with asyncio.timeout(30):
        async with rig.database.begin() as connection:
            await packages.remove(connection, library.name, "1.0.0", BOB)
            made = asyncio.create_task(rig.rerun(old) if repeated else library.create("1.0.0"))
            await blocks(rig, made)
        with pytest.raises(PackageNotFound, match="was deleted by bob"):
            await made
    with pytest.raises(PackageNotFound, match="was deleted by bob"):
        await library.delete()


async def test_creation_against_deletion_no_job_is_left_without_its_package(library: Library, rig: Rig) -> None:
    versions = [f"1.0.{n + 1}" for n in range(ROUNDS)]
    for version in versions:
        await library.push(version)
    results = await race(*[
        [lambda v=version: library.create(v), lambda v=version: library.delete(v)] for version in versions
    ])  # fmt: skip
    for version, (made, deleted) in zip(versions, results, strict=True):
        if deleted is None:
            assert isinstance(made, PackageNotFound), version
        else:
            assert isinstance(deleted, PackageInUse) and isinstance(made, int), version
        assert (version in await library.versions()) == isinstance(made, int)


async def test_two_deletions_at_once_are_one(library: Library) -> None:
    versions = [f"1.0.{n + 1}" for n in range(ROUNDS)]
    for version in versions:
        await library.push(version)
    for both in await race(*[[lambda v=version: library.delete(v)] * 2 for version in versions]):
        (error,) = [result for result in both if result is not None]
        assert isinstance(error, PackageNotFound)


async def test_a_download_that_is_overtaken_says_so(library: Library, rig: Rig) -> None:
    found = await library.find()
    chunks = packages.archive_chunks(rig.database, found.digest, 0, found.size_bytes)
    await library.delete()
    with pytest.raises(PackageNotFound):
        await anext(chunks)


async def test_by_the_api(api: Api, served: Rig, tmp_path: Path) -> None:
    library = Library(served, tmp_path)
    await library.push()

    def delete(**request: str) -> Awaitable[Any]:
        return api(api.packages.DeletePackage, pb.DeletePackageRequest(**request))

    assert fields(await refusal(delete())) == ["name", "version"]
    assert fields(await refusal(delete(name=library.name))) == ["version"]
    job_id = await library.create()
    error = await refusal(delete(name=library.name, version="1.0.0"))
    assert (error.code, error.reason) == (code_pb2.FAILED_PRECONDITION, "PACKAGE_IN_USE")
    assert error.metadata == {"jobs": "1", "job_ids": str(job_id)}
    await served.cancel(job_id)
    assert await delete(name=library.name, version="1.0.0") == pb.DeletePackageResponse()
    error = await refusal(delete(name=library.name, version="1.0.0"))
    assert (error.code, error.reason, error.metadata["deleted_by"]) == (
        code_pb2.NOT_FOUND, "PACKAGE_NOT_FOUND", "administrator",
    )  # fmt: skip
