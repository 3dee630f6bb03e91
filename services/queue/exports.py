"""Exports: jobs with their histories and logs, one after the other, each as it is when it is read.

Nothing is held while the reader takes its time. What an export has of one job fits together: its history and its log go
as far as the job says, or there is no end of it. Jobs come with the contents of their files, as an export may be all
that is left of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import jobs, listing, logs, removals
from services.queue.errors import JobNotFound
from services.queue.jobs import JobView
from services.queue.listing import JobFilter
from services.queue.logs import LogRow
from services.queue.model import HistoryEntry
from services.queue.tables import jobs as job_table
from services.queue.wakes import Wakes
from services.runtime import paging
from services.runtime.database import Database

JOBS = 500
"""Jobs that are looked for at once."""
HISTORY_ROWS = 1_000
"""Rows of a history that are read at once."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far an export has come: up to this job, of those up to the highest that it has."""

    job_id: int
    highest: int


@dataclass(frozen=True, slots=True)
class ExportJobs:
    """Which jobs: those with these ids, or, without any, those that match. `start` is where a broken one goes on."""

    job_ids: Sequence[int]
    filter: JobFilter
    include_logs: bool
    start: Position | None


Content = JobView | HistoryEntry | list[LogRow]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what an export has of a job; with the last one comes where to go on."""

    job_id: int
    content: Content
    position: Position | None


Begin = Callable[[], AbstractAsyncContextManager[AsyncConnection]]
"""Gives the connection for one read, as `Database.begin` does."""


def to_token(request: bytes, position: Position) -> str:
    """The resume token of a position, bound to the bytes of the request."""
    return paging.encode([position.job_id, position.highest], _bound(request))


def from_token(request: bytes, token: str) -> Position | None:
    """The position of a resume token; None, which is the start, for "".

    Raises:
        InvalidToken
    """
    if not token:
        return None
    job_id, highest = paging.decode(token, _bound(request), "resume_token", (int, int))
    assert isinstance(job_id, int) and isinstance(highest, int)
    if not 0 <= job_id <= highest < 2**63:
        raise paging.InvalidToken("resume_token")
    return Position(job_id, highest)


def _bound(request: bytes) -> bytes:
    return b"export " + request


async def export(database: Database, waker: Wakes, wanted: ExportJobs) -> AsyncGenerator[Part, None]:
    """The jobs by ascending id, none that was created after the beginning. One that is deleted before its turn is left
    out.

    Raises:
        JobNotFound: before the first part, there is none with one of the ids; later, one was deleted, and purged while
            it was read. Going on from the last position leaves it out.
        Unavailable: the server drains; go on from the last position.
    """
    conditions = [job_table.c.job_id.in_(wanted.job_ids)] if wanted.job_ids else listing.matching(wanted.filter)
    position = wanted.start or await _start(database, wanted.job_ids)
    while job_ids := await _next(database, conditions, position):
        for job_id in job_ids:
            waker.check()
            position = Position(job_id, position.highest)
            async for part in parts(database.begin, position, include_logs=wanted.include_logs):
                yield part


async def parts(begin: Begin, position: Position, *, include_logs: bool) -> AsyncGenerator[Part, None]:
    """All of the job at a position; nothing of one that was deleted.

    Raises:
        JobNotFound: it was removed while it was read; what came has no end.
    """
    held: Content | None = None
    async for content in _job(begin, position.job_id, include_logs=include_logs):
        if held is not None:
            yield Part(position.job_id, held, None)
        held = content
    if held is not None:
        yield Part(position.job_id, held, position)


async def _start(database: Database, job_ids: Sequence[int]) -> Position:
    there = select(job_table.c.job_id).where(job_table.c.job_id.in_(job_ids), job_table.c.hidden_at.is_(None))
    async with database.begin() as connection:
        if not job_ids:
            return Position(0, (await connection.execute(select(func.max(job_table.c.job_id)))).scalar_one() or 0)
        missing = set(job_ids) - set((await connection.execute(there)).scalars())
        if missing:
            raise await removals.not_found(connection, min(missing))
    return Position(0, max(job_ids))


async def _next(database: Database, conditions: Sequence[ColumnElement[bool]], position: Position) -> Sequence[int]:
    query = select(job_table.c.job_id).where(
        *conditions, job_table.c.job_id > position.job_id, job_table.c.job_id <= position.highest
    )
    async with database.begin() as connection:
        return (await connection.execute(query.order_by(job_table.c.job_id).limit(JOBS))).scalars().all()


async def _job(begin: Begin, job_id: int, *, include_logs: bool) -> AsyncGenerator[Content, None]:
    """The job, its history, its log; nothing of one that was deleted.

    Raises:
        JobNotFound: it was removed while it was read.
    """
    async with begin() as connection:
        try:
            view = await jobs.get(connection, job_id, contents=True)
        except JobNotFound:
            return
        entries = await _history(connection, view, 0)
    yield view
    last = 0
    while entries:
        for entry in entries:
            yield entry
        last += len(entries)
        async with begin() as connection:
            entries = await _history(connection, view, last)
    if include_logs and view.attempt is not None:
        async for rows in _log(begin, job_id, view.attempt.number, view.attempt.sequence):
            yield rows


async def _history(connection: AsyncConnection, view: JobView, last: int) -> list[HistoryEntry]:
    """The next entries behind one, of those that the job had when it was viewed: none only at the end.

    Raises:
        JobNotFound: some are not there any more.
    """
    count = min(HISTORY_ROWS, view.job.history_sequence - last)
    if not count:
        return []
    entries = await jobs.history_after(connection, view.job.job_id, last, count)
    if [entry.sequence for entry in entries] != list(range(last + 1, last + count + 1)):
        raise await removals.not_found(connection, view.job.job_id)
    return entries


async def _log(begin: Begin, job_id: int, attempt: int, end: int) -> AsyncGenerator[list[LogRow], None]:
    """The log up to a frame of the current attempt. Those before were given back, so they have none.

    Raises:
        JobNotFound: some of it is not there any more.
    """
    last = 0
    while last < end:
        async with begin() as connection:
            found = await logs.read(connection, job_id, attempt, last)
            rows = [row for row in found if (row.attempt, row.sequence) <= (attempt, end)]
            if not rows or [row.sequence for row in rows] != list(range(last + 1, last + len(rows) + 1)):
                raise await removals.not_found(connection, job_id)
        yield rows
        last = rows[-1].sequence
