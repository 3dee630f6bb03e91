"""The whole stack on this machine: started in order, kept running, stopped in order."""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psycopg

from sis.client import ApiError, Client, ClientError
from sis.client.endpoints import Endpoints, Token
from sis.packages import archive, shipped
from sis.private_files import write_private
from sis.stack import leftovers, postgres, processes
from sis.stack import settings as choices
from sis.stack import state as states
from sis.stack.commands import GROUP, Services, token_sha256
from sis.stack.errors import StackError
from sis.stack.hangs import KINDS, HangWatch, Watched, asks
from sis.stack.health import HEALTHY, Probe
from sis.stack.layout import JOINING, Layout
from sis.stack.openbao import OpenBao
from sis.stack.patience import Patience
from sis.stack.ports import Reservations
from sis.stack.postgres import Postgres
from sis.stack.replicas import Ports
from sis.stack.settings import MIGRATION_SECONDS, STOP_SECONDS, Options
from sis.stack.state import ProcessState, StackState
from sis.stack.status import look
from sis.stack.supervision import Stopped, Supervision

_POLL_SECONDS = 0.05
_IDLE_SECONDS = 60.0
_MOST_RESTARTS = 5
"""A process that ends so often before it was ever healthy will not become so."""


def run(layout: Layout, options: Options, say: Callable[[str], None], ready: Callable[[], None]) -> None:
    """Start everything, call `ready` when all of it is healthy, but for agents that do not come, and keep it so until a
    signal asks for the end; then stop it. Blocks, in the main thread. The caller holds the lock of the data directory.
    `say` gets the lines that a person is to see.

    Raises:
        StackError: it could not be started; what had been is stopped again.
    """
    layout.create()
    if layout.restored.exists():
        raise StackError("a restore was interrupted when all was made: `sis restore` again puts it in its place")
    settings = choices.load(layout, options)
    digest = token_sha256(_token(layout.token))
    joins = {service: token_sha256(_token(layout.join_token(service))) for service in JOINING}
    _token(layout.session_key)
    with Supervision(lambda text: _note(layout, text)) as supervision, Reservations() as reservations:
        leftovers.end(layout)
        ports, settings = Ports.take(settings, reservations)
        choices.save(layout, settings)
        runtime = postgres.runtime_directory()
        try:
            server = Postgres(layout.cluster, runtime, layout.log("postgres"))
            vault = OpenBao(layout.vault, ports.vault, ports.vault_cluster, layout.log("vault"))
            services = Services(layout, settings, ports, vault, server.url(), digest, joins)
            write_private(layout.targets, json.dumps(services.scrape_targets(), indent=2).encode() + b"\n")
            patience = Patience(choices.start_seconds(settings.replicas))
            _Run(layout, server, services, supervision, patience, say).until_stopped(ready)
        except Stopped:
            pass
        finally:
            shutil.rmtree(runtime, ignore_errors=True)
            layout.stack.unlink(missing_ok=True)


class _Run:
    """One life of a stack, from its start to its stop."""

    def __init__(
        self,
        layout: Layout,
        server: Postgres,
        services: Services,
        supervision: Supervision,
        patience: Patience,
        say: Callable[[str], None],
    ) -> None:
        self._layout = layout
        self._server = server
        self._services = services
        self._supervision = supervision
        self._patience = patience
        self._say = say
        self._servers = services.servers()
        self._agents = services.agents()
        self._watch = HangWatch(
            self._living_servers,
            asks(layout.token, layout.ca),
            lambda server, seconds: supervision.hangs(server.name, server.identity, seconds),
            partial(_note, layout),
        )
        self._started = False

    def until_stopped(self, ready: Callable[[], None]) -> None:
        self._supervision.on_change = self._write_state
        try:
            self._start()
            self._started = True
            self._write_state()
            ready()
            self._watch.start()
            while True:
                self._supervision.step(_IDLE_SECONDS)
        finally:
            self._watch.stop()
            _note(self._layout, "stopping")
            self._supervision.on_change = lambda: None
            parts = self._supervision.parts.values()
            stages = [[part.command.name for part in parts if part.command.kind in kinds] for kinds in _STOP_ORDER]
            for names in stages:
                self._supervision.stop(names, STOP_SECONDS)
            _note(self._layout, "stopped")

    def _start(self) -> None:
        vault = self._services.vault
        self._server.initialise()
        vault.initialise()
        self._patience.renew()
        self._supervision.add(vault.command(), prepare=vault.settle)
        self._supervision.add(self._server.command(), prepare=self._server.prepare)
        self._await("postgres")
        self._patience.renew()
        self._retry(self._server.create_database)
        self._retry(vault.expect_answer)
        self._retry(self._finish)
        self._patience.renew()
        self._await("vault")
        # They find each other in any order, so none need wait for another.
        for command in self._servers:
            self._supervision.add(command)
        for command in self._servers:
            self._await(command.name)
        self._enrol()
        for command in self._agents:
            self._supervision.add(command)
        self._retry(self._push_packages)
        for command in self._agents:
            self._await_agent(command.name)
        endpoints = self._endpoints()
        self._say(f"queue endpoint: {endpoints.queue}  hub endpoint: {endpoints.hub}")
        self._say(
            f"credentials endpoint: {endpoints.credentials}  agents enrol at: {self._services.enrolment_endpoint}"
        )
        self._say(f"token: {self._layout.token}  CA: {self._layout.ca}")
        if self._services.ports.metrics:
            self._say(f"for Prometheus, as file_sd_configs: {self._layout.targets}")
        consoles = "  ".join(f"http://{each}/" for each in self._services.ports.endpoints("gateway"))
        self._say(f"web console: {consoles}  HTTP API: /reference there")

    def _await(self, name: str) -> None:
        """Keep everything running until this part is healthy."""
        part = self._supervision.parts[name]
        log = part.command.log
        said = False
        while True:
            self._supervision.step(_POLL_SECONDS)
            state = self._state()
            process = next(process for process in state.processes if process.name == name)
            health = look(state, Probe.of(state), process)
            if health == HEALTHY:
                where = f"  {part.command.endpoint}" if part.command.endpoint else ""
                self._say(f"{name:<13} ready  PID {process.pid}{where}")
                return
            if part.restarts >= _MOST_RESTARTS:
                raise StackError(f"{name} ends again and again; see {log}{processes.last_words(log)}")
            if self._patience.recovers(health):
                if self._patience.tried and not said:
                    told = self._layout.log("postgres")
                    self._say(f"{name:<13} waits  PostgreSQL recovers from a crash, which may take long; see {told}")
                    said = True
            elif self._patience.remaining < 0:
                raise StackError(f"{name} is not healthy in time ({health}); see {log}{processes.last_words(log)}")

    def _await_agent(self, name: str) -> None:
        """As `_await`, but only tell of an agent that does not come: what mends it takes a stack that is up."""
        try:
            self._await(name)
        except StackError as error:
            self._say(str(error))
            self._say(
                f"the stack is up without {name}; if it is revoked or damaged: `sis agents pair --name {name} --group "
                f"{GROUP}`, then `sis-agent enrol --state {shlex.quote(str(self._layout.agent(name)))} "
                f"--hub {self._services.enrolment_endpoint} --code -`"
            )

    def _retry(self, action: Callable[[], None]) -> None:
        """Do what is safe to repeat, again while the database or a server is away for a moment."""
        delay = 0.1
        while True:
            try:
                action()
            except (StackError, psycopg.Error, ClientError) as error:
                refused = isinstance(error, ApiError) and not error.passing
                if refused or self._patience.remaining < delay:
                    raise (error if isinstance(error, StackError) else StackError(str(error).strip())) from error
                self._supervision.pause(delay)
                delay = min(2 * delay, 2.0)
            else:
                return

    def _finish(self) -> None:
        """Bring Vault and the database to what the services expect."""
        commands = [self._services.vault_bootstrap(), *self._services.migrations()]
        self._supervision.finish(commands, MIGRATION_SECONDS)

    def _enrol(self) -> None:
        """Make agents of the local ones that this PKI has not certified yet."""
        strangers = [agent for agent in self._agents if not self._is_enrolled(agent.name)]
        codes: dict[str, str] = {}

        def pair() -> None:
            with self._client() as client:
                for agent in strangers:
                    codes[agent.name] = client.identities.pair(agent.name, GROUP).code

        self._retry(pair)
        commands = [self._services.enrolment(agent, codes[agent.name]) for agent in strangers]
        try:
            self._supervision.finish(commands, max(1.0, self._patience.remaining))
        except StackError as error:  # the agent ends for want of an identity, and is told of then
            _note(self._layout, str(error))

    def _is_enrolled(self, agent: str) -> bool:
        identity = self._layout.agent(agent) / "identity"
        try:
            return (identity / "identity.json").exists() and (
                (identity / "ca.pem").read_bytes().strip() == self._layout.ca.read_bytes().strip()
            )
        except OSError:
            return False

    def _endpoints(self) -> Endpoints:
        target = self._services.ports.target
        token = Token(self._layout.token.read_text(encoding="ascii").strip())
        ca = self._layout.ca.read_bytes()
        return Endpoints(target("queue"), token, ca, hub=target("hub"), credentials=target("credentials"))

    def _client(self) -> Client:
        return Client(self._endpoints())

    def _push_packages(self) -> None:
        with self._client() as client:
            for directory in sorted(path for path in shipped().iterdir() if (path / "package.yaml").is_file()):
                client.packages.push(archive.pack(directory))

    def _state(self) -> StackState:
        this = states.this_process()
        ports = self._services.ports
        found = [
            ProcessState(
                name=part.command.name,
                kind=part.command.kind,
                pid=part.last.pid,
                start_ticks=part.last.start_ticks,
                endpoint=part.command.endpoint,
                log=str(part.command.log),
                restarts=part.restarts,
                hangs=part.hangs,
            )
            for part in self._supervision.parts.values()
        ]
        return StackState(
            boot_id=processes.boot_id(),
            pid=this.pid,
            start_ticks=this.start_ticks,
            runtime=self._server.sockets,
            started=self._started,
            queue_endpoint=ports.target("queue"),
            hub_endpoint=ports.target("hub"),
            credentials_endpoint=ports.target("credentials"),
            enrolment_endpoint=self._services.enrolment_endpoint,
            gateway_endpoints=tuple(ports.endpoints("gateway")),
            ca=self._layout.ca,
            vault_ca=self._services.vault.ca,
            token=self._layout.token,
            processes=tuple(found),
        )

    def _living_servers(self) -> list[Watched]:
        return [
            Watched(part.command.name, part.command.kind, child.identity, part.command.endpoint)
            for part in list(self._supervision.parts.values())
            if (child := part.child) is not None and part.command.kind in KINDS
        ]

    def _write_state(self) -> None:
        states.write(self._layout, self._state())


_STOP_ORDER = ({"agent", "gateway"}, {"hub"}, {"queue", "credentials"}, {"postgres", "vault"})


def _token(path: Path) -> str:
    """The token (32 random bytes) in a file, minted at the first start."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        write_private(path, token.encode("ascii"))
    if not token:
        raise StackError(f"{path} is empty; remove it to have another token made")
    return token


def _note(layout: Layout, text: str) -> None:
    log = layout.log("up")
    with contextlib.suppress(OSError):  # a full disk is no reason to stop
        processes.rotate(log)
        with processes.open_log(log) as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}\n".encode())
