"""An agent as a process of its own, to be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from services.runtime.pairing import PairingCode
from services.sis_agent.agent.settings import identity_in
from services.sis_agent.agent.supervision.handle import StopKind, SupervisorHandle, SupervisorUnreachable
from services.sis_agent.agent.trust.certification import Enrolment
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.credentials.v1.certificate_pb2 import AgentKeys, IssuedCertificate
from tests.support.certificates import CertificateAuthority

ROOT = Path(__file__).parents[2]
_COMMAND = (sys.executable, "-P", "-m", "services.sis_agent.agent.main")


def write_identity(
    state: Path,
    authority: CertificateAuthority,
    *,
    group: str = "local",
    name: str = "one",
    life: timedelta = timedelta(days=1),
    age: timedelta = timedelta(),
    enrolment_endpoint: str = "127.0.0.1:1",
    agent_endpoints: tuple[str, ...] = (),
) -> tuple[AgentIdentity, bytes]:
    """Have an agent in this state directory that has enrolled so long ago, and whose certificate ends `life` from now
    on; returns its serialised AgentKeys as well."""
    enrolment = Enrolment.begin(identity_in(state), "test")
    csr = AgentKeys.FromString(enrolment.keys).csr
    chain = authority.certify(csr, f"spiffe://sis/agent/{group}/{name}", life=life)
    identity = enrolment.complete(
        IssuedCertificate(certificate_chain=chain),
        authority.ca.read_bytes(),
        time.time() - age.total_seconds(),
        name=name,
        group=group,
        enrolment_endpoint=enrolment_endpoint,
        agent_endpoints=agent_endpoints,
    )
    return identity, enrolment.keys


class AgentProcess:
    """`sis-agent` with a state directory that outlives it: with the identity that is in it, or the one that the test
    authority gives it, or after `enrol`."""

    def __init__(
        self, state: Path, endpoints: str = "", authority: CertificateAuthority | None = None, slots: int = 4
    ) -> None:
        self.state = state
        if authority is not None:
            write_identity(state, authority)
        self.environment = {
            "SIS_AGENT_STATE": str(state),
            "SIS_AGENT_HUB_ENDPOINTS": endpoints,
            "SIS_AGENT_SLOTS": str(slots),
            "SIS_AGENT_LABELS": "rack=12, room=cellar",
        }
        self._log = state.with_name(f"{state.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the agent itself; 0 when it has not been started, or was ended."""
        return self._process.pid if self._process is not None else 0

    @property
    def log(self) -> str:
        """Everything that its processes have logged so far."""
        return self._log.read_text() if self._log.exists() else ""

    async def enrol(self, endpoint: str, code: PairingCode | str) -> subprocess.CompletedProcess[str]:
        """`sis-agent enrol`, to its end."""
        text = code if isinstance(code, str) else code.text()
        return await asyncio.to_thread(
            subprocess.run,
            [*_COMMAND, "enrol", "--hub", endpoint, "--code", text],
            env={**os.environ, **self.environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                _COMMAND,
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
