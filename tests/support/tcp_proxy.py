"""A TCP proxy that misbehaves on demand."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65_536


class TcpProxy:
    """Forwards connections on a loopback port of its own to `host:port`.

    async with TcpProxy("127.0.0.1", port) as proxy:
        ...connect to proxy.endpoint...
        proxy.cut()

    TCP never loses bytes in the middle of a stream, so a black hole holds them back: what is under way arrives when
    it is healed, unless the connection is cut before that.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_target = asyncio.Event()
        self._to_client = asyncio.Event()
        self.heal()
        self.port = 0
        self.delay = 0.0
        """Seconds for which each piece that is read, in either direction, is held back."""
        self.accepted = 0
        """How many connections were made so far."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

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
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
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

    def black_hole(self, *, to_target: bool = True, to_client: bool = True) -> None:
        """Hold back everything that flows in these directions, and say nothing; new connections too."""
        if to_target:
            self._to_target.clear()
        if to_client:
            self._to_client.clear()

    def heal(self) -> None:
        """Let everything flow again."""
        self._to_target.set()
        self._to_client.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            target_reader, target_writer = await asyncio.open_connection(*self._target)
            self._writers.add(target_writer)
            try:
                if writer.is_closing():  # it was cut in the meantime
                    return
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, target_writer, self._to_target))
                    group.create_task(self._pump(target_reader, writer, self._to_client))
            finally:
                self._writers.discard(target_writer)
                target_writer.transport.abort()
        except* OSError:
            pass  # one side is gone; the other one learns it by the reset
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event) -> None:
        while piece := await reader.read(_CHUNK_BYTES):
            if self.delay:
                await asyncio.sleep(self.delay)
            await is_open.wait()
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
