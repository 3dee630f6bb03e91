"""Bad input over gRPC and TLS: each gets a typed error that names the field and what to do, and nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from sqlalchemy import text

from services.runtime.channels import from_status
from sis.packages import archive, shipped
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import dispatch_service_pb2_grpc as dispatch_rpc
from sis.queue.v1 import frame_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as package_pb
from tests.integration.queue.api import SECONDS, Api, fields, refusal
from tests.integration.queue.rig import Rig
from tests.support.frames import Spool
from tests.support.queue_server import BEARER, QueueServer

TABLES = ("jobs", "attempts", "history", "log", "request_ids", "packages", "package_chunks", "agent_sessions")


async def stored(rig: Rig) -> dict[str, int]:
    async with rig.database.begin() as connection:
        return {
            table: (await connection.execute(text(f"SELECT count(*) FROM queue.{table}"))).scalar_one()
            for table in TABLES
        }


@pytest.fixture(autouse=True)
async def _nothing_is_stored(served: Rig) -> AsyncIterator[None]:
    before = await stored(served)
    yield
    after = await stored(served)
    assert {table for table in TABLES if after[table] > before[table]} == set()  # its sweeper may purge meanwhile


def create(**changes: Any) -> pb.CreateJobRequest:
    found = pb.CreateJobRequest(display_name="bad", type="JOB_TYPE_PACKAGE", operation="run", request_id="bad")
    found.package.name = "core.shell"
    found.site_target.group = "local"
    found.parameters["script"].plain = "true"
    found.MergeFrom(pb.CreateJobRequest(**changes))
    return found


Change = Callable[[pb.CreateJobRequest], object]

CREATE: dict[str, tuple[str, str, Change]] = {
    "no name": ("INVALID_FIELD", "display_name", lambda r: r.ClearField("display_name")),
    "no type": ("INVALID_FIELD", "type", lambda r: r.ClearField("type")),
    "an unknown type": ("INVALID_FIELD", "type", lambda r: setattr(r, "type", 99)),
    "an unknown priority": ("INVALID_FIELD", "priority", lambda r: setattr(r, "priority", 99)),
    "an unknown package": ("PACKAGE_NOT_FOUND", "package", lambda r: setattr(r.package, "name", "no.such")),
    "an unknown version": ("PACKAGE_NOT_FOUND", "package", lambda r: setattr(r.package, "version", "7.0.0")),
    "an unknown operation": ("OPERATION_NOT_FOUND", "operation", lambda r: setattr(r, "operation", "walk")),
    "an unknown agent": ("AGENT_NOT_FOUND", "site_target.agent", lambda r: setattr(r.site_target, "agent", "nobody")),
    "no site": ("INVALID_FIELD", "site_target", lambda r: r.ClearField("site_target")),
    "a missing parameter": ("INVALID_PARAMETER", "parameters.script", lambda r: r.ClearField("parameters")),
    "a surplus parameter": ("INVALID_PARAMETER", "parameters.x", lambda r: setattr(r.parameters["x"], "plain", "1")),
    "a wrongly typed parameter": (
        "INVALID_PARAMETER", "parameters.script", lambda r: r.parameters["script"].list.items.append("a"),
    ),
    "a parameter that fits no pattern": (
        "INVALID_PARAMETER", "parameters.environment",
        lambda r: setattr(r.parameters["environment"], "plain", "no equals sign"),
    ),
    "a parameter of 5 MiB": (
        "INVALID_FIELD", "parameters.script", lambda r: setattr(r.parameters["script"], "plain", "x" * (5 << 20)),
    ),
    "a NUL": ("INVALID_FIELD", "parameters.script", lambda r: setattr(r.parameters["script"], "plain", "\0")),
    "a run timeout of a year": (
        "INVALID_FIELD", "run_timeout", lambda r: setattr(r.run_timeout, "seconds", 365 * 86_400),
    ),
    "a latest start that has passed": (
        "INVALID_FIELD", "latest_start", lambda r: setattr(r.latest_start, "seconds", 1),
    ),
    "a long request id": ("INVALID_FIELD", "request_id", lambda r: setattr(r, "request_id", "x" * 65)),
}  # fmt: skip


@pytest.mark.parametrize("case", CREATE)
async def test_a_job_that_cannot_be_is_refused(api: Api, case: str) -> None:
    reason, field, change = CREATE[case]
    request = create()
    change(request)
    error = await refusal(api(api.jobs.CreateJob, request))
    assert error.reason == reason
    assert fields(error) == [field] and field in error.message
    not_found = code_pb2.NOT_FOUND if reason == "PACKAGE_NOT_FOUND" else code_pb2.INVALID_ARGUMENT
    assert error.code == not_found


async def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    error = await refusal(api(api.jobs.CreateJob, pb.CreateJobRequest()))
    assert set(fields(error)) == {"display_name", "type", "package.name", "operation", "site_target"}


async def test_ten_thousand_mistakes_are_refused_within_the_limits_of_a_status(api: Api) -> None:
    request = create()
    for number in range(10_000):
        request.parameters[f"p{number}"].SetInParent()
    error = await refusal(api(api.jobs.CreateJob, request))
    assert fields(error)[0] == "parameters.p0"


async def test_a_request_over_sixteen_mebibytes_is_refused(api: Api) -> None:
    request = create()
    request.parameters["script"].plain = "x" * (17 << 20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api(api.jobs.CreateJob, request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


JOB_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "GetJob": ("GetJobRequest", {}),
    "MonitorJob": ("MonitorJobRequest", {}),
    "GetConsoleOutput": ("GetConsoleOutputRequest", {}),
    "GetDebugLog": ("GetDebugLogRequest", {}),
    "ListJobHistory": ("ListJobHistoryRequest", {}),
    "ActivateJob": ("ActivateJobRequest", {}),
    "CancelJob": ("CancelJobRequest", {}),
    "AbortJob": ("AbortJobRequest", {}),
    "DeleteJob": ("DeleteJobRequest", {}),
}


@pytest.mark.parametrize("method", JOB_CALLS)
async def test_every_method_of_a_job_names_the_job_that_is_not_there(api: Api, method: str) -> None:
    request = getattr(pb, JOB_CALLS[method][0])
    for job_id in (2**40, 2**63 - 1):
        error = await refusal(api(getattr(api.jobs, method), request(job_id=job_id)))
        assert (error.code, error.reason) == (code_pb2.NOT_FOUND, "JOB_NOT_FOUND")
        assert str(job_id) in error.message and error.metadata["job_id"] == str(job_id)
    for job_id in (0, -1, -(2**63)):
        error = await refusal(api(getattr(api.jobs, method), request(job_id=job_id)))
        assert (error.code, error.reason, fields(error)) == (code_pb2.INVALID_ARGUMENT, "INVALID_FIELD", ["job_id"])


@pytest.mark.parametrize(
    ("method", "request_", "field", "reason"),
    [
        ("ListJobs", pb.ListJobsRequest(page_token="garbage"), "page_token", "INVALID_TOKEN"),
        ("ListJobs", pb.ListJobsRequest(page_token="é"), "page_token", "INVALID_TOKEN"),
        ("ListJobs", pb.ListJobsRequest(page_token="A" * 100_000), "page_token", "INVALID_TOKEN"),
        ("ListJobs", pb.ListJobsRequest(order_by="password"), "order_by", "INVALID_FIELD"),
        ("ListJobs", pb.ListJobsRequest(page_size=-1), "page_size", "INVALID_FIELD"),
        ("ListJobs", pb.ListJobsRequest(filter={"statuses": [99]}), "filter.statuses[0]", "INVALID_FIELD"),
        ("ListJobs", pb.ListJobsRequest(filter={"run_states": [99]}), "filter.run_states[0]", "INVALID_FIELD"),
        ("ListJobs", pb.ListJobsRequest(filter={"types": [99]}), "filter.types[0]", "INVALID_FIELD"),
        ("ListJobs", pb.ListJobsRequest(filter={"text": "x" * 201}), "filter.text", "INVALID_FIELD"),
        ("MonitorJob", pb.MonitorJobRequest(job_id=1, resume_token="x"), "resume_token", "INVALID_TOKEN"),
        ("ListJobHistory", pb.ListJobHistoryRequest(job_id=1, page_token="x"), "page_token", "INVALID_TOKEN"),
        ("GetDebugLog", pb.GetDebugLogRequest(job_id=1, view=99), "view", "INVALID_FIELD"),  # type: ignore[arg-type]
        ("CancelJob", pb.CancelJobRequest(job_id=1, reason="x" * 501), "reason", "INVALID_FIELD"),
        ("AbortJob", pb.AbortJobRequest(job_id=1, reason="\x1b"), "reason", "INVALID_FIELD"),
    ],
)
async def test_a_bad_field_of_the_other_methods_is_named(
    api: Api, method: str, request_: Any, field: str, reason: str
) -> None:
    error = await refusal(api(getattr(api.jobs, method), request_))
    assert (error.code, error.reason, fields(error)) == (code_pb2.INVALID_ARGUMENT, reason, [field])


def raw(channel: grpc.aio.Channel, method: str) -> Any:
    return channel.unary_unary(f"/sis.queue.v1.JobService/{method}", request_serializer=bytes)


@pytest.mark.parametrize(
    "body",
    [b"\x0a\x02\xff\xfe", b"\xff\xff\xff", b"\x0a\x7f", create().SerializeToString()[:-3]],
    ids=["invalid UTF-8", "garbage", "cut short", "a cut request"],
)
async def test_bytes_that_are_no_message_are_refused(server: QueueServer, body: bytes) -> None:
    async with server.public() as channel:
        error = await refusal(raw(channel, "CreateJob")(body, metadata=BEARER, timeout=SECONDS))
    assert (error.code, error.reason) == (code_pb2.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert "UTF-8" in error.message


# Who calls.


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Bearer "),),
        (("authorization", BEARER[0][1].removeprefix("Bearer ")),),
        (*BEARER, *BEARER),
    ],
    ids=["no token", "a wrong token", "an empty token", "no scheme", "two tokens"],
)
async def test_without_the_token_nothing_is_answered(server: QueueServer, metadata: Any) -> None:
    async with server.public() as channel:
        api = Api(channel, metadata)
        for method, request in (
            (api.jobs.ListJobs, pb.ListJobsRequest()),
            (api.jobs.CreateJob, create()),
            (api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=1)),
            (api.packages.ListPackages, package_pb.ListPackagesRequest()),
        ):
            error = await refusal(api(method, request))
            assert (error.code, error.reason) == (code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert "authorization" in error.message


async def test_people_may_not_call_what_is_for_hubs(server: QueueServer) -> None:
    async with server.public() as channel:
        stub: Any = dispatch_rpc.DispatchServiceStub(channel)
        error = await refusal(stub.Claim(dispatch_pb.ClaimRequest(), metadata=BEARER, timeout=SECONDS))
        assert (error.code, error.reason) == (code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED")
        error = await refusal(stub.Claim(dispatch_pb.ClaimRequest(), timeout=SECONDS))
        assert error.code == code_pb2.UNAUTHENTICATED


async def test_neither_hubs_nor_agents_may_call_what_is_for_others(server: QueueServer) -> None:
    async with server.internal() as channel:
        error = await refusal(Api(channel, ())(Api(channel).jobs.ListJobs, pb.ListJobsRequest()))
        assert error.code == code_pb2.PERMISSION_DENIED
    async with server.internal_as_agent() as channel:
        stub: Any = dispatch_rpc.DispatchServiceStub(channel)
        error = await refusal(stub.Claim(dispatch_pb.ClaimRequest(), timeout=SECONDS))
        assert error.code == code_pb2.PERMISSION_DENIED and "hub" in error.message


async def test_the_hubs_listener_takes_nobody_without_a_certificate(server: QueueServer) -> None:
    credentials = grpc.ssl_channel_credentials(root_certificates=server._authority.ca.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{server.ports[1]}", credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Api(channel).jobs.ListJobs(pb.ListJobsRequest(), metadata=BEARER, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# The library.


async def push(api: Api, *requests: package_pb.PushPackageRequest) -> Any:
    async def messages() -> AsyncIterator[package_pb.PushPackageRequest]:
        for request in requests:
            yield request

    return await api.packages.PushPackage(messages(), metadata=BEARER, timeout=SECONDS)


def announced(content: bytes, **changes: Any) -> package_pb.PushPackageRequest:
    upload = package_pb.PackageUpload(digest=archive.digest(content), size_bytes=len(content))
    upload.MergeFrom(package_pb.PackageUpload(**changes))
    return package_pb.PushPackageRequest(upload=upload)


def chunk(data: bytes) -> package_pb.PushPackageRequest:
    return package_pb.PushPackageRequest(chunk=data)


@pytest.mark.parametrize(
    ("requests", "reason", "field"),
    [
        ([], "INVALID_FIELD", "upload"),
        ([chunk(b"x")], "INVALID_FIELD", "upload"),
        ([announced(b"x", digest="0" * 64), chunk(b"x")], "INVALID_FIELD", "upload.digest"),
        ([announced(b"x", size_bytes=5), chunk(b"x")], "INVALID_FIELD", "upload.size_bytes"),
        ([announced(b"x"), chunk(b"xy")], "INVALID_FIELD", "chunk"),
        ([announced(b"x"), announced(b"x")], "INVALID_FIELD", "chunk"),
        ([announced(b"x", size_bytes=65 << 20)], "INVALID_FIELD", "upload.size_bytes"),
        ([announced(b"no archive"), chunk(b"no archive")], "INVALID_PACKAGE", "archive"),
    ],
)
async def test_a_push_that_is_not_what_it_says_is_refused(api: Api, requests: list, reason: str, field: str) -> None:
    error = await refusal(push(api, *requests))
    assert (error.code, error.reason, fields(error)) == (code_pb2.INVALID_ARGUMENT, reason, [field])


async def test_each_mistake_of_a_manifest_is_one_violation(api: Api, tmp_path: Any) -> None:
    (tmp_path / "package.yaml").write_text("name: X\nversion: one\noperations: {run: {command: []}}\n")
    content = archive.pack(tmp_path)
    error = await refusal(push(api, announced(content), chunk(content)))
    assert error.reason == "INVALID_PACKAGE"
    assert {"name", "version", "operations.run.command"} <= set(fields(error))


async def test_a_version_keeps_its_content(api: Api, tmp_path: Any) -> None:
    for source in (shipped() / "core.shell").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes() + b"\n")
    content = archive.pack(tmp_path)
    error = await refusal(push(api, announced(content), chunk(content)))
    assert (error.code, error.reason) == (code_pb2.ALREADY_EXISTS, "PACKAGE_VERSION_EXISTS")


async def test_packages_that_are_not_there(api: Api, hub: Any) -> None:
    error = await refusal(api(api.packages.GetPackage, package_pb.GetPackageRequest(name="no.such")))
    assert (error.code, error.reason) == (code_pb2.NOT_FOUND, "PACKAGE_NOT_FOUND")
    error = await refusal(api(api.packages.ListPackages, package_pb.ListPackagesRequest(page_token="x")))
    assert (error.reason, fields(error)) == ("INVALID_TOKEN", ["page_token"])

    async def fetch(**request: Any) -> None:
        async for _ in hub.GetPackageArchive(dispatch_pb.GetPackageArchiveRequest(**request), timeout=SECONDS):
            pass

    error = await refusal(fetch(digest="0" * 64))
    assert error.reason == "PACKAGE_NOT_FOUND"
    assert fields(await refusal(fetch(digest="x"))) == ["digest"]
    assert fields(await refusal(fetch(digest="0" * 64, offset=-1))) == ["offset"]


# Hubs.


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("OpenSession", dispatch_pb.OpenSessionRequest(), "agent.name"),
        ("CloseSession", dispatch_pb.CloseSessionRequest(), "session"),
        ("Claim", dispatch_pb.ClaimRequest(capacities=[dispatch_pb.Capacity()]), "session"),
        ("Heartbeat", dispatch_pb.HeartbeatRequest(heartbeats=[dispatch_pb.SessionHeartbeat()]), "session"),
        ("Watch", dispatch_pb.WatchRequest(), "hub"),
        ("Watch", dispatch_pb.WatchRequest(hub="a\0"), "hub"),
    ],
)
async def test_what_a_hub_leaves_out_is_named(server: QueueServer, method: str, request_: Any, field: str) -> None:
    async with server.internal() as channel:
        stub: Any = dispatch_rpc.DispatchServiceStub(channel)
        call = getattr(stub, method)(request_, timeout=SECONDS)
        error = await refusal(call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    assert error.reason == "INVALID_FIELD" and field in fields(error)


def frames(*bodies: bytes) -> dict[str, Any]:
    return {"frames": dispatch_pb.FrameBatch(frames=bodies)}


async def test_bad_reports_are_answered_one_by_one(hub: Any) -> None:
    """Nothing is stored for any of them, and the call as a whole succeeds."""
    process = Spool()
    beyond = frame_pb2.Frame(sequence=1)
    beyond.notice.severity = frame_pb2.SEVERITY_INFO
    beyond.notice.process_started.process.start_time.seconds = 2**62
    process.output(b"x")
    session = dispatch_pb.Session(agent="nobody", epoch=1)
    attempt = dispatch_pb.Attempt(job_id=2**40, number=1)
    reports = [
        dispatch_pb.AttemptReport(),
        dispatch_pb.AttemptReport(session=session, attempt=attempt),
        dispatch_pb.AttemptReport(session=session, attempt=attempt, **frames()),
        dispatch_pb.AttemptReport(session=session, attempt=attempt, **frames(b"\xff")),
        dispatch_pb.AttemptReport(session=session, attempt=attempt, **frames(beyond.SerializeToString())),
        dispatch_pb.AttemptReport(session=session, attempt=attempt, **frames(*process.bodies)),
        dispatch_pb.AttemptReport(session=session, attempt=attempt, accepted=dispatch_pb.Accepted()),
    ]
    told = await hub.Report(dispatch_pb.ReportRequest(reports=reports), timeout=SECONDS)
    assert [from_status(result.error).reason for result in told.results] == [
        "INVALID_FIELD", "INVALID_FIELD", "MALFORMED_FRAME", "MALFORMED_FRAME", "MALFORMED_FRAME", "STALE_EPOCH",
        "STALE_EPOCH",
    ]  # fmt: skip
