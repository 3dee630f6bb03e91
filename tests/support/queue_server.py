"""A real queue: `services.queue.main` as a process of its own, over TLS, on ports that it picks."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import grpc

from services.runtime.channels import secure_channel
from tests.support.certificates import CertificateAuthority

TOKEN = "the administrator's token"
BEARER = (("authorization", f"Bearer {TOKEN}"),)
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


class QueueServer:
    """A queue for one database, which has been migrated. Its log is in `directory`. `settings` are more of its own,
    `environment` is what else it is started with.

    with QueueServer(url, authority, directory) as server:
        async with server.public() as channel: ...
    """

    def __init__(
        self,
        database_url: str,
        authority: CertificateAuthority,
        directory: Path,
        settings: Mapping[str, object] = MappingProxyType({}),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._url = database_url
        self._settings = settings
        self._environment = environment
        self._authority = authority
        self._log = directory / "queue.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.ports = (0, 0)
        self._terminated = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._terminated = False
        tls = self._authority.service("queue")
        settings = {
            "DATABASE_URL": self._url,
            "LISTEN": "127.0.0.1:0",
            "INTERNAL_LISTEN": "127.0.0.1:0",
            "TLS_CA": tls.ca,
            "IDENTITY": tls.certificate.parent,
            # Its identity is there already.
            "JOIN_ENDPOINT": "127.0.0.1:0",
            "JOIN_TOKEN_FILE": "/dev/null",
            "ADMIN_TOKEN_SHA256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            **self._settings,
        }
        own = {f"SIS_QUEUE_{name}": str(value) for name, value in settings.items()}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "services.queue.main"],
                env={**os.environ, **self._environment, **own},
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while self.ports == (0, 0):
            assert self.process.poll() is None and time.monotonic() < deadline, f"no queue:\n{self._log.read_text()}"
            time.sleep(0.02)
            for line in self.log():
                if line["message"] == "queue serves":
                    self.ports = tuple(line["ports"])

    def log(self) -> list[dict]:
        """The lines of its log so far."""
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def terminate(self) -> None:
        """Ask it to end, without waiting. Only once: in its last moments a second signal would kill it."""
        assert self.process is not None
        if not self._terminated:
            self._terminated = True
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Ask it to end and wait; its exit status."""
        assert self.process is not None
        self.terminate()
        try:
            return self.process.wait(_STOP_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()

    def public(self) -> grpc.aio.Channel:
        """A channel as people have it: without a certificate. Close it."""
        credentials = grpc.ssl_channel_credentials(root_certificates=self._authority.ca.read_bytes())
        limits = [("grpc.max_receive_message_length", 16 << 20)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.ports[0]}", credentials, options=limits)

    def internal(self) -> grpc.aio.Channel:
        """A channel as hubs have it. Close it."""
        return secure_channel(f"127.0.0.1:{self.ports[1]}", self._authority.service("hub"))

    def internal_as_agent(self) -> grpc.aio.Channel:
        """A channel to the hubs' listener with the certificate of an agent. Close it."""
        return secure_channel(f"127.0.0.1:{self.ports[1]}", self._authority.agent("local", "a-1"))
