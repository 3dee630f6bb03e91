"""A real server on loopback, with both kinds of listener, and channels to it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from services.runtime.access import Caller, current_caller
from services.runtime.channels import secure_channel
from services.runtime.dependencies import ShuttingDown
from services.runtime.errors import FieldViolation, InvalidArgument, NotFound
from services.runtime.server import Listener, Registration, Server
from services.runtime.tls import TlsFiles
from sis.agent.v1 import agent_service_pb2 as agent_pb
from sis.agent.v1 import agent_service_pb2_grpc as agent_rpc
from sis.agent.v1 import enrolment_service_pb2 as enrolment_pb
from sis.agent.v1 import enrolment_service_pb2_grpc as enrolment_rpc
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import dispatch_service_pb2_grpc as dispatch_rpc
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as job_pb
from sis.queue.v1 import job_service_pb2_grpc as job_rpc
from sis.queue.v1 import package_service_pb2 as package_pb
from sis.queue.v1 import package_service_pb2_grpc as package_rpc
from tests.support.certificates import CertificateAuthority

TOKEN = "a token for tests"
BEARER = (("authorization", f"Bearer {TOKEN}"),)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class JobServicer(job_rpc.JobServiceServicer):
    """Unary calls and streams of responses; the job's id says what happens."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.waiting: asyncio.Queue[None] = asyncio.Queue()
        self.left: asyncio.Queue[Caller] = asyncio.Queue()
        self.release = asyncio.Event()

    async def GetJob(self, request: job_pb.GetJobRequest, context: Context) -> job_pb.GetJobResponse:
        self.callers.append(current_caller())
        match request.job_id:
            case 404:
                raise NotFound("job 404: there is no such job", reason="JOB_NOT_FOUND")
            case 500:
                raise KeyError("the secret 4711")
            case 501:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._refuse())
            case 502:
                return "no message at all"  # type: ignore[return-value]
            case 503:
                raise TimeoutError("not the deadline's")
            case 504:
                raise ShuttingDown
            case 1000:
                self.waiting.put_nowait(None)
                await self.release.wait()
            case 2000:
                raise InvalidArgument.fields([FieldViolation(f"field{n}", "é" * 100) for n in range(1_000)])
        return job_pb.GetJobResponse(job=job_pb2.Job(job_id=request.job_id))

    @staticmethod
    async def _refuse() -> None:
        raise NotFound("job 501: there is no such job", reason="JOB_NOT_FOUND")

    async def MonitorJob(
        self, request: job_pb.MonitorJobRequest, context: Context
    ) -> AsyncIterator[job_pb.MonitorJobResponse]:
        for number in range(3):
            yield job_pb.MonitorJobResponse(job=job_pb2.Job(job_id=number))
        if request.job_id == 500:
            raise KeyError("the secret 4711")
        if request.job_id == 404:
            raise NotFound("job 404: there is no such job", reason="JOB_NOT_FOUND")
        if request.job_id == 1000:
            self.waiting.put_nowait(None)
            try:
                await self.release.wait()
            finally:
                self.left.put_nowait(current_caller())


class PackageServicer(package_rpc.PackageServiceServicer):
    """A stream of requests, one response."""

    async def PushPackage(self, request_iterator: Any, context: Context) -> package_pb.PushPackageResponse:
        size = 0
        async for request in request_iterator:
            size += len(request.chunk)
        return package_pb.PushPackageResponse(package=package_pb.Package(size_bytes=size, pusher=current_caller().name))


class AgentServicer(agent_rpc.AgentServiceServicer):
    """Streams both ways."""

    async def Connect(self, request_iterator: Any, context: Context) -> AsyncIterator[agent_pb.ConnectResponse]:
        async for request in request_iterator:
            yield agent_pb.ConnectResponse(welcome=agent_pb.Welcome(epoch=request.hello.slots))


class EnrolmentServicer(enrolment_rpc.EnrolmentServiceServicer):
    """Unary calls that anyone may make; `Rejoin` waits for ever."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[None] = asyncio.Queue()

    async def Enrol(self, request: enrolment_pb.EnrolRequest, context: Context) -> enrolment_pb.EnrolResponse:
        return enrolment_pb.EnrolResponse(name="a1")

    async def Rejoin(self, request: enrolment_pb.RejoinRequest, context: Context) -> enrolment_pb.RejoinResponse:
        self.waiting.put_nowait(None)
        await asyncio.Event().wait()
        return enrolment_pb.RejoinResponse()


class DispatchServicer(dispatch_rpc.DispatchServiceServicer):
    async def CloseSession(
        self, request: dispatch_pb.CloseSessionRequest, context: Context
    ) -> dispatch_pb.CloseSessionResponse:
        return dispatch_pb.CloseSessionResponse()


@dataclass
class Site:
    """The server, and what it takes to call it."""

    authority: CertificateAuthority
    jobs: JobServicer
    enrolments: EnrolmentServicer
    server: Server
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def public(self, options: tuple[tuple[str, int], ...] = ()) -> grpc.aio.Channel:
        """A channel as people have it, without a certificate."""
        credentials = grpc.ssl_channel_credentials(root_certificates=self.authority.ca.read_bytes())
        return self._kept(grpc.aio.secure_channel(f"127.0.0.1:{self.server.ports[0]}", credentials, options=options))

    def internal(self, tls: TlsFiles, **changes: Any) -> grpc.aio.Channel:
        """A channel with a client certificate."""
        return self._kept(secure_channel(f"127.0.0.1:{self.server.ports[1]}", tls, **changes))

    def _kept(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        self.channels.append(channel)
        return channel


def build(authority: CertificateAuthority, jobs: JobServicer, enrolments: EnrolmentServicer | None = None) -> Server:
    registrations: list[Registration] = [
        (job_rpc.add_JobServiceServicer_to_server, jobs),
        (package_rpc.add_PackageServiceServicer_to_server, PackageServicer()),
        (agent_rpc.add_AgentServiceServicer_to_server, AgentServicer()),
        (dispatch_rpc.add_DispatchServiceServicer_to_server, DispatchServicer()),
        (enrolment_rpc.add_EnrolmentServiceServicer_to_server, enrolments or EnrolmentServicer()),
    ]
    tls = authority.service("queue")
    return Server(
        "test",
        registrations,
        [
            Listener("127.0.0.1:0", tls),
            Listener("127.0.0.1:0", tls, demand_client_certificate=True),
        ],
        admin_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
    )


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def site(authority: CertificateAuthority, tmp_path: Path) -> AsyncIterator[Site]:
    jobs, enrolments = JobServicer(), EnrolmentServicer()
    site = Site(authority, jobs, enrolments, build(authority, jobs, enrolments))
    await site.server.start()
    try:
        yield site
    finally:
        for channel in site.channels:
            await channel.close()
        await site.server.stop(0)
