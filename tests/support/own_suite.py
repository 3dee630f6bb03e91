"""A queue, a hub, a credential service and an agent of a test's own, on a PostgreSQL of its own. Vault, and who they
are, come from a stack that is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from sis.client import Client
from sis.client.endpoints import Endpoints, Token
from sis.packages import archive, shipped
from sis.stack.health import HEALTHY, Probe
from sis.stack.ports import Reservations
from tests.support.enrolled import EnrolledAgent, free_endpoint
from tests.support.stack import Stack

MODULES = {
    "credentials": "services.credentials.main",
    "queue": "services.queue.main",
    "hub": "services.sis_agent.hub.main",
}
WAIT_SECONDS = 90.0


class OwnSuite:
    """Started by `start`, ended with the block. `url` is where each finds PostgreSQL, `direct_url` past a pooler."""

    def __init__(self, stack: Stack, directory: Path, url: str, direct_url: str = "", slots: int = 4) -> None:
        self.directory = directory
        self._stack = stack
        self._url = url
        self._direct_url = direct_url
        self._slots = slots
        self._running = ExitStack()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = self._running.enter_context(Reservations())
        self.public = {name: free_endpoint(ports) for name in MODULES}
        self._internal = {name: free_endpoint(ports) for name in MODULES}
        self._enrolment = free_endpoint(ports)
        self.group = f"own-{directory.name[-30:].replace('_', '-')}".rstrip("-")
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def start(self) -> Self:
        """Migrate, start everything, enrol the agent, and push core.shell."""
        self.migrate()
        self.start_servers()
        self.wait_healthy()
        with self.client() as client:
            client.packages.push(archive.pack(shipped() / "core.shell"))
            code = client.identities.pair(f"{self.group}-1", self.group).code
        agent = EnrolledAgent(self._stack, self.directory / "agent", self._slots)
        done = agent.enrol(code, hub=self._enrolment)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.logs()}"
        self._running.callback(agent.close)
        agent.start(self._internal["hub"])
        return self

    def migrate(self) -> None:
        """Bring all schemas up to date."""
        for each in [self.spawn(name, "migrate") for name in MODULES]:
            assert each.wait(WAIT_SECONDS) == 0, self.logs()

    def start_servers(self) -> None:
        """Start the three servers, on whatever is there."""
        for name in MODULES:
            self.processes[name] = process = self.spawn(name)
            self._running.callback(self._end, process)

    def client(self) -> Client:
        """To be closed by the caller."""
        public = self.public
        endpoints = Endpoints(
            public["queue"], Token(self._stack.token), self._ca, hub=public["hub"], credentials=public["credentials"]
        )
        return Client(endpoints)

    def health(self, name: str) -> str:
        """What `sis status` would say of a server."""
        return self._probe.server(self.public[name])

    def wait_health(self, name: str, words: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until a server says just that."""
        deadline = time.monotonic() + seconds
        while (found := self.health(name)) != words:
            assert time.monotonic() < deadline, f"{name}: {found!r} instead of {words!r}\n{self.logs()}"
            time.sleep(0.1)

    def wait_healthy(self) -> None:
        """Wait until every server is."""
        for name in MODULES:
            self.wait_health(name, HEALTHY)

    def check_processes(self) -> None:
        """Assert that every server that was started lives."""
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}\n{self.logs()}"

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        """The end of each log, for the message of a failure."""
        return "".join(f"\n--- {path.name}\n{path.read_text()[-2_000:]}" for path in self.directory.glob("*.log"))

    @property
    def _ca(self) -> bytes:
        return self._stack.layout.ca.read_bytes()

    @property
    def _probe(self) -> Probe:
        return Probe(self._ca, self._stack.token, self._stack.state.vault_ca)

    def _environment(self, name: str) -> Mapping[str, str]:
        own = {
            "IDENTITY": str(self.directory / f"{name}-identity"),
            "DATABASE_URL": self._url,
            "LISTEN": self.public[name],
        }
        if self._direct_url:
            own["DATABASE_DIRECT_URL"] = self._direct_url
        if name == "hub":
            own |= {
                "NAME": self.group,
                "AGENT_LISTEN": self._internal["hub"],
                "AGENT_ENDPOINTS": self._internal["hub"],
                "ENROLMENT_LISTEN": self._enrolment,
                "QUEUE_ENDPOINT": self._internal["queue"],
                "CREDENTIALS_ENDPOINT": self._internal["credentials"],
            }
        else:
            own["INTERNAL_LISTEN"] = self._internal[name]
        like = self._stack.process_environment("hub-1" if name == "hub" else name)
        return {**os.environ, **like, **{f"SIS_{name.upper()}_{key}": value for key, value in own.items()}}

    def spawn(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a server, or a command of it that ends by itself; its log is `NAME-COMMAND`."""
        with (self.directory / f"{'-'.join((name, *arguments))}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", MODULES[name], *arguments],
                env=self._environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
