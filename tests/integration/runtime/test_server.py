"""A server's life: health, reflection, draining, and what stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from services.runtime import errors
from services.runtime import server as runtime_server
from services.runtime.channels import grpc_error, secure_channel
from services.runtime.dependencies import Dependency, Trouble
from services.runtime.health import WAITS_FOR
from services.runtime.server import Listener, Server, run
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_service_pb2 as job_pb
from sis.queue.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from sis.queue.v1.job_service_pb2_grpc import JobServiceStub
from tests.integration.runtime.conftest import BEARER, EnrolmentServicer, JobServicer, Site, build
from tests.support.certificates import CertificateAuthority
from tests.support.tcp_proxy import TcpProxy

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


TROUBLE = Trouble("CONNECTION_LIMIT", "it takes no more connections")


class Running:
    """A server under `run`, in a task of this test."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self.jobs, enrolments = JobServicer(), EnrolmentServicer()
        self.site = Site(authority, self.jobs, enrolments, build(authority, self.jobs, enrolments))
        self.trouble: Trouble | None = None
        self.fault: Exception | None = None
        self.looks = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.started = asyncio.Event()
        self.drained = asyncio.Event()
        self.background_ended = False
        self.task = asyncio.create_task(
            run(
                self.site.server,
                self.background,
                dependencies=[Dependency("postgresql", "PostgreSQL", self.look, interval=0.05)],
                on_drain=self.drain,
            )
        )

    async def look(self) -> Trouble | None:
        self.started.set()
        self.looks += 1
        while not self.answers.is_set():  # as a driver does that waits for the answer to a cancellation
            with contextlib.suppress(asyncio.CancelledError):
                await self.answers.wait()
        if self.fault is not None:
            raise self.fault
        return self.trouble

    async def told_again(self, times: int) -> None:
        """Wait until the server has told so many times more what it waits for, or that it does not."""
        tell = self.site.server.set_waiting
        over = asyncio.Event()
        told = 0

        async def counted(*arguments: Any) -> None:
            nonlocal told
            await tell(*arguments)
            told += 1
            if told >= times:
                over.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.site.server, "set_waiting", counted)
            async with asyncio.timeout(20):
                await over.wait()

    async def drain(self) -> None:
        self.drained.set()

    async def background(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.background_ended = True

    async def until(self, status: int, service: str = "sis.queue.v1.JobService") -> None:
        """Wait until the health service says so."""
        await self.started.wait()
        stub = HealthStub(self.site.public())
        request = health_pb2.HealthCheckRequest(service=service)
        call = stub.Watch(request)
        async for response in call:
            if response.status == status:
                break
        call.cancel()


@pytest.fixture
async def running(authority: CertificateAuthority) -> AsyncIterator[Running]:
    running = Running(authority)
    try:
        yield running
    finally:
        for channel in running.site.channels:
            await channel.close()
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)


async def test_health_follows_what_the_process_can_do(running: Running) -> None:
    await running.until(SERVING)
    running.trouble = TROUBLE
    await running.until(NOT_SERVING)
    running.trouble = None
    await running.until(SERVING)


async def test_health_tells_what_is_waited_for(running: Running) -> None:
    await running.until(SERVING, "postgresql")
    running.trouble = TROUBLE
    await running.until(NOT_SERVING)
    stub = HealthStub(running.site.public())
    for service in ("", "postgresql"):
        check = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert (await check).status == NOT_SERVING
        assert waits(await check.trailing_metadata()) == [
            {
                "dependency": "postgresql",
                "title": "PostgreSQL",
                "cause": "CONNECTION_LIMIT",
                "words": "it takes no more connections",
            }
        ]
    # What befalls some calls only is told, and leaves the server in service.
    running.trouble = Trouble("DISK_FULL", "its disk is full", stops=False)
    await running.until(SERVING)
    check = stub.Check(health_pb2.HealthCheckRequest())
    assert (await check).status == SERVING
    assert [each["cause"] for each in waits(await check.trailing_metadata())] == ["DISK_FULL"]
    running.trouble = None
    await running.until(SERVING, "postgresql")
    check = stub.Check(health_pb2.HealthCheckRequest())
    assert not waits(await check.trailing_metadata())


async def test_a_look_that_hangs_is_no_answer_is_logged_once_and_goes_on(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may take longer than is waited for: another one would begin anew, and never come to its end."""
    await running.until(SERVING)
    caplog.set_level(logging.INFO, logger="server")
    monkeypatch.setattr(runtime_server, "_HEALTH_TIMEOUT_SECONDS", 0.02)
    running.answers.clear()
    try:
        await running.until(NOT_SERVING)
        looks = running.looks
        await running.told_again(5)
        assert running.looks == looks
    finally:
        running.answers.set()
    await running.until(SERVING)
    assert waited(caplog) == ["test waits for PostgreSQL: it does not answer", "test waits no more for PostgreSQL"]


async def test_what_is_known_is_told_until_a_look_that_takes_long_has_found_something_else(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="server")
    running.trouble = TROUBLE
    await running.until(NOT_SERVING, "postgresql")
    monkeypatch.setattr(runtime_server, "_HEALTH_TIMEOUT_SECONDS", 0.02)
    for _ in range(3):
        running.answers.clear()
        await running.told_again(3)
        running.answers.set()
        await running.told_again(3)
    assert waited(caplog) == ["test waits for PostgreSQL: it takes no more connections"]


async def test_a_look_that_fails_is_told_and_ends_nothing(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    await running.until(SERVING)
    running.fault = ZeroDivisionError("a look broke")
    await running.until(NOT_SERVING)
    check = HealthStub(running.site.public()).Check(health_pb2.HealthCheckRequest())
    assert [each["cause"] for each in waits(await check.trailing_metadata())] == ["FAULT"]
    await running.told_again(3)
    running.fault = None
    await running.until(SERVING)
    assert caplog.text.count("ZeroDivisionError: a look broke") == 1


def waited(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of what is waited for."""
    return [r.getMessage() for r in caplog.records if " waits " in r.getMessage()]


def waits(metadata: object) -> list[dict[str, str]]:
    """What a check says besides."""
    return [dict(ErrorInfo.FromString(value).metadata) for key, value in metadata or () if key == WAITS_FOR]  # type: ignore[attr-defined]


async def test_health_and_reflection_need_no_proof(site: Site) -> None:
    channel = site.public()
    response = await HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert response.status == NOT_SERVING  # nobody has said otherwise yet
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    found: set[str] = set()
    async for answer in ServerReflectionStub(channel).ServerReflectionInfo(iter([request])):
        found |= {service.name for service in answer.list_services_response.service}
    assert found >= {"sis.queue.v1.JobService", "sis.agent.v1.AgentService", "grpc.health.v1.Health"}


async def test_a_signal_lets_calls_in_flight_finish(running: Running) -> None:
    await running.until(SERVING)
    stub = JobServiceStub(running.site.public())
    call = asyncio.ensure_future(stub.GetJob(job_pb.GetJobRequest(job_id=1000), metadata=BEARER))
    await running.jobs.waiting.get()
    os.kill(os.getpid(), signal.SIGTERM)
    await running.drained.wait()
    running.jobs.release.set()
    assert (await call).job.job_id == 1000
    await running.task
    assert running.background_ended


async def test_a_broken_background_function_stops_the_process(
    authority: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    drained = asyncio.Event()
    bystander_ended = asyncio.Event()

    async def bystander() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            bystander_ended.set()

    async def broken() -> None:
        raise ValueError("the background broke")

    async def on_drain() -> None:
        drained.set()

    with pytest.raises(SystemExit) as caught:
        await run(build(authority, JobServicer()), bystander, broken, dependencies=[], on_drain=on_drain)
    assert caught.value.code == 1
    assert drained.is_set()
    assert bystander_ended.is_set()
    assert "the background broke" in caplog.text


async def test_a_background_function_that_ends_is_a_failure(
    authority: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    async def done_already() -> None:
        return

    with pytest.raises(SystemExit) as caught:
        await run(build(authority, JobServicer()), done_already, dependencies=[])
    assert caught.value.code == 1
    assert "done_already" in caplog.text


async def test_an_address_in_use_is_one_line(
    site: Site, authority: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"127.0.0.1:{site.server.ports[0]}"
    second = Server("second", [], [Listener(address, authority.service("queue"))])
    with pytest.raises(SystemExit) as caught:
        await run(second, dependencies=[])
    assert caught.value.code == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert address in record.getMessage()
    assert record.exc_info is None


# --- the client's side: channels through a network that misbehaves ---


async def test_named_methods_are_retried_while_the_server_is_away(site: Site) -> None:
    hub = site.authority.service("hub")
    async with TcpProxy(f"127.0.0.1:{site.server.ports[1]}") as proxy:
        async with secure_channel(
            proxy.endpoint, hub, retried=["sis.queue.v1.DispatchService/CloseSession"]
        ) as channel:
            stub = DispatchServiceStub(channel)
            await stub.CloseSession(dispatch_pb.CloseSessionRequest())
            for _ in range(3):
                proxy.cut()
                await stub.CloseSession(dispatch_pb.CloseSessionRequest())
        assert proxy.accepted >= 2


async def test_a_server_that_is_away_is_unavailable(site: Site) -> None:
    async with TcpProxy(f"127.0.0.1:{site.server.ports[1]}") as proxy:
        await proxy.refuse()
        async with secure_channel(proxy.endpoint, site.authority.service("hub")) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest())
            assert isinstance(grpc_error(caught.value), errors.Unavailable)


async def test_a_black_hole_is_noticed_by_keepalive(site: Site) -> None:
    async with (
        TcpProxy(f"127.0.0.1:{site.server.ports[1]}") as proxy,
        secure_channel(proxy.endpoint, site.authority.service("hub")) as channel,
    ):
        stub = DispatchServiceStub(channel)
        await stub.CloseSession(dispatch_pb.CloseSessionRequest())
        proxy.black_hole()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CloseSession(dispatch_pb.CloseSessionRequest(), timeout=25)
        assert isinstance(grpc_error(caught.value), errors.Unavailable)


async def test_a_link_by_satellite_is_long_and_connects(site: Site) -> None:
    """A handshake goes to and fro three times, and nobody is given up for the length of the way."""
    async with (
        TcpProxy(f"127.0.0.1:{site.server.ports[1]}") as proxy,
        secure_channel(proxy.endpoint, site.authority.service("hub")) as channel,
    ):
        proxy.slow(delay=0.4)
        await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest(), timeout=25)


async def test_a_name_that_the_certificate_does_not_have_is_refused(site: Site) -> None:
    async with secure_channel(
        f"127.0.0.1:{site.server.ports[1]}", site.authority.service("hub"), server_name="inventory"
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest())
        assert isinstance(grpc_error(caught.value), errors.Unavailable)
    async with secure_channel(
        f"127.0.0.1:{site.server.ports[1]}", site.authority.service("hub"), server_name="queue"
    ) as channel:
        await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest())
