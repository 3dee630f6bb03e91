"""What is asked of the database for measurements alone, four times a minute, by each replica for itself: how many jobs
there are in each status that is not an end, for how long the first has waited, and how long a NOTIFY takes.

All replicas see the same, so what they say is to be taken as a maximum, not as a sum.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.queue import wakes
from services.queue.states import TERMINAL, Status
from services.queue.tables import JobType
from services.queue.wakes import Wakes
from services.runtime import metrics
from services.runtime.database import Database
from services.runtime.dependencies import Complaints
from services.runtime.errors import Internal, SisError
from services.runtime.tracing import Attribute, Attributes

INTERVAL_SECONDS: Final = 15.0
COUNT_SECONDS: Final = 5.0
"""For a count: of millions of jobs it takes longer, and is given up."""
NOTIFY_SECONDS: Final = 5.0
"""A NOTIFY that takes longer is lost."""
KEPT_SECONDS: Final = 60.0
"""What is older is not told any more."""

_LIVE: Final = sorted(set(Status) - TERMINAL)
_NOTIFY: Final = metrics.Duration("sis.queue.notify.delay", "From the commit of a NOTIFY to when it is heard.")

_log = logging.getLogger("census")


class Census:
    """Asks, and remembers for whoever reads it."""

    def __init__(self, database: Database, waker: Wakes) -> None:
        self._database = database
        self._waker = waker
        self._counts: dict[tuple[str, str], int] = {}
        self._oldest: dict[str, float] = {}
        self._at = -float("inf")
        self._topic = f"probe:{secrets.token_hex(8)}"
        self._complaints = Complaints(_log, "jobs are not counted")
        metrics.observe("sis.job.count", "{job}", "Jobs that have not ended, by status and type.", self._jobs)
        metrics.observe("sis.job.oldest_wait", "s", "For how long the first of those that wait does.", self._waits)

    def _jobs(self) -> Iterable[tuple[float, Attributes]]:
        if self._is_fresh:
            for (status, kind), count in self._counts.items():
                yield count, {Attribute.JOB_STATUS: status, Attribute.JOB_TYPE: kind}

    def _waits(self) -> Iterable[tuple[float, Attributes]]:
        if self._is_fresh:
            for kind, seconds in self._oldest.items():
                yield seconds, {Attribute.JOB_TYPE: kind}

    @property
    def _is_fresh(self) -> bool:
        return time.monotonic() - self._at < KEPT_SECONDS

    async def run(self) -> None:
        """Ask for ever. What fails is asked again the next time."""
        while True:
            try:
                await self.take()
                await self.probe()
                self._complaints.over()
            except SisError as error:
                self._complaints.note(error)
            except DBAPIError as error:
                self._complaints.note(Internal(f"{type(error.orig).__name__}: {error.orig}".partition("\n")[0]))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def take(self) -> None:
        """Count once. Raises SisError, DBAPIError."""
        async with self._database.begin() as connection:
            await connection.execute(text(f"SET LOCAL statement_timeout = '{COUNT_SECONDS:.0f}s'"))
            rows = (await connection.execute(_COUNT, {"live": _LIVE})).all()
        self._counts = {(status, kind): 0 for status in _LIVE for kind in JobType}
        self._oldest = dict.fromkeys(JobType, 0.0)
        for row in rows:
            self._counts[row.status, row.type] = row.jobs
            if row.status == Status.WAITING and row.oldest is not None:
                self._oldest[row.type] = _seconds(row.oldest, row.now)
        self._at = time.monotonic()

    async def probe(self) -> None:
        """Notify this process, and measure until it is heard; one that is lost is measured as long. Raises SisError,
        DBAPIError."""
        with self._waker.subscribe(self._topic) as news:
            async with self._database.begin() as connection:
                await wakes.notify(connection, [self._topic])
            began = time.monotonic()
            await self._waker.wait(news, NOTIFY_SECONDS)
            _NOTIFY.record(time.monotonic() - began)


def _seconds(since: datetime, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds())


# Exact, as few jobs are live: the index is one of what is not hidden, by status.
_COUNT = text("""
    SELECT status, type, count(*) AS jobs, min(queued_at) AS oldest, queue.now() AS now
    FROM queue.jobs WHERE status = ANY(:live) AND hidden_at IS NULL
    GROUP BY status, type
""")
