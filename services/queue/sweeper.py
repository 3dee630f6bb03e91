"""What happens because time has passed, and because nobody else did it.

Every replica sweeps; rows that another one has in hand are skipped, so they share the work. Each rule takes a bounded
batch from a partial index of live rows, so the cost does not grow with the jobs that have ended.

Silence is judged only by a sweeper that has itself watched for as long: after its start, or after a gap in its view of
the database, it waits one full heartbeat timeout before it calls anybody's job AWOL.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, exists, or_, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle, store, wakes
from services.queue.model import Job
from services.queue.states import HELD_BY_AGENT, TERMINAL, Status, StopState
from services.queue.tables import attempts, jobs
from services.queue.watching import TOKEN_LIFE
from services.runtime.database import Database
from services.runtime.errors import SisError

INTERVAL_SECONDS = 1.0
BATCH = 500
GAP = timedelta(seconds=30)
"""A sweeper that has not seen the database for this long begins to watch anew. The shortest heartbeat timeout is longer
by more than a beat, so that a shorter gap makes nobody AWOL."""
PURGE_ROWS = 2_000
"""Frames, of some 64 KiB at the most, that one purge removes, so that a log of any length goes in time."""
REQUEST_IDS_KEPT = timedelta(days=7)
PURGE_AFTER = TOKEN_LIFE + timedelta(minutes=5)
"""This long a deleted job is kept: longer than the tokens of a watch are good, also when it was deleted by a
transaction that took its time."""
SEAL_AFTER = timedelta(days=1)
"""This long after its end the log of a job whose agent never came back is sealed as it is."""

_log = logging.getLogger("sweeper")


class Sweeper:
    """The sweeper of one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watching_since: datetime | None = None
        self._last: datetime | None = None

    async def run(self) -> None:
        """Sweep for ever. A sweep that fails is tried again; it leaves nothing half done."""
        while True:
            try:
                busy = await self.sweep()
            except SisError as error:
                _log.warning("a sweep failed, trying again: %s", error)
                busy = False
            if not busy:
                await asyncio.sleep(INTERVAL_SECONDS)

    async def sweep(self) -> bool:
        """Apply every rule once; True when some batch was full, so that there may be more to do at once."""
        async with self._database.begin() as connection:
            now = await store.now(connection)
        if self._last is None or now - self._last > GAP or now < self._last:
            self._watching_since = now
        self._last = now
        rules = (self._release, self._expire, self._silence, self._overrun, self._settle, _seal, _purge)
        done = [await self._apply(rule) for rule in (*rules, _forget_request_ids)]
        return any(count >= BATCH for count in done)

    async def _apply(self, rule: Callable[[AsyncConnection, datetime], Awaitable[int]]) -> int:
        """Apply a rule; one that fails is tried again with the next sweep, and keeps none of the others."""
        try:
            async with self._database.begin() as connection:
                return await rule(connection, await store.now(connection))
        except (SisError, DBAPIError):
            _log.exception("the rule %s failed", rule.__name__)
            return 0

    async def _release(self, connection: AsyncConnection, now: datetime) -> int:
        due = store.jobs_to_lock().where(jobs.c.status == "DEFERRED", jobs.c.not_before <= now).limit(BATCH)
        found = await store.lock_selected(connection, due, skip_locked=True)
        for job in found.values():
            lifecycle.release(job, now)
        return await _save(connection, list(found.values()), wakes.WORK)

    async def _expire(self, connection: AsyncConnection, now: datetime) -> int:
        due = store.jobs_to_lock().where(jobs.c.status.in_(["DEFERRED", "WAITING"]), jobs.c.latest_start <= now)
        found = await store.lock_selected(connection, due.limit(BATCH), skip_locked=True)
        for job in found.values():
            lifecycle.expire(job, now)
        return await _save(connection, list(found.values()))

    async def _silence(self, connection: AsyncConnection, now: datetime) -> int:
        # Silence is vouched for only by who has watched for as long.
        unheard = and_(
            attempts.c.last_heard_at < now - jobs.c.heartbeat_timeout,
            jobs.c.heartbeat_timeout <= now - (self._watching_since or now),
        )
        due = _live().where(jobs.c.status.in_(sorted(HELD_BY_AGENT)), unheard).limit(BATCH)
        found = await store.lock_selected(connection, due, skip_locked=True)
        # Read again under the lock: a report may have come between.
        silent = [j for j in found.values() if _unheard(j, now) and j.status in HELD_BY_AGENT]
        for job in silent:
            lifecycle.silence(job, now)
        return await _save(connection, silent)

    async def _overrun(self, connection: AsyncConnection, now: datetime) -> int:
        # As in `lifecycle.overrun`, which decides under the lock.
        late = now - lifecycle.SWEEPER_MARGIN
        watching_since = self._watching_since or now
        if watching_since > late:
            return 0
        limits = or_(
            and_(jobs.c.status == Status.STARTING, attempts.c.claimed_at < late - lifecycle.START_LIMIT),
            and_(
                jobs.c.status == Status.PROCESSING_OUTPUT,
                attempts.c.payload_ended_at < late - lifecycle.OUTPUT_LIMIT,
            ),
            and_(
                jobs.c.status.in_([Status.RUNNING, Status.CANCEL_REQUESTED]),
                attempts.c.first_process_at < late - jobs.c.run_timeout,
            ),
            and_(
                jobs.c.status == Status.CANCEL_REQUESTED,
                attempts.c.stop_wished_at < late - lifecycle.CANCEL_GRACE - lifecycle.KILL_LIMIT,
            ),
        )
        due = _live().where(limits, attempts.c.active_at < late).limit(BATCH)
        found = await store.lock_selected(connection, due, skip_locked=True)
        ended = [j for j in found.values() if not _unheard(j, now) and lifecycle.overrun(j, now, watching_since)]
        return await _save(connection, ended, wakes.STOP)

    async def _settle(self, connection: AsyncConnection, now: datetime) -> int:
        due = _live().where(
            jobs.c.status.in_(sorted(TERMINAL)),
            jobs.c.stop_state == StopState.PENDING,
            attempts.c.last_heard_at < now - jobs.c.heartbeat_timeout,
            jobs.c.heartbeat_timeout <= now - (self._watching_since or now),
        )
        found = await store.lock_selected(connection, due.limit(BATCH), skip_locked=True)
        unheard = [j for j in found.values() if j.stop_state is StopState.PENDING and _unheard(j, now)]
        for job in unheard:
            lifecycle.unheard_stop(job)
        return await _save(connection, unheard)


async def _seal(connection: AsyncConnection, now: datetime) -> int:
    """Seal the logs of jobs that ended long ago and whose agents never came back."""
    due = _live().where(
        jobs.c.status.in_(sorted(TERMINAL)),
        jobs.c.completed_at < now - SEAL_AFTER,
        attempts.c.last_heard_at < now - jobs.c.heartbeat_timeout,
    )
    found = await store.lock_selected(connection, due.limit(BATCH), skip_locked=True)
    # Looked at again under the lock: a report may have come between.
    gone = [job for job in found.values() if job.live and _unheard(job, now)]
    for job in gone:
        lifecycle.give_up_log(job, now)
    return await _save(connection, gone)


def _live() -> Select[Any]:
    return store.jobs_to_lock().join(
        attempts,
        and_(
            attempts.c.job_id == jobs.c.job_id,
            attempts.c.number == jobs.c.attempt,
            attempts.c.sealed_at.is_(None),
        ),
    )


def _unheard(job: Job, now: datetime) -> bool:
    return job.attempt is not None and job.attempt.last_heard_at < now - job.heartbeat_timeout


async def _save(connection: AsyncConnection, changed: list[Job], *topics: str) -> int:
    await store.save(connection, changed, topics)
    return len(changed)


async def _purge(connection: AsyncConnection, now: datetime) -> int:
    """Remove jobs that were deleted a while ago and whose stop is settled, with all that belongs to them."""
    running = exists().where(
        attempts.c.job_id == jobs.c.job_id,
        attempts.c.number == jobs.c.attempt,
        attempts.c.sealed_at.is_(None),
        jobs.c.stop_state != StopState.UNCONFIRMED,
    )
    due = select(jobs.c.job_id).where(
        jobs.c.hidden_at < now - PURGE_AFTER,
        jobs.c.status.in_(sorted(TERMINAL)),
        jobs.c.stop_state != StopState.PENDING,
        ~running,
    )
    locked = await connection.execute(due.limit(BATCH).with_for_update(skip_locked=True))
    gone = [row.job_id for row in locked]
    if not gone:
        return 0
    frames = await connection.execute(
        text("""
            DELETE FROM queue.log WHERE (job_id, attempt, sequence) IN (
                SELECT job_id, attempt, sequence FROM queue.log WHERE job_id = ANY(:job_ids) LIMIT :rows)
        """),
        {"job_ids": gone, "rows": PURGE_ROWS},
    )
    if frames.rowcount == PURGE_ROWS:
        return BATCH  # the jobs go with the last of their frames
    ended = await connection.execute(_FORGET, {"job_ids": sorted(gone)})
    if ended.rowcount:
        await wakes.notify(connection, [wakes.LEASES])
    return len(gone)


# With a job whose stop nobody could confirm goes the last that would have said when its leases end.
_FORGET = text("""
    WITH gone AS (
        DELETE FROM queue.jobs WHERE job_id = ANY(:job_ids) RETURNING job_id, attempt, credentials
    )
    INSERT INTO queue.lease_ends (job_id, attempt, job_over, created_at)
    SELECT a.job_id, a.number, true, queue.now()
    FROM gone JOIN queue.attempts a ON a.job_id = gone.job_id AND a.number = gone.attempt
    WHERE a.sealed_at IS NULL AND gone.credentials <> '[]'
    ORDER BY a.job_id
    ON CONFLICT (job_id, attempt) DO UPDATE SET job_over = true, handed_at = NULL
""")


async def _forget_request_ids(connection: AsyncConnection, now: datetime) -> int:
    forgotten = await connection.execute(
        text("""
            DELETE FROM queue.request_ids WHERE (caller, request_id) IN (
                SELECT caller, request_id FROM queue.request_ids WHERE created_at < :before
                ORDER BY created_at LIMIT :batch FOR UPDATE SKIP LOCKED)
        """),
        {"before": now - REQUEST_IDS_KEPT, "batch": BATCH},
    )
    return forgotten.rowcount
