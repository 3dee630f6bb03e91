"""Reading a job's log: the live monitor, the console output, the debug log.

Frames are handed out as the bytes that the site cut. Nothing is held between two reads, so a slow reader costs the
others nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import jobs, wakes
from services.queue.frames import Channel, Severity
from services.queue.jobs import JobView
from services.queue.model import HistoryEntry
from services.queue.removals import expect_whole
from services.queue.states import TERMINAL, StopState
from services.queue.wakes import Wakes
from services.runtime import paging
from services.runtime.database import Database

READ_ROWS = 2_000
READ_BYTES = 1 << 20
"""A read ends with the frame that passes this many bytes."""
POLL_SECONDS = 2.0
"""A wake-up may be lost; this long, at most, a monitor does not look."""
VIEW_SECONDS = 1.0
"""Between two views of a job whose status stays the same."""


@dataclass(frozen=True, slots=True)
class LogRow:
    """A frame as it is stored."""

    attempt: int
    sequence: int
    at: datetime
    body: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """How far a monitor has read: the history, and the log by attempt and sequence."""

    history: int = 0
    attempt: int = 0
    sequence: int = 0


def _request(job_id: int) -> bytes:
    return b"monitor %d" % job_id


def to_token(job_id: int, position: Position) -> str:
    """The resume token of a position."""
    return paging.encode([position.history, position.attempt, position.sequence], _request(job_id))


def from_token(job_id: int, token: str) -> Position:
    """The position of a resume token; the start for "".

    Raises:
        InvalidToken
    """
    if not token:
        return Position()
    kinds = (int, int, int)
    history, attempt, sequence = paging.decode(token, _request(job_id), "resume_token", kinds)
    assert isinstance(history, int) and isinstance(attempt, int) and isinstance(sequence, int)
    return Position(history, attempt, sequence)


@dataclass(frozen=True, slots=True)
class News:
    """Something that a monitor hands on, and where to resume behind it."""

    position: Position
    content: JobView | HistoryEntry | list[LogRow]


async def monitor(database: Database, waker: Wakes, job_id: int, start: Position) -> AsyncGenerator[News, None]:
    """Everything of a job behind `start`, merged by time, then what happens, until it has ended and its log is sealed.

    The job itself comes first, and again whenever it has changed.

    Raises:
        JobNotFound: also when it is deleted meanwhile.
        InvalidToken: the start is behind the end of its history.
    """
    clock = asyncio.get_running_loop().time
    position = start
    shown: Any = None
    shown_at = 0.0
    with waker.subscribe(wakes.job(job_id)) as news:
        while True:
            async with database.begin() as connection:
                # The job is read first: what it says of its end is true of the log that is read after it.
                view = await jobs.get(connection, job_id)
                if position.history > view.job.history_sequence:  # of a past that a restored database does not have
                    raise paging.InvalidToken("resume_token")
                entries = await jobs.history_after(connection, job_id, position.history, READ_ROWS)
                rows = await read(connection, job_id, position.attempt, position.sequence)
            if shown is None:
                yield News(position, view)
                shown, shown_at = view.job, clock()
            for content in _merged(entries, rows):
                position = _behind(position, content)
                yield News(position, content)
            # What moves it is shown at once, what merely goes on in it (processes, progress) now and then.
            if view.job.status != shown.status or (
                view.job.revision != shown.revision and (_over(view) or clock() >= shown_at + VIEW_SECONDS)
            ):
                yield News(position, view)
                shown, shown_at = view.job, clock()
            if len(entries) == READ_ROWS or rows:
                continue
            if _over(view):
                return
            behind = view.job.revision != shown.revision
            await waker.wait(news, max(0.0, shown_at + VIEW_SECONDS - clock()) if behind else POLL_SECONDS)


def _over(view: JobView) -> bool:
    if view.job.status not in TERMINAL:
        return False
    sealed = view.attempt is None or view.attempt.sealed_at is not None
    return sealed or view.job.stop_state == StopState.UNCONFIRMED


def _behind(position: Position, content: HistoryEntry | list[LogRow]) -> Position:
    if isinstance(content, HistoryEntry):
        return Position(content.sequence, position.attempt, position.sequence)
    return Position(position.history, content[-1].attempt, content[-1].sequence)


def _merged(entries: Sequence[HistoryEntry], rows: Sequence[LogRow]) -> list[HistoryEntry | list[LogRow]]:
    """History and log by time, neighbouring frames of one attempt together; each keeps its own order."""
    merged: list[HistoryEntry | list[LogRow]] = []
    sources: tuple[Iterable[HistoryEntry | LogRow], ...] = (entries, rows)
    for item in heapq.merge(*sources, key=lambda e: e.at):
        last = merged[-1] if merged else None
        if isinstance(item, HistoryEntry):
            merged.append(item)
        elif isinstance(last, list) and last[-1].attempt == item.attempt:
            last.append(item)
        else:
            merged.append([item])
    return merged


async def read(connection: AsyncConnection, job_id: int, attempt: int, sequence: int) -> list[LogRow]:
    """The next frames of a log behind one: at most READ_ROWS, of some READ_BYTES."""
    rows = await connection.execute(
        _READ,
        {"job_id": job_id, "attempt": attempt, "sequence": sequence, "rows": READ_ROWS, "bytes": READ_BYTES},
    )
    return [LogRow(r.attempt, r.sequence, r.at, bytes(r.body)) for r in rows]


_READ = text("""
    SELECT attempt, sequence, at, body FROM (
        SELECT attempt, sequence, at, body,
            sum(octet_length(body)) OVER (ORDER BY attempt, sequence) - octet_length(body) AS before
        FROM (
            SELECT attempt, sequence, at, body FROM queue.log
            WHERE job_id = :job_id AND (attempt, sequence) > (:attempt, :sequence)
            ORDER BY attempt, sequence LIMIT :rows) AS next
    ) AS sized
    WHERE before < :bytes
    ORDER BY attempt, sequence
""")


class DebugLogView(StrEnum):
    """How much of a debug log."""

    FULL = "FULL"
    STANDARD = "STANDARD"
    PROBLEM = "PROBLEM"


async def output_start(connection: AsyncConnection, view: JobView, offset: int) -> tuple[int, int]:
    """Where to begin to read for the bytes of the output from `offset` on: the sequence of a frame, and how many bytes
    there are before it.

    Found by halves. Frames from before their offsets were noted are read from the first one on.
    """
    if view.attempt is None or offset == 0:
        return 1, 0
    key = {"job_id": view.attempt.job_id, "attempt": view.attempt.number}
    found = (await connection.execute(_OUTPUT_START, {**key, "last": view.attempt.sequence, "offset": offset})).first()
    return (1, 0) if found is None or found.output_offset is None else (found.sequence, found.output_offset)


_OUTPUT_START = text("""
    WITH RECURSIVE search (low, high) AS (
        SELECT CAST(1 AS bigint), CAST(:last AS bigint)
        UNION ALL
        SELECT CASE WHEN beyond THEN low ELSE middle END, CASE WHEN beyond THEN middle - 1 ELSE high END
        FROM (
            SELECT low, high, middle, coalesce(output_offset, 0) > :offset AS beyond
            FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM search WHERE low < high) AS halved
            JOIN queue.log ON job_id = :job_id AND attempt = :attempt AND sequence = middle
        ) AS probed
    )
    SELECT sequence, output_offset
    FROM search JOIN queue.log ON job_id = :job_id AND attempt = :attempt AND sequence = low
    WHERE low = high
""")


async def console_output(database: Database, view: JobView, first: int) -> AsyncGenerator[list[LogRow], None]:
    """The frames of standard output and standard error from a sequence on, in order: those that were there when the job
    was viewed.

    They are of its current attempt. Those before were given back, so they never started and wrote nothing.
    """
    if view.attempt is None:
        return
    number = view.attempt.number
    condition = f"channel IN ({Channel.STDOUT:d}, {Channel.STDERR:d})"
    span = (number, first - 1), (number, view.attempt.sequence)
    async for rows in _scan(database, view.attempt.job_id, condition, *span):
        yield rows


async def debug_log(
    database: Database, job_id: int, view: DebugLogView
) -> AsyncGenerator[HistoryEntry | list[LogRow], None]:
    """History (of one beyond measure, its last 10,000 rows) and frames merged by time; the problem view has what went
    wrong, and no output but standard error.

    Raises:
        JobNotFound
    """
    async with database.begin() as connection:
        found = await jobs.get(connection, job_id)
        # Of a history that is longer, the end says more than the beginning.
        after = max(0, found.job.history_sequence - jobs.HISTORY_ROWS)
        entries = await jobs.history_after(connection, job_id, after, jobs.HISTORY_ROWS)
    if view is DebugLogView.PROBLEM:
        entries = [e for e in entries if e.to_status in _PROBLEMS]
    remaining = entries
    async for rows in _scan(database, job_id, _VIEWS[view]):
        due = _until(remaining, rows[-1].at)
        remaining = remaining[len(due) :]
        for content in _merged(due, rows):
            yield content
    for entry in remaining:
        yield entry


def _until(entries: Sequence[HistoryEntry], at: datetime) -> list[HistoryEntry]:
    """The first of them, until one is later: they stay in their order, also where the clock was set back meanwhile."""
    return list(itertools.takewhile(lambda entry: entry.at <= at, entries))


_PROBLEMS = frozenset({"FAILED", "AWOL", "TIMED_OUT", "EXPIRED", "ABORTED"})

_VIEWS = {
    DebugLogView.FULL: "true",
    DebugLogView.STANDARD: f"channel <> {Channel.DEBUG:d}",
    DebugLogView.PROBLEM: f"(channel = {Channel.STDERR:d} OR severity >= {Severity.WARNING:d})",
}


_START, _END = (0, 0), (2**31 - 1, 2**63 - 1)


async def _scan(
    database: Database,
    job_id: int,
    condition: str,
    after: tuple[int, int] = _START,
    until: tuple[int, int] = _END,
) -> AsyncGenerator[list[LogRow], None]:
    """All frames between two (attempt, sequence) that meet a condition (one of this module's own), in order.

    Raises:
        JobNotFound: the job is gone, or going, and so may be frames that were to come.
    """
    query = text(f"""
        SELECT attempt, sequence, at, body FROM queue.log
        WHERE job_id = :job_id AND (attempt, sequence) > (:attempt, :sequence)
            AND (attempt, sequence) <= (:last_attempt, :last_sequence) AND {condition}
        ORDER BY attempt, sequence LIMIT :rows
    """)  # noqa: S608
    edge, over = after, False
    while True:
        async with database.begin() as connection:
            if after == edge and not over:
                span = _between(job_id, after, until)
                found = (await connection.execute(_EDGE, {**span, "looked": _LOOKED_ROWS})).first()
                edge, over = ((found.attempt, found.sequence), False) if found else (until, True)
            result = await connection.execute(query, {**_between(job_id, after, edge), "rows": _SCAN_ROWS})
            rows = [LogRow(r.attempt, r.sequence, r.at, bytes(r.body)) for r in result]
            if over and len(rows) < _SCAN_ROWS:
                await expect_whole(connection, job_id)
        if rows:
            yield rows
        if len(rows) == _SCAN_ROWS:
            after = rows[-1].attempt, rows[-1].sequence
        elif over:
            return
        else:
            after = edge


def _between(job_id: int, after: tuple[int, int], until: tuple[int, int]) -> dict[str, int]:
    (attempt, sequence), (last_attempt, last_sequence) = after, until
    return {
        "job_id": job_id, "attempt": attempt, "sequence": sequence,
        "last_attempt": last_attempt, "last_sequence": last_sequence,
    }  # fmt: skip


_EDGE = text("""
    SELECT attempt, sequence FROM queue.log
    WHERE job_id = :job_id AND (attempt, sequence) > (:attempt, :sequence)
        AND (attempt, sequence) <= (:last_attempt, :last_sequence)
    ORDER BY attempt, sequence OFFSET :looked - 1 LIMIT 1
""")
_LOOKED_ROWS = 20_000
"""As far as one statement looks for frames that meet a condition: of a long log there may be next to none."""
_SCAN_ROWS = 64
"""Frames are at most some 64 KiB each, so a read stays within a few MiB."""
