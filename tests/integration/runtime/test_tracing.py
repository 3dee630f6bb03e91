"""Calls as spans of a trace, over real gRPC and TLS."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from services.runtime import interceptors, tracing
from services.runtime.channels import grpc_error
from services.runtime.telemetry import JsonFormatter
from services.runtime.traced_channel import traced
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_service_pb2 as job_pb
from sis.queue.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from sis.queue.v1.job_service_pb2_grpc import JobServiceStub
from sis.trace_context import TraceContext
from tests.integration.runtime.conftest import BEARER, Site
from tests.support.recorded_spans import Spans, context_of, recorded_spans

GIVEN = TraceContext(0x1234, 0x5678)
GET_JOB = "sis.queue.v1.JobService/GetJob"
MONITOR = "sis.queue.v1.JobService/MonitorJob"
CLOSE = "sis.queue.v1.DispatchService/CloseSession"


async def _ended(recorded: Spans, name: str, count: int = 1) -> None:
    """A span ends a moment after its call."""
    for _ in range(2_000):
        if len(recorded.named(name)) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} has not ended: {[span.name for span in recorded.all()]}")


async def _get(site: Site, job_id: int, *more: tuple[str, str]) -> None:
    stub = JobServiceStub(site.public())
    try:
        await stub.GetJob(job_pb.GetJobRequest(job_id=job_id), metadata=(*BEARER, *more))
    except grpc.aio.AioRpcError:
        assert job_id > 3


async def test_a_call_goes_on_with_the_trace_of_its_caller(site: Site) -> None:
    with recorded_spans() as recorded:
        await _get(site, 1, ("traceparent", str(GIVEN)))
        await _ended(recorded, GET_JOB)
        span = recorded.one(GET_JOB)
    assert context_of(span).trace_id == GIVEN.trace_id
    assert span.parent is not None and span.parent.span_id == GIVEN.span_id
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": GET_JOB,
        "rpc.response.status_code": "OK",
    }


@pytest.mark.parametrize(
    "more",
    [
        (),
        (("traceparent", "00-zz-01"),),
        (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),),
    ],
)
async def test_without_a_sound_one_a_trace_begins(site: Site, more: tuple[tuple[str, str], ...]) -> None:
    with recorded_spans() as recorded:
        await _get(site, 1, *more)
        await _ended(recorded, GET_JOB)
        assert recorded.one(GET_JOB).parent is None


async def test_what_the_caller_does_not_record_is_not_recorded(site: Site) -> None:
    with recorded_spans() as recorded:
        await _get(site, 1, ("traceparent", str(TraceContext(0x1234, 0x5678, sampled=False))))
        await _get(site, 2)
        await _ended(recorded, GET_JOB)
        assert recorded.one(GET_JOB).parent is None


async def test_a_refusal_is_no_failure_and_a_fault_is_one_that_tells_nothing(site: Site) -> None:
    with recorded_spans() as recorded:
        await _get(site, 404)
        await _get(site, 500)
        await _ended(recorded, GET_JOB, 2)
        refused, fault = recorded.named(GET_JOB)
    assert refused.attributes is not None and refused.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert "error.type" not in refused.attributes
    assert fault.attributes is not None and fault.attributes["error.type"] == "INTERNAL"
    assert not fault.events, "an exception is not recorded"
    assert "4711" not in fault.to_json()


async def test_a_call_that_is_to_be_made_again_elsewhere_is_no_failure(site: Site) -> None:
    with recorded_spans() as recorded:
        await _get(site, 504)
        await _ended(recorded, GET_JOB)
        span = recorded.one(GET_JOB)
    assert span.attributes is not None and span.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert "error.type" not in span.attributes


async def test_a_stream_that_was_open_for_as_long_as_it_was_asked_for_is_no_failure(site: Site) -> None:
    with recorded_spans() as recorded:
        stub = JobServiceStub(site.public())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.MonitorJob(job_pb.MonitorJobRequest(job_id=1000), timeout=2, metadata=BEARER):
                pass
        await _ended(recorded, MONITOR)
        span = recorded.one(MONITOR)
    error = grpc_error(caught.value)
    assert "as long as it was asked for" in error.message and error.metadata["cause"] == interceptors.STREAM_OVER
    assert span.attributes is not None and span.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert "error.type" not in span.attributes


async def test_a_stream_that_its_client_leaves_ends_its_span(site: Site) -> None:
    with recorded_spans() as recorded:
        call = JobServiceStub(site.public()).MonitorJob(job_pb.MonitorJobRequest(job_id=1000), metadata=BEARER)
        await site.jobs.waiting.get()
        assert not recorded.named(MONITOR)
        call.cancel()
        await _ended(recorded, MONITOR)
        span = recorded.one(MONITOR)
    assert span.attributes is not None and span.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_health_checks_are_not_traced(site: Site) -> None:
    with recorded_spans() as recorded:
        await HealthStub(site.public()).Check(health_pb2.HealthCheckRequest())
        await _get(site, 1)
        await _ended(recorded, GET_JOB)
        assert [span.name for span in recorded.all()] == [GET_JOB]


async def test_calls_between_processes_are_spans_on_both_sides(site: Site) -> None:
    channel = traced(site.internal(site.authority.service("hub"), server_name="queue"))
    with recorded_spans() as recorded:
        with tracing.within(GIVEN):
            await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest(), timeout=20)
        await _ended(recorded, CLOSE, 2)
        server, client = sorted(recorded.named(CLOSE), key=lambda span: span.kind.name == "CLIENT")
    assert client.kind.name == "CLIENT"
    assert client.parent is not None and client.parent.span_id == GIVEN.span_id
    assert server.parent is not None and server.parent.span_id == context_of(client).span_id
    assert client.attributes is not None and client.attributes["rpc.response.status_code"] == "OK"


async def test_a_call_that_is_part_of_no_trace_begins_one_where_it_is_served(site: Site) -> None:
    channel = traced(site.internal(site.authority.service("hub"), server_name="queue"))
    with recorded_spans() as recorded:
        await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest(), timeout=20)
        await _ended(recorded, CLOSE)
    assert recorded.one(CLOSE).parent is None


async def test_a_call_that_fails_says_so_on_its_own_side(site: Site) -> None:
    channel = traced(site.internal(site.authority.agent("local", "a1"), server_name="queue"))
    with recorded_spans() as recorded:
        with tracing.within(GIVEN), pytest.raises(grpc.aio.AioRpcError):
            await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest(), timeout=20)
        await _ended(recorded, CLOSE, 2)
        client = next(span for span in recorded.named(CLOSE) if span.kind.name == "CLIENT")
    assert client.attributes is not None and client.attributes["error.type"] == "PERMISSION_DENIED"


async def test_where_nothing_is_recorded_a_trace_still_goes_on(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The line of the called process has the trace of the calling one, which only passed it on."""
    caplog.set_level(logging.DEBUG)
    channel = traced(site.internal(site.authority.service("hub"), server_name="queue"))
    formatted: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: formatted.append(JsonFormatter("test").format(record))  # type: ignore[method-assign]
    logging.getLogger("rpc").addHandler(handler)
    try:
        with tracing.within(GIVEN):
            await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest(), timeout=20)
        await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest(), timeout=20)
    finally:
        logging.getLogger("rpc").removeHandler(handler)
    assert [f"{GIVEN.trace_id:032x}" in line for line in formatted] == [True, False]
    assert "trace_id" not in formatted[1]
