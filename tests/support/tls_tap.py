"""A man in the middle of a mutual TLS connection, who has the keys of both sides and records what passes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator

from services.runtime.tls import TlsFiles

_CHUNK_BYTES = 65_536


class TlsTap:
    """Takes connections on a port of its own as the server would, and passes them on as the client would."""

    def __init__(self, target: str, *, as_server: TlsFiles, as_client: TlsFiles, server_name: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server_name = server_name
        self._inner = _context(ssl.Purpose.SERVER_AUTH, as_client)
        self._outer = _context(ssl.Purpose.CLIENT_AUTH, as_server)
        self._outer.verify_mode = ssl.CERT_REQUIRED
        self._tasks: set[asyncio.Task[None]] = set()
        self._recorded: list[bytearray] = []
        self.endpoint = ""

    @property
    def recorded(self) -> list[bytes]:
        """What has passed so far, one direction of one connection each."""
        return [bytes(each) for each in self._recorded]

    @contextlib.contextmanager
    def running(self) -> Iterator[TlsTap]:
        """In a thread of its own, beside a synchronous test."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        server = asyncio.run_coroutine_threadsafe(self._start(), loop).result(20)
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(server), loop).result(20)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(20)
            loop.close()

    async def _start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._outer)
        self.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _stop(self, server: asyncio.Server) -> None:
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [writer]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            target = await asyncio.open_connection(*self._target, ssl=self._inner, server_hostname=self._server_name)
            writers.append(target[1])
            await asyncio.gather(self._pump(reader, target[1]), self._pump(target[0], writer))
        for each in writers:
            each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record = bytearray()
        self._recorded.append(record)
        while data := await reader.read(_CHUNK_BYTES):
            record += data
            writer.write(data)
            await writer.drain()
        raise ConnectionError


def _context(purpose: ssl.Purpose, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(purpose, cafile=str(files.ca))
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    return context
