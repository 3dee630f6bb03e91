"""The plain listener for an orchestrator's probes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from services.runtime.access import ACCESS
from services.runtime.probes import LIVENESS, probed
from services.runtime.server import Listener, Server
from sis.queue.v1.job_service_pb2 import GetJobRequest
from sis.queue.v1.job_service_pb2_grpc import JobServiceStub
from sis.stack.ports import HOST, Reservations
from tests.integration.runtime.conftest import BEARER, JobServicer, build
from tests.support.certificates import CertificateAuthority

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture
def address() -> Iterator[str]:
    with Reservations() as ports:
        yield f"{HOST}:{ports.take(0)}"


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


async def status(channel: grpc.aio.Channel, service: str = "") -> int:
    answer = await HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=10)
    return int(answer.status)


async def test_a_process_that_waits_is_alive_and_not_ready(address: str, channel: grpc.aio.Channel) -> None:
    async with probed(address):
        assert await status(channel, LIVENESS) == SERVING
        assert await status(channel) == NOT_SERVING


async def test_readiness_is_what_the_server_says_and_draining_is_no_death(
    address: str, channel: grpc.aio.Channel, authority: CertificateAuthority
) -> None:
    async with probed(address) as health:
        server = Server("test", [], [Listener("127.0.0.1:0", authority.service("queue"))], health=health)
        await server.start()
        assert await status(channel) == NOT_SERVING
        await server.set_serving(True)
        assert await status(channel) == SERVING
        await server.stop(0)
        assert await status(channel) == NOT_SERVING
        assert await status(channel, LIVENESS) == SERVING


async def test_nothing_else_can_be_called_there(
    address: str, channel: grpc.aio.Channel, authority: CertificateAuthority
) -> None:
    jobs = JobServicer()
    server = build(authority, jobs)
    await server.start()
    try:
        async with probed(address):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await JobServiceStub(channel).GetJob(GetJobRequest(job_id=1), metadata=BEARER, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(HealthStub(channel).Watch(HealthCheckRequest(), timeout=10)))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            for method in ACCESS:
                if method != "/grpc.health.v1.Health/Check":
                    call = channel.unary_unary(method)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call(b"", metadata=BEARER, timeout=10)
                    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method
    finally:
        await server.stop(0)
    assert not jobs.callers


async def test_an_address_in_use_ends_the_process_with_words(address: str, caplog: pytest.LogCaptureFixture) -> None:
    async with probed(address):
        with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as caught:
            async with probed(address):
                pass
    assert caught.value.code == 1
    assert f"cannot listen on {address} for probes" in caplog.text


async def test_without_an_address_nothing_listens() -> None:
    async with probed(None) as health:
        await health.set_serving(True)


async def test_a_queue_without_certificate_and_database_is_alive(
    address: str, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    """It asks a credential service that is not there for its certificate, for ever: no reason to kill it."""
    (tmp_path / "secrets").mkdir()
    secrets = {"DATABASE_URL": "postgresql:///none?host=/nowhere", "ADMIN_TOKEN_SHA256": "ab" * 32}
    for name, value in secrets.items():
        (tmp_path / "secrets" / f"SIS_QUEUE_{name}").write_text(f"{value}\n")
    (tmp_path / "join.token").write_text("a token")
    settings = {
        "SIS_SECRETS": str(tmp_path / "secrets"),
        "SIS_QUEUE_LISTEN": "127.0.0.1:0",
        "SIS_QUEUE_INTERNAL_LISTEN": "127.0.0.1:0",
        "SIS_QUEUE_PROBE_LISTEN": address,
        "SIS_QUEUE_TLS_CA": str(tmp_path / "ca.pem"),
        "SIS_QUEUE_IDENTITY": str(tmp_path / "identity"),
        "SIS_QUEUE_JOIN_ENDPOINT": "127.0.0.1:1",
        "SIS_QUEUE_JOIN_TOKEN_FILE": str(tmp_path / "join.token"),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "services.queue.main"),
        env={**os.environ, **settings},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            line = b""
            while b"goes on asking for one" not in line:
                line = await process.stderr.readline()
                assert line, "it has ended"
                assert json.loads(line)["process"] == "queue"
        assert await status(channel, LIVENESS) == SERVING
        assert await status(channel) == NOT_SERVING
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == -15
