"""Monitor, console output and debug log, over gRPC and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from services.queue import jobs, logs
from services.queue.errors import JobNotFound
from services.runtime.channels import grpc_error
from services.runtime.errors import Unavailable
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import dispatch_service_pb2_grpc as dispatch_rpc
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import SECONDS, Api, refusal
from tests.integration.queue.rig import Rig, of
from tests.support.certificates import CertificateAuthority
from tests.support.frames import Spool
from tests.support.queue_server import QueueServer

Item = tuple[Any, ...]


def items(responses: list[pb.MonitorJobResponse]) -> list[Item]:
    """What a monitor told, but for the job itself: each entry of the history, each frame."""
    found: list[Item] = []
    for response in responses:
        match response.WhichOneof("content"):
            case "history":
                found.append(("history", response.history.sequence, response.history.event))
            case "frames":
                found += [("frame", response.frames.attempt, f.sequence) for f in response.frames.frames]
    return found


async def ended(rig: Rig, outputs: int = 6) -> tuple[int, Spool]:
    """A job with two attempts, the second of which wrote something to every channel."""
    job_id = await rig.create()
    await rig.hello()
    (first,) = await rig.claim()
    await rig.decline(first)
    (key,) = await rig.claim()
    await rig.accept(key)
    spool = Spool()
    await rig.report(key, spool.process_started(100))
    for n in range(outputs):
        channel = job_pb2.CHANNEL_STDERR if n % 3 == 2 else job_pb2.CHANNEL_STDOUT
        await rig.report(key, spool.output(b"line %d\n" % n, channel))
    await rig.report(key, spool.notice("a detail", frame_pb2.SEVERITY_DEBUG))
    await rig.report(key, spool.notice("beware", frame_pb2.SEVERITY_WARNING))
    await rig.report(key, of(spool.payload_ended(3), spool.finished("FAILED", reason="EXIT_CODE")))
    return job_id, spool


async def test_a_monitor_of_an_ended_job_tells_everything_once_and_ends(api: Api, served: Rig) -> None:
    job_id, spool = await ended(served)
    told = await api(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id))
    assert told[0].WhichOneof("content") == "job" and told[0].job.status == job_pb2.JOB_STATUS_FAILED
    found = items(told)
    assert len(found) == len(set(found))
    assert [i for i in found if i[0] == "history"] == [
        ("history", n + 1, e) for n, e in enumerate(await served.events(job_id))
    ]
    assert [i for i in found if i[0] == "frame"] == [("frame", 2, n) for n in range(1, spool.sequence + 1)]
    frames = [f for response in told for f in response.frames.frames]
    assert [f.SerializeToString() for f in frames] == spool.bodies


async def test_resuming_from_every_token_tells_each_item_once(api: Api, served: Rig) -> None:
    job_id, _ = await ended(served)
    whole = await api(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id))
    for at, response in enumerate(whole):
        assert response.resume_token
        request = pb.MonitorJobRequest(job_id=job_id, resume_token=response.resume_token)
        rest = await api(api.jobs.MonitorJob, request)
        assert items(whole[: at + 1]) + items(rest) == items(whole)
        assert rest[0].WhichOneof("content") == "job"


async def test_a_token_is_good_for_its_own_job_alone(api: Api, served: Rig) -> None:
    job_id, _ = await ended(served)
    (first, *_) = await api(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id))
    other = await served.create()
    request = pb.MonitorJobRequest(job_id=other, resume_token=first.resume_token)
    assert (await refusal(api(api.jobs.MonitorJob, request))).reason == "INVALID_TOKEN"


async def until(stream: Any, wanted: str) -> list[pb.MonitorJobResponse]:
    """Read a monitor until it tells of an event, a frame's text or a status with this name."""
    found: list[pb.MonitorJobResponse] = []
    async with asyncio.timeout(SECONDS):
        async for response in stream:
            found.append(response)
            if wanted in str(response):
                return found
    raise AssertionError(f"the monitor ended before {wanted}: {found}")


async def test_a_monitor_is_live_from_creation_to_the_sealed_log(api: Api, served: Rig) -> None:
    job_id = await served.create()
    stream = api.stream(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id))
    told = await until(stream, "CREATE")
    await served.hello()
    (key,) = await served.claim()
    told += await until(stream, "CLAIM")
    spool = Spool()
    await served.accept(key)
    await served.report(key, spool.process_started(100))
    told += await until(stream, "FIRST_PROCESS")
    for n in range(3):
        await served.report(key, spool.output(b"live %d" % n))
        told += await until(stream, f"live {n}")
    await served.cancel(job_id)
    told += await until(stream, "CANCEL_REQUESTED")
    await served.report(key, of(spool.stop_begun("CANCEL"), spool.finished("STOPPED")))
    async with asyncio.timeout(SECONDS):
        told += [response async for response in stream]
    found = items(told)
    assert len(found) == len(set(found)) == len(await served.events(job_id)) + spool.sequence
    jobs = [response.job for response in told if response.HasField("job")]
    assert jobs[0].status == job_pb2.JOB_STATUS_WAITING and jobs[-1].status == job_pb2.JOB_STATUS_CANCELED
    assert jobs[-1].log.verdict == job_pb2.LOG_VERDICT_COMPLETE


async def test_a_monitor_of_an_aborted_job_goes_on_until_the_stop_is_proven(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    stream = api.stream(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=key.job_id))
    await until(stream, "FIRST_PROCESS")
    await served.abort(key.job_id)
    await until(stream, "JOB_STATUS_ABORTED")
    await served.report(key, of(spool.output(b"the tail"), spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    async with asyncio.timeout(SECONDS):
        rest = [response async for response in stream]
    assert "the tail" in str(rest)
    assert rest[-1].job.stop_state == job_pb2.STOP_STATE_CONFIRMED


async def test_a_monitor_of_a_job_that_is_deleted_meanwhile_ends_with_an_error(api: Api, served: Rig) -> None:
    job_id = await served.create()
    stream = api.stream(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id))
    await until(stream, "CREATE")
    await served.delete(job_id)

    async def read() -> None:
        async for _ in stream:
            pass

    assert (await refusal(read())).reason == "JOB_NOT_FOUND"


async def test_many_watchers_each_get_everything(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    watchers = [
        asyncio.create_task(api(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=key.job_id))) for _ in range(10)
    ]
    for n in range(20):
        await served.report(key, spool.output(b"%d" % n))
    await served.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    for told in await asyncio.gather(*watchers):
        assert [i for i in items(told) if i[0] == "frame"] == [("frame", 1, n) for n in range(1, spool.sequence + 1)]


async def test_a_long_log_comes_in_messages_of_a_bounded_size(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    for _ in range(4):
        await served.report(key, of(*(spool.output(b"x" * 60_000) for _ in range(20))))
    await served.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    told = await api(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=key.job_id))
    assert sum(len(f.chunk.data) for response in told for f in response.frames.frames) == 80 * 60_000
    assert max(response.ByteSize() for response in told) < 3 << 20


# Console output and debug log.


async def test_the_console_output_is_what_the_payload_wrote_in_its_order(api: Api, served: Rig) -> None:
    job_id, spool = await ended(served)
    log, *chunks = await api(api.jobs.GetConsoleOutput, pb.GetConsoleOutputRequest(job_id=job_id))
    assert (log.log.verdict, log.log.frames) == (job_pb2.LOG_VERDICT_COMPLETE, spool.sequence)
    assert b"".join(part.chunk.data for part in chunks) == b"".join(b"line %d\n" % n for n in range(6))
    assert [part.chunk.channel for part in chunks] == [2, 2, 3, 2, 2, 3]


async def test_the_console_output_of_a_job_that_runs_is_what_there_is(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    await served.report(key, spool.output(bytes(range(256))))
    log, *chunks = await api(api.jobs.GetConsoleOutput, pb.GetConsoleOutputRequest(job_id=key.job_id))
    assert log.log.verdict == job_pb2.LOG_VERDICT_OPEN and chunks[0].chunk.data == bytes(range(256))
    waiting = await served.create()
    (log,) = await api(api.jobs.GetConsoleOutput, pb.GetConsoleOutputRequest(job_id=waiting))
    assert log.log.frames == 0


async def debug_log(api: Api, job_id: int, view: int) -> tuple[list[str], list[frame_pb2.Frame]]:
    """Events of the history, and frames."""
    parts = await api(api.jobs.GetDebugLog, pb.GetDebugLogRequest(job_id=job_id, view=view))  # type: ignore[arg-type]
    return (
        [p.history.event for p in parts if p.HasField("history")],
        [f for p in parts for f in p.frames.frames],
    )


async def test_the_full_debug_log_has_everything(api: Api, served: Rig) -> None:
    job_id, spool = await ended(served)
    events, frames = await debug_log(api, job_id, pb.DEBUG_LOG_VIEW_FULL)
    assert events == await served.events(job_id)
    assert [f.sequence for f in frames] == list(range(1, spool.sequence + 1))


@pytest.mark.parametrize("view", [pb.DEBUG_LOG_VIEW_UNSPECIFIED, pb.DEBUG_LOG_VIEW_STANDARD])
async def test_the_standard_debug_log_leaves_out_the_debug_channel(api: Api, served: Rig, view: int) -> None:
    job_id, spool = await ended(served)
    events, frames = await debug_log(api, job_id, view)
    assert events == await served.events(job_id)
    assert len(frames) == spool.sequence - 1
    assert not [f for f in frames if f.notice.severity == frame_pb2.SEVERITY_DEBUG]


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("looked", [1, 2, 3, 100])
async def test_what_is_wanted_of_a_log_is_found_a_part_at_a_time(
    api: Api, served: Rig, monkeypatch: pytest.MonkeyPatch, looked: int, rows: int
) -> None:
    job_id, spool = await ended(served)
    monkeypatch.setattr(logs, "_LOOKED_ROWS", looked)
    monkeypatch.setattr(logs, "_SCAN_ROWS", rows)
    _, frames = await debug_log(api, job_id, pb.DEBUG_LOG_VIEW_FULL)
    assert [f.sequence for f in frames] == list(range(1, spool.sequence + 1))
    _, frames = await debug_log(api, job_id, pb.DEBUG_LOG_VIEW_PROBLEM)
    assert [f.chunk.data or f.notice.text for f in frames] == [b"line 2\n", b"line 5\n", "beware"]


@pytest.mark.parametrize("what", ["output", "debug log"])
async def test_a_log_that_is_removed_while_it_is_read_is_not_called_whole(
    served: Rig, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    job_id, _ = await ended(served)
    monkeypatch.setattr(logs, "_SCAN_ROWS", 2)
    async with served.database.begin() as connection:
        view = await jobs.get(connection, job_id)
    reading: AsyncGenerator[object] = (
        logs.console_output(served.database, view, 1)
        if what == "output"
        else logs.debug_log(served.database, job_id, logs.DebugLogView.FULL)
    )
    async with aclosing(reading):
        await anext(reading)
        await served.execute("UPDATE queue.jobs SET hidden_at = queue.now() - INTERVAL '1 hour'")
        await served.execute("DELETE FROM queue.log")
        with pytest.raises(JobNotFound):
            async for _ in reading:
                pass


async def test_a_monitor_is_not_resumed_in_a_past_that_was_not(api: Api, served: Rig) -> None:
    """The database was restored: what comes now has numbers that were given before."""
    job_id, _ = await ended(served)
    token = logs.to_token(job_id, logs.Position(history=1_000))
    error = await refusal(api(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=job_id, resume_token=token)))
    assert error.reason == "INVALID_TOKEN"


async def test_the_problem_view_has_what_went_wrong(api: Api, served: Rig) -> None:
    job_id, _ = await ended(served)
    events, frames = await debug_log(api, job_id, pb.DEBUG_LOG_VIEW_PROBLEM)
    assert events == ["FINISH_FAILED"]
    assert [f.chunk.data or f.notice.text for f in frames] == [b"line 2\n", b"line 5\n", "beware"]


async def test_the_debug_log_of_a_history_beyond_measure_has_its_end(api: Api, served: Rig) -> None:
    job_id = await served.create()
    async with served.database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO queue.history (job_id, sequence, at, from_status, to_status, event, actor, origin,"
                " message, attempt) SELECT job_id, sequence + n, at, to_status, to_status, 'ACTIVATE', 'x', 'x', '', 0"
                " FROM queue.history, generate_series(1, 10000) AS n WHERE job_id = :job AND sequence = 1"
            ),
            {"job": job_id},
        )
        await connection.execute(text("UPDATE queue.jobs SET history_sequence = 10001"))
    await served.cancel(job_id)
    events, _ = await debug_log(api, job_id, pb.DEBUG_LOG_VIEW_FULL)
    assert (len(events), events[-1]) == (10_000, "CANCEL")


async def test_the_debug_log_has_each_entry_once_although_the_clock_was_set_back(api: Api, served: Rig) -> None:
    job_id, _ = await ended(served)
    async with served.database.begin() as connection:
        await connection.execute(
            text(
                "UPDATE queue.history SET at = (SELECT max(at) FROM queue.log WHERE job_id = :job) + interval '1 hour'"
                " WHERE job_id = :job AND sequence = 1"
            ),
            {"job": job_id},
        )
    events, _ = await debug_log(api, job_id, pb.DEBUG_LOG_VIEW_FULL)
    assert events == await served.events(job_id)


async def test_the_debug_log_is_merged_by_time(api: Api, served: Rig) -> None:
    job_id, _ = await ended(served, outputs=100)
    parts = await api(api.jobs.GetDebugLog, pb.GetDebugLogRequest(job_id=job_id))
    times = [p.history.time if p.HasField("history") else p.frames.frames[0].time for p in parts]
    assert [t.ToDatetime() for t in times] == sorted(t.ToDatetime() for t in times)


# The hubs' stream.


async def test_a_hub_is_woken_for_work_and_told_to_stop_and_told_again(hub: Any, served: Rig) -> None:
    name = f"hub-{served.group}"
    await served.hello(hub=name)
    stream = hub.Watch(dispatch_pb.WatchRequest(hub=name), timeout=SECONDS)
    await _wake(stream)
    await served.create(agent="a")
    await _wake(stream)
    (key,) = await served.claim()
    await served.accept(key)
    await served.cancel(key.job_id)
    (stop,) = await _stops(stream)
    assert (stop.session.agent, stop.stop.attempt.job_id) == (served.agent("a"), key.job_id)
    assert stop.stop.kind == frame_pb2.STOP_KIND_CANCEL
    stream.cancel()
    again = hub.Watch(dispatch_pb.WatchRequest(hub=name), timeout=SECONDS)
    assert len(await _stops(again)) == 1
    again.cancel()


async def _wake(stream: Any) -> None:
    """The next wake-up; leases of other tests' jobs that end may come before."""
    async with asyncio.timeout(SECONDS):
        while not (told := await stream.read()).wake:
            assert told.lease_ends


async def _stops(stream: Any) -> Any:
    """The next stops; wake-ups for work, and leases that end elsewhere, may come before."""
    async with asyncio.timeout(SECONDS):
        while not (told := await stream.read()).stops:
            assert told.wake or told.lease_ends
    return told.stops


async def test_a_job_over_the_hubs_own_calls(hub: Any, api: Api, served: Rig) -> None:
    """OpenSession, Claim, Report, Heartbeat, CloseSession, as a hub makes them."""
    opened = dispatch_pb.OpenSessionRequest(hub="hub-1")
    opened.agent.name, opened.agent.group = served.agent("a"), served.group
    opened.hello.journal_id, opened.hello.slots, opened.hello.hostname = "j", 4, "host"
    welcome = await hub.OpenSession(opened, timeout=SECONDS)
    session = dispatch_pb.Session(agent=served.agent("a"), epoch=welcome.epoch)
    job_id = await served.create()
    capacity = dispatch_pb.Capacity(session=session, free_slots=4)
    stale = dispatch_pb.Capacity(session=dispatch_pb.Session(agent=served.agent("a"), epoch=99), free_slots=1)
    claimed = await hub.Claim(dispatch_pb.ClaimRequest(capacities=[capacity, stale]), timeout=SECONDS)
    assert [s.epoch for s in claimed.stale_sessions] == [99]
    (given,) = claimed.assignments
    assignment = given.assignment
    assert (given.agent, assignment.attempt.job_id, assignment.attempt.number) == (served.agent("a"), job_id, 1)
    assert assignment.parameters["script"].plain == "echo hello" and len(assignment.package.digest) == 64
    assert (assignment.cancel_grace.seconds, assignment.start_timeout.seconds) == (10, 300)
    assert assignment.output_timeout.seconds == 60 and assignment.log_cap_bytes == 1 << 30
    spool = Spool()
    of(spool.process_started(1), spool.output(b"x"), spool.payload_ended(0), spool.finished("SUCCEEDED"))
    batch = dispatch_pb.FrameBatch(frames=spool.bodies)
    told = await hub.Report(
        dispatch_pb.ReportRequest(
            reports=[
                dispatch_pb.AttemptReport(session=session, attempt=assignment.attempt, accepted=dispatch_pb.Accepted()),
                dispatch_pb.AttemptReport(session=session, attempt=assignment.attempt, frames=batch),
            ]
        ),
        timeout=SECONDS,
    )
    assert [(r.acknowledged_sequence, r.sealed, r.HasField("error")) for r in told.results] == [
        (0, False, False),
        (4, True, False),
    ]
    beat = dispatch_pb.SessionHeartbeat(session=session, attempts=[assignment.attempt])
    heard = await hub.Heartbeat(dispatch_pb.HeartbeatRequest(heartbeats=[beat]), timeout=SECONDS)
    assert not heard.stale_sessions and not heard.assignments
    await hub.CloseSession(dispatch_pb.CloseSessionRequest(session=session), timeout=SECONDS)
    job = (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=job_id))).job
    assert (job.status, job.target) == (job_pb2.JOB_STATUS_SUCCEEDED, "host")


# The end of the process.


async def test_streams_end_when_the_server_drains_and_go_on_with_the_next_one(
    served: Rig, served_url: str, authority: CertificateAuthority, tmp_path: Path
) -> None:
    key, spool = await served.started()
    with QueueServer(served_url, authority, tmp_path) as server:
        async with server.public() as channel, server.internal() as inner:
            api = Api(channel)
            stream = api.stream(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=key.job_id))
            told = await until(stream, "FIRST_PROCESS")
            dispatch: Any = dispatch_rpc.DispatchServiceStub(inner)
            watch = aiter(dispatch.Watch(dispatch_pb.WatchRequest(hub="hub-1"), timeout=SECONDS))
            await anext(watch)
            server.terminate()
            for ending in (stream, watch):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async with asyncio.timeout(SECONDS):
                        async for response in ending:
                            if isinstance(response, pb.MonitorJobResponse):
                                told.append(response)
                error = grpc_error(caught.value)
                assert isinstance(error, Unavailable) and error.retry_after is not None
        assert server.stop() == 0
        assert not [line for line in server.log() if line["level"] in ("error", "warning")]
    await served.report(key, of(spool.output(b"meanwhile"), spool.payload_ended(0), spool.finished("SUCCEEDED")))
    with QueueServer(served_url, authority, tmp_path) as server:
        async with server.public() as channel:
            api = Api(channel)
            request = pb.MonitorJobRequest(job_id=key.job_id, resume_token=told[-1].resume_token)
            told += await api(api.jobs.MonitorJob, request)
    found = items(told)
    assert len(found) == len(set(found)) == len(await served.events(key.job_id)) + spool.sequence
