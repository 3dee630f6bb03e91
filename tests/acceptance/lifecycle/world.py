"""A suite of real processes for the model: one PostgreSQL, one OpenBao, the credential service, two queues, two hubs
and one agent, in which time goes on as the model wants it.

`queue.now()` is the time plus what the model has added. Each hub has a queue of its own, which it reaches through a
proxy that can be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psycopg
from sqlalchemy import make_url

import services.credentials
import services.sis_agent.hub
from services.queue.sweeper import Sweeper
from services.runtime.database import Database
from services.runtime.migrations import migrate
from services.runtime.pairing import PairingCode
from services.sis_agent.agent.trust import enrolment
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.client import AsyncClient, Client
from sis.client.endpoints import Endpoints, Token
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credential_service
from sis.packages import archive, shipped
from sis.queue.v1 import job_service_pb2, job_service_pb2_grpc
from sis.stack.ports import Reservations
from sis.stack.postgres import Postgres
from tests.support.agent_process import AgentProcess
from tests.support.credentials_server import BEARER, JOIN_TOKENS, TOKEN, CredentialsServer
from tests.support.leaks import LeakSearch
from tests.support.numbered_job import shell_job
from tests.support.openbao import OpenBaoServer
from tests.support.promises import Record, check_secrets
from tests.support.tcp_proxy import TcpProxy

BEAT_SECONDS = 0.2
STEP = timedelta(seconds=25)
"""Time is moved on by less than a sweeper takes for a gap, and than the shortest heartbeat timeout less a step."""
LONGEST_SILENCE = timedelta(seconds=60)
"""Until a job is AWOL. Sweepers that have watched for less judge nobody."""
WAIT_SECONDS = 60.0
NO_GAP = timedelta(seconds=28)
"""Sweepers of whom one sweep follows the other by less have watched without a gap."""
CREDENTIAL = "model-token"
SECRET = b"the model's agent may say it, and nobody else"
REAL_AGENT = "real"

T = TypeVar("T")


class ServerProcess:
    """`python -m <module>`, always on the same ports."""

    def __init__(self, module: str, environment: Mapping[str, str], log: Path) -> None:
        self._module = module
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0

    def spawn(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._begun = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                env={**os.environ, **self._environment},
                cwd=Path(__file__).parents[3],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_healthy(self) -> None:
        """Wait until it says that it is healthy."""
        assert self._process is not None
        process = self._process

        def healthy() -> bool:
            assert process.poll() is None, self.log()
            return "is healthy" in self.log()

        until(healthy, f"a healthy {self._module}")

    def log(self) -> str:
        """What it has logged since it was started last."""
        return self._log.read_bytes()[self._begun :].decode(errors="replace")

    def faults(self) -> list[str]:
        """What it has called its own fault, in its whole log."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if '"fault":' in line]

    def kill(self) -> None:
        """SIGKILL. Repeatable."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@dataclass(frozen=True)
class HubPorts:
    agents: int
    people: int
    enrolment: int


class World:
    """What the machines of a run share. Its event loop has a thread of its own, in which simulated agents live."""

    def __init__(self, postgres: Postgres, database: str, openbao: OpenBaoServer, directory: Path) -> None:
        self.directory = directory
        self.steps = 0
        """How many steps of machines have done something."""
        self.said = 0
        """How many payloads were found to have said the secret, and to have been masked."""
        self.starts = directory / "starts"
        self.credentials = CredentialsServer(postgres.url(database), openbao, directory)
        self.ca = self.credentials.ca
        self.agent = AgentProcess(directory / "agent", "", slots=4)
        self._url = postgres.url(database)
        self._search = LeakSearch({CREDENTIAL: SECRET})
        self._numbers = itertools.count(1)
        self._ahead = timedelta()

    def __enter__(self) -> World:
        with contextlib.ExitStack() as parts:
            self._start(parts)
            self._exit = parts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _start(self, parts: contextlib.ExitStack) -> None:
        """Each part is given to `parts` before it can fail, so that whichever fails, and here or at the end, all the
        others are ended."""
        self._ports = parts.enter_context(Reservations())
        self._queue_ports = [(self._port(), self._port()) for _ in range(2)]
        self._hub_ports = [HubPorts(self._port(), self._port(), self._port()) for _ in range(2)]
        self.starts.touch()
        migrate(self._url, _migrations(services.credentials), "credentials")
        migrate(self._url, _migrations(services.sis_agent.hub), "agents")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        parts.callback(self._end_loop)
        self.connection = parts.enter_context(self.connect())
        self.sql(
            "CREATE TABLE queue.test_clock (ahead interval NOT NULL);"
            "INSERT INTO queue.test_clock VALUES ('0');"
            "CREATE OR REPLACE FUNCTION queue.now() RETURNS timestamptz LANGUAGE sql VOLATILE"
            " AS 'SELECT clock_timestamp() + ahead FROM queue.test_clock'"
        )
        parts.enter_context(self.credentials)
        for name, token in JOIN_TOKENS.items():
            (self.directory / f"{name}.token").write_text(token)
        self.links = [TcpProxy(f"127.0.0.1:{internal}") for _, internal in self._queue_ports]
        for link in self.links:
            self._at_the_end(parts, partial(link.__aexit__, None, None, None))
            self.run(link.accept())
        self.queues = [self._queue(n) for n in range(2)]
        self.hubs = [self._hub(n) for n in range(2)]
        for server in (*self.queues, *self.hubs):
            parts.callback(server.kill)
            server.spawn()
        for server in (*self.queues, *self.hubs):
            server.wait_healthy()
        self.clients = [parts.enter_context(Client(self._endpoints(n))) for n in range(2)]
        self.async_clients = [self.run(self._async_client(n)) for n in range(2)]
        for client in self.async_clients:
            self._at_the_end(parts, client.close)
        self.clients[0].packages.push(archive.pack(shipped() / "core.shell"))
        self.clients[0].credentials.create(
            credential_service.CreateCredentialRequest(
                name=CREDENTIAL,
                kind=credential_pb2.CREDENTIAL_KIND_TOKEN,
                value=credential_pb2.SecretValue(secret=SECRET),
            )
        )
        database = Database(self._url, application_name="model", pool_size=4)
        self._at_the_end(parts, database.dispose)
        self._sweepers = [Sweeper(database) for _ in range(2)]
        self._sweeping = asyncio.Lock()
        self._swept_at = self.watched_since = self.now()
        self.run(self.sweep())
        sweeping = asyncio.run_coroutine_threadsafe(self._sweep_forever(), self._loop)
        parts.callback(sweeping.cancel)
        started = self.now()
        while self.now() - started < LONGEST_SILENCE:
            self.move(STEP.total_seconds())
            self.run(self.sweep())
        self.enrol(REAL_AGENT, REAL_AGENT, self.agent.state / "identity")
        self.agent.environment["SIS_AGENT_HUB_ENDPOINTS"] = ",".join(self.hub_endpoint(n) for n in range(2))
        self._at_the_end(parts, self.agent.clear)
        self.agent.start()
        until(lambda: self.heard(REAL_AGENT, started), "the real agent to be connected")

    def _at_the_end(self, parts: contextlib.ExitStack, end: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        parts.callback(lambda: self.run(end()))

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # Its processes

    def _port(self) -> int:
        return self._ports.take(0)

    def _service(self, name: str, prefix: str, **settings: object) -> dict[str, str]:
        values = {
            "DATABASE_URL": self._url,
            "TLS_CA": self.ca,
            "IDENTITY": self.directory / name,
            "HOST_NAMES": "localhost,127.0.0.1",
            "JOIN_ENDPOINT": f"127.0.0.1:{self.credentials.ports[0]}",
            "JOIN_TOKEN_FILE": self.directory / f"{prefix.lower()}.token",
            "ADMIN_TOKEN_SHA256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            **settings,
        }
        return {f"SIS_{prefix}_{key}": str(value) for key, value in values.items()}

    def _queue(self, number: int) -> ServerProcess:
        public, internal = self._queue_ports[number]
        environment = self._service(
            f"queue-{number}",
            "QUEUE",
            LISTEN=f"127.0.0.1:{public}",
            INTERNAL_LISTEN=f"127.0.0.1:{internal}",
        )
        return ServerProcess("services.queue.main", environment, self.directory / f"queue-{number}.log")

    def _hub(self, number: int) -> ServerProcess:
        ports = self._hub_ports[number]
        environment = self._service(
            f"hub-{number}",
            "HUB",
            NAME=f"hub-{number}",
            AGENT_LISTEN=f"127.0.0.1:{ports.agents}",
            LISTEN=f"127.0.0.1:{ports.people}",
            ENROLMENT_LISTEN=f"127.0.0.1:{ports.enrolment}",
            QUEUE_ENDPOINT=self.links[number].endpoint,
            CREDENTIALS_ENDPOINT=f"127.0.0.1:{self.credentials.ports[1]}",
            BEAT_SECONDS=BEAT_SECONDS,
        )
        return ServerProcess("services.sis_agent.hub.main", environment, self.directory / f"hub-{number}.log")

    def _endpoints(self, number: int) -> Endpoints:
        return Endpoints(
            queue=f"127.0.0.1:{self._queue_ports[number][0]}",
            token=Token(TOKEN),
            ca=self.ca.read_bytes(),
            credentials=f"127.0.0.1:{self.credentials.ports[0]}",
        )

    def get_job(self, job_id: int, *, request_id: str) -> None:
        """Ask the first queue for a job; its log has the id of the request."""
        address, credentials = f"127.0.0.1:{self._queue_ports[0][0]}", self.ca.read_bytes()
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(credentials)) as channel:
            metadata = (*BEARER, ("x-request-id", request_id))
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            stub.GetJob(job_service_pb2.GetJobRequest(job_id=job_id), timeout=10, metadata=metadata)

    async def _async_client(self, number: int) -> AsyncClient:
        return AsyncClient(self._endpoints(number))

    def hub_endpoint(self, number: int) -> str:
        """Where agents connect."""
        return f"127.0.0.1:{self._hub_ports[number].agents}"

    def enrol(self, name: str, group: str, directory: Path) -> AgentIdentity:
        """Have an identity in a directory, by a pairing code."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        code = PairingCode.parse(self.clients[0].identities.pair(name, group).code)
        return self.run(enrolment.enrol(directory, f"127.0.0.1:{self._hub_ports[0].enrolment}", code))

    def number(self) -> int:
        """Another one each time."""
        return next(self._numbers)

    # Time and rows

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop to its end."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_SECONDS)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the database, to be closed by the caller."""
        url = make_url(self._url)
        return psycopg.connect(
            host=str(url.query["host"]), user=url.username, dbname=url.database or "", autocommit=True
        )

    def sql(self, query: str, *values: Any) -> list[Any]:
        """The rows of a query."""
        cursor = self.connection.execute(query.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def now(self) -> datetime:
        """The time by which the queue judges."""
        return datetime.now(UTC) + self._ahead

    def move(self, seconds: float) -> datetime:
        """Let time pass, by no more than STEP; the time then."""
        assert timedelta(seconds=seconds) <= STEP
        self._ahead += timedelta(seconds=seconds)
        self.sql("UPDATE queue.test_clock SET ahead = %s", self._ahead)
        return self.now()

    async def sweep(self) -> None:
        """Sweep twice at once, as two replicas do."""
        async with self._sweeping:
            now = self.now()
            if now - self._swept_at > NO_GAP:
                self.watched_since = now
            self._swept_at = now
            await asyncio.gather(*(sweeper.sweep() for sweeper in self._sweepers))

    @contextlib.contextmanager
    def left_to_the_queues(self) -> Iterator[None]:
        """Nobody sweeps but the queues themselves. Our sweepers watch anew when it is over."""
        self.run(self._sweeping.acquire())
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._sweeping.release)

    @contextlib.contextmanager
    def swept(self) -> Iterator[None]:
        """Time is moved on in this block; then wait until somebody has swept: a job is due, and is released."""
        request = shell_job("true", site="group:nobody")
        request.not_before.FromDatetime(self.now() + timedelta(seconds=5))
        job_id = self.clients[0].jobs.create(request).job_id
        yield
        query = "SELECT status FROM queue.jobs WHERE job_id = %s"
        until(lambda: self.sql(query, job_id)[0][0] == "WAITING", "somebody to sweep")
        self.clients[0].jobs.delete(job_id)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(2.0)
            await self.sweep()

    def heard(self, agent: str, since: datetime) -> bool:
        """Whether an agent was heard since, and with it each of its attempts that it could have named."""
        rows = self.sql("SELECT last_heard_at FROM queue.agent_sessions WHERE agent = %s AND open", agent)
        return bool(rows) and rows[0][0] >= since

    # What became of the secret, and what the real agent's payloads have done

    def leaks(self, search: LeakSearch | None = None) -> set[str]:
        """Where the secret is found, or what `search` is for: in the database, in what services and agent have logged,
        in the state of the agent. OpenBao may have it."""
        search = search or self._search
        return search.database(self.connection) | search.files(self.directory, excluding=[self.directory / "openbao"])

    def check_secrets(self, record: Record) -> None:
        """Assert that nothing of the secret is stored or logged (4)."""
        check_secrets(record, self._search.find)
        found = self.leaks()
        assert not found, found

    def tokens_of_payloads(self) -> Sequence[tuple[tuple[int, int], str]]:
        """Of the real agent: attempt, and the token that all of its processes have, for each start."""
        tokens = self.starts.read_text().splitlines()
        return [((int(job), int(attempt)), token) for token in tokens for job, attempt, _ in [token.split(".")]]


def living_payloads(token: str) -> Iterator[int]:
    """The processes on this machine that were started with this token."""
    mark = f"SIS_ATTEMPT={token}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and not _is_zombie(entry):
                    yield int(entry.name)


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _migrations(package: Any) -> Path:
    return Path(package.__file__).parent / "migrations"


def until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until it holds; fail with `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)
