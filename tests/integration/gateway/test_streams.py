"""Streams of messages: events, lines, what ends them, and who pays for a slow reader."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from gateway import connection, sessions, streams
from services.runtime import errors
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.fakes.upstream import Upstream
from tests.support.certificates import CertificateAuthority
from tests.support.gateway_server import GatewayServer, LoopThread, events

WATCH = "/v1/jobs:watch"
NEWS = [pb.WatchJobsResponse(resume_token=f"t{n}", gone_job_ids=[n]) for n in range(3)]
LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture
def own_gateway(thread: LoopThread, authority: CertificateAuthority, upstream_endpoint: str) -> Iterator[GatewayServer]:
    """One that may be stopped."""
    found = GatewayServer(thread, authority.service("gateway"), queue=upstream_endpoint)
    yield found
    found.stop()


async def forever(request: Any, context: Any) -> AsyncIterator[Any]:
    for news in NEWS:
        yield news
    await asyncio.Event().wait()


def test_events(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["WatchJobs"] = NEWS
    with gateway.opened("GET", WATCH) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert response.headers["X-Accel-Buffering"] == "no"
        found = list(events(response))
    assert [event.get("id") for event in found] == ["t0", "t1", "t2", None]
    assert json.loads(found[1]["data"]) == {"resumeToken": "t1", "jobs": [], "goneJobIds": ["1"]}
    assert found[-1] == {"event": "end", "data": "{}"}


def test_lines(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["WatchJobs"] = NEWS
    answer = gateway.call("GET", WATCH, headers=LINES)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert [json.loads(line)["resumeToken"] for line in answer.body.splitlines()] == ["t0", "t1", "t2"]


def test_a_stream_may_take_a_body(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["ApplyVerb"] = [pb.ApplyVerbResponse(total=2)]
    answer = gateway.call("POST", "/v1/jobs:apply", {"verb": "JOB_VERB_CANCEL", "jobIds": ["1", 2]}, LINES)
    assert json.loads(answer.body) == {"total": "2"}
    assert upstream.asked("ApplyVerb") == [pb.ApplyVerbRequest(verb=job_pb2.JOB_VERB_CANCEL, job_ids=[1, 2])]


def test_it_goes_on_after_the_last_event(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["WatchJobs"] = []
    upstream.answers["GetDebugLog"] = []
    gateway.call("GET", WATCH, headers={"Last-Event-ID": "t7"})
    gateway.call("GET", f"{WATCH}?resumeToken=old&filter.text=x", headers={"Last-Event-ID": "t8"})
    gateway.call("GET", f"{WATCH}?resumeToken=old")
    assert [request.resume_token for request in upstream.asked("WatchJobs")] == ["t7", "t8", "old"]
    # A request that cannot be resumed begins again.
    assert gateway.call("GET", "/v1/jobs/1/debugLog", headers={"Last-Event-ID": "t9"}).status == 200
    assert gateway.call("GET", WATCH, headers={"Last-Event-ID": "\xff"}).fields == ["Last-Event-ID"]


def test_whoever_watches_reads_anew_before_their_session_has_ended(gateway: GatewayServer, upstream: Upstream) -> None:
    """A stream renews the session as it begins, and as it goes on; a page that only watches asks for nothing else."""
    left: queue.Queue[float] = queue.Queue()

    async def timed(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        left.put(context.time_remaining())
        for message in ():
            yield message

    upstream.answers["WatchJobs"] = upstream.answers["MonitorJob"] = timed
    for path in (WATCH, "/v1/jobs/1:monitor"):
        gateway.call("GET", path)
        assert left.get(timeout=20) < 0.75 * sessions.IDLE.total_seconds()


def test_an_error_before_the_first_message_is_an_answer(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["MonitorJob"] = [errors.NotFound("job 1: there is no such job", reason="JOB_NOT_FOUND")]
    for headers in ({}, LINES):
        answer = gateway.call("GET", "/v1/jobs/1:monitor", headers=headers)
        assert (answer.status, answer.reason) == (404, "JOB_NOT_FOUND")
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (errors.ResourceExhausted("too slow", retry_after=1.0), "RESOURCE_EXHAUSTED", "OVERLOADED"),
        (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"),
    ],
)
def test_an_error_in_the_middle_is_the_last_event(
    gateway: GatewayServer, upstream: Upstream, error: Any, status: str, reason: str
) -> None:
    upstream.answers["WatchJobs"] = [NEWS[0], error]
    with gateway.opened("GET", WATCH) as response:
        *_, last = events(response)
    assert last["event"] == "failure"
    line = gateway.call("GET", WATCH, headers=LINES).body.splitlines()[-1]
    for found in (json.loads(last["data"])["error"], json.loads(line)["error"]):
        assert (found["status"], found["details"][0]["reason"]) == (status, reason)


def test_a_fault_in_the_middle_is_a_number(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise KeyError("the secret 4711")

    monkeypatch.setattr(streams, "printed", broken)
    upstream.answers["WatchJobs"] = NEWS
    with gateway.opened("GET", WATCH) as response:
        (only,) = events(response)
    assert only["event"] == "failure" and "4711" not in only["data"]
    assert json.loads(only["data"])["error"]["details"][0]["metadata"]["fault"] in caplog.text


def test_while_nothing_happens_there_is_a_heartbeat(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(streams, "_FIRST_SECONDS", 0.05)

    async def silent(request: Any, context: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    upstream.answers["WatchJobs"] = silent
    with gateway.opened("GET", WATCH) as response:
        assert response.status == 200
        assert [response.readline() for _ in range(4)] == [b":\n", b"\n"] * 2
    with gateway.opened("GET", WATCH, headers=LINES) as response:
        assert [response.readline() for _ in range(2)] == [b"\n"] * 2
    assert [upstream.cancelled.get(timeout=20) for _ in range(2)] == ["WatchJobs"] * 2


def test_a_client_that_goes_away_ends_the_stream(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["WatchJobs"] = forever
    with gateway.opened("GET", WATCH) as response:
        assert next(events(response))["id"] == "t0"
        assert upstream.cancelled.empty()
    assert upstream.cancelled.get(timeout=20) == "WatchJobs"


def test_a_client_that_goes_away_ends_the_stream_behind_which_it_has_asked_for_more(
    gateway: GatewayServer, upstream: Upstream
) -> None:
    upstream.answers["WatchJobs"] = forever
    request = f"GET {WATCH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(request + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        found = b""
        while b"t2" not in found:
            found += client.recv(65_536)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it is reset
    assert upstream.cancelled.get(timeout=10) == "WatchJobs"  # a heartbeat comes after 15 s


def test_the_head_of_a_stream_opens_none(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["WatchJobs"] = forever
    answer = gateway.call("HEAD", WATCH)
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/event-stream", b"")
    assert upstream.cancelled.get(timeout=20) == "WatchJobs"


def test_streams_have_a_bound_of_their_own(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAM_LIMIT", 1)
    upstream.answers["WatchJobs"] = forever
    upstream.answers["GetJob"] = pb.GetJobResponse()
    with gateway.opened("GET", WATCH) as response:
        next(events(response))
        second = gateway.call("GET", WATCH)
        assert (second.status, second.reason, second.headers["Retry-After"]) == (429, "OVERLOADED", "5")
        assert gateway.call("GET", "/v1/jobs/1").status == 200
    assert upstream.cancelled.get(timeout=20) == "WatchJobs"


# --- slow readers ---

BIG = pb.MonitorJobResponse(
    frames=pb.AttemptFrames(frames=[frame_pb2.Frame(chunk=frame_pb2.Chunk(data=bytes(100_000)))]), resume_token="t"
)


def _flood(upstream: Upstream, sent: queue.Queue[int]) -> None:
    async def flood(request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(2_000):  # 200 MB, far more than all the buffers on the way
            sent.put(number)
            yield BIG

    upstream.answers["MonitorJob"] = flood
    upstream.answers["GetJob"] = pb.GetJobResponse(job=job_pb2.Job(job_id=1))


def _ask(gateway: GatewayServer, path: str) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", gateway.port))
    found.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n".encode())
    return found


def test_a_slow_reader_holds_back_its_own_stream_alone(gateway: GatewayServer, upstream: Upstream) -> None:
    sent: queue.Queue[int] = queue.Queue()
    _flood(upstream, sent)
    with _ask(gateway, "/v1/jobs/1:monitor"):
        number = sent.get(timeout=20)
        while True:  # until it stands still, since nobody reads
            try:
                number = sent.get(timeout=0.5)
            except queue.Empty:
                break
        assert number < 1_000
        assert gateway.call("GET", "/v1/jobs/1").status == 200
    assert upstream.cancelled.get(timeout=20) == "MonitorJob"


def test_who_reads_nothing_at_all_is_cut_off(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.2)
    _flood(upstream, queue.Queue())
    with _ask(gateway, "/v1/jobs/1:monitor"):
        assert upstream.cancelled.get(timeout=20) == "MonitorJob"


# --- draining ---


def test_draining_sends_streams_elsewhere_and_finishes_the_rest(own_gateway: GatewayServer, upstream: Upstream) -> None:
    called, release = threading.Event(), threading.Event()

    async def patient(request: Any, context: Any) -> Any:
        called.set()
        await asyncio.to_thread(release.wait, 60)
        return pb.GetJobResponse(job=job_pb2.Job(job_id=1))

    upstream.answers["WatchJobs"] = forever
    upstream.answers["GetJob"] = patient
    statuses: queue.Queue[int] = queue.Queue()
    client = threading.Thread(target=lambda: statuses.put(own_gateway.call("GET", "/v1/jobs/1").status))
    client.start()
    try:
        assert called.wait(20)
        with own_gateway.opened("GET", WATCH) as events_, own_gateway.opened("GET", WATCH, headers=LINES) as lines:
            found = events(events_)
            assert [next(found)["id"] for _ in NEWS] == ["t0", "t1", "t2"]
            own_gateway.terminate()
            last = next(found)
            assert last["event"] == "failure" and list(found) == []
            error = json.loads(last["data"])["error"]
            assert (error["code"], error["status"]) == (503, "UNAVAILABLE")
            assert json.loads(lines.read().splitlines()[-1]) == {"error": error}
    finally:
        release.set()
        client.join()
    assert statuses.get(timeout=20) == 200
    own_gateway.stop()
    with pytest.raises(ConnectionRefusedError):
        own_gateway.call("GET", "/healthz")


def test_while_it_drains_it_is_not_ready_and_opens_no_streams(own_gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["WatchJobs"] = NEWS
    own_gateway.gateway.drain()
    ready = own_gateway.call("GET", "/readyz")
    assert (ready.status, ready.json["status"]) == (503, "draining")
    answer = own_gateway.call("GET", WATCH)
    assert (answer.status, answer.reason, answer.headers["Retry-After"]) == (503, "DEPENDENCY_UNAVAILABLE", "1")
    assert upstream.requests == []


def test_what_does_not_end_is_cut_off(own_gateway: GatewayServer, upstream: Upstream) -> None:
    sent: queue.Queue[int] = queue.Queue()
    _flood(upstream, sent)
    own_gateway.server.config.timeout_graceful_shutdown = 0
    with _ask(own_gateway, "/v1/jobs/1:monitor"):
        sent.get(timeout=20)
        own_gateway.stop()
    assert upstream.cancelled.get(timeout=20) == "MonitorJob"
