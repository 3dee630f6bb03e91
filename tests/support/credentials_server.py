"""A real credential service: `services.credentials.main` as a process of its own, over TLS, on ports that it picks."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from services.runtime import joining
from services.runtime.channels import secure_channel, server_channel
from services.runtime.identity import Identity
from services.runtime.settings import ServiceSettings
from tests.support.fault_points import FaultPoints
from tests.support.openbao import OpenBaoServer

TOKEN = "the administrator's token"
BEARER = (("authorization", f"Bearer {TOKEN}"),)
JOIN_TOKENS = {name: f"the {name}'s join token" for name in ("queue", "hub")}
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class CredentialsServer:
    """A credential service for one database, which has been migrated, and one OpenBao. Its log is in `directory`."""

    def __init__(self, database_url: str, openbao: OpenBaoServer, directory: Path) -> None:
        self._url = database_url
        self._openbao = openbao
        self._directory = directory
        self._log = directory / "credentials.log"
        self.faults = FaultPoints(directory / "faults")
        self.process: subprocess.Popen[bytes] | None = None
        self.ports = (0, 0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def environment(self, **changes: str) -> dict[str, str]:
        settings = {
            "DATABASE_URL": self._url,
            "LISTEN": "127.0.0.1:0",
            "INTERNAL_LISTEN": "127.0.0.1:0",
            "ADMIN_TOKEN_SHA256": _sha256(TOKEN),
            "JOIN_TOKENS": ",".join(f"{name}={_sha256(token)}" for name, token in JOIN_TOKENS.items()),
            "TLS_CA": str(self.ca),
            "IDENTITY": str(self._directory / "credentials"),
            "HOST_NAMES": "localhost,127.0.0.1",
            "VAULT_ADDRESS": self._openbao.address,
            "VAULT_CA": str(self._openbao.settings().ca),
            "VAULT_ROLE_ID_FILE": str(self._openbao.output / "role-id"),
            "VAULT_SECRET_ID_FILE": str(self._openbao.output / "secret-id"),
            **changes,
        }
        found = {f"SIS_CREDENTIALS_{name}": value for name, value in settings.items()}
        return {**os.environ, **found, **self.faults.environment}

    @property
    def ca(self) -> Path:
        return self._openbao.output / "ca.pem"

    def start(self, **changes: str) -> None:
        """Start it and wait until it listens."""
        with self._log.open("ab") as log:
            begun = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "services.credentials.main"],
                env=self.environment(**changes),
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.ports = (0, 0)
        deadline = time.monotonic() + _START_SECONDS
        while self.ports == (0, 0):
            assert self.process.poll() is None and time.monotonic() < deadline, self._log.read_text()[begun:]
            time.sleep(0.02)
            for line in self.log(begun):
                if line["message"] == "credentials serves":
                    self.ports = tuple(line["ports"])

    def log(self, begun: int = 0) -> list[dict[str, Any]]:
        """The lines of its log so far."""
        lines = self._log.read_bytes()[begun:].decode().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def stop(self) -> int:
        """Ask it to end and wait; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()

    def wait_for_death(self) -> int:
        """Its exit status, once a fault has ended it."""
        assert self.process is not None
        return self.process.wait(_STOP_SECONDS)

    def public(self) -> grpc.aio.Channel:
        """A channel as people have it: without a certificate. Close it."""
        return server_channel(f"127.0.0.1:{self.ports[0]}", self.ca.read_bytes(), server_name="credentials")

    async def internal(self, name: str = "hub") -> grpc.aio.Channel:
        """A channel as a service has it that has joined. Close it."""
        identity = self.identity(name)
        await identity.ready()
        return secure_channel(f"127.0.0.1:{self.ports[1]}", identity.tls, server_name="credentials")

    def identity(self, name: str) -> Identity:
        """Of a service that joins by its token."""
        token = self._directory / f"{name}.token"
        token.write_text(JOIN_TOKENS[name])
        settings = ServiceSettings(
            tls_ca=self.ca,
            identity=self._directory / name,
            host_names=("localhost",),
            join_endpoint=f"127.0.0.1:{self.ports[0]}",
            join_token_file=token,
        )
        return joining.identity(settings, name)
