"""The gateway's process: listen, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from gateway.app import Gateway
from gateway.connection import STALL_SECONDS, Connection
from services.runtime import shutdown

DRAIN_SECONDS = 5
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 512
_LOOK_SECONDS = 30.0

_log = logging.getLogger("server")


class Certificate:
    """What the gateway shows to browsers, read anew when its files have changed.

    Raises:
        OSError, ssl.SSLError: the files cannot be read, or do not belong together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._marks = self._marked()
        self.context.load_cert_chain(certificate, key)

    async def run(self) -> None:
        """Look after the files, for ever; while they cannot be read, the last ones stay."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the files if they have changed."""
        try:
            marks = self._marked()
            if marks != self._marks:
                # Tried apart first: a context keeps what it could read of files that do not belong together.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
                self.context.load_cert_chain(self._certificate, self._key)
                self._marks = marks
                _log.info("the certificate in %s was read anew", self._certificate)
        except OSError as error:  # an ssl.SSLError is one
            _log.warning("the certificate in %s is not taken: %s", self._certificate, error)

    def _marked(self) -> list[tuple[int, int]]:
        found = [path.stat() for path in (self._certificate, self._key)]
        return [(status.st_ino, status.st_mtime_ns) for status in found]


class Server(uvicorn.Server):
    """Serves a gateway at `host:port`, port 0 meaning "pick"; `start`, then `run`."""

    def __init__(self, gateway: Gateway, listen: str, certificate: Certificate | None = None) -> None:
        context = certificate.context if certificate else None
        super().__init__(
            uvicorn.Config(
                gateway.app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
                ssl_context_factory=(lambda _config, _default: context) if context else None,
            )
        )
        # It warns of what anyone can send.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._gateway = gateway
        self._listen = listen
        self._socket: socket.socket | None = None
        self.port = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's, not the server's."""
        yield

    def start(self) -> None:
        """Bind.

        Raises:
            OSError: the address cannot be bound.
        """
        host, _, port = self._listen.rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Its connections inherit it: a client that is gone without a word does not confirm what it is sent.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_SECONDS * 1000))
        try:
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self.port = listening.getsockname()[1]
        _log.info("gateway serves", extra={"ports": [self.port]})

    async def run_until(self, stopping: Awaitable[object]) -> None:
        """Serve until `stopping` is done, then drain: be not ready, end the streams, accept no more, let what is in
        flight finish for a while, cut off the rest."""
        assert self._socket is not None, "start it first"
        serving = asyncio.create_task(self.serve(sockets=[self._socket]))
        stopped = asyncio.ensure_future(stopping)
        try:
            await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
            self._gateway.drain()
        finally:
            stopped.cancel()
            self.should_exit = True
            await asyncio.wait([serving], timeout=2 * DRAIN_SECONDS)
            await self._cut_off()
        await serving

    async def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1.0)


async def run(
    server: Server, *background: Callable[[], Awaitable[None]], serving: Callable[[bool], Awaitable[None]]
) -> None:
    """Serve until SIGTERM or SIGINT, with `background` running beside; the first that ends stops everything. `serving`
    hears when it begins and when it drains.

    Raises:
        SystemExit: with status 1, the address could not be bound or a background function failed; the log says why.
    """
    stopping = asyncio.Event()
    with shutdown.asked(stopping.set):
        await _run(server, stopping, background, serving)


async def _run(
    server: Server,
    stopping: asyncio.Event,
    background: Sequence[Callable[[], Awaitable[None]]],
    serving: Callable[[bool], Awaitable[None]],
) -> None:
    try:
        server.start()
    except OSError as error:
        _log.error("gateway cannot start: %s", error)
        raise SystemExit(1) from None
    tasks = [asyncio.create_task(_forever(each)) for each in background]
    signalled = asyncio.create_task(stopping.wait())

    async def over() -> None:
        await serving(True)
        await asyncio.wait([signalled, *tasks], return_when=asyncio.FIRST_COMPLETED)
        await serving(False)

    try:
        await server.run_until(over())
        failed = [task.exception() for task in tasks if task.done()]
    finally:
        for task in (signalled, *tasks):
            task.cancel()
        await asyncio.wait([signalled, *tasks], timeout=DRAIN_SECONDS)
    if failed:
        _log.error("gateway failed", exc_info=failed[0])
        raise SystemExit(1)
    _log.info("gateway stopped")


async def _forever(background: Callable[[], Awaitable[None]]) -> None:
    await background()
    raise RuntimeError(f"{background!r} ended; it should run until it is cancelled")


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach an address."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
