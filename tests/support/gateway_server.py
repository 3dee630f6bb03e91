"""A gateway on loopback: the application, served as in production, in a thread of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from gateway.app import Gateway
from gateway.server import Certificate, Server
from gateway.upstreams import Upstreams
from services.runtime.identity import Identity
from services.runtime.tls import TlsFiles

BEARER = {"Authorization": "Bearer the administrator's token"}
SECONDS = 20.0

T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a thread."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait for what it gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()


@dataclass
class Answer:
    """What the gateway said."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """Of an error, once it is seen to be of the form that AIP-193 asks for."""
        error = self.json["error"]
        assert error["code"] == self.status and error["message"] and error["status"]
        (info,) = [each for each in error["details"] if each["@type"].endswith("google.rpc.ErrorInfo")]
        assert info["domain"] == "sis"
        found: str = info["reason"]
        return found

    @property
    def fields(self) -> list[str]:
        """The wrong fields of an error."""
        found = [each.get("fieldViolations", []) for each in self.json["error"]["details"]]
        return [violation["field"] for violations in found for violation in violations]


class Http:
    """Requests to a gateway at a port of loopback."""

    port: int

    def call(
        self, verb: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, token: bool = True
    ) -> Answer:
        """One request on a connection of its own. A body that is no bytes is sent as JSON."""
        with self.opened(verb, path, body, headers, token=token) as response:
            return Answer(response.status, response.headers, response.read())

    @contextmanager
    def opened(
        self, verb: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, token: bool = True
    ) -> Iterator[http.client.HTTPResponse]:
        """The same, to be read bit by bit; then the connection is cut."""
        sent = {**(BEARER if token else {}), **(headers or {})}
        if body is not None and not isinstance(body, bytes) and not callable(getattr(body, "__next__", None)):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(verb, path, body=body, headers=sent)
            yield connection.getresponse()
        finally:
            connection.close()


class GatewayServer(Http):
    """A gateway in front of upstreams, all for one; `stop` drains it."""

    def __init__(
        self,
        thread: LoopThread,
        tls: TlsFiles,
        *,
        queue: str,
        others: str = "",
        behind_proxy: bool = False,
        site: TlsFiles | None = None,
        session_keys: Sequence[bytes] = (),
    ) -> None:
        self.thread = thread
        self._stopping: asyncio.Event
        self._running: Any = None
        thread.run(self._start(tls, queue, others or queue, behind_proxy, site, session_keys))

    async def _start(
        self,
        tls: TlsFiles,
        queue: str,
        others: str,
        behind_proxy: bool,
        site: TlsFiles | None,
        session_keys: Sequence[bytes],
    ) -> None:
        async def never(_: bytes) -> bytes:
            raise AssertionError("its certificate is there")

        identity = Identity(tls.certificate.parent, tls.ca, never, name="gateway")
        self.upstreams = Upstreams(identity, queue=queue, credentials=others, hub=others)
        self.gateway = Gateway(
            self.upstreams, tls=site is not None, behind_proxy=behind_proxy, session_keys=session_keys
        )
        certificate = Certificate(site.certificate, site.key) if site is not None else None
        self.server = Server(self.gateway, "127.0.0.1:0", certificate)
        self.server.start()
        self.port = self.server.port
        self._stopping = asyncio.Event()
        self._running = asyncio.create_task(self.server.run_until(self._stopping.wait()))

    def terminate(self) -> None:
        """Have it drain, without waiting."""
        self.thread.loop.call_soon_threadsafe(self._stopping.set)

    def stop(self) -> None:
        """Have it drain, and wait."""
        self.terminate()
        self.thread.run(self._ended())

    async def _ended(self) -> None:
        await self._running
        await self.upstreams.close()


class GatewayProcess(Http):
    """A gateway as a process of its own, before a queue alone; its log is in `directory`. Stop it."""

    def __init__(self, tls: TlsFiles, directory: Path, *, queue: str) -> None:
        self._log = directory / "gateway.log"
        settings = {
            "LISTEN": "127.0.0.1:0",
            "BEHIND_PROXY": "true",
            "TLS_CA": tls.ca,
            "IDENTITY": tls.certificate.parent,
            # Its identity is there already.
            "JOIN_ENDPOINT": "127.0.0.1:0",
            "JOIN_TOKEN_FILE": "/dev/null",
            "QUEUE_ENDPOINT": queue,
            "CREDENTIALS_ENDPOINT": "127.0.0.1:1",
            "HUB_ENDPOINT": "127.0.0.1:1",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gateway.main"],
                env={**os.environ, **{f"SIS_GATEWAY_{name}": str(value) for name, value in settings.items()}},
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + SECONDS
        self.port = 0
        while not self.port:
            assert self.process.poll() is None and time.monotonic() < deadline, f"no gateway:\n{self._log.read_text()}"
            time.sleep(0.02)
            for line in self.log():
                if line["message"] == "gateway serves":
                    (self.port,) = line["ports"]

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log so far."""
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        self.process.terminate()

    def stop(self) -> int:
        """Ask it to end and wait; its exit status."""
        self.terminate()
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """The events of a stream, as they come; a comment is one with the field ""."""
    found: dict[str, str] = {}
    for line in response:
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(":")
            found[name] = value.removeprefix(" ")
        elif found:
            yield found
            found = {}
