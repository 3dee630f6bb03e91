"""Wake-ups across replicas: NOTIFY says that something may be new, the tables say what.

A payload is words separated by blanks: `work` (something may be claimed), `stop` (a stop is wished), `job:42`. It is
sent with the transaction that made the news, one NOTIFY each. Every process has one LISTEN connection and fans out
inside; whoever waits also looks by himself now and then, as a wake-up may be lost.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.errors import Unavailable

CHANNEL = "sis_queue"
WORK = "work"
STOP = "stop"
_PAYLOAD_BYTES = 7_900  # PostgreSQL takes fewer than 8,000

_NOTIFY = text("SELECT pg_notify(:channel, :payload)")


def job(job_id: int) -> str:
    """The topic of one job."""
    return f"job:{job_id}"


async def notify(connection: AsyncConnection, topics: Collection[str]) -> None:
    """Wake whoever waits for one of the topics, once the transaction commits."""
    payload = ""
    for topic in dict.fromkeys(topics):
        if payload and len(payload) + 1 + len(topic) > _PAYLOAD_BYTES:
            await connection.execute(_NOTIFY, {"channel": CHANNEL, "payload": payload})
            payload = topic
        else:
            payload = f"{payload} {topic}" if payload else topic
    if payload:
        await connection.execute(_NOTIFY, {"channel": CHANNEL, "payload": payload})


class Wakes:
    """The fan-out of one process: events by topic, set by the listener."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._draining = False

    @contextmanager
    def subscribe(self, *topics: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of the topics is heard; the waiter clears it before it looks."""
        event = asyncio.Event()
        for topic in topics:
            self._waiting[topic].add(event)
        try:
            yield event
        finally:
            for topic in topics:
                self._waiting[topic].discard(event)
                if not self._waiting[topic]:
                    del self._waiting[topic]

    def heard(self, payload: str) -> None:
        """Set the events of the topics in a payload."""
        for topic in payload.split(" "):
            for event in self._waiting.get(topic, ()):
                event.set()

    def heard_all(self) -> None:
        """Set every event: after the listener's connection was made anew, anything may have been missed."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait until the event is set, at most `seconds`, and clear it.

        Raises:
            Unavailable: the server drains; whoever waits is to go on with another replica.
        """
        if not self._draining:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()
        if self._draining:
            raise Unavailable("the server shuts down; call again", retry_after=0.2)
        event.clear()

    async def drain(self) -> None:
        """End whatever waits, now and from now on."""
        self._draining = True
        self.heard_all()
