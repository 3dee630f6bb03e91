"""An agent that is killed, and the one that takes over: nothing is started twice and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.sis_agent.agent.attempts import ASSIGNMENT, AttemptDirectories, AttemptKey
from services.sis_agent.agent.journal import Journal, Step
from services.sis_agent.agent.recording.spool import SpoolWriter
from services.sis_agent.agent.supervision.supervisor_identity import IDENTITY, MARK, SupervisorIdentity
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2, job_pb2
from tests.fakes.hub import FakeHub, Log, Stream
from tests.integration.agent.site import Site, has_ended, key, until
from tests.support.agent_process import AgentProcess
from tests.support.attempts import is_alive
from tests.support.certificates import CertificateAuthority
from tests.support.fault_points import FaultPoints
from tests.support.tcp_proxy import TcpProxy

# Waits in the middle, since a new agent may take longer to come up than all the lines.
LINES = """
i=0
while [ $i -lt 80 ]; do
    i=$((i+1)); echo line $i; sleep 0.02
    [ $i != 60 ] || until [ -e $SCRATCH/go ]; do sleep 0.02; done
done
"""
NUMBERED = b"".join(b"line %d\n" % n for n in range(1, 81))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    authority = CertificateAuthority(tmp_path / "tls")
    hub = FakeHub(authority)
    await hub.start()
    async with TcpProxy(f"127.0.0.1:{hub.port}") as proxy:
        agent = AgentProcess(tmp_path / "state", proxy.endpoint, authority)
        try:
            yield Site(hub, agent, tmp_path, proxy)
        finally:
            await agent.clear()
            await hub.stop()


async def welcomed(site: Site) -> Stream:
    stream = await site.hub.stream()
    stream.welcome()
    return stream


async def test_killed_in_the_middle_of_a_job_it_finds_its_supervisor_again(site: Site) -> None:
    site.agent.start()
    stream = await welcomed(site)
    job = site.job(site.started(LINES))
    log = site.hub.logs[key(job)]
    await stream.accept(job)
    for lines in (10, 30, 50):
        await stream.commit_until(lambda: log.output.count(b"\n") >= lines)  # noqa: B023  (awaited here)
        site.agent.kill()
        site.agent.start()
        stream = await welcomed(site)
        assert list(stream.in_hand) == [key(job)]
    (site.scratch / "go").touch()
    await stream.commit_all(key(job))
    assert log.output == NUMBERED
    assert log.finished is not None
    assert log.finished.outcome == frame_pb2.OUTCOME_SUCCEEDED
    assert site.starts == 1
    await until(lambda: not site.agent.attempts())


async def begun(site: Site, then: str) -> tuple[dispatch.Assignment, Log]:
    """A job whose agent has reported that it has begun. It goes on once there is $SCRATCH/go."""
    site.agent.start()
    stream = await welcomed(site)
    job = site.job(site.started(f"echo begun; until [ -e $SCRATCH/go ]; do sleep 0.02; done; {then}"))
    log = site.hub.logs[key(job)]
    await stream.accept(job)
    await stream.commit_until(lambda: log.output == b"begun\n")
    return job, log


async def test_told_to_end_it_leaves_the_job_running_and_reports_its_end_later(site: Site) -> None:
    job, log = await begun(site, "echo over")
    assert await site.agent.terminate() == 0
    (directory,) = site.agent.attempts()
    assert not has_ended(directory)
    (site.scratch / "go").touch()
    await until(lambda: has_ended(directory), "the job ends without its agent")
    site.agent.start()
    stream = await welcomed(site)
    await stream.commit_all(key(job))
    assert (log.output, site.starts) == (b"begun\nover\n", 1)


async def test_killed_at_any_moment_of_the_start_it_starts_an_attempt_at_most_once(site: Site) -> None:
    site.agent.start()
    stream = await welcomed(site)
    warm = site.job("true")
    await stream.accept(warm)
    await stream.commit_all(key(warm))
    moments = random.Random(4)
    outcomes = []
    for _ in range(6):
        before = site.starts
        job = site.job(site.started())
        stream.assign(job)
        stream.acknowledge(await stream.report())
        await asyncio.sleep(moments.uniform(0, 0.02))
        site.agent.kill()
        site.agent.start()
        stream = await welcomed(site)
        await stream.commit_all(key(job))
        finished = site.hub.logs[key(job)].finished
        assert finished is not None
        started = site.starts - before
        outcomes.append((started, finished.outcome, finished.failure_reason))
    for started, outcome, reason in outcomes:
        if outcome == frame_pb2.OUTCOME_SUCCEEDED:
            assert started == 1
        else:
            assert (started <= 1, reason) == (True, "SUPERVISOR_LOST")


@pytest.mark.parametrize(
    ("point", "in_hand", "starts", "reason"),
    [
        ("agent.assigned", False, 1, ""),
        ("agent.accepted.journalled", True, 1, ""),
        ("agent.spawning.journalled", True, 0, "SUPERVISOR_LOST"),
    ],
)
async def test_killed_at_each_step_of_the_start(
    site: Site, point: str, in_hand: bool, starts: int, reason: str
) -> None:
    faults = FaultPoints(site.scratch / "faults")
    site.agent.environment.update(faults.environment)
    site.agent.start()
    stream = await welcomed(site)
    faults.arm(point)
    job = site.job(site.started())
    stream.assign(job)
    if point == "agent.spawning.journalled":
        stream.acknowledge(await stream.report())
    assert await site.agent.ended() == -signal.SIGKILL
    site.agent.start()
    stream = await welcomed(site)
    assert list(stream.in_hand) == ([key(job)] if in_hand else [])
    if not in_hand:
        stream.assign(job)
    await stream.commit_all(key(job))
    finished = site.hub.logs[key(job)].finished
    assert finished is not None
    assert (site.starts, finished.failure_reason) == (starts, reason)


@pytest.mark.parametrize("point", ["agent.declined.journalling", "agent.declined.journalled"])
async def test_killed_around_the_record_of_a_decline_it_declines_all_the_same(site: Site, point: str) -> None:
    faults = FaultPoints(site.scratch / "faults")
    site.agent.environment.update(faults.environment)
    site.agent.start()
    stream = await welcomed(site)
    faults.arm(point)
    job = site.job(site.started())
    job.package.digest = "not a digest"
    stream.assign(job)
    assert await site.agent.ended() == -signal.SIGKILL
    site.agent.start()
    stream = await welcomed(site)
    assert not stream.in_hand
    if point == "agent.declined.journalling":
        stream.assign(job)
    report = await stream.report()
    assert (report.attempt, report.WhichOneof("content")) == (job.attempt, "declined")
    assert site.starts == 0


async def test_a_supervisor_that_is_killed_is_finished_for(site: Site) -> None:
    site.agent.start()
    stream = await welcomed(site)
    jobs = [site.job("sleep 1000 & echo begun; wait") for _ in range(2)]
    logs = [site.hub.logs[key(job)] for job in jobs]
    await stream.accept(*jobs)
    await stream.commit_until(lambda: all(log.output == b"begun\n" for log in logs))
    first, second = (supervisor(directory) for directory in site.agent.attempts())
    os.kill(first, signal.SIGKILL)
    await stream.commit_all(key(jobs[0]))
    site.agent.kill()
    os.kill(second, signal.SIGKILL)
    site.agent.start()
    stream = await welcomed(site)
    await stream.commit_all(*map(key, jobs))
    for log in logs:
        assert log.finished is not None
        assert (log.finished.outcome, log.finished.failure_reason) == (frame_pb2.OUTCOME_FAILED, "SUPERVISOR_LOST")
        assert log.finished.evidence.tree_empty == (log.finished.evidence.method in ("cgroup", "guardian"))


async def test_what_killed_supervisors_left_in_memory_is_removed_by_the_next_agent(site: Site) -> None:
    """Also of an attempt that no agent takes up any more."""
    site.agent.start()
    stream = await welcomed(site)
    jobs = [site.job('dirname "$SIS_OUTPUT"; exec sleep 1000') for _ in range(2)]
    logs = [site.hub.logs[key(job)] for job in jobs]
    await stream.accept(*jobs)
    await stream.commit_until(lambda: all(log.output.endswith(b"\n") for log in logs))
    left = [Path(os.fsdecode(log.output).strip()) for log in logs]
    site.agent.kill()
    for directory in site.agent.attempts():
        os.kill(supervisor(directory), signal.SIGKILL)
    AttemptDirectories(site.agent.state / "attempts").orphan(AttemptKey(*key(jobs[0])))
    journal = Journal.open_or_create(site.agent.state / "journal", lambda: None)
    journal.append(Step.FORGOTTEN, [AttemptKey(*key(jobs[0]))])
    journal.close()
    assert all(path.exists() for path in left)
    site.agent.start()
    stream = await welcomed(site)
    await stream.commit_all(key(jobs[1]))
    await until(lambda: not any(path.exists() for path in left), "what is in memory is removed")
    assert (site.agent.attempts()[0] / "orphaned").exists()


@pytest.mark.parametrize("names", [("supervisor.json",), ("supervisor.json", "guarded")], ids=["record", "both"])
async def test_a_supervisor_whose_record_is_gone_is_found_again(site: Site, names: tuple[str, ...]) -> None:
    job, log = await begun(site, "echo on; exec sleep 1000")
    site.agent.kill()
    (directory,) = site.agent.attempts()
    for name in names:
        (directory / name).unlink()
    site.agent.start()
    stream = await welcomed(site)
    (site.scratch / "go").touch()
    await stream.commit_until(lambda: log.output == b"begun\non\n")
    stream.stop(key(job), frame_pb2.STOP_KIND_ABORT)
    await stream.commit_all(key(job))
    assert log.finished is not None
    assert (log.finished.outcome, site.starts) == (frame_pb2.OUTCOME_STOPPED, 1)
    assert log.finished.evidence.tree_empty


async def test_a_supervisor_whose_record_cannot_be_read_for_some_seconds_is_followed_all_the_same(site: Site) -> None:
    """Its attempt was given up after two, while it ran on."""
    job, log = await begun(site, "echo over")
    site.agent.kill()
    (directory,) = site.agent.attempts()
    written = [directory / name for name in (IDENTITY, MARK)]
    for path in written:
        path.rename(path.with_name(f"{path.name}.aside"))
        path.mkdir()
    site.agent.start()
    try:
        stream = await welcomed(site)
        await until(lambda: site.agent.log.count("[Errno 21] Is a directory") >= 6, "the sixth try")
    finally:
        for path in written:
            path.rmdir()
            path.with_name(f"{path.name}.aside").rename(path)
    (site.scratch / "go").touch()
    await stream.commit_all(key(job))
    assert log.finished is not None
    assert (log.output, log.finished.outcome) == (b"begun\nover\n", frame_pb2.OUTCOME_SUCCEEDED)
    assert site.starts == 1
    assert "is not reported any more" not in site.agent.log


async def test_an_attempt_whose_log_was_damaged_where_it_was_sent_long_ago_is_not_in_hand_for_ever(site: Site) -> None:
    site.agent.start()
    stream = await welcomed(site)
    job = site.job("for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.02; done; exec sleep 1000")
    log = site.hub.logs[key(job)]
    await stream.accept(job)
    await stream.commit_until(lambda: b"line 8" in log.output)
    (directory,) = site.agent.attempts()
    spool = directory / "spool"
    spool.write_bytes(spool.read_bytes().replace(b"line 1", b"line x"))
    os.kill(supervisor(directory), signal.SIGKILL)
    await stream.beat(lambda beat: not beat.attempts)
    assert "the server has more of its log than this site" in site.agent.log
    assert (directory / "orphaned").exists()


def supervisor(directory: Path) -> int:
    identity = SupervisorIdentity.read(directory)
    assert identity is not None
    return identity.pid


async def test_connections_that_are_cut_lose_nothing(site: Site) -> None:
    site.agent.start()
    stream = await welcomed(site)
    job = site.job(site.started(LINES))
    log = site.hub.logs[key(job)]
    await stream.accept(job)
    for lines in (10, 30, 50):
        await stream.commit_until(lambda: log.output.count(b"\n") >= lines)  # noqa: B023  (awaited here)
        assert site.proxy is not None
        site.proxy.cut()
        stream = await welcomed(site)
    (site.scratch / "go").touch()
    await stream.commit_all(key(job))
    assert (log.output, site.starts) == (NUMBERED, 1)


async def test_a_damaged_journal_is_set_aside_and_its_attempts_are_left_to_people(site: Site) -> None:
    site.agent.start()
    stream = await welcomed(site)
    journal_id = stream.hello.journal_id
    job = site.job("echo begun; exec sleep 1000")
    await stream.accept(job)
    await stream.commit_until(lambda: site.hub.logs[key(job)].output == b"begun\n")
    site.agent.kill()
    path = site.agent.state / "journal"
    path.write_bytes(path.read_bytes().replace(b"ACCEPTED", b"ACCEPTEX"))
    site.agent.start()
    stream = await welcomed(site)
    assert (stream.in_hand, stream.hello.record_number) == ({}, 1)
    assert stream.hello.journal_id not in ("", journal_id)
    assert len(list(site.agent.state.glob("journal.damaged-*"))) == 1
    (directory,) = site.agent.attempts()
    assert not has_ended(directory), "nobody has asked for its end"
    stream.assign(job)
    stream.stop(key(job), frame_pb2.STOP_KIND_ABORT)
    await until(lambda: has_ended(directory), "it can be stopped all the same")
    await stream.accept(other := site.job("true"))
    await stream.commit_all(key(other))
    assert stream.reports_waiting() == 0
    assert directory.exists()


@pytest.mark.parametrize("supervisor_is", ["known", "damaged", "unwritten"])
async def test_a_journal_that_has_lost_the_start_starts_nothing_again(site: Site, supervisor_is: str) -> None:
    """Nor does anybody else know of it: its supervisor is dead, and no frame of it was ever shipped."""
    site.agent.start()
    stream = await welcomed(site)
    job = site.job(site.started("echo $$ > $SCRATCH/pid; mv $SCRATCH/pid $SCRATCH/payload; exec sleep 1000"))
    await stream.accept(job)
    await until((site.scratch / "payload").exists, "the payload")
    site.agent.kill()
    (directory,) = site.agent.attempts()
    os.kill(supervisor(directory), signal.SIGKILL)
    journal, identity = site.agent.state / "journal", directory / IDENTITY
    os.truncate(journal, journal.read_bytes().index(b"SPAWNING"))
    if supervisor_is == "damaged":
        identity.write_bytes(identity.read_bytes()[:-9])
    if supervisor_is == "unwritten":
        identity.unlink()
    site.agent.start()
    stream = await welcomed(site)
    assert list(stream.in_hand) == [key(job)]
    await stream.commit_all(key(job))
    finished = site.hub.logs[key(job)].finished
    assert finished is not None
    assert (finished.outcome, finished.failure_reason) == (frame_pb2.OUTCOME_FAILED, "SUPERVISOR_LOST")
    assert site.starts == 1
    assert not is_alive(int((site.scratch / "payload").read_text()))


STOP = frame_pb2.StopBegun(kind=frame_pb2.STOP_KIND_CANCEL, reason="enough")
ENDED = frame_pb2.Finished(outcome=frame_pb2.OUTCOME_FAILED, failure_reason="PACKAGE_UNAVAILABLE")
BEGUN = frame_pb2.ProcessStarted(process=job_pb2.Process(pid=1, role=job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR))


@pytest.mark.parametrize(
    ("steps", "facts", "expected"),
    [
        pytest.param([Step.ACCEPTED], [], (1, "OUTCOME_SUCCEEDED", ""), id="accepted"),
        pytest.param([Step.ACCEPTED], [None], (1, "OUTCOME_SUCCEEDED", ""), id="a line written"),
        pytest.param([Step.ACCEPTED], [STOP], (0, "OUTCOME_STOPPED", ""), id="a stop begun"),
        pytest.param([Step.ACCEPTED], [ENDED], (0, "OUTCOME_FAILED", "PACKAGE_UNAVAILABLE"), id="ended"),
        # From a journal that has lost its end.
        pytest.param([Step.ACCEPTED], [BEGUN], (0, "OUTCOME_FAILED", "SUPERVISOR_LOST"), id="a supervisor begun"),
        pytest.param([Step.ACCEPTED, Step.SPAWNING], [], (0, "OUTCOME_FAILED", "SUPERVISOR_LOST"), id="spawning"),
        pytest.param(
            [Step.ACCEPTED, Step.SPAWNING], [ENDED], (0, "OUTCOME_FAILED", "PACKAGE_UNAVAILABLE"), id="not spawned"
        ),
    ],
)
async def test_what_becomes_of_each_thing_that_a_dead_agent_can_leave(
    site: Site, steps: list[Step], facts: list[object], expected: tuple[int, str, str]
) -> None:
    job = site.job(site.started())
    directory = left_behind(site, job, steps)
    with SpoolWriter.open(directory / "spool") as spool:
        for fact in facts:
            spool.append_notice(frame_pb2.SEVERITY_INFO, "a line", fact)  # type: ignore[arg-type]
    site.agent.start()
    stream = await welcomed(site)
    assert list(stream.in_hand) == [key(job)]
    await stream.commit_all(key(job))
    log = site.hub.logs[key(job)]
    assert log.finished is not None
    outcome = frame_pb2.Outcome.Name(log.finished.outcome)
    assert (site.starts, outcome, log.finished.failure_reason) == expected
    assert sum(text.startswith("Stopping") for text in log.texts) == 0
    assert log.accepted == (1 if steps == [Step.ACCEPTED] else 0)


@pytest.mark.parametrize("steps", [[], [Step.ACCEPTED, Step.FORGOTTEN], [Step.ACCEPTED, Step.SPAWNING, Step.FORGOTTEN]])
async def test_what_is_not_in_hand_is_cleared_away(site: Site, steps: list[Step]) -> None:
    job = site.job(site.started())
    directory = left_behind(site, job, steps)
    site.agent.start()
    stream = await welcomed(site)
    assert stream.in_hand == {}
    assert not directory.exists()
    if not steps:  # it was never accepted: it can still be
        await stream.accept(job)
        await stream.commit_all(key(job))
        assert site.starts == 1


@pytest.mark.parametrize("name", ["supervisor.json", "guarded", "processes", "supervisor.log"])
async def test_an_attempt_whose_directory_shows_that_it_was_started_is_not_started_again(site: Site, name: str) -> None:
    """Whatever its journal says, and though nothing of it was reported: a file of its supervisor is enough."""
    job = site.job(site.started())
    (left_behind(site, job, [Step.ACCEPTED]) / name).touch()
    site.agent.start()
    stream = await welcomed(site)
    await stream.commit_all(key(job))
    finished = site.hub.logs[key(job)].finished
    assert finished is not None
    assert (finished.failure_reason, site.starts) == ("SUPERVISOR_LOST", 0)


@pytest.mark.parametrize("unreadable", [False, True])
async def test_an_attempt_that_has_lost_its_assignment_fails(site: Site, unreadable: bool) -> None:
    job = site.job(site.started())
    directory = left_behind(site, job, [Step.ACCEPTED])
    (directory / ASSIGNMENT).unlink()
    if unreadable:
        (directory / ASSIGNMENT).mkdir()
    else:
        directory.rmdir()
    site.agent.start()
    stream = await welcomed(site)
    await stream.commit_all(key(job))
    finished = site.hub.logs[key(job)].finished
    assert finished is not None
    assert (finished.failure_reason, site.starts) == ("AGENT_ERROR", 0)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([Step.ACCEPTED, Step.SPAWNING], id="spool"),
        # From a backup that was made before it was started: it must not be started again.
        pytest.param([Step.ACCEPTED], id="journal"),
    ],
)
async def test_a_server_that_has_more_than_the_site_is_not_contradicted(site: Site, steps: list[Step]) -> None:
    job = site.job(site.started())
    directory = left_behind(site, job, steps)
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome((key(job), dispatch.VERDICT_GO_ON, 500))
    await stream.beat(lambda beat: not beat.attempts)
    assert "the server has more of its log than this site" in site.agent.log
    assert (directory / "orphaned").exists()
    assert stream.reports_waiting() == 0
    assert site.starts == 0


def left_behind(site: Site, job: dispatch.Assignment, steps: list[Step]) -> Path:
    """The state of an agent that died after these steps; returns the attempt's directory."""
    directories = AttemptDirectories(site.agent.state / "attempts")
    directories.create(job)
    journal = Journal.create(site.agent.state / "journal")
    for step in steps:
        journal.append(step, [AttemptKey(*key(job))])
    journal.close()
    return directories.path(AttemptKey(*key(job)))
