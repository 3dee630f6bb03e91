"""What an agent does with its attempts when its disk fails it. The rest is tested with whole agents."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.runtime.backoff import Backoff
from services.runtime.errors import Unavailable
from services.sis_agent.agent import executor as executing
from services.sis_agent.agent import life, threads
from services.sis_agent.agent.attempts import AttemptDirectories, AttemptKey
from services.sis_agent.agent.errors import JournalUnwritable
from services.sis_agent.agent.executor import LIVES, Executor
from services.sis_agent.agent.journal import Journal, Step
from services.sis_agent.agent.life import Life, Site
from services.sis_agent.agent.package_cache import PackageCache
from services.sis_agent.agent.recording.spool import SpoolReader
from services.sis_agent.agent.shipping import Shipping
from services.sis_agent.agent.state_directory import StateDirectory
from services.sis_agent.agent.supervision.handle import SupervisorHandle, Zygote
from services.sis_agent.agent.supervision.supervisor_identity import IDENTITY, PROCESSES, SPOOL
from services.sis_agent.agent.threads import Removals
from sis.agent.v1 import agent_service_pb2 as agent
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2, job_pb2
from tests.support.attempts import eventually

KEY = AttemptKey(7, 1)


async def _fetch(digest: str, offset: int) -> AsyncIterator[bytes]:
    raise Unavailable(f"nothing is fetched here, not {digest} from {offset}")
    yield b""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    journal = Journal.create(tmp_path / "journal")
    packages = PackageCache(tmp_path / "packages", _fetch, 1 << 20)
    directories = AttemptDirectories(tmp_path / "attempts")
    room = StateDirectory(tmp_path)
    with ThreadPoolExecutor(1) as reading, contextlib.closing(Removals()) as removals:
        shipping = Shipping(reading)
        yield Site(journal, directories, shipping, packages, Zygote(), tmp_path / "identity", room, removals)
    await packages.close()
    journal.close()


@contextlib.contextmanager
def without_room(journal: Journal) -> Iterator[None]:
    descriptor = journal._descriptor
    with Path("/dev/full").open("wb") as full:
        journal._descriptor = full.fileno()
        yield
    journal._descriptor = descriptor


def assignment(key: AttemptKey = KEY, digest: str = "0" * 64) -> dispatch.Assignment:
    package = job_pb2.PackageReference(name="x", version="1.0.0", digest=digest)
    return dispatch.Assignment(attempt=key.to_proto(), package=package)


async def declined(site: Site) -> list[dispatch.Attempt]:
    reports, _ = await site.shipping.take()
    return [report.attempt for report in reports if report.HasField("declined")]


async def test_without_room_a_decline_that_was_taken_is_said_again_later(site: Site) -> None:
    """It does not end the stream, by which all the others are heard."""
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        executor.assign([assignment(digest="no digest")])
        assert await declined(site) == [KEY.to_proto()]
        answer = agent.Acknowledgement(attempt=KEY.to_proto())
        with without_room(site.journal):
            executor.acknowledge(answer, None)
        assert site.state.full
        assert site.journal.entries[KEY].step is Step.DECLINED
        executor.welcome([], 1 << 20)
        assert await declined(site) == [KEY.to_proto()]
        executor.acknowledge(answer, None)
        assert site.journal.entries[KEY].step is Step.FORGOTTEN


async def test_a_beat_says_that_there_was_no_room_although_there_is_some_again(site: Site) -> None:
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        with without_room(site.journal), pytest.raises(JournalUnwritable):
            executor.assign([assignment()])
        assert executor.beat().draining
        assert not executor.beat().draining


async def test_a_package_for_which_there_is_no_room_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job does not fail, and no other one is taken meanwhile."""
    tries = 0

    async def full(_digest: str) -> Path:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(site.packages, "get", full)
    monkeypatch.setattr(life, "RETRY_SECONDS", 0.01)
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        executor.assign([assignment()])
        await eventually(lambda: tries > 2)
        assert executor.beat().draining
        assert executor.beat().draining
        with SpoolReader(site.directories.path(KEY) / SPOOL) as spool:
            assert spool.finished is None
        await executor.close()
    assert not site.state.waiting


async def test_what_is_in_the_way_of_an_attempt_makes_no_full_disk(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.directories.path(KEY).symlink_to(site.directories.path(KEY))
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        with pytest.raises(OSError, match="File exists"):
            executor.assign([assignment()])
        assert not executor.beat().draining
    assert "no attempt of 7.1 can be taken: [Errno 17] File exists" in caplog.text
    assert KEY not in site.journal.entries


async def test_an_attempt_that_was_started_is_kept_though_the_journal_does_not_know_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not started again, and can be stopped."""
    for key in (KEY, AttemptKey(8, 1)):
        site.directories.create(assignment(key))
    (site.directories.path(KEY) / IDENTITY).touch()
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        executor.resume()
        assert list(site.directories) == [KEY]
        assert site.directories.is_orphaned(KEY)
        executor.assign([assignment()])
        assert site.journal.entries == {}
    assert "attempt 7.1 was started, and the journal does not know it" in caplog.text


async def test_a_stop_of_what_cannot_be_read_any_more_concerns_nobody_else(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    path = site.directories.path(KEY)
    path.mkdir()
    site.directories.orphan(KEY)
    (path / IDENTITY).mkdir()
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        executor.stop(dispatch.StopCommand(attempt=KEY.to_proto(), kind=frame_pb2.STOP_KIND_ABORT))
    assert "attempt 7.1, which is not reported any more, was not told to stop" in caplog.text


async def test_a_log_that_cannot_be_read_leaves_its_attempt_to_people_and_the_others_alone(site: Site) -> None:
    site.directories.create(assignment())
    (site.directories.path(KEY) / "spool").mkdir()
    site.journal.append(Step.ACCEPTED, [KEY])
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        executor.resume()
        executor.welcome([dispatch.AttemptVerdict(attempt=KEY.to_proto())], 1 << 20)
        assert site.directories.is_orphaned(KEY)
        assert site.journal.entries[KEY].step is Step.FORGOTTEN
        assert not executor.beat().attempts


async def test_a_file_that_never_can_be_read_makes_no_full_disk_and_its_attempt_is_left_to_people(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(life, "RETRY_SECONDS", 0.0)
    site.directories.create(assignment())
    (site.directories.path(KEY) / PROCESSES).mkdir()
    site.journal.append(Step.ACCEPTED, [KEY])
    site.journal.append(Step.SPAWNING, [KEY])
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        executor.resume()
        await eventually(lambda: site.directories.is_orphaned(KEY))
        assert not executor.beat().draining
    assert caplog.text.count("attempt 7.1 cannot go on: [Errno 21] Is a directory") == life.TRIES * LIVES
    assert site.journal.entries[KEY].step is Step.FORGOTTEN


async def test_a_supervisor_that_cannot_be_looked_for_now_is_looked_for_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five faults within three seconds, such as of a process that has no descriptor left, made its job AWOL."""
    monkeypatch.setattr(life, "RETRY_SECONDS", 0.0)
    adopt, faults = SupervisorHandle.adopt, iter(range(2 * LIVES))

    def out_of_descriptors(directory: Path) -> SupervisorHandle | None:
        if next(faults, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return adopt(directory)

    monkeypatch.setattr(SupervisorHandle, "adopt", out_of_descriptors)
    await end_of_what_was_spawned(site)


async def test_an_attempt_is_not_given_up_before_it_was_tried_for_as_long_as_is_promised(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Impatient(Backoff):
        def next_delay(self) -> float:
            return 0.0

    run, faults = Life.run, iter(range(2 * LIVES))

    async def faulty(self: Life) -> None:
        if next(faults, None) is not None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        await run(self)

    monkeypatch.setattr(executing, "Backoff", Impatient)
    monkeypatch.setattr(Life, "run", faulty)
    await end_of_what_was_spawned(site)
    assert caplog.text.count("a fault at attempt 7.1") == 2 * LIVES


async def end_of_what_was_spawned(site: Site) -> None:
    """Take up an attempt that the agent before had spawned; it is reported until it has its end."""
    site.directories.create(assignment())
    site.journal.append(Step.ACCEPTED, [KEY])
    site.journal.append(Step.SPAWNING, [KEY])
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 4, group)
        executor.resume()
        await eventually(lambda: site.directories.is_orphaned(KEY) or has_ended(site))
        assert not site.directories.is_orphaned(KEY)
        assert executor.beat().attempts == [KEY.to_proto()]
        await executor.close()


def has_ended(site: Site) -> bool:
    with SpoolReader(site.directories.path(KEY) / SPOOL) as spool:
        return spool.last_sequence > 0 and spool.finished is not None


async def test_leftovers_are_cleared_while_others_are_taken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be so many that it takes minutes, and until then nobody would hear of what runs."""
    site.directories.create(assignment())
    may_go = threading.Event()
    remove = threads.remove_tree

    def slowly(path: Path) -> None:
        may_go.wait(20)
        remove(path)

    monkeypatch.setattr(threads, "remove_tree", slowly)
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 1, group)
        executor.resume()
        assert list(site.directories) == []
        (left,) = site.directories.aside()
        may_go.set()
        await eventually(lambda: not left.exists())
        await executor.close()


async def test_what_the_agent_before_did_not_clear_is_cleared(site: Site) -> None:
    (site.directories.path(KEY) / "work").mkdir(parents=True)
    left = site.directories.set_aside(KEY)
    async with asyncio.TaskGroup() as group:
        executor = Executor(site, 1, group)
        executor.resume()
        await eventually(lambda: not left.exists())
        await executor.close()
