"""A hub as its own process, between a fake queue and agents that do what the test says."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.runtime.database import migrate
from services.runtime.settings import TlsFiles
from services.sis_agent.hub.main import MIGRATIONS
from services.sis_agent.hub.tables import SCHEMA
from sis.agent.v1 import agent_admin_service_pb2_grpc as admin_rpc
from sis.stack.postgres import Postgres
from tests.fakes.queue_dispatch import FakeQueue
from tests.integration.hub.agent_client import AgentClient
from tests.support.certificates import CertificateAuthority

TOKEN = "a token for tests"
BEAT_SECONDS = 0.3
START_SECONDS = 20.0

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def hub_template(postgres: Postgres) -> str:
    """A database in which the hub's migrations have been run; for cloning."""
    postgres.create_database("hub_template")
    migrate(postgres.url("hub_template"), MIGRATIONS, SCHEMA)
    return "hub_template"


@pytest.fixture
def hub_database_url(postgres: Postgres, hub_template: str) -> Iterator[str]:
    """A database of the test's own in which the hub's migrations have been run."""
    name = f"hub_test_{next(_numbers)}"
    postgres.create_database(name, template=hub_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("tls"))


class HubProcess:
    """`python -m services.sis_agent.hub.main`, and what it logs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.records: list[dict[str, Any]] = []
        self.agent_endpoint = self.endpoint = ""
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            with suppress(ValueError):
                self.records.append(json.loads(line))
            async with self._changed:
                self._changed.notify_all()

    async def logged(self, part: str, after: int = 0) -> dict[str, Any]:
        """Wait for a log record with `part` in its message, among those after the first `after`."""

        def found() -> list[dict[str, Any]]:
            return [record for record in self.records[after:] if part in record["message"]]

        async with asyncio.timeout(START_SECONDS), self._changed:
            await self._changed.wait_for(found)
        return found()[0]

    async def started(self) -> None:
        ports = (await self.logged("serves"))["ports"]
        self.agent_endpoint, self.endpoint = (f"127.0.0.1:{port}" for port in ports)
        await self.logged("is healthy")

    async def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), START_SECONDS)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self._reader


@dataclass
class Bench:
    """What the tests of a hub work with."""

    queue: FakeQueue
    queue_port: int
    hub: HubProcess
    authority: CertificateAuthority
    database_url: str
    stack: AsyncExitStack
    queue_stack: AsyncExitStack

    async def stop_queue(self) -> None:
        """Take the queue away; its connections are cut off."""
        await self.queue_stack.aclose()

    async def start_queue(self) -> None:
        """Bring it back where it was."""
        serving = self.queue.serving(self.authority.service("queue"), self.queue_port)
        await self.queue_stack.enter_async_context(serving)

    async def agent(self, name: str = "a1", group: str = "g", **options: Any) -> AgentClient:
        """A client of the hub that has not said hello."""
        tls = self.authority.agent(group, name)
        return await self.stack.enter_async_context(AgentClient(self.hub.agent_endpoint, tls, **options))

    async def admin(self, hub: HubProcess | None = None) -> admin_rpc.AgentAdminServiceAsyncStub:
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self.authority.ca.read_bytes()),
            grpc.access_token_call_credentials(TOKEN),
        )
        channel = grpc.aio.secure_channel((hub or self.hub).endpoint, credentials)
        stub: admin_rpc.AgentAdminServiceAsyncStub = admin_rpc.AgentAdminServiceStub(
            await self.stack.enter_async_context(channel)
        )
        return stub

    async def another_hub(self, name: str, **settings: str) -> HubProcess:
        """One more hub on the same queue and database."""
        tls = self.authority.service("hub")
        return await self.stack.enter_async_context(
            hub_process(name, self.queue_port, tls, self.database_url, **settings)
        )


@asynccontextmanager
async def hub_process(
    name: str, queue_port: int, tls: TlsFiles, database_url: str, **settings: str
) -> AsyncIterator[HubProcess]:
    """A hub that is healthy; it is killed at the end."""
    environment = {
        "SIS_HUB_NAME": name,
        "SIS_HUB_DATABASE_URL": database_url,
        "SIS_HUB_AGENT_LISTEN": "127.0.0.1:0",
        "SIS_HUB_LISTEN": "127.0.0.1:0",
        "SIS_HUB_QUEUE_ENDPOINT": f"127.0.0.1:{queue_port}",
        "SIS_HUB_TLS_CA": str(tls.ca),
        "SIS_HUB_TLS_CERTIFICATE": str(tls.certificate),
        "SIS_HUB_TLS_KEY": str(tls.key),
        "SIS_HUB_ADMIN_TOKEN_SHA256": hashlib.sha256(TOKEN.encode()).hexdigest(),
        "SIS_HUB_BEAT_SECONDS": str(BEAT_SECONDS),
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "services.sis_agent.hub.main",
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[3],
        stderr=asyncio.subprocess.PIPE,
    )
    hub = HubProcess(process)
    try:
        await hub.started()
        yield hub
    finally:
        await hub.kill()


@pytest.fixture
async def bench(authority: CertificateAuthority, hub_database_url: str) -> AsyncIterator[Bench]:
    queue = FakeQueue()
    async with AsyncExitStack() as queue_stack, AsyncExitStack() as stack:
        port = await queue_stack.enter_async_context(queue.serving(authority.service("queue")))
        tls = authority.service("hub")
        hub = await stack.enter_async_context(hub_process("hub-1", port, tls, hub_database_url))
        yield Bench(queue, port, hub, authority, hub_database_url, stack, queue_stack)
