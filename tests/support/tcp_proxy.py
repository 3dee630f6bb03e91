"""A proxy that misbehaves on demand, in an event loop (TcpProxy) or beside a synchronous test (ProxyThread).

What TCP itself never does, it cannot do either: lose, double or change the order of bytes within a connection.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65_536
_STEPS_PER_SECOND = 20
_UNDER_WAY = 256
_PROXY_SECONDS = 20.0
_dice = random.Random()
"""Not the one that all share: Hypothesis fails a test in which another thread draws from that."""

Target = str | Callable[[], str]
"""`host:port` or `unix:/path`; a function is asked again for each connection."""


class TcpProxy:
    """Forwards connections on a port of its own, of a loopback address, to a target.

    async with TcpProxy(f"127.0.0.1:{port}") as proxy:
        ...connect to proxy.endpoint...
        proxy.cut()

    A black hole holds bytes back: what is under way arrives when it is healed, unless the connection is cut before
    that.
    """

    def __init__(self, target: Target, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = target
        self._host = host
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_target = _Way()
        self._to_client = _Way()
        self._connecting = asyncio.Event()
        self._connecting.set()
        self.port = port
        self.accepted = 0
        """How many connections were made so far."""

    @property
    def endpoint(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._tasks)

    @property
    def bytes_to_target(self) -> int:
        """How many were delivered so far, over all connections."""
        return self._to_target.delivered

    @property
    def bytes_to_client(self) -> int:
        return self._to_client.delivered

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        self.heal()
        self.cut()
        await asyncio.gather(*self._tasks)

    async def accept(self) -> None:
        """Take connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, self._host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse new connections; those that are made stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def cut_after(self, *, to_target: int | None = None, to_client: int | None = None) -> None:
        """Let so many more bytes through in a direction, over all connections, then end the connection in whose
        middle that is: what was let through arrives."""
        self._to_target.left = to_target
        self._to_client.left = to_client

    def half_close(self, *, to_target: bool = False, to_client: bool = False) -> None:
        """End one direction of every connection, and swallow what still comes from there; the other goes on."""
        for way, ends in ((self._to_target, to_target), (self._to_client, to_client)):
            for writer in way.writers if ends else ():
                if not writer.is_closing():
                    writer.write_eof()
                    way.ended.add(writer)

    def black_hole(self, *, to_target: bool = True, to_client: bool = True) -> None:
        """Hold back everything that flows in these directions, and say nothing; new connections too."""
        if to_target:
            self._to_target.open.clear()
        if to_client:
            self._to_client.open.clear()

    def silence(self) -> None:
        """Accept new connections, and do not even try the target."""
        self._connecting.clear()

    def slow(
        self,
        *,
        delay: float = 0.0,
        jitter: float = 0.0,
        bytes_per_second: float | None = None,
        piece: int = _CHUNK_BYTES,
    ) -> None:
        """In both directions, let each byte be under way for `delay` seconds and at random up to `jitter` more; let
        each connection have so many bytes a second, and pass them on in pieces of so many bytes at most.

        `slow(piece=1)` dribbles: one byte, one packet.
        """
        for way in (self._to_target, self._to_client):
            way.delay, way.jitter, way.bytes_per_second, way.piece = delay, jitter, bytes_per_second, piece

    def heal(self) -> None:
        """Let everything flow again, as fast as it will."""
        self.slow()
        self.cut_after()
        self._connecting.set()
        self._to_target.open.set()
        self._to_client.open.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._connecting.wait()
            target_reader, target_writer = await _connect(
                self._target if isinstance(self._target, str) else self._target()
            )
            self._writers.add(target_writer)
            try:
                if writer.is_closing():  # it was cut in the meantime
                    return
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._to_target.pump(reader, target_writer))
                    group.create_task(self._to_client.pump(target_reader, writer))
            finally:
                self._writers.discard(target_writer)
                target_writer.transport.abort()
        except* (OSError, _Torn):
            pass  # one side is gone; the other one learns it by the reset
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)


class _Torn(Exception):
    """The bytes after which a connection is to end have been delivered."""


class _Way:
    """One direction of a proxy, and how it misbehaves."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.delay = self.jitter = 0.0
        self.bytes_per_second: float | None = None
        self.piece = _CHUNK_BYTES
        self.left: int | None = None
        self.delivered = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.ended: set[asyncio.StreamWriter] = set()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take(reader, under_way))
                group.create_task(self._deliver(under_way, writer))
        finally:
            self.writers.discard(writer)
            self.ended.discard(writer)

    async def _take(self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock = asyncio.get_running_loop().time
        due = 0.0
        while True:
            data = await reader.read(_CHUNK_BYTES)
            due = max(due, clock() + self.delay + _dice.uniform(0, self.jitter))
            await under_way.put((due, data))
            if not data:
                return

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await under_way.get()
            if (early := due - clock()) > 0:
                await asyncio.sleep(early)
            if not data:
                break
            while data:
                data = data[await self._pass_on(data, writer) :]
        await self.open.wait()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> int:
        """Pass some of it on; how much."""
        await self.open.wait()
        size = min(len(data), self.piece)
        if self.bytes_per_second is not None:
            size = min(size, max(1, int(self.bytes_per_second / _STEPS_PER_SECOND)))
        torn = self.left is not None and size >= self.left
        if self.left is not None:
            size = min(size, self.left)
            self.left = None if torn else self.left - size
        if writer in self.ended:
            return size
        writer.write(data[:size])
        self.delivered += size
        if torn:
            writer.close()  # what is in its buffer goes first
            await writer.wait_closed()
            raise _Torn
        await writer.drain()
        if self.bytes_per_second is not None:
            await asyncio.sleep(size / self.bytes_per_second)
        elif self.piece == 1:
            await asyncio.sleep(0)  # each byte a packet, as far as the kernel lets it
        return size


async def _connect(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.startswith("unix:"):
        return await asyncio.open_unix_connection(target.removeprefix("unix:"))
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host, int(port))


class ProxyThread:
    """A TcpProxy that runs beside a synchronous test. `proxy` may be read from any thread."""

    def __init__(self, target: Target) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.proxy: TcpProxy = self._do(_entered(target))

    @property
    def endpoint(self) -> str:
        return self.proxy.endpoint

    def __call__(self, action: Callable[[TcpProxy], object]) -> None:
        """Do something to the proxy in its own thread."""

        async def act() -> None:
            done = action(self.proxy)
            if asyncio.iscoroutine(done):
                await done

        self._do(act())

    def close(self) -> None:
        self._do(self.proxy.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work) -> TcpProxy:  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PROXY_SECONDS)  # type: ignore[no-any-return]


async def _entered(target: Target) -> TcpProxy:
    return await TcpProxy(target).__aenter__()


@contextmanager
def proxied(target: Target) -> Iterator[ProxyThread]:
    """A proxy for the block."""
    proxy = ProxyThread(target)
    try:
        yield proxy
    finally:
        proxy.close()
