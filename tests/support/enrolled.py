"""Hubs and agents that a test adds to a stack that is up, made as a person would make them elsewhere."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.runtime.tls import TlsFiles
from sis.stack.ports import HOST, Reservations
from tests.support.agent_process import AgentProcess
from tests.support.stack import WAIT_SECONDS, Stack


class EnrolledAgent:
    """An agent with a state directory of its own, whose identity is the suite's."""

    def __init__(self, stack: Stack, state: Path, slots: int) -> None:
        self.state = state
        self._stack = stack
        self._slots = slots
        self.process: AgentProcess | None = None

    @property
    def identity_tls(self) -> TlsFiles:
        identity = self.state / "identity"
        return TlsFiles(identity / "ca.pem", identity / "certificate.pem", identity / "key.pem")

    def enrol(self, code: str, hub: str = "") -> subprocess.CompletedProcess[str]:
        """`sis-agent enrol` with this code, whatever its exit code."""
        program = "services.sis_agent.agent.main"
        return subprocess.run(
            [
                *(sys.executable, "-P", "-m", program, "enrol"),
                *("--hub", hub or self._stack.state.enrolment_endpoint, "--code", code, "--state", str(self.state)),
            ],
            env={key: value for key, value in os.environ.items() if not key.startswith("SIS_")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, endpoints: str = "") -> AgentProcess:
        """Start it; it goes to these hubs, or to those that it was told of."""
        self.process = AgentProcess(self.state, endpoints, slots=self._slots)
        self.process.start()
        return self.process

    def close(self) -> None:
        """End it with everything that its supervisors supervise."""
        if self.process is not None:
            asyncio.run(self.process.clear())


@contextmanager
def enrolled_agent(stack: Stack, state: Path, *, name: str, group: str, slots: int = 4) -> Iterator[EnrolledAgent]:
    """An agent that was paired and has enrolled; not started yet."""
    agent = EnrolledAgent(stack, state, slots)
    done = agent.enrol(pairing_code(stack, name, group))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{stack.logs()}"
    try:
        yield agent
    finally:
        agent.close()


def pairing_code(stack: Stack, name: str, group: str) -> str:
    """What `sis agents pair` prints."""
    done = stack.cli("agents", "pair", "--name", name, "--group", group)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass
class FarHub:
    """A hub beside those of the stack."""

    pid: int
    agents: str
    """Where agents connect."""
    public: str
    enrolment: str


@contextmanager
def far_hub(stack: Stack, directory: Path, **environment: str) -> Iterator[FarHub]:
    """A hub with the environment of the stack's, changed by `environment`, that has an identity of its own."""
    module = "services.sis_agent.hub.main"
    with Reservations() as ports:
        hub = FarHub(0, free_endpoint(ports), free_endpoint(ports), free_endpoint(ports))
        own = {
            "SIS_HUB_NAME": f"hub-{directory.parent.name[-20:]}".replace("_", "-"),
            "SIS_HUB_IDENTITY": str(directory / "identity"),
            "SIS_HUB_AGENT_LISTEN": hub.agents,
            "SIS_HUB_LISTEN": hub.public,
            "SIS_HUB_ENROLMENT_LISTEN": hub.enrolment,
            "SIS_HUB_AGENT_ENDPOINTS": hub.agents,
        }
        with _far(stack, "hub-1", module, directory, {**own, **environment}, hub.agents) as hub.pid:
            yield hub


@contextmanager
def far_credentials(stack: Stack, directory: Path, **environment: str) -> Iterator[str]:
    """Another credential service of the stack, with an identity of its own; where hubs call it."""
    module = "services.credentials.main"
    with Reservations() as ports:
        internal = free_endpoint(ports)
        own = {
            "SIS_CREDENTIALS_IDENTITY": str(directory / "identity"),
            "SIS_CREDENTIALS_LISTEN": free_endpoint(ports),
            "SIS_CREDENTIALS_INTERNAL_LISTEN": internal,
        }
        with _far(stack, "credentials", module, directory, {**own, **environment}, internal):
            yield internal


@contextmanager
def _far(
    stack: Stack, like: str, module: str, directory: Path, environment: dict[str, str], endpoint: str
) -> Iterator[int]:
    """A server with the environment of a process of the stack, changed; its pid, once it listens."""
    directory.mkdir(parents=True)
    log = directory / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            env={**os.environ, **stack.process_environment(like), **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        _wait_for(endpoint, process, log)
        yield process.pid
    finally:
        process.terminate()
        assert process.wait(20) == 0, log.read_text()[-3000:]


def _wait_for(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = endpoint.rpartition(":")
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        else:
            return


def free_endpoint(ports: Reservations) -> str:
    """One that nobody else picks while the reservations live."""
    return f"{HOST}:{ports.take(0)}"
