"""Processes of one release or another beside a stack that is up, and the code of the release before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from sis.stack.ports import HOST, Reservations
from sis.stack.processes import Child, Command, last_words
from tests.support.agent_process import AgentProcess
from tests.support.enrolled import pairing_code
from tests.support.stack import Stack

NEW = Path(__file__).resolve().parents[2]
RELEASED = Path(__file__).parent / "released.tar.xz"
_LISTENERS = {"queue": ("LISTEN", "INTERNAL_LISTEN"), "hub": ("LISTEN", "AGENT_LISTEN", "ENROLMENT_LISTEN"),
              "credentials": ("LISTEN", "INTERNAL_LISTEN")}  # fmt: skip
_MODULES = {"queue": "services.queue.main", "hub": "services.sis_agent.hub.main",
            "credentials": "services.credentials.main"}  # fmt: skip


def unpack(directory: Path) -> Path:
    """The code of the release before, as it was when it was frozen."""
    with tarfile.open(RELEASED) as archive:
        # Python 3.11.2, which is Debian's, knows no filters yet.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(directory)
    return directory


def running(code: Path) -> dict[str, str]:
    """An environment in which `services` and `sis` are those in `code`, whatever is installed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SIS_")}
    return {**kept, "PYTHONPATH": str(code), "COLUMNS": "200"}


class ReleasedStack(Stack):
    """A stack that `sis up` of the release in `code` keeps."""

    def __init__(self, data: Path, code: Path) -> None:
        super().__init__(data)
        self.code = code

    def environment(self) -> Mapping[str, str]:
        return {**running(self.code), "SIS_DATA": str(self.data)}


class Beside(contextlib.ExitStack):
    """Servers and agents beside those of a stack, ended with the block. The thread that enters must live until then."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        super().__init__()
        self._stack = stack
        self._directory = directory
        self._children: dict[str, Child] = {}
        self._ports = self.enter_context(Reservations())
        self.endpoints: dict[tuple[str, str], str] = {}
        """Of the servers here, by name and listener."""

    def migrate(self, service: str, code: Path) -> None:
        """Bring the schema of a service to what the release in `code` needs, while the stack works."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", _MODULES[service], "migrate"],
            env={**running(code), **self._settings(service)}, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def serve(self, service: str, name: str, code: Path, **changes: str) -> None:
        """Start a server of the release in `code` as the stack does, but for listeners, identity and `changes`."""
        prefix = f"SIS_{service.upper()}_"
        own = {"IDENTITY": str(self._directory / name / "identity"), **changes}
        if service == "hub":
            own["NAME"] = name
        for listener in _LISTENERS[service]:
            own[listener] = self.endpoints[name, listener] = f"{HOST}:{self._ports.take(0)}"
        if service == "hub":
            own["AGENT_ENDPOINTS"] = own["AGENT_LISTEN"]
        settings = {**self._settings(service), **{prefix + key: value for key, value in own.items()}}
        self._start(name, ("-m", _MODULES[service]), {**running(code), **settings})

    def agent(self, name: str, code: Path, *, enrolment: str, hub: str) -> None:
        """Enrol an agent of the release in `code` at one endpoint, and start it at another."""
        settings = {
            "SIS_AGENT_STATE": str(self._directory / name),
            "SIS_AGENT_HUB_ENDPOINTS": hub,
            "SIS_AGENT_SLOTS": "2",
        }
        environment = {**running(code), **settings}
        module = ("-m", "services.sis_agent.agent.main")
        # What it has left running ends too, last.
        self.callback(lambda: asyncio.run(AgentProcess(self._directory / name).clear()))
        done = subprocess.run(
            [sys.executable, "-P", *module, "enrol", "--hub", enrolment, "--code", "-"],
            env=environment, input=pairing_code(self._stack, name, "crossed"), capture_output=True, text=True,
            timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self._start(name, module, environment)

    def end(self, *names: str) -> None:
        """Have processes end, as an upgrade or a rollback does: they drain and succeed."""
        for name in names:
            child = self._children.pop(name)
            assert child.stop(30) == 0, f"{name} ended with {child.exit_code}{last_words(child.command.log)}"

    def alive(self) -> None:
        """Assert that none has ended by itself."""
        for name, child in self._children.items():
            assert child.exit_code is None, f"{name} has ended{last_words(child.command.log)}"

    def _settings(self, service: str) -> dict[str, str]:
        return self._stack.process_environment("hub-1" if service == "hub" else service)

    def _start(self, name: str, module: tuple[str, str], environment: dict[str, str]) -> None:
        (self._directory / name).mkdir(parents=True, exist_ok=True)
        command = Command(
            name=name, kind="hub", arguments=(sys.executable, "-P", *module), directory=self._directory,
            log=self._directory / f"{name}.log", environment=environment,
        )  # fmt: skip
        child = self._children[name] = Child(command)
        self.callback(child.close)
        self.callback(child.stop, 10)
