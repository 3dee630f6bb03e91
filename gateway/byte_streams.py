"""Streams that carry the bytes of a file: downloads, in ranges too, and uploads."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway import ranges
from gateway.errors import Headers
from gateway.exchange import Exchange
from gateway.negotiation import BYTES, EVENTS, JSON, LINES, accepted, check_content_type
from gateway.printing import document, printed
from gateway.ranges import Conditions, File, Part
from gateway.streams import Streams
from gateway.transcoding import Transcoder
from gateway.upstreams import Stream, Upstreams
from services.runtime.errors import Unavailable
from sis.http.v1.byte_stream_pb2 import ByteStream

UPLOAD_BYTES = 64 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
# While it is being read, what there is may change; then it is looked at again.
_TRIES = 3
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIXES = {"application/gzip": ".tar.gz", BYTES: ".bin"}
_TAG_TEXT = re.compile(r"[\x21\x23-\x7e]{1,200}")


class Download:
    """GET of a file: its bytes, or the stream of messages where Accept asks for that."""

    def __init__(self, transcoder: Transcoder, stream: ByteStream, upstreams: Upstreams, streams: Streams) -> None:
        self._transcoder = transcoder
        self._stream = stream
        self._upstreams = upstreams
        self._streams = streams
        self._offered = list(dict.fromkeys((stream.media_type, BYTES, EVENTS, LINES)))
        self._ranged = {"offset", "length"} <= set(transcoder.binding.method.input_type.fields_by_name)

    async def __call__(self, exchange: Exchange, segments: Sequence[str]) -> None:
        exchange.refuse_body()
        media_type = accepted(exchange.header(b"accept"), self._offered)
        if media_type in (EVENTS, LINES):
            await self._streams.answer(exchange, self._transcoder, segments, b"", media_type)
            return
        await self._answer(exchange, self._transcoder.request(segments, exchange.query, b""), segments)

    async def _answer(self, exchange: Exchange, request: Any, segments: Sequence[str]) -> None:
        conditions = Conditions(
            # A range of anything but a GET is ignored.
            exchange.text(b"range") if self._ranged and exchange.verb == "GET" else "",
            exchange.text(b"if-range"),
            exchange.text(b"if-none-match"),
        )
        # What is not known before the first message: a whole file that nothing is asked of needs no second look.
        asked = None if conditions or exchange.verb == "HEAD" else Part(200, 0, 0)
        # A Range is of what the request itself leaves of the file.
        offset, length = (request.offset, request.length) if self._ranged else (0, 0)
        for _ in range(_TRIES):
            if self._ranged:
                request.offset = offset + (asked.offset if asked else 0)
                request.length = (asked.length or length) if asked else 1
            async with (
                self._upstreams.stream(self._transcoder.binding, request, exchange.metadata) as stream,
                exchange.watched(stream.end),
            ):
                file = self._file(await stream.read(), offset, length)
                part = ranges.part(conditions, file)
                if asked is not None and part.extends(asked):
                    part = asked  # the stream brings what was asked for; the file has grown behind it
                headers = self._headers(part, file, segments)
                if exchange.verb == "HEAD" or part.status == 304:
                    await exchange.begin(part.status, headers)
                    await exchange.finish()
                    return
                if asked is not None and (part == asked or part.status == asked.status == 200):
                    await exchange.begin(part.status, headers)
                    await self._copy(exchange, stream, part.length)
                    return
            # The whole has a length of its own: all there is when it is read.
            asked = Part(200, 0, 0) if part.status == 200 else part
        raise Unavailable("the file changes all the time; try again", retry_after=1.0)

    def _file(self, first: Message | None, offset: int, length: int) -> File:
        if first is None:
            raise Unavailable("the service sent nothing; try again", retry_after=1.0)
        tag = str(_at(first, self._stream.etag)) if self._stream.etag else ""
        size = max(0, int(_at(first, self._stream.size)) - offset)
        return File(min(size, length or size), f'"{tag}"' if _TAG_TEXT.fullmatch(tag) else "")

    def _headers(self, part: Part, file: File, segments: Sequence[str]) -> Headers:
        found = [(b"etag", file.etag.encode())] if file.etag else []
        if self._ranged:
            found.append((b"accept-ranges", b"bytes"))
        if part.status == 304:
            return found
        last = self._transcoder.binding.template.rpartition("/")[2]
        name = "-".join([*(_UNSAFE.sub("_", each).strip(".")[:80] for each in segments), last])
        name += _SUFFIXES.get(self._stream.media_type, "")
        found += [
            (b"content-type", self._stream.media_type.encode()),
            (b"content-length", b"%d" % part.length),
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
        ]
        if part.status == 206:
            last_byte = part.offset + part.length - 1
            found.append((b"content-range", b"bytes %d-%d/%d" % (part.offset, last_byte, file.size)))
        return found

    async def _copy(self, exchange: Exchange, stream: Stream, length: int) -> None:
        """Exactly `length` bytes: what was written since does not count, and less than was promised is cut off."""
        while length > 0 and (message := await stream.read()) is not None:
            data = _at(message, self._stream.data)[:length]
            if data:
                length -= len(data)
                await exchange.write(data)
        if length:
            raise Unavailable(f"{length:,} bytes are missing; try again", retry_after=1.0)
        await exchange.finish()


class Upload:
    """A file as the body of a request."""

    def __init__(self, transcoder: Transcoder, stream: ByteStream, upstreams: Upstreams) -> None:
        self._transcoder = transcoder
        self._stream = stream
        self._upstreams = upstreams
        self._taken = list(dict.fromkeys((stream.media_type, BYTES)))
        self._class = GetMessageClass(transcoder.binding.method.input_type)

    async def __call__(self, exchange: Exchange, segments: Sequence[str]) -> None:
        accepted(exchange.header(b"accept"), [JSON])
        check_content_type(exchange.header(b"content-type"), self._taken)
        exchange.check_length(UPLOAD_BYTES)
        first = self._transcoder.request(segments, exchange.query, b"")
        path, _, size = self._stream.size.rpartition(".")
        announced = _at(first, path) if path else first
        announced.SetInParent()
        if exchange.content_length is not None:
            setattr(announced, size, exchange.content_length)
        call = self._upstreams.upload(self._transcoder.binding, exchange.metadata)
        response = await call.send(self._messages(exchange, first))
        await exchange.answer(200, JSON, document(printed(response)))

    async def _messages(self, exchange: Exchange, first: Any) -> AsyncGenerator[Any, None]:
        yield first
        path, _, data = self._stream.data.rpartition(".")
        async with aclosing(exchange.pieces(UPLOAD_BYTES)) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), _PIECE_BYTES):
                    message = self._class()
                    setattr(_at(message, path) if path else message, data, piece[start : start + _PIECE_BYTES])
                    yield message


def _at(message: Any, path: str) -> Any:
    """The value of the field that a path leads to."""
    for name in path.split("."):
        message = getattr(message, name)
    return message
