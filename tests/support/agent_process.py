"""An agent as a process of its own, to be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from services.runtime.settings import TlsFiles
from services.sis_agent.agent.handle import StopKind, SupervisorHandle, SupervisorUnreachable

ROOT = Path(__file__).parents[2]


class AgentProcess:
    """`python -m services.sis_agent.agent.main` with a state directory that outlives it."""

    def __init__(self, state: Path, endpoints: str, tls: TlsFiles, slots: int = 4) -> None:
        self.state = state
        self.environment = {
            "SIS_AGENT_STATE": str(state),
            "SIS_AGENT_HUB_ENDPOINTS": endpoints,
            "SIS_AGENT_TLS_CA": str(tls.ca),
            "SIS_AGENT_TLS_CERTIFICATE": str(tls.certificate),
            "SIS_AGENT_TLS_KEY": str(tls.key),
            "SIS_AGENT_SLOTS": str(slots),
            "SIS_AGENT_LABELS": "rack=12, room=cellar",
        }
        self._log = state.with_name(f"{state.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Everything that its processes have logged so far."""
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "services.sis_agent.agent.main"],
                env={**os.environ, **self.environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL; its supervisors live on. Repeatable."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    async def ended(self) -> int:
        """The exit status, once it has ended by itself."""
        assert self._process is not None
        process, self._process = self._process, None
        return await asyncio.to_thread(process.wait, 20)

    async def terminate(self) -> int:
        """SIGTERM; returns its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await self.ended()

    def attempts(self) -> list[Path]:
        """The directories of its attempts."""
        return sorted((self.state / "attempts").iterdir())

    async def clear(self) -> None:
        """End the agent and everything that its supervisors supervise."""
        self.kill()
        for directory in self.attempts() if (self.state / "attempts").exists() else []:
            handle = SupervisorHandle.adopt(directory)
            if handle is not None:
                with handle:
                    with contextlib.suppress(SupervisorUnreachable):
                        await handle.stop(StopKind.ABORT, "the test is over")
                    async with asyncio.timeout(10):
                        await handle.wait_gone()
