"""One HTTP request and its answer."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeAlias

from google.protobuf.descriptor import Descriptor

from gateway.errors import BodyTooLarge, BodyTooSlow, Headers
from services.runtime.errors import InvalidArgument, ResourceExhausted, SisError, Unauthenticated

# ASGI's.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

BODY_SECONDS = 30.0
"""How long a JSON document may take to come, and each piece of an upload."""
BUFFERED_BYTES = 128 * 1024 * 1024
"""How much of all JSON documents that are being read may be in memory."""
_AUTHORIZATION_BYTES = 6 * 1024
# A comma is where two headers were joined.
_BEARER = re.compile(rb"bearer [ -+\--~]+", re.IGNORECASE)
# What is left of a body is read for a while, so that the client gets to read the answer.
_LINGER_SECONDS = 2.0
# Of a list of jobs, a tenth is left, for a millisecond.
_WORTH_BYTES = 4 * 1024
_FAST = 1
_GZIP = re.compile(r"gzip(?:\s*;\s*q=(?!0(?:\.0*)?$)[01](?:\.[0-9]{0,3})?)?", re.IGNORECASE)
# Most answers come sooner; only then it is worth looking whether the client is still there.
_PATIENCE_SECONDS = 0.05


class Gone(Exception):
    """The client went away; nothing can be answered."""


class Buffers:
    """How many bytes of bodies are in memory."""

    def __init__(self) -> None:
        self.bytes = 0


class Exchange:
    """Reads the request, sends the answer. `headers` are part of every answer unless it has its own of that name."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        request_id: str,
        origin: str,
        headers: Headers,
        buffers: Buffers,
    ) -> None:
        self.verb: str = scope["method"]
        self.path: str = scope["raw_path"].decode("latin-1")
        self.query: bytes = scope["query_string"]
        self.request_id = request_id
        self.origin = origin
        self.status = 0
        """What was answered; 0 for nothing yet."""
        self.finished = False
        self.gone = False
        self.method = ""
        """What is called, for the log …"""
        self.route = ""
        """… its path, with the names of its fields …"""
        self.input_type: Descriptor | None = None
        """… and its request, for errors."""
        self.metadata: tuple[tuple[str, str], ...] = ()
        """What goes on to a service with each call; see `take_proof`."""
        self.receive = receive
        self._cookies: list[bytes] = []
        self._received: list[tuple[bytes, bytes]] = scope["headers"]
        self._send = send
        self._headers = headers
        self._buffers = buffers
        length = self.header(b"content-length")
        self.content_length = int(length) if length is not None and length.isdigit() else None
        self.has_body = bool(self.content_length) or self.header(b"transfer-encoding") is not None
        self._unread = self.has_body

    def header(self, name: bytes) -> bytes | None:
        """What is said under a name in lower case; several lines of one name are one list (RFC 9110, section 5.2)."""
        found = [value for each, value in self._received if each == name]
        return b", ".join(found) if found else None

    def text(self, name: bytes) -> str:
        """The same as text, "" if there is none."""
        return (self.header(name) or b"").decode("latin-1").strip()

    def take_proof(self, proof: bytes) -> None:
        """Have what proves who calls go on to the service, which judges it. As an Authorization header has it.

        Raises:
            Unauthenticated: there is nothing, or what cannot be a proof.
        """
        if len(proof) > _AUTHORIZATION_BYTES or _BEARER.fullmatch(proof) is None:
            raise Unauthenticated("authorization: send one header, `Authorization: Bearer <token>`")
        found = (("authorization", proof.decode("ascii")), ("x-request-id", self.request_id))
        self.metadata = (*found, ("x-sis-origin", self.origin)) if self.origin else found

    @property
    def takes_gzip(self) -> bool:
        """Whether the answer may be compressed."""
        return any(_GZIP.fullmatch(each.strip()) for each in self.text(b"accept-encoding").split(","))

    def set_cookie(self, cookie: str) -> None:
        """Have the answer carry a cookie, instead of any one before."""
        self._cookies = [cookie.encode("ascii")]

    # --- the request's body ---

    async def body(self, limit: int) -> bytes:
        """All of it.

        Raises:
            BodyTooLarge, BodyTooSlow
            ResourceExhausted: too many are being read.
            Gone
        """
        if not self.has_body:
            return b""
        found = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS), aclosing(self.pieces(limit)) as pieces:
                async for piece in pieces:
                    self._buffers.bytes += len(piece)
                    found += piece
                    if self._buffers.bytes > BUFFERED_BYTES:
                        raise ResourceExhausted("too many bodies are being read here; try again", retry_after=1.0)
        except TimeoutError:
            raise BodyTooSlow(BODY_SECONDS) from None
        finally:
            self._buffers.bytes -= len(found)
        return bytes(found)

    async def pieces(self, limit: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes; more is read only when it is asked for. Each piece has BODY_SECONDS.

        Raises: as `body`.
        """
        self.check_length(limit)
        total = 0
        while self._unread:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await self._next()
            except TimeoutError:
                raise BodyTooSlow(BODY_SECONDS) from None
            piece: bytes = message.get("body", b"")
            total += len(piece)
            if total > limit:
                raise BodyTooLarge(limit)
            if piece:
                yield piece

    async def _next(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            raise Gone
        self._unread = message.get("more_body", False)
        return message

    def check_length(self, limit: int) -> None:
        """Raises BodyTooLarge if more is announced."""
        if self.content_length is not None and self.content_length > limit:
            raise BodyTooLarge(limit)

    def refuse_body(self) -> None:
        """Raises InvalidArgument if there is one."""
        if self.has_body:
            raise InvalidArgument("this path takes no body", reason="MALFORMED_REQUEST")

    # --- the answer ---

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the head of an answer whose body follows."""
        self.status = status
        named = {name for name, _ in headers}
        sent = [*headers, *(pair for pair in self._headers if pair[0] not in named)]
        sent.append((b"x-request-id", self.request_id.encode()))
        sent += [(b"set-cookie", cookie) for cookie in self._cookies]
        if self._unread:
            sent.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": sent})

    async def write(self, body: bytes) -> None:
        """Send a piece of the body. Waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def finish(self, body: bytes = b"") -> None:
        """Send the last piece."""
        if self._unread:
            await self.write(body)
            await self._linger()
            body = b""
        self.finished = True
        await self._send({"type": "http.response.body", "body": body})

    async def answer(self, status: int, content_type: str, body: bytes, headers: Headers = ()) -> None:
        """Send a whole answer, compressed where that is worth it."""
        if len(body) >= _WORTH_BYTES:
            headers = [*headers, (b"vary", b"accept-encoding")]
            if self.takes_gzip:
                headers, body = [*headers, (b"content-encoding", b"gzip")], gzip.compress(body, _FAST, mtime=0)
        length = b"%d" % len(body)
        await self.begin(status, [(b"content-type", content_type.encode()), (b"content-length", length), *headers])
        await self.finish(body)

    async def _linger(self) -> None:
        """Read what is left of the body, for a while: a connection that is closed with bytes unread is reset, and the
        client may lose the answer."""
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._unread:
                    await self._next()
        except (TimeoutError, Gone):
            pass

    def watched(self, on_gone: Callable[[], object]) -> _Watch:
        """For a block that waits: calls `on_gone` when the client goes away. The body has been read before."""
        return _Watch(self, on_gone)


class _Watch:
    def __init__(self, exchange: Exchange, on_gone: Callable[[], object]) -> None:
        self._exchange = exchange
        self._on_gone = on_gone
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._start)
        return self

    def _start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self._exchange.gone = True
        self._on_gone()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._exchange.gone and (error is None or isinstance(error, SisError)):
            raise Gone from error
