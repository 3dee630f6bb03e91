"""HTTP/1.1 over one connection: uvicorn's protocol, with bounds on what a client may send, and on how slowly."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.errors import HeadTooLarge, failure
from gateway.front import STRICT_HEADERS
from services.runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

HEAD_BYTES = 32 * 1024
"""How many bytes the URL and the headers of a request may have."""
HEAD_SECONDS = 10.0
"""How long they may take to come."""
STALL_SECONDS = 60.0
"""How long a client may read nothing of what is there for it."""
CONNECTION_LIMIT = 2_000
# What frames the chunks of a body, and what follows it, beyond as many bytes as the body has.
_FRAMING_BYTES = 1024 * 1024

_log = logging.getLogger("http")

_MALFORMED = InvalidArgument("this is no request of HTTP/1.1", reason="MALFORMED_REQUEST")


class Connection(HttpToolsProtocol):
    """A connection; see uvicorn's for the rest."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._heading = False
        self._head_bytes = 0
        self._framing_bytes = 0
        self._slow: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._unread = 0
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > CONNECTION_LIMIT:
            self.transport.abort()
            return
        self._slow = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._slow, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        # uvicorn tells the request that came last, which may be waiting for this one: a stream without an end, perhaps.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        alone = self._heading or self._is_idle()
        self._framing_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._heading and alone:
            self._head_bytes += len(data)
        if (self._heading and self._head_bytes > HEAD_BYTES) or self._framing_bytes > _FRAMING_BYTES:
            self.send_400_response("")
        elif self._heading or (self._is_idle() and self.timeout_keep_alive_task is None):
            if self._slow is None:
                self._slow = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
        elif self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heading = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        # What follows a body in chunks is of no use here.
        if self._heading:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES:
            self._head_bytes = size
            raise HeadTooLarge(HEAD_BYTES)
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        coding = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0") or coding not in ([], [b"chunked"]):
            raise _MALFORMED
        self._heading = False
        self._framing_bytes = 0
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        # As much as the body itself is allowed: nobody who means well sends it byte by byte.
        self._framing_bytes = max(0, self._framing_bytes - 2 * len(body))
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, as every other error is answered, and hang up."""
        too_large = self._head_bytes > HEAD_BYTES
        found = failure(HeadTooLarge(HEAD_BYTES) if too_large else _MALFORMED)
        request_id = secrets.token_hex(8)
        headers = [
            *STRICT_HEADERS,
            (b"x-request-id", request_id.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(found.document)),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        if self._is_idle() or not self.cycle.response_started:
            self.transport.write(STATUS_LINE[found.http] + head + b"\r\n" + found.document)
            origin = self.client[0] if self.client else ""
            _log.info("malformed request", extra={"status": found.http, "origin": origin, "request_id": request_id})
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for another protocol gets this one."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALL_SECONDS, self._end_unless_read)

    def _end_unless_read(self) -> None:
        """Nothing is added while writing pauses: what is less than before was read, however slowly."""
        left = self.transport.get_write_buffer_size()
        if left >= self._unread:
            self.transport.abort()
            return
        self._unread = left
        self._stalled = self.loop.call_later(STALL_SECONDS, self._end_unless_read)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()
