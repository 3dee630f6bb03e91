"""Watching a list: which jobs change, from a position on.

Every write of a job notes its transaction, and changes are read in the order of these. Below the oldest transaction
that is under way nothing can be added any more, so only that much is read: what a later one has committed waits until
all before it have ended, and nothing is skipped. Nothing is held between two reads, so a slow watcher costs the others
nothing; it gets each job once, as it is when it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Result, Row, and_, cast, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import listing, wakes
from services.queue.errors import ResumeExpired
from services.queue.listing import JobFilter
from services.queue.tables import TransactionId, jobs
from services.queue.wakes import Wakes
from services.runtime import paging
from services.runtime.backoff import Backoff
from services.runtime.database import Database

BATCH = 100
"""Rows of one read, whose jobs fit in a message whatever is in them."""
PACE_SECONDS = 0.5
"""Between two reads while jobs change."""
POLL_SECONDS = 2.0
"""A wake-up may be lost; this long, at most, a watch does not look."""
TOKEN_SECONDS = 60.0
"""Where nothing is new, a token is given this often, so that whoever lost the stream has one that is good."""
TOKEN_LIFE = timedelta(minutes=10)
"""The sweeper keeps deleted jobs for longer, so that no watch misses that they are gone."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a watch has read: up to this job among those that this transaction changed. At `at` that was all."""

    xid: int
    job_id: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed up to a position: rows of jobs that match, the ids of those that do not or were deleted."""

    position: Position
    jobs: list[Row[Any]]
    gone: list[int]


@dataclass(frozen=True, slots=True)
class _Frontier:
    """All transactions before `oldest` have ended at `at`, none from `next` on has."""

    oldest: int
    next: int
    at: datetime

    @property
    def position(self) -> Position:
        return Position(self.oldest, 0, self.at)


def to_token(request: bytes, position: Position) -> str:
    """The resume token of a position, bound to the bytes of the filter."""
    return paging.encode([position.xid, position.job_id, int(position.at.timestamp() * 1e6)], _bound(request))


def from_token(request: bytes, token: str) -> Position | None:
    """The position of a resume token; None, which is now, for "".

    Raises:
        InvalidToken
    """
    if not token:
        return None
    xid, job_id, at = paging.decode(token, _bound(request), "resume_token", (int, int, int))
    assert isinstance(xid, int) and isinstance(job_id, int) and isinstance(at, int)
    if not (0 <= xid < 2**63 and 0 <= job_id < 2**63 and 0 <= at < 2**53):
        raise paging.InvalidToken("resume_token")
    return Position(xid, job_id, datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at))


def _bound(request: bytes) -> bytes:
    return b"watch " + request


async def here(connection: AsyncConnection) -> Position:
    """The position from which on there is every change that a later read does not see."""
    return (await _frontier(connection)).position


async def _frontier(connection: AsyncConnection) -> _Frontier:
    row = (await connection.execute(_FRONTIER)).one()
    return _Frontier(int(row.oldest), int(row.next), row.at)


_FRONTIER = text("""
    SELECT CAST(pg_snapshot_xmin(s) AS text) AS oldest, CAST(pg_snapshot_xmax(s) AS text) AS next, queue.now() AS at
    FROM pg_current_snapshot() AS s
""")


async def watch(
    database: Database, waker: Wakes, wanted: JobFilter, start: Position | None
) -> AsyncGenerator[Changes, None]:
    """What changes from a position on, or from now on, for ever. The first comes at once, and may be empty.

    Raises:
        ResumeExpired: the position is too old, at the start or because its reader took too long.
    """
    clock = asyncio.get_running_loop().time
    backoff = Backoff(initial=0.05, maximum=PACE_SECONDS)
    position = start
    # Once all before its `next` has been read, the position is good for its time.
    mark: _Frontier | None = None
    due = clock()
    heard: set[str] = set()
    with waker.subscribe(wakes.JOBS) as news:
        while True:
            async with database.begin() as connection:
                frontier = await _frontier(connection)
                if position is None:
                    position = frontier.position
                # One that is ahead of the database was given before that was restored from a backup.
                if frontier.at - position.at > TOKEN_LIFE or position.xid > frontier.next:
                    raise ResumeExpired
                rows = await _changed(connection, wanted, position, frontier)
            full = len(rows) == BATCH
            xid, job_id = (int(rows[-1].changed_xid), rows[-1].job_id) if full else (frontier.oldest, 0)
            at = position.at
            if xid >= frontier.next:
                at, mark = frontier.at, None
            elif mark is None:
                mark = frontier
            elif xid >= mark.next:
                at, mark = mark.at, frontier
            position = Position(xid, job_id, at)
            if rows or clock() >= due:
                yield Changes(position, [r for r in rows if r.matches], [r.job_id for r in rows if not r.matches])
                due = clock() + TOKEN_SECONDS
            # What woke it may have been committed while an older transaction goes on: then it is to look again soon.
            behind = frontier.oldest < frontier.next
            if rows or not behind:
                backoff.reset()
            if full:
                rest = 0.0
            elif rows or (heard and not behind):
                rest = PACE_SECONDS
            else:
                rest = backoff.next_delay() if behind else 0.0
            await asyncio.sleep(rest)
            heard = await waker.wait(news, 0.0 if full or behind else POLL_SECONDS)


async def _changed(
    connection: AsyncConnection, wanted: JobFilter, position: Position, frontier: _Frontier
) -> Sequence[Row[Any]]:
    after = tuple_(cast(str(position.xid), TransactionId), position.job_id)
    query = (
        select(*listing.LISTED, and_(*listing.matching(wanted)).label("matches"))
        .where(tuple_(jobs.c.changed_xid, jobs.c.job_id) > after)
        .where(jobs.c.changed_xid < cast(str(frontier.oldest), TransactionId))
    )
    found: Result[Any] = await connection.execute(query.order_by(jobs.c.changed_xid, jobs.c.job_id).limit(BATCH))
    return found.all()
