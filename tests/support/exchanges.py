"""Exchanges without a connection: a request as ASGI has it, and what is sent in answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import parse_headers
from io import BytesIO
from typing import Any

from gateway.exchange import Buffers, Exchange, Message


@dataclass
class Sent:
    """What was sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        found: int = self.messages[0]["status"]
        return found

    @property
    def headers(self) -> Any:
        lines = b"".join(b"%b: %b\r\n" % pair for pair in self.messages[0]["headers"])
        return parse_headers(BytesIO(lines + b"\r\n"))

    @property
    def body(self) -> bytes:
        return b"".join(each["body"] for each in self.messages[1:])


def exchange(verb: str = "GET", path: str = "/", headers: Sequence[tuple[str, str]] = ()) -> tuple[Exchange, Sent]:
    """A request without a body, and where its answer will be."""
    sent = Sent()

    async def receive() -> Message:
        raise AssertionError("there is no body")

    async def send(message: Message) -> None:
        sent.messages.append(message)

    scope = {
        "method": verb,
        "raw_path": path.encode("latin-1"),
        "query_string": b"",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
    }
    return Exchange(scope, receive, send, request_id="r", origin="", headers=(), buffers=Buffers()), sent
