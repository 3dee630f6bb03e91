"""A hub between a fake queue and agents that do what the test says; in this process, or where it is killed and drained,
as its own."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import sqlalchemy

from services.runtime import joining
from services.runtime.migrations import migrate
from services.runtime.tls import TlsFiles
from services.sis_agent.hub import streams
from services.sis_agent.hub.main import MIGRATIONS, Hub, HubSettings
from services.sis_agent.hub.tables import SCHEMA
from sis.agent.v1 import agent_admin_service_pb2_grpc as admin_rpc
from sis.stack.postgres import Postgres
from tests.fakes.credentials_service import FakeCredentials
from tests.fakes.queue_dispatch import FakeQueue
from tests.integration.hub.agent_client import AgentClient
from tests.support.certificates import CertificateAuthority

TOKEN = "a token for tests"
START_SECONDS = 20.0
LATE_SECONDS = 0.5
"""How long the hubs of this process doubt before they judge."""

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


class Logged(logging.Handler):
    """What was logged in this process, to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: list[str] = []
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())
        self._news.set()

    async def until(self, part: str) -> None:
        """Wait until something with `part` in it has been logged."""
        async with asyncio.timeout(START_SECONDS):
            while not any(part in message for message in self._messages):
                self._news.clear()
                await self._news.wait()


@dataclass(frozen=True)
class Endpoints:
    """Where agents and where people connect, and where agents enrol."""

    agents: str
    people: str
    enrolment: str

    @classmethod
    def at(cls, ports: Sequence[int]) -> Endpoints:
        return cls(*(f"127.0.0.1:{port}" for port in ports))


@asynccontextmanager
async def hub_in_process(environment: dict[str, str]) -> AsyncIterator[tuple[Hub, Endpoints]]:
    """A hub in this process that watches its queue."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = HubSettings.load()
    identity = joining.identity(settings, "hub")
    await identity.ready()
    hub = Hub(settings, identity, late_seconds=LATE_SECONDS)
    ports = await hub.server.start()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(background()) for background in hub.background]
        yield hub, Endpoints.at(ports)
        await hub.server.stop(grace=0)
        for task in tasks:
            task.cancel()
    await hub.close()


class HubProcess:
    """`python -m services.sis_agent.hub.main`."""

    def __init__(self, process: asyncio.subprocess.Process, endpoints: Endpoints, log: asyncio.Task[None]) -> None:
        self._process = process
        self._log = log
        self.endpoints = endpoints

    @classmethod
    @asynccontextmanager
    async def running(cls, environment: dict[str, str]) -> AsyncIterator[HubProcess]:
        """A hub that is healthy; it is killed at the end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "services.sis_agent.hub.main",
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[3],
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                ports: list[int] = []
                message = ""
                while "is healthy" not in message:
                    line = await process.stderr.readline()
                    assert line, "it has ended"
                    if line.startswith(b"{"):  # gRPC may say something, too
                        record = json.loads(line)
                        message, ports = record["message"], record.get("ports", ports)
            hub = cls(process, Endpoints.at(ports), asyncio.create_task(_discard(process.stderr)))
            yield hub
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await hub._log

    async def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), START_SECONDS)

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        await self._process.wait()


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass


@dataclass(frozen=True)
class Environment:
    """What the hubs of a test share."""

    authority: CertificateAuthority
    database_url: str
    queue_port: int
    credentials_port: int
    beat_seconds: float

    def of_hub(self, name: str) -> dict[str, str]:
        """The settings of a hub."""
        tls = self.authority.service("hub")
        return {
            "SIS_HUB_NAME": name,
            "SIS_HUB_DATABASE_URL": self.database_url,
            "SIS_HUB_AGENT_LISTEN": "127.0.0.1:0",
            "SIS_HUB_LISTEN": "127.0.0.1:0",
            "SIS_HUB_QUEUE_ENDPOINT": f"127.0.0.1:{self.queue_port}",
            "SIS_HUB_ENROLMENT_LISTEN": "127.0.0.1:0",
            "SIS_HUB_CREDENTIALS_ENDPOINT": f"127.0.0.1:{self.credentials_port}",
            "SIS_HUB_TLS_CA": str(tls.ca),
            # Its certificate is there already.
            "SIS_HUB_IDENTITY": str(tls.certificate.parent),
            "SIS_HUB_JOIN_ENDPOINT": "127.0.0.1:0",
            "SIS_HUB_JOIN_TOKEN_FILE": "/dev/null",
            "SIS_HUB_ADMIN_TOKEN_SHA256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            "SIS_HUB_BEAT_SECONDS": str(self.beat_seconds),
        }


@dataclass
class Bench:
    """What the tests of a hub work with."""

    queue: FakeQueue
    credentials: FakeCredentials
    where: Environment
    logged: Logged
    stack: AsyncExitStack
    queue_stack: AsyncExitStack
    credentials_stack: AsyncExitStack
    parts: Hub
    hub: Endpoints

    async def stop_queue(self) -> None:
        """Take the queue away; its connections are cut off."""
        await self.queue_stack.aclose()

    async def start_queue(self) -> None:
        """Bring it back where it was."""
        serving = self.queue.serving(self.where.authority.service("queue"), self.where.queue_port)
        await self.queue_stack.enter_async_context(serving)

    async def stop_credentials(self) -> None:
        """Take the credential service away; its connections are cut off."""
        await self.credentials_stack.aclose()

    async def start_credentials(self) -> None:
        """Bring it back where it was."""
        tls = self.where.authority.service("credentials")
        await self.credentials_stack.enter_async_context(self.credentials.serving(tls, self.where.credentials_port))

    async def agent(
        self,
        name: str = "a1",
        group: str = "g",
        *,
        tls: TlsFiles | None = None,
        hub: Endpoints | None = None,
        reads: bool = True,
    ) -> AgentClient:
        """A client that has not said hello, of a hub, else of the first one; newly enrolled unless with `tls`."""
        tls = tls or self.where.authority.agent(group, name)
        return await self.stack.enter_async_context(AgentClient((hub or self.hub).agents, tls, reads=reads))

    async def admin(self, hub: Endpoints | None = None) -> admin_rpc.AgentAdminServiceAsyncStub:
        """What people call, of a hub, else of the first one."""
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self.where.authority.ca.read_bytes()),
            grpc.access_token_call_credentials(TOKEN),
        )
        channel = grpc.aio.secure_channel((hub or self.hub).people, credentials)
        stub: admin_rpc.AgentAdminServiceAsyncStub = admin_rpc.AgentAdminServiceStub(
            await self.stack.enter_async_context(channel)
        )
        return stub

    async def process(self, name: str, **environment: str) -> HubProcess:
        """One more hub on the same queue and database, as its own process."""
        settings = {**self.where.of_hub(name), **environment}
        return await self.stack.enter_async_context(HubProcess.running(settings))


@contextmanager
def database_away(bench: Bench, postgres: Postgres) -> Iterator[None]:
    """Nobody can connect to the registry's database."""
    name = sqlalchemy.make_url(bench.where.database_url).database
    with postgres.connect("postgres") as connection:
        connection.autocommit = True
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        yield
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


@asynccontextmanager
async def _bench(authority: CertificateAuthority, database_url: str, beat_seconds: float) -> AsyncIterator[Bench]:
    queue, credentials, logged = FakeQueue(), FakeCredentials(), Logged()
    logging.getLogger().addHandler(logged)
    try:
        async with AsyncExitStack() as queue_stack, AsyncExitStack() as credentials_stack, AsyncExitStack() as stack:
            port = await queue_stack.enter_async_context(queue.serving(authority.service("queue")))
            credentials_port = await credentials_stack.enter_async_context(
                credentials.serving(authority.service("credentials"))
            )
            where = Environment(authority, database_url, port, credentials_port, beat_seconds)
            hub, endpoints = await stack.enter_async_context(hub_in_process(where.of_hub("hub-1")))
            await queue.watched()
            await credentials.watched()
            async with asyncio.timeout(START_SECONDS):
                for each in hub.dependencies:
                    while await each.look() is not None:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            yield Bench(queue, credentials, where, logged, stack, queue_stack, credentials_stack, hub, endpoints)
    finally:
        logging.getLogger().removeHandler(logged)


@pytest.fixture
async def bench(authority: CertificateAuthority, hub_database_url: str) -> AsyncIterator[Bench]:
    """With the usual interval of beats: nothing happens by itself in the time that a test takes."""
    async with _bench(authority, hub_database_url, 5.0) as found:
        yield found


@pytest.fixture
async def quick_bench(
    authority: CertificateAuthority, hub_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """With a beat every half second, for what happens at intervals. No agent is silent for too long."""
    monkeypatch.setattr(streams, "SILENT_INTERVALS", 200)
    async with _bench(authority, hub_database_url, 0.5) as found:
        yield found


@pytest.fixture
async def strict_bench(authority: CertificateAuthority, hub_database_url: str) -> AsyncIterator[Bench]:
    """The same, for what happens to an agent that is silent."""
    async with _bench(authority, hub_database_url, 0.5) as found:
        yield found
