"""A reader of server-sent events, as small as a correct one can be: WHATWG HTML, section 9.2."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Event:
    """One event: its type, its id and its data, which is JSON here."""

    kind: str
    id: str
    data: Any


class EventSource:
    """Reads a stream to its `end` event, and begins again behind the last id whenever the connection breaks: where the
    stream is to be had from several servers, at the next one."""

    def __init__(self, url: str, token: str, *others: str, seconds: float = 20.0) -> None:
        self._urls = [urlsplit(each) for each in (url, *others)]
        self._turn = 0
        self._token = token
        self._seconds = seconds
        self.last_id = ""
        self.connections = 0

    def __iter__(self) -> Iterator[Event]:
        tries = 0
        while True:
            try:
                for event in self._one_connection():
                    tries = 0
                    if event.kind == "end":
                        return
                    self.last_id = event.id or self.last_id
                    yield event
            except (OSError, http.client.HTTPException):
                pass
            tries += 1
            self._turn += 1
            assert tries < 100, f"{self._urls[0].path} gave nothing on {tries} connections"
            time.sleep(0.05 if tries > 1 else 0)

    def _one_connection(self) -> Iterator[Event]:
        url = self._urls[self._turn % len(self._urls)]
        assert url.hostname is not None
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=self._seconds)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Accept": "text/event-stream"}
            if self.last_id:
                headers["Last-Event-ID"] = self.last_id
            connection.request("GET", f"{url.path}?{url.query}", headers=headers)
            response = connection.getresponse()
            if response.status == 503:  # it shuts down, or what it needs is away
                return
            if response.status != 200:
                raise AssertionError(f"{response.status}: {response.read(4096)!r}")
            assert response.headers["Content-Type"].startswith("text/event-stream")
            self.connections += 1
            yield from events(response.readline)
        finally:
            connection.close()


def events(read_line: Callable[[], bytes]) -> Iterator[Event]:
    """The events of a stream, each when its blank line has come: one that is cut off is none."""
    fields: dict[str, str] = {}
    while line := read_line():
        text = line.decode().rstrip("\r\n")
        if not line.endswith(b"\n"):
            return
        if not text:
            if "data" in fields:
                yield Event(fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"]))
            fields = {}
        elif not text.startswith(":"):
            name, _, value = text.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
