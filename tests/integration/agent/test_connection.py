"""A real agent and its real supervisors, at the other end of a stream on which the test plays the hub."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from services.runtime.errors import Aborted, FailedPrecondition, InvalidArgument, SisError, Unavailable
from services.runtime.probes import LIVENESS
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2, job_pb2
from sis.stack.ports import HOST, Reservations
from tests.fakes.hub import FakeHub
from tests.integration.agent.site import Site, has_ended, key, until
from tests.support.agent_process import AgentProcess
from tests.support.certificates import CertificateAuthority

LINES = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i; sleep 0.02; done"
NUMBERED = b"".join(b"line %d\n" % n for n in range(1, 61))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    authority = CertificateAuthority(tmp_path / "tls")
    hub = FakeHub(authority)
    await hub.start()
    agent = AgentProcess(tmp_path / "state", hub.endpoint, authority)
    try:
        yield Site(hub, agent, tmp_path)
    finally:
        await agent.clear()
        await hub.stop()


@pytest.fixture
def address() -> Iterator[str]:
    """Where nobody listens yet."""
    with Reservations() as ports:
        yield f"{HOST}:{ports.take(0)}"


async def test_a_job_from_its_assignment_to_its_end(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    hello = stream.hello
    assert (hello.slots, hello.record_number, hello.platform) == (4, 1, "linux")
    assert dict(hello.labels) == {"rack": "12", "room": "cellar"}
    assert hello.journal_id and hello.boot_id and hello.version and hello.hostname and not hello.attempts
    stream.welcome()
    await stream.beat(lambda beat: beat.free_slots == 4)
    job = site.job(site.started("echo out; echo err >&2"))
    await stream.accept(job)
    await stream.beat(lambda beat: beat.free_slots == 3 and len(beat.attempts) == 1)
    await stream.commit_all(key(job))
    log = site.hub.logs[key(job)]
    assert log.finished is not None
    assert log.finished.outcome == frame_pb2.OUTCOME_SUCCEEDED
    assert log.finished.evidence.tree_empty
    assert sorted(log.output.split()) == [b"err", b"out"]
    assert "Package test.shell 1.0.0 is not cached, downloading" in log.texts
    await stream.beat(lambda beat: beat.free_slots == 4 and not beat.attempts)
    await until(lambda: not site.agent.attempts(), "the directory is removed")
    assert (site.starts, log.accepted) == (1, 1)


async def test_its_probes_say_whether_a_hub_has_it(site: Site, address: str) -> None:
    site.agent.environment["SIS_AGENT_PROBE_LISTEN"] = address
    site.agent.start()
    stream = await site.hub.stream()
    async with grpc.aio.insecure_channel(address) as channel:

        async def status(service: str = "") -> int:
            request = HealthCheckRequest(service=service)
            return int((await HealthStub(channel).Check(request, timeout=20, wait_for_ready=True)).status)

        assert await status() == HealthCheckResponse.NOT_SERVING
        stream.welcome()
        await stream.beat(lambda beat: beat.free_slots == 4)
        assert await status() == HealthCheckResponse.SERVING
        await site.hub.stop()
        while await status() == HealthCheckResponse.SERVING:
            assert site.agent.pid
        assert await status(LIVENESS) == HealthCheckResponse.SERVING


async def test_nothing_starts_before_the_acceptance_is_committed(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(site.started())
    stream.assign(job)
    accepted = await stream.report()
    assert accepted.HasField("accepted")
    await until(lambda: site.hub.fetches, "the package is fetched meanwhile")
    beats = len(stream.beats)
    await stream.beat(lambda _: len(stream.beats) >= beats + 3)
    assert site.starts == 0
    assert not (site.agent.attempts()[0] / "supervisor.json").exists()
    stream.acknowledge(accepted)
    await stream.commit_all(key(job))
    assert site.starts == 1


async def test_an_assignment_that_is_repeated_is_accepted_again_and_started_once(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(site.started("until [ -e $SCRATCH/go ]; do sleep 0.02; done"))
    await stream.accept(job, job)
    await stream.commit_until(lambda: site.starts == 1)
    await stream.accept(job)
    stream.end()
    stream = await site.hub.stream()
    stream.welcome()
    await stream.accept(job)
    (site.scratch / "go").touch()
    await stream.commit_all(key(job))
    # Too late even for a copy that was lost on its way for a long time.
    await until(lambda: not site.agent.attempts())
    stream.assign(job)
    other = site.job("true")
    await stream.accept(other)
    await stream.commit_all(key(other))
    assert site.starts == 1


async def test_an_acceptance_whose_answer_was_lost_is_said_again(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(site.started())
    stream.assign(job)
    assert (await stream.report()).HasField("accepted")
    stream.end(Unavailable("the hub shuts down"))
    stream = await site.hub.stream()
    assert stream.in_hand == {key(job): 0}
    stream.welcome()
    report = await stream.report()
    assert report.HasField("accepted")
    stream.acknowledge(report)
    await stream.commit_all(key(job))
    assert site.starts == 1


async def test_a_new_stream_goes_on_behind_what_was_committed(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(LINES)
    log = site.hub.logs[key(job)]
    await stream.accept(job)
    await stream.commit_until(lambda: len(log.frames) >= 5)
    # One more is committed, and the answer is lost with the stream.
    log.append(list((await stream.report()).frames.frames))
    await site.hub.stop()
    unanswered = stream.reports_waiting()
    await site.hub.start()
    stream = await site.hub.stream()
    assert stream.in_hand[key(job)] < len(log.frames)
    stream.welcome()
    await stream.commit_all(key(job))
    assert log.output == NUMBERED
    assert unanswered >= 0
    assert log.received == len(log.frames), "what was committed is not sent again"


async def test_after_a_gap_frames_are_sent_again(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(LINES)
    log = site.hub.logs[key(job)]
    await stream.accept(job)
    await stream.commit_until(lambda: len(log.frames) >= 3)
    lost = await stream.report()
    gap = FailedPrecondition("frames are missing", subject="frames", condition="SEQUENCE_GAP")
    gap.reason = "SEQUENCE_GAP"
    stream.refuse(lost, gap, acknowledged_sequence=1)
    # Whatever else was under way is refused too, until the agent has heard of it.
    while True:
        report = await stream.report()
        if frame_pb2.Frame.FromString(report.frames.frames[0]).sequence == 2:
            break
        stream.refuse(report, gap, acknowledged_sequence=1)
    stream.acknowledge(report)
    await stream.commit_all(key(job))
    assert log.output == NUMBERED


async def test_a_refusal_that_may_pass_is_tried_again(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(site.started("echo hello"))
    stream.assign(job)
    for _ in range(2):
        stream.refuse(await stream.report(), Unavailable("the database restarts", retry_after=0.05))
    await stream.commit_until(lambda: site.hub.logs[key(job)].accepted == 1)
    for _ in range(3):
        stream.refuse(await stream.report(), Unavailable("the database restarts", retry_after=0.05))
    # What was under way behind the last of them is refused too.
    while True:
        report = await stream.report()
        if frame_pb2.Frame.FromString(report.frames.frames[0]).sequence == 1:
            break
        stream.refuse(report, Unavailable("the database restarts", retry_after=0.05))
    stream.acknowledge(report)
    await stream.commit_all(key(job))
    assert site.hub.logs[key(job)].output == b"hello\n"
    assert site.starts == 1


async def test_a_cancel_and_the_evidence_of_it(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job("(trap '' TERM; while :; do sleep 1; done) & echo begun; wait")
    log = site.hub.logs[key(job)]
    await stream.accept(job)
    await stream.commit_until(lambda: log.output == b"begun\n")
    stream.stop(key(job), frame_pb2.STOP_KIND_CANCEL, "enough")
    await stream.commit_all(key(job))
    assert (log.fact("stop_begun").kind, log.fact("stop_begun").reason) == (frame_pb2.STOP_KIND_CANCEL, "enough")
    assert log.finished is not None
    assert (log.finished.outcome, log.finished.evidence.tree_empty) == (frame_pb2.OUTCOME_STOPPED, True)


async def test_a_stop_before_anything_was_started(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(site.started())
    stream.assign(job)
    accepted = await stream.report()
    stream.stop((999, 1), frame_pb2.STOP_KIND_ABORT)  # nobody knows that one
    stream.stop(key(job), frame_pb2.STOP_KIND_CANCEL, "changed my mind")
    spool = site.agent.attempts()[0] / "spool"
    await until(lambda: spool.exists() and b"changed my mind" in spool.read_bytes(), "the stop is in the spool")
    stream.acknowledge(accepted)
    await stream.commit_all(key(job))
    log = site.hub.logs[key(job)]
    assert log.fact("stop_begun").reason == "changed my mind"
    assert log.finished is not None
    assert (log.finished.outcome, log.finished.evidence.tree_empty) == (frame_pb2.OUTCOME_STOPPED, True)
    assert site.starts == 0


async def test_the_verdict_kill_ends_an_attempt_and_all_of_it_is_reported(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    running, waiting = site.job("echo begun; exec sleep 1000"), site.job(site.started())
    log = site.hub.logs[key(running)]
    await stream.accept(running)
    await stream.commit_until(lambda: log.output == b"begun\n")
    stream.assign(waiting)
    await stream.report()
    stream.end(Aborted("a later stream was opened", reason="STALE_EPOCH"))
    stream = await site.hub.stream()
    kill = dispatch.VERDICT_KILL
    stream.welcome((key(running), kill, len(log.frames)), (key(waiting), kill, 0))
    await stream.commit_all(key(running), key(waiting))
    for each in (running, waiting):
        finished = site.hub.logs[key(each)].finished
        assert finished is not None
        assert (finished.outcome, finished.evidence.tree_empty) == (frame_pb2.OUTCOME_STOPPED, True)
    assert site.starts == 0


async def test_the_verdict_forget_ends_an_attempt_and_nothing_is_reported(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job("echo $$ > $SCRATCH/pid; echo up; exec sleep 1000")
    await stream.accept(job)
    await stream.commit_until(lambda: (site.scratch / "pid").exists() and bool(site.hub.logs[key(job)].frames))
    stream.end()
    stream = await site.hub.stream()
    stream.welcome((key(job), dispatch.VERDICT_FORGET, 0))
    await until(lambda: not site.agent.attempts(), "the directory is removed")
    assert not Path(f"/proc/{(site.scratch / 'pid').read_text().strip()}").exists()
    await stream.beat(lambda beat: beat.free_slots == 4)
    assert stream.reports_waiting() == 0


async def test_a_stop_of_what_was_let_go_ends_it_and_the_refusal_of_its_report_has_it_forgotten(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job("echo $$ > $SCRATCH/pid; trap '' TERM; while :; do sleep 60; done")
    await stream.accept(job)
    await stream.commit_until(lambda: (site.scratch / "pid").exists() and bool(site.hub.logs[key(job)].frames))
    # By force, while its stream was open all along.
    stream.stop(key(job), frame_pb2.STOP_KIND_ABORT, "it was given up for lost")
    report = await stream.report()
    stream.refuse(report, Aborted("it was given up for lost", reason="STALE_ATTEMPT"))
    await until(lambda: not site.agent.attempts(), "the directory is removed")
    assert not Path(f"/proc/{(site.scratch / 'pid').read_text().strip()}").exists()
    await stream.beat(lambda beat: beat.free_slots == 4)


async def test_what_has_no_slot_is_declined_once_and_for_all(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    jobs = [site.job("exec sleep 1000") for _ in range(4)]
    surplus = site.job(site.started())
    stream.assign(*jobs, surplus)
    reports = [await stream.report() for _ in range(5)]
    declined = [report for report in reports if report.HasField("declined")]
    assert [report.attempt for report in declined] == [surplus.attempt]
    assert declined[0].declined.reason == "all 4 slots of this agent are taken"
    # The answer is lost with the stream: it is said again, and so is the one to a repetition.
    stream.end()
    stream = await site.hub.stream()
    assert key(surplus) not in stream.in_hand
    stream.welcome(*((key(job), dispatch.VERDICT_KILL, 0) for job in jobs))
    stream.assign(surplus)
    log = site.hub.logs[key(surplus)]
    await stream.commit_until(lambda: len(log.declined) == 2)
    await stream.commit_all(*map(key, jobs))
    assert (log.accepted, site.starts) == (0, 0)


async def test_an_assignment_that_names_no_package_is_declined(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job("true", package=job_pb2.PackageReference(digest="../../etc"))
    stream.assign(job)
    assert "SHA-256" in (await stream.report()).declined.reason


async def test_a_start_that_takes_too_long_fails(site: Site) -> None:
    def unavailable() -> None:
        raise Unavailable("the queue does not answer")

    site.hub.on_fetch = unavailable
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job(site.started())
    job.start_timeout.FromSeconds(3)  # it is accepted in that time, too
    await stream.accept(job)
    await stream.commit_all(key(job))
    finished = site.hub.logs[key(job)].finished
    assert finished is not None
    assert (finished.outcome, finished.failure_reason) == (frame_pb2.OUTCOME_FAILED, "START_TIMEOUT")
    assert site.hub.logs[key(job)].texts[-1] == "Not started in time: still waiting for the package"
    assert site.starts == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "the server has no package"),
        (b"something else", "has the digest"),
        (b"\x1f\x8bno archive", "cannot be unpacked"),
    ],
)
async def test_a_package_that_cannot_be_had_fails_the_job(site: Site, content: bytes | None, problem: str) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    digest = hashlib.sha256(content or b"nothing").hexdigest() if "digest" not in problem else "ab" * 32
    if content is not None:
        site.hub.packages[digest] = content
    job = site.job(site.started(), package=job_pb2.PackageReference(digest=digest))
    await stream.accept(job)
    await stream.commit_all(key(job))
    log = site.hub.logs[key(job)]
    assert log.finished is not None
    assert (log.finished.failure_reason, log.finished.evidence.tree_empty) == ("PACKAGE_UNAVAILABLE", True)
    assert problem in log.texts[-1]
    assert list((site.agent.state / "packages").iterdir()) == []
    assert site.starts == 0


async def test_a_package_is_fetched_once_and_from_where_it_was_cut(site: Site) -> None:
    faults: list[SisError] = [Unavailable("try again"), Unavailable("try again")]

    def faulty() -> None:
        if faults:
            raise faults.pop()

    site.hub.on_fetch = faulty
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    jobs = [site.job("true") for _ in range(3)]
    await stream.accept(*jobs)
    await stream.commit_all(*map(key, jobs))
    assert site.hub.fetches == [(site.digest, 0)] * 3
    later = site.job("true")
    await stream.accept(later)
    await stream.commit_all(key(later))
    assert len(site.hub.fetches) == 3


async def test_no_more_is_under_way_than_the_welcome_permits(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    limit = 200_000
    stream.welcome(limit_bytes=limit)
    job = site.job("head -c 3000000 /dev/zero")
    await stream.accept(job)
    spool = site.agent.attempts()[0] / "spool"
    await until(lambda: spool.exists() and spool.stat().st_size > 3_000_000, "all output is in the spool")
    beats = len(stream.beats)
    await stream.beat(lambda _: len(stream.beats) >= beats + 3)
    reports = [await stream.report() for _ in range(stream.reports_waiting())]
    under_way = sum(len(frame) for report in reports for frame in report.frames.frames)
    assert limit / 2 < under_way <= limit
    for report in reports:
        stream.acknowledge(report)
    await stream.commit_all(key(job))
    assert site.hub.logs[key(job)].output == bytes(3_000_000)


async def test_a_stale_attempt_is_ended_and_forgotten(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job("echo $$ > $SCRATCH/pid; exec sleep 1000")
    await stream.accept(job)
    await until(lambda: (site.scratch / "pid").exists() and (site.scratch / "pid").read_text())
    stale = FailedPrecondition("not the job's current attempt", subject="attempt", condition="STALE_ATTEMPT")
    stale.reason = "STALE_ATTEMPT"
    stream.refuse(await stream.report(), stale)
    await until(lambda: not site.agent.attempts(), "the directory is removed")
    assert not Path(f"/proc/{(site.scratch / 'pid').read_text().strip()}").exists()


async def test_a_contradiction_ends_the_reporting_and_keeps_everything(site: Site) -> None:
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    job = site.job("echo begun; until [ -e $SCRATCH/go ]; do sleep 0.02; done; echo more; exec sleep 1000")
    await stream.accept(job)
    await stream.commit_until(lambda: site.hub.logs[key(job)].output == b"begun\n")
    (site.scratch / "go").touch()
    conflict = InvalidArgument("other bytes", reason="CONFLICTING_FRAME")
    stream.refuse(await stream.report(), conflict)
    (directory,) = site.agent.attempts()
    await until((directory / "orphaned").exists, "the attempt is given up")
    beats = len(stream.beats)
    await stream.beat(lambda beat: len(stream.beats) > beats + 1 and not beat.attempts)
    assert "is not reported any more and its directory is kept: other bytes" in site.agent.log
    # Nobody hears of it, and yet it can be stopped; and it survives a restart of the agent.
    site.agent.kill()
    site.agent.start()
    stream = await site.hub.stream()
    assert stream.in_hand == {}
    stream.welcome()
    stream.stop(key(job), frame_pb2.STOP_KIND_ABORT)
    await until(lambda: has_ended(directory), "the payload is stopped")
    assert directory.exists()


async def test_the_next_hub_is_tried(site: Site) -> None:
    site.agent.environment["SIS_AGENT_HUB_ENDPOINTS"] = f"127.0.0.1:1,{site.hub.endpoint}"
    site.agent.start()
    (await site.hub.stream()).welcome()


async def test_a_state_directory_has_one_agent(site: Site, tmp_path: Path) -> None:
    site.agent.start()
    (await site.hub.stream()).welcome()
    second = AgentProcess(site.agent.state, site.hub.endpoint)
    second.start()
    assert await second.ended() == 1
    assert "error: another agent uses" in second.log


async def test_bad_settings_are_named(site: Site) -> None:
    for name, value in (("SLOTS", "0"), ("HUB_ENDPOINTS", "nowhere"), ("LABELS", "oops")):
        site.agent.environment[f"SIS_AGENT_{name}"] = value
    site.agent.start()
    assert await site.agent.ended() == 2
    for name in ("SLOTS", "HUB_ENDPOINTS", "LABELS"):
        assert f"error: SIS_AGENT_{name}" in site.agent.log
    assert "Traceback" not in site.agent.log


async def test_a_hub_that_sends_its_agent_on_is_left_for_its_sibling_and_the_job_goes_on(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "tls")
    hubs = [FakeHub(authority), FakeHub(authority)]
    for hub in hubs:
        await hub.start()
    agent = AgentProcess(tmp_path / "state", ",".join(hub.endpoint for hub in hubs), authority)
    site = Site(hubs[0], agent, tmp_path)
    try:
        agent.start()
        stream = await hubs[0].stream()  # the first of those that it was given
        stream.welcome()
        job = site.job(LINES)
        hubs[1].packages, hubs[1].logs = hubs[0].packages, hubs[0].logs
        await stream.accept(job)
        await stream.commit_until(lambda: len(hubs[0].logs[key(job)].frames) >= 3)
        for hub in (hubs[1], hubs[0], hubs[1]):
            stream.end(Unavailable("go elsewhere", reason="RECONNECT"))
            stream = await hub.stream()
            stream.welcome()
        await stream.commit_all(key(job))
        assert hubs[0].logs[key(job)].output == NUMBERED
    finally:
        await agent.clear()
        for hub in hubs:
            await hub.stop()
