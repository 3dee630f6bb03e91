"""Retention: what ended long ago, or before so many others, is exported and deleted, and nothing else ever is."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import re
import resource
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from services.queue import export_files, exports, purge, removals, retention, watching
from services.queue.convert import exports as convert
from services.queue.convert import jobs as convert_jobs
from services.queue.creation import Limits
from services.queue.errors import JobNotFound
from services.queue.export_files import ExportFile
from services.queue.exports import ExportJobs, Part
from services.queue.jobs import JobView
from services.queue.listing import JobFilter
from services.queue.retention import Retention, Rules
from services.queue.sweeper import Sweeper
from services.queue.wakes import Wakes
from services.runtime.backoff import Backoff
from sis.cli import terminal
from sis.packages.values import File
from sis.queue.v1 import job_pb2, job_service_pb2
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, check, of
from tests.support.certificates import CertificateAuthority
from tests.support.fault_points import FaultPoints
from tests.support.queue_server import QueueServer

DAY = 86_400
MONTH = Rules(age=timedelta(days=30))


@pytest.fixture
def rig(own_rig: Rig) -> Rig:
    """A database of the test's own: retention is about all of it."""
    return own_rig


@pytest.fixture
async def clock(rig: Rig) -> Clock:
    return await Clock.install(rig.database)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "exports"
    found.mkdir()
    return found


async def ended(rig: Rig, output: bytes = b"hello\n") -> int:
    """A job that succeeded, with its log."""
    key, spool = await rig.started("a")
    chunks = [spool.output(output[start : start + PIECE]) for start in range(0, len(output), PIECE)]
    await rig.report(key, of(*chunks, spool.payload_ended(0), spool.finished("SUCCEEDED")))
    return key.job_id


PIECE = 60_000


async def run_pass(worker: Retention, steps: int = 50) -> None:
    """Work until there is nothing more to do at once."""
    for _ in range(steps):
        if not await worker.step():
            return
    raise AssertionError("it does not come to an end")


def made(
    rig: Rig, rules: Rules, directory: Path | None, to_line: Callable[[Part], bytes] = convert.to_line
) -> Retention:
    return Retention(rig.database, rules, directory, to_line)


async def hidden(rig: Rig, *job_ids: int) -> list[int]:
    return [job_id for job_id in job_ids if (await rig.job(job_id)).hidden_at is not None]


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(file, "rt")]


def exported(directory: Path) -> Counter[int]:
    """How often each job is in the files, whole."""
    assert not list(directory.glob("*.part"))
    return Counter(int(line["jobId"]) for file in files(directory) for line in lines(file) if line["resumeToken"])


async def removal(rig: Rig, job_id: int) -> removals.Removal:
    async with rig.database.begin() as connection:
        found = await removals.find(connection, job_id)
    assert found is not None
    return found


# The rules.


async def test_what_ended_longer_ago_than_the_age_is_deleted(rig: Rig, clock: Clock) -> None:
    old = await ended(rig)
    waiting = await rig.create(deferred=True)
    await clock.advance(30 * DAY)
    await run_pass(made(rig, MONTH, None))
    assert await hidden(rig, old) == []
    young = await ended(rig)
    await clock.advance(1)
    await run_pass(made(rig, MONTH, None))
    assert await hidden(rig, old, young, waiting) == [old]
    entry = (await rig.history(old))[-1]
    assert (entry.event, entry.actor, entry.message) == ("DELETE", "retention", "it had ended more than 30 days ago")
    assert entry.origin  # the machine
    found = await removal(rig, old)
    assert (found.by.name, found.reason, found.export) == ("retention", entry.message, "")
    await check(rig.database, [old, young, waiting])


async def test_of_those_that_ended_so_many_are_kept_the_newest(
    rig: Rig, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "COUNTED", 2)
    job_ids = []
    for _ in range(7):
        job_ids.append(await ended(rig))
        await clock.advance(1)
    waiting = await rig.create(deferred=True)
    for count, gone in ((8, 0), (7, 0), (5, 2), (4, 3), (1, 6)):
        await run_pass(made(rig, Rules(count=count), None))
        assert await hidden(rig, *job_ids) == job_ids[:gone], count
    assert (await removal(rig, job_ids[2])).reason == "4 jobs had ended after it"
    assert await hidden(rig, waiting) == []


async def test_jobs_that_ended_at_the_same_time_are_kept_by_their_ids(rig: Rig, clock: Clock) -> None:
    job_ids = [await ended(rig) for _ in range(4)]
    await run_pass(made(rig, Rules(count=3), None))
    assert await hidden(rig, *job_ids) == job_ids[:1]


async def test_with_both_rules_each_deletes_what_is_its_own(rig: Rig, clock: Clock) -> None:
    old = await ended(rig)
    await clock.advance(31 * DAY)
    second = await ended(rig)
    third = await ended(rig)
    await run_pass(made(rig, Rules(timedelta(days=30), 1), None))
    assert await hidden(rig, old, second, third) == [old, second]
    assert (await removal(rig, old)).reason == "it had ended more than 30 days ago"
    assert (await removal(rig, second)).reason == "1 jobs had ended after it"


async def test_nothing_is_deleted_that_something_may_still_come_of(rig: Rig, clock: Clock, directory: Path) -> None:
    """Not what runs, is AWOL or stops, has an open log or leases that are to end, or is deleted already."""
    everything = Rules(age=timedelta(seconds=1), count=1)
    running, _ = await rig.started("a")
    silent, _ = await rig.started("b", heartbeat_timeout=timedelta(seconds=60))
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    stopping, spool = await rig.started("c", heartbeat_timeout=timedelta(days=1))
    await rig.abort(stopping.job_id)
    unheard, _ = await rig.started("d", heartbeat_timeout=timedelta(seconds=60))
    await rig.abort(unheard.job_id)
    leasing = await ended(rig)
    await rig.execute("INSERT INTO queue.lease_ends VALUES (:job_id, 1, true, queue.now())", job_id=leasing)
    deleted = await ended(rig)
    await rig.delete(deleted)
    for _ in range(3):
        await clock.elapse(30, lambda: rig.beat("a", running), sweeper.sweep)
    assert await rig.status(silent.job_id) == "AWOL"
    assert (await rig.job(unheard.job_id)).stop_state == "UNCONFIRMED"
    kept = [running.job_id, silent.job_id, stopping.job_id, unheard.job_id, leasing]
    before = (await rig.job(deleted)).hidden_at
    await run_pass(made(rig, everything, directory))
    assert await hidden(rig, *kept) == [] and files(directory) == []
    assert (await rig.job(deleted)).hidden_at == before
    assert (await removal(rig, deleted)).by.name == "alice"
    # Once it is over, it goes.
    await rig.report(stopping, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")), name="c")
    await rig.execute("DELETE FROM queue.lease_ends")
    await run_pass(made(rig, everything, directory))
    assert set(await hidden(rig, *kept)) == {stopping.job_id, leasing} == set(exported(directory))


async def test_what_has_to_wait_keeps_nothing_behind_it_waiting(
    rig: Rig, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOKED_AT", 3)
    monkeypatch.setattr(retention, "_PAGE", retention._PAGE.bindparams(rows=3))
    monkeypatch.setattr(retention, "BATCH", 2)
    blocked = [await ended(rig) for _ in range(4)]
    free = [await ended(rig) for _ in range(5)]
    for job_id in blocked:
        await rig.execute("INSERT INTO queue.lease_ends VALUES (:job_id, 1, true, queue.now())", job_id=job_id)
    await clock.advance(31 * DAY)
    await run_pass(made(rig, MONTH, None))
    assert await hidden(rig, *blocked, *free) == free


# The export.


async def test_the_export_is_what_the_command_line_writes(rig: Rig, clock: Clock, directory: Path) -> None:
    job_ids = [await ended(rig, os.urandom(900) * 2_500), await ended(rig)]
    canceled = await rig.create()
    await rig.cancel(canceled)
    request = job_service_pb2.ExportJobsRequest(include_logs=True)
    wanted = ExportJobs((), JobFilter(), include_logs=True, start=None)
    async with aclosing(exports.export(rig.database, Wakes(), wanted)) as parts:
        expected = [json.loads(terminal.line(convert.to_part(request, part))) async for part in parts]
    await clock.advance(31 * DAY)
    await run_pass(made(rig, MONTH, directory))
    (file,) = files(directory)
    assert file.name.startswith(f"jobs-{job_ids[0]}-{canceled}-") and file.name.endswith(".ndjson.gz")
    assert file.stat().st_mode & 0o777 == 0o600
    found = lines(file)
    for both in (expected, found):
        for line in both:
            line["resumeToken"] = bool(line["resumeToken"])  # says up to which job it goes
    assert found == expected
    assert [line["jobId"] for line in found if line["resumeToken"]] == [str(i) for i in (*job_ids, canceled)]
    assert await hidden(rig, *job_ids, canceled) == [*job_ids, canceled]
    assert (await removal(rig, canceled)).export == file.name
    with pytest.raises(JobNotFound, match=f"deleted by retention .* days ago; exported to {re.escape(file.name)};"):
        await rig.whole(canceled)


async def test_every_line_can_be_read_back(rig: Rig, clock: Clock, directory: Path) -> None:
    output = os.urandom(50_000)
    await ended(rig, output)
    await clock.advance(31 * DAY)
    await run_pass(made(rig, MONTH, directory))
    read = [json_format.ParseDict(line, job_service_pb2.ExportJobsResponse()) for line in lines(files(directory)[0])]
    assert b"".join(frame.chunk.data for each in read for frame in each.frames.frames) == output


MANIFEST = """
name: test.kept
version: 1.0.0
operations:
  use: {command: ["true"], inputs: {document: {type: file}}}
"""


async def test_what_is_deleted_can_be_created_again_from_its_first_line(
    rig: Rig, clock: Clock, directory: Path, tmp_path: Path
) -> None:
    """Its files too, of which nothing else is left."""
    await rig.push(tmp_path, MANIFEST)
    given = {"document": File("notes.txt", bytes(range(256)))}
    job_id = await rig.create(package_name="test.kept", operation="use", parameters=given)
    await rig.cancel(job_id)
    await clock.advance(31 * DAY)
    await run_pass(made(rig, MONTH, directory))
    assert await hidden(rig, job_id) == [job_id]
    job = json_format.ParseDict(lines(files(directory)[0])[0]["job"], job_pb2.Job())
    request = job_service_pb2.CreateJobRequest(
        display_name=job.display_name, type=job.type, package=job.package, operation=job.operation,
        parameters=job.parameters, site_target=job.site_target,
    )  # fmt: skip
    assert convert_jobs.create_job(request, Limits()).parameters == given


async def test_a_log_of_many_frames(rig: Rig, clock: Clock, directory: Path) -> None:
    """A part at a time, never the whole."""
    count = 20_000
    key, spool = await rig.started("a")
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    await rig.execute(
        "INSERT INTO queue.log SELECT job_id, attempt, n, channel, severity, at, body FROM queue.log,"
        " generate_series(4, :last) n WHERE job_id = :job_id AND sequence = 1",
        job_id=key.job_id, last=count,
    )  # fmt: skip
    await rig.execute(
        "UPDATE queue.attempts SET sequence = :last WHERE job_id = :job_id", last=count, job_id=key.job_id
    )
    await clock.advance(31 * DAY)
    largest = 0

    def to_line(part: Part) -> bytes:
        nonlocal largest
        line = convert.to_line(part)
        largest = max(largest, len(line))
        return line

    await run_pass(made(rig, MONTH, directory, to_line))
    (file,) = files(directory)
    assert sum(len(line["frames"]["frames"]) for line in lines(file) if "frames" in line) == count
    assert largest < 4 << 20
    assert await hidden(rig, key.job_id) == [key.job_id]


async def test_a_batch_that_takes_its_time_ends_with_the_job_in_hand(
    rig: Rig, clock: Clock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_SECONDS", 0.0)
    job_ids = [await ended(rig) for _ in range(3)]
    await clock.advance(31 * DAY)
    worker = made(rig, MONTH, directory)
    assert await worker.step()
    assert await hidden(rig, *job_ids) == job_ids[:1]
    await run_pass(worker)
    assert exported(directory) == dict.fromkeys(job_ids, 1) and len(files(directory)) == 3


async def test_a_job_that_changes_while_it_is_exported_is_kept_until_the_next_time(
    rig: Rig, clock: Clock, directory: Path
) -> None:
    job_ids = [await ended(rig) for _ in range(2)]
    await clock.advance(31 * DAY)
    loop, changed = asyncio.get_running_loop(), False

    def to_line(part: Part) -> bytes:
        nonlocal changed
        if part.job_id == job_ids[0] and part.position is not None and not changed:
            changed = True
            asyncio.run_coroutine_threadsafe(rig.rerun(job_ids[0]), loop).result(10)
        return convert.to_line(part)

    worker = made(rig, MONTH, directory, to_line)
    await run_pass(worker)
    assert changed and await hidden(rig, *job_ids) == job_ids[1:]
    await run_pass(worker)
    assert await hidden(rig, *job_ids) == job_ids
    last = max(files(directory), key=lambda file: file.stat().st_mtime_ns)
    assert any(line["history"]["event"] == "RERUN" for line in lines(last) if "history" in line)


async def test_a_job_that_cannot_be_exported_is_kept_and_holds_up_no_other(
    rig: Rig, clock: Clock, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job_ids = [await ended(rig) for _ in range(3)]
    await clock.advance(31 * DAY)

    def to_line(part: Part) -> bytes:
        if part.job_id == job_ids[1]:
            raise ValueError("no JSON for it")
        return convert.to_line(part)

    worker = made(rig, MONTH, directory, to_line)
    for _ in range(3):
        await run_pass(worker)
    assert await hidden(rig, *job_ids) == [job_ids[0], job_ids[2]]
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        f"job {job_ids[1]} cannot be exported, so it is kept"
    ]


# What fails.


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Lets this process write no file that is larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_nothing_is_deleted_while_the_export_cannot_be_written(
    rig: Rig, clock: Clock, directory: Path, small_files: Callable[[int], None]
) -> None:
    job_ids = [await ended(rig, os.urandom(200_000)), await ended(rig)]
    await clock.advance(31 * DAY)
    worker = made(rig, MONTH, directory)
    small_files(50_000)
    for _ in range(2):
        with pytest.raises(OSError, match="too large"):
            await worker.step()
        assert await hidden(rig, *job_ids) == [] and files(directory) == []
    small_files(resource.RLIM_INFINITY)
    await run_pass(worker)
    assert exported(directory) == dict.fromkeys(job_ids, 1)


@pytest.mark.root
async def test_nothing_is_deleted_while_the_disk_is_full(rig: Rig, clock: Clock, directory: Path) -> None:
    job_ids = [await ended(rig, os.urandom(200_000)), await ended(rig)]
    await clock.advance(31 * DAY)
    worker = made(rig, MONTH, directory)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=True, timeout=60)
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                await worker.step()
            assert await hidden(rig, *job_ids) == [] and files(directory) == []
        subprocess.run(["mount", "-o", "remount,size=4m", directory], check=True, timeout=60)
        await run_pass(worker)
        assert exported(directory) == dict.fromkeys(job_ids, 1)
    finally:
        subprocess.run(["umount", directory], check=True, timeout=60)


class Hanging:
    """A directory that answers nobody any more, until it is let go."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self.reached: list[str] = []

    def at(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def stands(*values: Any) -> Any:
            self.reached.append(name)
            assert self._free.wait(60), f"nobody let go of {name}"
            return act(*values)

        return stands

    def let_go(self) -> None:
        self._free.set()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    found = Hanging()
    yield found
    found.let_go()


async def test_a_directory_that_hangs_when_a_file_is_discarded_freezes_nothing(
    rig: Rig, clock: Clock, directory: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    monkeypatch.setattr(retention, "DISCARD_SECONDS", 0.01)
    job_id = await ended(rig)
    await clock.advance(31 * DAY)

    def full(*_: object) -> None:
        raise OSError(errno.EIO, "the server is gone")

    worker = made(rig, MONTH, directory)
    with monkeypatch.context() as broken:
        broken.setattr(ExportFile, "write", full)
        broken.setattr(ExportFile, "discard", hanging.at("discard", ExportFile.discard))
        with pytest.raises(OSError, match="the server is gone"):
            await worker.step()
    assert hanging.reached == ["discard"] and len(files(directory)) == 1
    assert await hidden(rig, job_id) == []
    hanging.let_go()
    await run_pass(worker)
    # What could not be discarded then is discarded in its turn.
    assert exported(directory) == {job_id: 1} and await hidden(rig, job_id) == [job_id]


@pytest.mark.parametrize("where", ["remove_leftovers", "ExportFile"])
async def test_a_directory_that_hangs_is_given_up_and_said(
    rig: Rig, clock: Clock, directory: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging, where: str
) -> None:
    monkeypatch.setattr(retention, "FILE_SECONDS", 0.3)
    job_id = await ended(rig)
    await clock.advance(31 * DAY)
    worker = made(rig, MONTH, directory)
    with monkeypatch.context() as broken:
        broken.setattr(retention, where, hanging.at(where, getattr(retention, where)))
        for _ in range(3):
            with pytest.raises(TimeoutError) as caught:
                await worker.step()
            assert "it takes too long; make room there" in worker._explained(caught.value)
    # However often it is tried, one thread waits for it.
    assert hanging.reached == [where] and await hidden(rig, job_id) == []
    hanging.let_go()
    monkeypatch.setattr(retention, "FILE_SECONDS", 45.0)
    await run_pass(worker)
    assert await hidden(rig, job_id) == [job_id]


async def test_a_job_that_is_purged_while_it_is_exported_holds_up_no_other(
    rig: Rig, clock: Clock, directory: Path
) -> None:
    job_ids = [await ended(rig) for _ in range(2)]
    await clock.advance(31 * DAY)
    loop = asyncio.get_running_loop()

    async def purged() -> None:
        await rig.delete(job_ids[0])
        await rig.execute("DELETE FROM queue.log WHERE job_id = :job_id", job_id=job_ids[0])

    def to_line(part: Part) -> bytes:
        if part.job_id == job_ids[0] and isinstance(part.content, JobView):
            asyncio.run_coroutine_threadsafe(purged(), loop).result(10)
        return convert.to_line(part)

    await run_pass(made(rig, MONTH, directory, to_line))
    assert (await removal(rig, job_ids[0])).by.name == "alice"
    assert await hidden(rig, *job_ids) == job_ids and exported(directory) == {job_ids[1]: 1}


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(90):
        while not await condition():  # noqa: ASYNC110  (another process does it)
            await asyncio.sleep(0.02)


async def test_what_is_wrong_is_said_once_and_tried_again(
    rig: Rig, clock: Clock, directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    class Impatient(Backoff):
        def next_delay(self) -> float:
            nonlocal tries
            tries += 1
            return 0.01

    monkeypatch.setattr(retention, "Backoff", Impatient)
    monkeypatch.setattr(retention, "INTERVAL_SECONDS", 0.01)
    caplog.set_level("INFO", "retention")
    job_id = await ended(rig)
    await clock.advance(31 * DAY)
    directory.rmdir()

    async def failed_often() -> bool:
        return tries > 3

    async def recovered() -> bool:
        return len(caplog.messages) > 1

    task = asyncio.create_task(made(rig, MONTH, directory).run())
    try:
        await until(failed_often)
        assert await hidden(rig, job_id) == []
        directory.mkdir()
        await until(recovered)
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert caplog.messages == [
        f"ended jobs are not deleted, as they cannot be exported to {directory}: No such file or directory;"
        " make room there, or see to it that it can be written",
        "ended jobs are deleted again",
    ]
    assert exported(directory) == {job_id: 1} and await hidden(rig, job_id) == [job_id]


async def test_parts_of_the_dead_are_removed_once_they_are_old(rig: Rig, clock: Clock, directory: Path) -> None:
    old, young, other = (directory / name for name in ("jobs-1.ndjson.gz.part", "jobs-2.ndjson.gz.part", "notes.part"))
    for file in (old, young, other):
        file.touch()
    for file in (old, other):
        past = time.time() - export_files.PART_SECONDS - 60
        os.utime(file, (past, past))
    await run_pass(made(rig, MONTH, directory))
    assert files(directory) == [young, other]


async def test_a_database_that_fails_after_the_export_deletes_nothing(
    rig: Rig, clock: Clock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await ended(rig)
    await clock.advance(31 * DAY)
    worker = made(rig, MONTH, directory)

    async def fails(*_: object) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as broken:
        broken.setattr(removals, "note", fails)
        with pytest.raises(ConnectionError):
            await worker.step()
    assert await hidden(rig, job_id) == [] and exported(directory) == {job_id: 1}
    await run_pass(worker)
    assert await hidden(rig, job_id) == [job_id] and exported(directory) == {job_id: 2}


@pytest.mark.parametrize("point", ["queue.retention.written", "queue.retention.exported", "queue.retention.committing"])
async def test_a_kill_between_export_and_deletion_exports_twice_and_loses_nothing(
    rig: Rig, own_url: str, directory: Path, tmp_path: Path, authority: CertificateAuthority, point: str
) -> None:
    job_ids = [await ended(rig) for _ in range(3)]
    await rig.execute("UPDATE queue.jobs SET completed_at = completed_at - interval '2 days'")
    faults = FaultPoints(tmp_path / "faults")
    settings = {"RETENTION_AGE": 1.5, "RETENTION_EXPORT": directory}
    faults.arm(point)
    server = QueueServer(own_url, authority, tmp_path, settings, faults.environment)
    server.start()
    try:
        assert server.process is not None
        await asyncio.to_thread(server.process.wait, 90)
        assert await hidden(rig, *job_ids) == []
        left = [file.suffix for file in files(directory)]
        assert left == ([".part"] if point == "queue.retention.written" else [".gz"])
    finally:
        server.stop()
    for part in directory.glob("*.part"):
        part.unlink()
    with QueueServer(own_url, authority, tmp_path, settings):

        async def all_hidden() -> bool:
            return await hidden(rig, *job_ids) == job_ids

        await until(all_hidden)
    assert exported(directory) == dict.fromkeys(job_ids, 1 if point == "queue.retention.written" else 2)
    await check(rig.database, job_ids)


# Many replicas, and who watches.


async def test_replicas_share_the_work_and_export_each_job_once(
    rig: Rig, clock: Clock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    job_ids = [await ended(rig) for _ in range(20)]
    await clock.advance(31 * DAY)
    workers = [made(rig, MONTH, directory) for _ in range(3)]
    await asyncio.gather(*(run_pass(worker) for worker in workers))
    await run_pass(workers[0])
    assert await hidden(rig, *job_ids) == job_ids
    assert exported(directory) == dict.fromkeys(job_ids, 1)
    for job_id in job_ids:
        assert (await rig.events(job_id)).count("DELETE") == 1


async def test_one_goes_on_while_another_stands_still_with_its_batch(
    rig: Rig, clock: Clock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    job_ids = [await ended(rig) for _ in range(6)]
    await clock.advance(31 * DAY)
    loop = asyncio.get_running_loop()
    standing, go_on = asyncio.Event(), asyncio.Event()

    def stands_still(part: Part) -> bytes:
        loop.call_soon_threadsafe(standing.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        return convert.to_line(part)

    slow = asyncio.create_task(run_pass(made(rig, MONTH, directory, stands_still)))
    await standing.wait()
    # What it does meanwhile holds back no watcher: it has changed nothing yet.
    async with rig.database.begin() as connection:
        holding = await connection.exec_driver_sql(
            "SELECT query FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
        )
        assert holding.all() == []
    await run_pass(made(rig, MONTH, directory))
    assert await hidden(rig, *job_ids) == job_ids[2:]
    go_on.set()
    await slow
    assert await hidden(rig, *job_ids) == job_ids and exported(directory) == dict.fromkeys(job_ids, 1)


async def test_who_watches_a_list_sees_them_go_and_then_they_are_purged(rig: Rig, clock: Clock) -> None:
    job_ids = [await ended(rig) for _ in range(3)]
    await clock.advance(31 * DAY)
    async with rig.database.begin() as connection:
        start = await watching.here(connection)
    gone: list[int] = []
    async with aclosing(watching.watch(rig.database, Wakes(), JobFilter(), start)) as changes:
        await anext(changes)
        await run_pass(made(rig, MONTH, None))
        async with asyncio.timeout(20):
            while len(gone) < 3:
                gone += (await anext(changes)).gone
    assert sorted(gone) == job_ids
    sweeper = Sweeper(rig.database)
    await clock.advance(removals.PURGE_AFTER.total_seconds() + 1)
    await sweeper.sweep()
    async with rig.database.begin() as connection:
        left = await connection.exec_driver_sql("SELECT count(*) FROM queue.jobs")
        assert left.scalar_one() == 0
    # What is left says so for a year.
    assert (await removal(rig, job_ids[0])).by.name == "retention"
    await clock.advance(purge.REMOVALS_KEPT.total_seconds())
    await sweeper.sweep()
    async with rig.database.begin() as connection:
        assert await removals.find(connection, job_ids[0]) is None
