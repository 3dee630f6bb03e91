"""Requests of HTTP into messages, by the bindings of the contracts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway import parsing
from gateway.parsing import fields_of, shown
from gateway.routes import Binding
from services.runtime.errors import InvalidArgument

_MAX_PARAMETERS = 1_000
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Transcoder:
    """The requests of one binding."""

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self._class = GetMessageClass(binding.method.input_type)
        self._path_fields = binding.path_fields
        self._body = binding.body
        stream = binding.byte_stream
        # What the body of an upload says cannot be said in the query as well.
        uploads = stream is not None and binding.method.client_streaming
        self._in_body = {stream.data: "is the body", stream.size: "is the Content-Length"} if stream and uploads else {}
        parsing.check(binding.method.input_type)

    @property
    def takes_body(self) -> bool:
        """Whether a body of JSON is part of the request."""
        return self._body != ""

    def request(self, segments: Sequence[str], query: bytes, body: bytes) -> Any:
        """The message that a request says: `segments` are the path's fields as they stand there.

        Raises:
            InvalidArgument: INVALID_FIELD, or MALFORMED_REQUEST.
        """
        message = self._class()
        if body:
            self._read_body(message, body)
        if query:
            self._read_query(message, query)
        for name, segment in zip(self._path_fields, segments, strict=True):
            parsing.set_texts(message, name, [_decoded(segment.encode("ascii"), name)])
        return message

    def _read_body(self, message: Message, body: bytes) -> None:
        document = parsing.read(body)
        if self._body != "*":
            parsing.fill(getattr(message, self._body), document, self._body)
            return
        known = fields_of(message.DESCRIPTOR)
        for name in document:
            if name in known and known[name].name in self._path_fields:
                raise InvalidArgument.field(name, "is in the path already")
        parsing.fill(message, document)

    def _read_query(self, message: Message, query: bytes) -> None:
        found: dict[str, list[str]] = {}
        for name, text in _parameters(query):
            found.setdefault(name, []).append(text)
        given: set[str] = set()
        for name, texts in found.items():
            if self._body == "*":
                raise InvalidArgument.field(shown(name), "belongs in the body, not in the query")
            path = parsing.set_texts(message, name, texts)
            if path in given:
                raise InvalidArgument.field(shown(name), "is given twice, by both of its names")
            if path in self._path_fields:
                raise InvalidArgument.field(shown(name), "is in the path already")
            if path in self._in_body:
                raise InvalidArgument.field(shown(name), self._in_body[path])
            if self._body and path.partition(".")[0] == self._body:
                raise InvalidArgument.field(shown(name), "belongs in the body, not in the query")
            given.add(path)


def _parameters(query: bytes) -> list[tuple[str, str]]:
    parts = query.split(b"&", _MAX_PARAMETERS)
    if len(parts) > _MAX_PARAMETERS:
        raise InvalidArgument.field("query", f"has more than {_MAX_PARAMETERS:,} parameters")
    found: list[tuple[str, str]] = []
    for part in parts:
        if part:
            name, _, text = part.replace(b"+", b" ").partition(b"=")
            decoded = _decoded(name, "query")
            found.append((decoded, _decoded(text, shown(decoded))))
    return found


def _decoded(raw: bytes, field: str) -> str:
    """The text of a percent-encoded part of a URL."""
    if b"%" not in raw:
        if raw.isascii():
            return raw.decode("ascii")
    elif _BROKEN_ESCAPE.search(raw) is not None:
        raise InvalidArgument.field(field, "has a % that begins no escape; write %25")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidArgument.field(field, "is not in UTF-8") from None
