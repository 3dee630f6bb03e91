"""Streams of messages as server-sent events or lines of JSON.

Events: `id` is the message's resume token if it has one, `data` the message; a comment while nothing happens; at the
end `event: end`, or `event: failure` with the error. Lines: a message each; an empty one while nothing happens; an
error is the last one. Nothing is kept for a client that reads slowly: the service waits, and does with it what it does
with slow readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from gateway.errors import Failure, Refused, failure, fault
from gateway.exchange import Exchange, Gone
from gateway.negotiation import EVENTS, LINES
from gateway.printing import document, printed
from gateway.transcoding import Transcoder
from gateway.upstreams import IDLE, Stream, Upstreams
from services.runtime.errors import InvalidArgument, ResourceExhausted, SisError, Unavailable

HEARTBEAT_SECONDS = 15.0
STREAM_LIMIT = 1_000
"""How many may be open; with fewer than all requests that may be in flight, there is room for others."""
_FIRST_SECONDS = 2.0
"""How long the head of the answer waits for the first message, or an error in its place."""
_RESUME = "resume_token"


@dataclass(frozen=True, slots=True)
class Form:
    """How a stream is written."""

    content_type: bytes
    message: Callable[[Message], bytes]
    heartbeat: bytes
    end: bytes
    failure: Callable[[Failure], bytes]


def _event(message: Message) -> bytes:
    token = getattr(message, _RESUME, "")
    event = b"data: %b\n\n" % document(printed(message))
    return b"id: %b\n%b" % (token.encode(), event) if token and token.isprintable() else event


FORMS = {
    EVENTS: Form(
        content_type=b"text/event-stream",
        message=_event,
        heartbeat=b":\n\n",
        end=b"event: end\ndata: {}\n\n",
        failure=lambda found: b"event: failure\ndata: %b\n\n" % found.document,
    ),
    LINES: Form(
        content_type=b"application/x-ndjson",
        message=lambda message: document(printed(message)) + b"\n",
        heartbeat=b"\n",
        end=b"",
        failure=lambda found: found.document + b"\n",
    ),
}


class Streams:
    """The streams of messages that are being read."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._open: set[Stream] = set()
        self._draining = False

    def drain(self) -> None:
        """End them all, so that their clients go on elsewhere, and open no more."""
        self._draining = True
        for stream in self._open:
            stream.end(_leaving())

    async def answer(
        self, exchange: Exchange, transcoder: Transcoder, segments: Sequence[str], body: bytes, media_type: str
    ) -> None:
        """Answer with the stream of one method, in one of FORMS."""
        request = transcoder.request(segments, exchange.query, body)
        if (last := exchange.header(b"last-event-id")) and _RESUME in request.DESCRIPTOR.fields_by_name:
            request.resume_token = _token(last)
        if self._draining:
            raise _leaving()
        if len(self._open) >= STREAM_LIMIT:
            raise ResourceExhausted(
                f"this gateway has {STREAM_LIMIT:,} streams open, which is its limit; try again", retry_after=5.0
            )
        async with self._upstreams.stream(transcoder.binding, request, exchange.metadata) as stream:
            self._open.add(stream)
            try:
                async with exchange.watched(stream.end):
                    await _relay(exchange, stream, FORMS[media_type], transcoder)
            finally:
                self._open.discard(stream)


async def _relay(exchange: Exchange, stream: Stream, form: Form, transcoder: Transcoder) -> None:
    message: Any = await stream.poll(_FIRST_SECONDS)
    # The second is how proxies are told not to collect what comes.
    await exchange.begin(200, [(b"content-type", form.content_type), (b"x-accel-buffering", b"no")])
    if exchange.verb == "HEAD":
        await exchange.finish()
        return
    try:
        while message is not None:
            await exchange.write(form.heartbeat if message is IDLE else form.message(message))
            message = await stream.poll(HEARTBEAT_SECONDS)
    except Exception as error:
        if exchange.gone:
            raise Gone from None
        known = error if isinstance(error, SisError | Refused) else fault(error, exchange.method, exchange.request_id)
        await exchange.finish(form.failure(failure(known, transcoder.binding.method.input_type)))
    else:
        await exchange.finish(form.end)


def _token(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidArgument.field("Last-Event-ID", "is not in UTF-8") from None


def _leaving() -> Unavailable:
    return Unavailable("the gateway shuts down; go on from the last event with another", retry_after=1.0)
