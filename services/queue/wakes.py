"""Wake-ups across replicas: NOTIFY says that something may be new, the tables say what.

A payload is words separated by blanks: `work` (something may be claimed), `stop` (a stop is wished), `leases` (some are
to end), `job:42` (with which `jobs`, any of them, is heard). It is sent with the transaction that made the news, one
NOTIFY each. Every process has one LISTEN connection and fans out inside; whoever waits also looks by himself now and
then, as a wake-up may be lost.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime import dependencies, faults

CHANNEL = "sis_queue"
WORK = "work"
STOP = "stop"
LEASES = "leases"
JOBS = "jobs"
"""Heard with the topic of every job."""
_JOB = "job:"
_PAYLOAD_BYTES = 7_900  # PostgreSQL takes fewer than 8,000

_NOTIFY = text("SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload")


def job(job_id: int) -> str:
    """The topic of one job."""
    return f"{_JOB}{job_id}"


def payloads(topics: Iterable[str]) -> list[str]:
    """The topics, each once, in as few payloads as PostgreSQL takes."""
    found: list[str] = []
    for topic in dict.fromkeys(topics):
        if found and len(found[-1]) + 1 + len(topic) <= _PAYLOAD_BYTES:
            found[-1] += f" {topic}"
        else:
            found.append(topic)
    return found


async def notify(connection: AsyncConnection, topics: Iterable[str]) -> None:
    """Wake whoever waits for one of the topics, once the transaction commits."""
    if found := payloads(topics):
        await connection.execute(_NOTIFY, {"channel": CHANNEL, "payloads": found})


class Subscription:
    """What one waiter has heard of its topics since it last looked."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.topics = frozenset(topics)
        self._heard: set[str] = set()
        self._event = asyncio.Event()

    def hear(self, topic: str) -> None:
        """Note a topic, and wake the waiter."""
        self._heard.add(topic)
        self._event.set()

    async def wait(self, seconds: float) -> set[str]:
        """The topics heard since the last wait, as soon as there is one, or none after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()
        heard, self._heard = self._heard, set()
        return heard


class Wakes:
    """The fan-out of one process: from the listener to the subscriptions by topic."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._draining = False

    @contextmanager
    def subscribe(self, *topics: str) -> Iterator[Subscription]:
        """A subscription for the block; nothing that is heard from its beginning on is missed."""
        subscription = Subscription(topics)
        for topic in topics:
            self._waiting[topic].add(subscription)
        try:
            yield subscription
        finally:
            for topic in topics:
                self._waiting[topic].discard(subscription)
                if not self._waiting[topic]:
                    del self._waiting[topic]

    def heard(self, payload: str) -> None:
        """Tell the subscriptions of the topics in a payload."""
        faults.point("queue.notified")
        topics = payload.split(" ")
        if any(topic.startswith(_JOB) for topic in topics):
            topics.append(JOBS)
        for topic in topics:
            for subscription in self._waiting.get(topic, ()):
                subscription.hear(topic)

    def heard_all(self) -> None:
        """Tell every subscription all of its topics: after the listener's connection was made anew, or at the end,
        anything may have been missed."""
        for topic, subscriptions in self._waiting.items():
            for subscription in subscriptions:
                subscription.hear(topic)

    async def wait(self, subscription: Subscription, seconds: float) -> set[str]:
        """As `Subscription.wait`.

        Raises:
            Unavailable: the server drains; whoever waits is to go on with another replica.
        """
        heard = set() if self._draining else await subscription.wait(seconds)
        self.check()
        return heard

    def check(self) -> None:
        """For whoever does long work without waiting.

        Raises:
            Unavailable: as `wait`.
        """
        if self._draining:
            raise dependencies.ShuttingDown()

    async def drain(self) -> None:
        """End whatever waits, now and from now on."""
        self._draining = True
        self.heard_all()
