"""What is removed by the clock: deleted jobs with all that belongs to them, request ids, records of removals.

Everything goes in transactions that are small whatever the size of a job, so that neither a lock nor an old snapshot is
held for long, and whoever shares the work skips what another one has in hand.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, TextClause, exists, literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import store, wakes
from services.queue.removals import PURGE_AFTER
from services.queue.states import TERMINAL, StopState
from services.queue.tables import attempts, jobs, removals, request_ids
from services.runtime.database import Database

REQUEST_IDS_KEPT = timedelta(days=7)
REMOVALS_KEPT = timedelta(days=365)
JOBS, FRAMES, HISTORY_ROWS = 100, 500, 2_000
"""What one transaction of a purge removes at the most; of frames nearly twice as many, where it looks once more from
the start. A frame has some 64 KiB at the most."""
BATCH = 500

_Frame = tuple[int, int]
"""Attempt and sequence."""
_START: _Frame = 0, 0


def jobs_due(now: ColumnElement[datetime], reached: datetime | None = None) -> Select[Any]:
    """Jobs that were deleted a while ago, not before `reached`, and whose stop is settled, as far as it ever will be;
    those that were deleted first come first."""
    running = exists().where(
        attempts.c.job_id == jobs.c.job_id,
        attempts.c.number == jobs.c.attempt,
        attempts.c.sealed_at.is_(None),
        jobs.c.stop_state != StopState.UNCONFIRMED,
    )
    due = select(jobs.c.job_id, jobs.c.hidden_at).where(
        jobs.c.hidden_at < now - literal(PURGE_AFTER),
        jobs.c.status.in_(sorted(TERMINAL)),
        jobs.c.stop_state != StopState.PENDING,
        ~running,
    )
    if reached is not None:
        due = due.where(jobs.c.hidden_at >= literal(reached))
    return due.order_by(jobs.c.hidden_at)


class Purge:
    """Removes deleted jobs, a part at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # How far the jobs are gone, and the logs that take several transactions. A search from the start would come
        # across all that was removed before, again each time, for as long as somebody's old snapshot keeps it from
        # being cleaned up.
        self.reached: datetime | None = None
        """Where it goes on: with what was deleted at this time. None: at the start."""
        self._logs_reached: dict[int, _Frame] = {}

    async def step(self) -> bool:
        """Remove one part; True when there may be more at once."""
        async with self._database.begin("queue.sweep") as connection:
            now = await store.now(connection)
            found = await _lock(connection, now, self.reached)
            if not found and self.reached is not None:
                # At the end; somebody else may have had in hand what was passed over, or it was not to go yet.
                found = await _lock(connection, now, None)
            gone = list(found)
            reached = {job_id: self._logs_reached[job_id] for job_id in gone if job_id in self._logs_reached}
            removed = await _remove_frames(connection, gone, reached)
            if reached and removed.count < FRAMES:
                # What was noted may be of a transaction that was lost, so it is looked once more from the start.
                reached, removed = {}, await _remove_frames(connection, gone, {})
            more = removed.count == FRAMES or not await _remove_jobs(connection, gone)
        # Noted once it is committed.
        self._logs_reached = reached | removed.last if more else {}
        if not more:
            self.reached = max(found.values()) if len(found) == JOBS else None
        return more or len(gone) == JOBS


async def _lock(connection: AsyncConnection, now: datetime, reached: datetime | None) -> dict[int, datetime]:
    """The next jobs to remove, locked, and when they were deleted."""
    due = jobs_due(literal(now), reached).limit(JOBS)
    locked = await connection.execute(due.with_for_update(of=jobs, skip_locked=True))
    return {row.job_id: row.hidden_at for row in locked}


@dataclass(frozen=True, slots=True)
class _Removed:
    """How many frames, and the last one of each job that had any."""

    count: int
    last: dict[int, _Frame]


async def _remove_frames(connection: AsyncConnection, job_ids: Collection[int], reached: dict[int, _Frame]) -> _Removed:
    """Remove the next frames of these jobs, FRAMES at the most."""
    if not job_ids:
        return _Removed(0, {})
    starts = [reached.get(job_id, _START) for job_id in job_ids]
    found = await connection.execute(
        _REMOVE_FRAMES,
        {
            "job_ids": list(job_ids),
            "attempts": [attempt for attempt, _ in starts],
            "sequences": [sequence for _, sequence in starts],
            "rows": FRAMES,
        },
    )
    rows = found.all()
    return _Removed(sum(row.frames for row in rows), {row.job_id: (row.attempt, row.sequence) for row in rows})


_REMOVE_FRAMES = text("""
    WITH removed AS (
        DELETE FROM queue.log WHERE ctid = ANY(ARRAY(
            SELECT next.ctid
            FROM unnest(CAST(:job_ids AS bigint[]), CAST(:attempts AS int[]), CAST(:sequences AS bigint[]))
                AS reached(job_id, attempt, sequence)
            CROSS JOIN LATERAL (
                SELECT l.ctid FROM queue.log l
                WHERE l.job_id = reached.job_id AND (l.attempt, l.sequence) > (reached.attempt, reached.sequence)
                ORDER BY l.attempt, l.sequence LIMIT :rows
            ) AS next
            LIMIT :rows))
        RETURNING job_id, attempt, sequence
    )
    SELECT DISTINCT ON (job_id) job_id, attempt, sequence, count(*) OVER (PARTITION BY job_id) AS frames
    FROM removed ORDER BY job_id, attempt DESC, sequence DESC
""")


async def _remove_jobs(connection: AsyncConnection, job_ids: Collection[int]) -> bool:
    """Remove jobs that have no log left; False when it was a part of their histories, which are long."""
    if not job_ids:
        return True
    history = await connection.execute(_REMOVE_HISTORY, {"job_ids": list(job_ids), "rows": HISTORY_ROWS})
    if history.rowcount == HISTORY_ROWS:
        return False
    ended = await connection.execute(_REMOVE_JOBS, {"job_ids": list(job_ids)})
    if ended.rowcount:
        await wakes.notify(connection, [wakes.LEASES])
    return True


_REMOVE_HISTORY = text("""
    DELETE FROM queue.history WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM queue.history WHERE job_id = ANY(:job_ids) LIMIT :rows))
""")

# With a job whose stop nobody could confirm goes the last that would have said when its leases end.
_REMOVE_JOBS = text("""
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


def request_ids_due(now: ColumnElement[datetime]) -> Select[Any]:
    """Request ids that no caller repeats any more."""
    age = request_ids.c.created_at
    return select(request_ids.c.request_id).where(age < now - literal(REQUEST_IDS_KEPT)).order_by(age)


def removals_due(now: ColumnElement[datetime]) -> Select[Any]:
    """Records of removals after which nobody asks any more."""
    age = removals.c.removed_at
    return select(removals.c.job_id).where(age < now - literal(REMOVALS_KEPT)).order_by(age)


async def forget_request_ids(connection: AsyncConnection) -> bool:
    """Remove a batch of request ids; True when there may be more at once."""
    before = await store.now(connection) - REQUEST_IDS_KEPT
    return await _forget(connection, _FORGET_REQUEST_IDS, before)


async def forget_removals(connection: AsyncConnection) -> bool:
    """Remove a batch of records of removals; True when there may be more at once."""
    return await _forget(connection, _FORGET_REMOVALS, await store.now(connection) - REMOVALS_KEPT)


async def _forget(connection: AsyncConnection, statement: TextClause, before: datetime) -> bool:
    return (await connection.execute(statement, {"before": before, "batch": BATCH})).rowcount == BATCH


_FORGET_REQUEST_IDS = text("""
    DELETE FROM queue.request_ids WHERE (caller, request_id) IN (
        SELECT caller, request_id FROM queue.request_ids WHERE created_at < :before
        ORDER BY created_at LIMIT :batch FOR UPDATE SKIP LOCKED)
""")

_FORGET_REMOVALS = text("""
    DELETE FROM queue.removals WHERE job_id IN (
        SELECT job_id FROM queue.removals WHERE removed_at < :before
        ORDER BY removed_at LIMIT :batch FOR UPDATE SKIP LOCKED)
""")
