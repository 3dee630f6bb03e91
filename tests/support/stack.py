"""A real stack, driven as a person does: by the command line, by clients, and by kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from services.runtime.tls import TlsFiles
from sis import stack
from sis.client import Client
from sis.stack import processes
from sis.stack import state as states
from sis.stack.layout import Layout
from sis.stack.postgres import USER
from sis.stack.state import ProcessState, StackState
from tests.support.agent_process import AgentProcess
from tests.support.fault_points import FaultPoints
from tests.support.stopping import stop

WAIT_SECONDS = 30.0


class Stack:
    """The stack in `data`; nothing is started until `up`."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.layout = Layout(data)
        self.faults = FaultPoints(data.with_name("faults"))
        self._up: subprocess.Popen[str] | None = None

    def cli(
        self,
        *arguments: str | Path,
        timeout: float = 90.0,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `sis` with these arguments on this stack, whatever its exit code."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment() if environment is None else environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def started_cli(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start `sis` with these arguments; what it prints is in a pipe. The caller waits for it. It is told to
        end when this thread ends, so that nothing outlives a run of tests that is killed."""
        return subprocess.Popen(
            [*processes.launcher(signal.SIGTERM), *self.command(*arguments)],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, *arguments: str | Path) -> list[str]:
        """`sis` and its arguments, for this interpreter."""
        program = "import sys; from sis.cli.main import main; sys.exit(main())"
        return [sys.executable, "-P", "-c", program, *(str(argument) for argument in arguments)]

    def environment(self) -> Mapping[str, str]:
        """What makes `sis` use this stack and no other."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SIS_")}
        return {**kept, "SIS_DATA": str(self.data), "COLUMNS": "200", **self.faults.environment}

    def up(self, *options: str) -> None:
        """`sis up`, left running; fails the test with what it printed, and the end of each log. For the main
        thread."""
        self._let_go()
        self._up = up = self.started_cli("up", *options)
        assert up.stdout is not None
        told = []
        for line in up.stdout:  # the start bounds itself
            told.append(line)
            if line.startswith("the stack is up;"):
                return
        raise AssertionError("".join(told) + self.logs())

    def down(self) -> str:
        """`sis down`; returns what it printed."""
        done = self.cli("down")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.logs()}"
        self._let_go()
        return done.stdout

    def close(self) -> None:
        """Take down whatever is up, and end the payloads that `sis down` leaves running."""
        self.faults.clear()
        self.cli("down")
        self._let_go()
        for state in self.layout.agents.glob("*"):
            asyncio.run(AgentProcess(state).clear())

    def _let_go(self) -> None:
        """Reap the `sis up` that has ended, or does now."""
        if self._up is not None:
            with self._up as up:
                up.terminate()
            self._up = None

    def client(self) -> Client:
        """A client of this stack, to be closed by the caller."""
        return Client.find(self.data)

    def database(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection to the database of all its services, to be closed by the caller."""
        sockets = self.process("postgres").endpoint.removeprefix("unix:")
        return psycopg.connect(host=str(Path(sockets).parent), user=USER, dbname="sis", autocommit=True)

    @property
    def gateway(self) -> str:
        """The base URL of its HTTP API."""
        return f"http://{self.state.gateway_endpoints[0]}"

    @property
    def token(self) -> str:
        """The administrator's."""
        return self.layout.token.read_text(encoding="ascii").strip()

    @property
    def state(self) -> StackState:
        """`stack.json` as it is now."""
        state = states.read(self.layout)
        assert state is not None, f"no stack is up in {self.data}"
        return state

    def process(self, name: str) -> ProcessState:
        """The process of this name, or the first of this kind ("up" is `sis up` itself)."""
        state = self.state
        if name == "up":
            return ProcessState(
                name="up",
                kind="queue",
                pid=state.pid,
                start_ticks=state.start_ticks,
                endpoint="",
                log=str(self.layout.log("up")),
                restarts=0,
            )
        return next(process for process in state.processes if name in (process.name, process.kind))

    def process_environment(self, name: str) -> dict[str, str]:
        """The SIS_ variables with which the process of this name was started."""
        entries = Path(f"/proc/{self.pid(name)}/environ").read_bytes().split(b"\0")
        pairs = (entry.decode().partition("=") for entry in entries if entry.startswith(b"SIS_"))
        return {key: value for key, _, value in pairs}

    def tls(self, service: str) -> TlsFiles:
        """The certificate with which the first process of this kind proves itself."""
        identity = self.layout.identity(self.process(service).name)
        return TlsFiles(self.layout.ca, identity / "certificate.pem", identity / "key.pem")

    def pid(self, name: str) -> int:
        """The pid of the process of this name; between a death and a restart, the dead one's."""
        return self.process(name).pid

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process of this name, which must be alive."""
        identity = self.process(name).identity
        struck = stop(identity.pid) if number == signal.SIGSTOP else identity.signal(number)
        assert struck, f"{name} is not alive"

    def wait_restarted(self, name: str, former: int, timeout: float = WAIT_SECONDS) -> None:
        """Wait until the process of this name is another than the one with the pid `former`."""
        deadline = time.monotonic() + timeout
        while not ((process := self.process(name)).pid != former and process.identity.alive):
            assert time.monotonic() < deadline, f"{name} was not started again{self.logs()}"
            time.sleep(0.05)

    def wait_healthy(self, timeout: float = WAIT_SECONDS) -> stack.Status:
        """Wait until everything is."""
        deadline = time.monotonic() + timeout
        while not (found := stack.status(self.data)).healthy:
            assert time.monotonic() < deadline, f"{found.to_json()}{self.logs()}"
            time.sleep(0.05)
        return found

    def json(self, *arguments: str | Path) -> object:
        """What `sis … --json` prints, which must succeed."""
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def logs(self, lines: int = 15) -> str:
        """The end of each process's log, for the message of a failure."""
        found = []
        for path in sorted(self.layout.log("up").parent.glob("*.log")):
            end = path.read_text(errors="replace").splitlines()[-lines:]
            found += [f"\n--- {path.name}", *end]
        return "\n".join(found)
