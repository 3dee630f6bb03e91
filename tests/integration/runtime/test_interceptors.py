"""The chain around every call, over real gRPC and TLS."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from services.runtime import errors, interceptors
from services.runtime.channels import MAX_MESSAGE_BYTES, grpc_error
from services.runtime.errors import SisError
from services.runtime.telemetry import JsonFormatter
from sis.agent.v1 import agent_service_pb2 as agent_pb
from sis.agent.v1 import enrolment_service_pb2 as enrolment_pb
from sis.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sis.agent.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_service_pb2 as job_pb
from sis.queue.v1 import package_service_pb2 as package_pb
from sis.queue.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from sis.queue.v1.job_service_pb2_grpc import JobServiceStub
from sis.queue.v1.package_service_pb2_grpc import PackageServiceStub
from tests.integration.runtime.conftest import BEARER, TOKEN, Site

GET_JOB = "/sis.queue.v1.JobService/GetJob"
PUSH = "/sis.queue.v1.PackageService/PushPackage"
CONNECT = "/sis.agent.v1.AgentService/Connect"
MONITOR = "/sis.queue.v1.JobService/MonitorJob"

# Not a message; a string that is not UTF-8 (display_name of CreateJob, page_token of ListJobs, the agent's version).
GARBAGE = b"\xff\xff\xff\xff"


async def refused(call: grpc.aio.Call | AsyncIterator[object] | object) -> SisError:
    """The error that a call, or a stream, ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, AsyncIterator) or hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call  # type: ignore[misc]
    return grpc_error(caught.value)


# --- who calls ---


async def test_the_token_lets_a_person_in(site: Site) -> None:
    stub = JobServiceStub(site.public())
    response = await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=BEARER)
    assert response.job.job_id == 1
    (caller,) = site.jobs.callers
    assert (caller.kind, caller.name, caller.origin) == ("person", "administrator", "127.0.0.1")


async def test_no_token_is_unauthenticated(site: Site) -> None:
    error = await refused(JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=1)))
    assert isinstance(error, errors.Unauthenticated)
    assert error.reason == "UNAUTHENTICATED"
    assert "authorization" in error.message
    assert site.jobs.callers == []


async def test_a_wrong_token_is_unauthenticated(site: Site) -> None:
    metadata = (("authorization", f"Bearer {TOKEN}x"),)
    error = await refused(JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(), metadata=metadata))
    assert isinstance(error, errors.Unauthenticated)
    assert TOKEN not in error.message


async def test_an_agent_may_not_call_a_persons_method(site: Site) -> None:
    stub = JobServiceStub(site.internal(site.authority.agent("local", "a1")))
    error = await refused(stub.GetJob(job_pb.GetJobRequest(job_id=1)))
    assert isinstance(error, errors.PermissionDenied)
    assert "'a1'" in error.message
    assert site.jobs.callers == []


async def test_a_person_and_an_agent_may_not_call_the_hubs_methods(site: Site) -> None:
    close = dispatch_pb.CloseSessionRequest()
    person = DispatchServiceStub(site.public()).CloseSession(close, metadata=BEARER)
    assert isinstance(await refused(person), errors.PermissionDenied)
    agent = DispatchServiceStub(site.internal(site.authority.agent("local", "a1"))).CloseSession(close)
    assert isinstance(await refused(agent), errors.PermissionDenied)
    await DispatchServiceStub(site.internal(site.authority.service("hub"))).CloseSession(close)


async def test_a_stranger_with_a_certificate_of_the_authority_is_nobody(site: Site) -> None:
    stranger = site.authority.issue("spiffe://elsewhere/service/hub")
    call = DispatchServiceStub(site.internal(stranger)).CloseSession(dispatch_pb.CloseSessionRequest())
    assert isinstance(await refused(call), errors.Unauthenticated)


@pytest.mark.parametrize(
    ("service", "said", "origin"),
    [
        ("gateway", "192.0.2.7", "192.0.2.7"),
        ("gateway", "2001:DB8:0::1", "2001:db8::1"),
        ("gateway", "nowhere", "127.0.0.1"),
        ("gateway", "", "127.0.0.1"),
        ("hub", "192.0.2.7", "127.0.0.1"),
    ],
)
async def test_the_gateway_alone_says_where_a_person_is(site: Site, service: str, said: str, origin: str) -> None:
    stub = JobServiceStub(site.internal(site.authority.service(service)))
    await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=(*BEARER, ("x-sis-origin", said)))
    (caller,) = site.jobs.callers
    assert (caller.kind, caller.name, caller.origin) == ("person", "administrator", origin)


async def test_without_a_certificate_nobody_says_where_a_person_is(site: Site) -> None:
    metadata = (*BEARER, ("x-sis-origin", "192.0.2.7"))
    await JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=1), metadata=metadata)
    assert site.jobs.callers[0].origin == "127.0.0.1"


async def test_the_gateway_without_a_token_is_nobody(site: Site) -> None:
    channel = site.internal(site.authority.service("gateway"))
    error = await refused(JobServiceStub(channel).GetJob(job_pb.GetJobRequest(job_id=1)))
    assert isinstance(error, errors.Unauthenticated)
    close = DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest())
    assert isinstance(await refused(close), errors.Unauthenticated)


async def test_the_internal_listener_wants_a_certificate(site: Site) -> None:
    credentials = grpc.ssl_channel_credentials(root_certificates=site.authority.ca.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{site.server.ports[1]}", credentials) as channel:
        call = JobServiceStub(channel).GetJob(job_pb.GetJobRequest(), metadata=BEARER)
        assert isinstance(await refused(call), errors.Unavailable)


async def test_a_certificate_on_the_public_listener_proves_nothing(site: Site) -> None:
    tls = site.authority.service("hub")
    credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{site.server.ports[0]}", credentials) as channel:
        call = DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest())
        assert isinstance(await refused(call), errors.Unauthenticated)


async def test_a_method_without_servicer_is_unimplemented(site: Site) -> None:
    for method in ("/sis.queue.v1.JobService/Nothing", "/no.such.Service/Nothing"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.public().unary_unary(method)(b"", metadata=BEARER)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await JobServiceStub(site.public()).AbortJob(job_pb.AbortJobRequest(), metadata=BEARER)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- what is sent ---


def bad_requests() -> Iterable[tuple[str, bytes]]:
    invalid_utf8 = b"\x12\x02\xc3\x28"  # field 2 of MonitorJobRequest, a string
    yield GET_JOB, GARBAGE
    yield MONITOR, GARBAGE
    yield MONITOR, invalid_utf8
    yield PUSH, GARBAGE
    yield PUSH, b"\x0a\x04\x0a\x02\xc3\x28"  # upload.digest
    yield CONNECT, GARBAGE
    yield CONNECT, b"\x0a\x04\x0a\x02\xc3\x28"  # hello.version


@pytest.mark.parametrize(("method", "raw"), list(bad_requests()))
async def test_bytes_that_are_no_message_are_refused(
    site: Site, caplog: pytest.LogCaptureFixture, method: str, raw: bytes
) -> None:
    channel = site.internal(site.authority.agent("local", "a1")) if method == CONNECT else site.public()
    metadata = () if method == CONNECT else BEARER
    if method == GET_JOB:
        call = channel.unary_unary(method)(raw, metadata=metadata)
    elif method == MONITOR:
        call = channel.unary_stream(method)(raw, metadata=metadata)
    elif method == PUSH:
        call = channel.stream_unary(method)(iter([b"", raw]), metadata=metadata)
    else:
        call = channel.stream_stream(method)(iter([b"", raw]), metadata=metadata)
    error = await refused(call)
    assert isinstance(error, errors.InvalidArgument)
    assert error.reason == "MALFORMED_REQUEST"
    assert "Traceback" not in caplog.text


async def test_a_message_beyond_16_mib_is_refused_and_the_connection_goes_on(site: Site) -> None:
    stub = JobServiceStub(site.public((("grpc.max_send_message_length", -1),)))
    request = job_pb.CreateJobRequest(display_name="x" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateJob(request, metadata=BEARER)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=BEARER)


async def test_a_message_of_almost_16_mib_is_received(site: Site) -> None:
    raw = job_pb.CreateJobRequest(display_name="x" * (MAX_MESSAGE_BYTES - 1_000)).SerializeToString()
    call = site.public((("grpc.max_send_message_length", -1),)).unary_unary(
        GET_JOB, response_deserializer=job_pb.GetJobResponse.FromString
    )
    assert isinstance(await call(raw, metadata=BEARER), job_pb.GetJobResponse)  # unknown fields are no error


# --- the four kinds of calls ---


async def test_streams_of_responses(site: Site) -> None:
    stub = JobServiceStub(site.public())
    call = stub.MonitorJob(job_pb.MonitorJobRequest(job_id=1), metadata=BEARER)
    assert [response.job.job_id async for response in call] == [0, 1, 2]


async def test_streams_of_requests(site: Site) -> None:
    requests = [package_pb.PushPackageRequest(chunk=b"12345") for _ in range(1_000)]
    response = await PackageServiceStub(site.public()).PushPackage(iter(requests), metadata=BEARER)
    assert response.package.size_bytes == 5_000
    assert response.package.pusher == "administrator"


async def test_streams_both_ways(site: Site) -> None:
    call = AgentServiceStub(site.internal(site.authority.agent("local", "a1"))).Connect()
    for number in (7, 8):
        await call.write(agent_pb.ConnectRequest(hello=dispatch_pb.AgentHello(slots=number)))
        response = await call.read()
        assert isinstance(response, agent_pb.ConnectResponse)
        assert response.welcome.epoch == number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


# --- what goes wrong ---


async def test_an_error_arrives_whole(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=404), metadata=BEARER)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    status = status_pb2.Status()
    status.ParseFromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.code == code_pb2.NOT_FOUND
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("JOB_NOT_FOUND", "sis")


async def test_an_error_from_within_a_task_group_is_itself(site: Site) -> None:
    error = await refused(JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=501), metadata=BEARER))
    assert error.reason == "JOB_NOT_FOUND"


async def test_an_error_in_the_middle_of_a_stream(site: Site) -> None:
    call = JobServiceStub(site.public()).MonitorJob(job_pb.MonitorJobRequest(job_id=404), metadata=BEARER)
    received = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            received += 1
    assert received == 3
    assert grpc_error(caught.value).reason == "JOB_NOT_FOUND"


@pytest.mark.parametrize("job_id", [500, 502, 503])
async def test_a_fault_shows_a_number_and_only_the_log_says_more(
    site: Site, caplog: pytest.LogCaptureFixture, job_id: int
) -> None:
    error = await refused(JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=job_id), metadata=BEARER))
    assert isinstance(error, errors.Internal)
    assert error.metadata["fault"] in error.message
    assert "4711" not in error.message
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"fault {error.metadata['fault']} in {GET_JOB}"


async def test_a_fault_in_a_stream_shows_a_number(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    error = await refused(
        JobServiceStub(site.public()).MonitorJob(job_pb.MonitorJobRequest(job_id=500), metadata=BEARER)
    )
    assert isinstance(error, errors.Internal)
    assert "4711" not in error.message
    assert "4711" in caplog.text


async def test_many_violations_fit_in_the_trailers(site: Site) -> None:
    error = await refused(JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=2000), metadata=BEARER))
    assert isinstance(error, errors.InvalidArgument)
    assert error.violations[0].field == "field0"
    assert 1 < len(error.violations) < 1_000


# --- deadlines and limits ---


async def test_the_server_ends_a_call_before_its_client_gives_up(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=1000), metadata=BEARER, timeout=1)
    error = grpc_error(caught.value)
    assert isinstance(error, errors.DeadlineExceeded)
    assert error.message.startswith(GET_JOB)


async def test_a_call_without_a_deadline_gets_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptors, "UNARY_LIMIT_SECONDS", 0.2)
    error = await refused(JobServiceStub(site.public()).GetJob(job_pb.GetJobRequest(job_id=1000), metadata=BEARER))
    assert isinstance(error, errors.DeadlineExceeded)


async def test_too_many_calls_are_refused_and_others_are_not(site: Site) -> None:
    stub = JobServiceStub(site.public())
    waiting = [stub.GetJob(job_pb.GetJobRequest(job_id=1000), metadata=BEARER) for _ in range(interceptors.UNARY_LIMIT)]
    for _ in waiting:
        await site.jobs.waiting.get()
    error = await refused(stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=BEARER))
    assert isinstance(error, errors.ResourceExhausted)
    assert error.reason == "OVERLOADED"
    assert error.retry_after is not None
    stream = stub.MonitorJob(job_pb.MonitorJobRequest(job_id=1), metadata=BEARER)
    assert len([response async for response in stream]) == 3
    site.jobs.release.set()
    await asyncio.gather(*waiting)
    await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=BEARER)


async def test_however_many_watch_agents_and_hubs_are_heard(site: Site) -> None:
    stub, request = JobServiceStub(site.public()), job_pb.MonitorJobRequest(job_id=1000)
    watches = [stub.MonitorJob(request, metadata=BEARER) for _ in range(interceptors.STREAM_LIMIT)]
    for _ in watches:
        await site.jobs.waiting.get()
    error = await refused(stub.MonitorJob(request, metadata=BEARER))
    assert isinstance(error, errors.ResourceExhausted)
    stream = AgentServiceStub(site.internal(site.authority.agent("local", "a1"), server_name="queue")).Connect()
    await stream.write(agent_pb.ConnectRequest())
    assert (await stream.read()).HasField("welcome")


async def test_one_agent_cannot_take_the_places_of_the_others(site: Site) -> None:
    greedy, other = (
        AgentServiceStub(site.internal(site.authority.agent("local", name), server_name="queue"))
        for name in ("a1", "a2")
    )
    streams = [greedy.Connect() for _ in range(interceptors.AGENT_LIMIT)]
    for stream in streams:
        await stream.write(agent_pb.ConnectRequest())
        assert (await stream.read()).HasField("welcome")
    error = await refused(greedy.Connect())
    assert isinstance(error, errors.ResourceExhausted)
    assert error.message.startswith(f"agent a1 has {interceptors.AGENT_LIMIT} calls in flight")
    elsewhere = other.Connect()
    await elsewhere.write(agent_pb.ConnectRequest())
    assert (await elsewhere.read()).HasField("welcome")


async def test_idle_health_watches_block_neither_probes_nor_enrolments(site: Site) -> None:
    health = HealthStub(site.public())
    watch, check = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckRequest()
    watches = [health.Watch(watch) for _ in range(interceptors.OPEN_STREAM_LIMIT)]
    for each in watches:
        await each.read()
    assert isinstance(await refused(health.Watch(watch)), errors.ResourceExhausted)
    assert (await health.Check(check, timeout=5)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    enrolment = EnrolmentServiceStub(site.public())
    assert (await enrolment.Enrol(enrolment_pb.EnrolRequest(), timeout=5)).name == "a1"


async def test_enrolments_that_hang_block_neither_probes_nor_watches(site: Site) -> None:
    enrolment = EnrolmentServiceStub(site.public())
    hanging = [enrolment.Rejoin(enrolment_pb.RejoinRequest()) for _ in range(interceptors.ENROLMENT_LIMIT)]
    for _ in hanging:
        await site.enrolments.waiting.get()
    assert isinstance(await refused(enrolment.Enrol(enrolment_pb.EnrolRequest())), errors.ResourceExhausted)
    health = HealthStub(site.public())
    await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert isinstance(await health.Watch(health_pb2.HealthCheckRequest()).read(), health_pb2.HealthCheckResponse)


async def test_a_stream_that_anyone_may_open_ends_by_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptors, "OPEN_STREAM_SECONDS", 0.2)
    error = await refused(HealthStub(site.public()).Watch(health_pb2.HealthCheckRequest(), timeout=10))
    assert isinstance(error, errors.DeadlineExceeded)
    assert error.message == "/grpc.health.v1.Health/Watch: it was open for 0.2 s, which is its limit; call again"


async def test_a_client_that_goes_away_ends_its_stream(site: Site) -> None:
    call = JobServiceStub(site.public()).MonitorJob(job_pb.MonitorJobRequest(job_id=1000), metadata=BEARER)
    await site.jobs.waiting.get()
    call.cancel()
    caller = await site.jobs.left.get()
    assert caller.kind == "person"  # still known while the servicer cleans up


# --- telemetry ---


async def test_each_call_is_one_line(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stub = JobServiceStub(site.public())
    await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=(*BEARER, ("x-request-id", "mine-1")))
    await refused(stub.GetJob(job_pb.GetJobRequest(job_id=404), metadata=(*BEARER, ("x-request-id", "a b"))))
    calls = [record for record in caplog.records if record.name == "rpc"]
    lines = [json.loads(JsonFormatter("test").format(record)) for record in calls]
    assert [(line["method"], line["code"], line["caller"]) for line in lines] == [
        (GET_JOB, "OK", "person:administrator"),
        (GET_JOB, "NOT_FOUND", "person:administrator"),
    ]
    assert lines[0]["request_id"] == "mine-1"
    assert " " not in lines[1]["request_id"]
    assert all(line["milliseconds"] >= 0 for line in lines)
