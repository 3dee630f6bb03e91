"""Reading a job's log: the live monitor, the console output, the debug log.

Frames are handed out as the bytes that the site cut. Nothing is held between two reads, so a slow reader costs the
others nothing.
"""

from __future__ import annotations

import asyncio
import heapq
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
                entries = await jobs.history_after(connection, job_id, position.history, READ_ROWS)
                rows = await _read(connection, job_id, position)
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


async def _read(connection: AsyncConnection, job_id: int, position: Position) -> list[LogRow]:
    rows = await connection.execute(
        _READ,
        {"job_id": job_id, "attempt": position.attempt, "sequence": position.sequence, "rows": READ_ROWS,
         "bytes": READ_BYTES},
    )  # fmt: skip
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


async def console_output(database: Database, job_id: int) -> AsyncGenerator[list[LogRow], None]:
    """The frames of standard output and standard error of all attempts, in order."""
    async for rows in _scan(database, job_id, f"channel IN ({Channel.STDOUT:d}, {Channel.STDERR:d})"):
        yield rows


async def debug_log(
    database: Database, job_id: int, view: DebugLogView
) -> AsyncGenerator[HistoryEntry | list[LogRow], None]:
    """History and frames merged by time; the problem view has what went wrong, and no output but standard error.

    Raises:
        JobNotFound
    """
    async with database.begin() as connection:
        await jobs.get(connection, job_id)
        entries = await jobs.history_after(connection, job_id, 0, jobs.HISTORY_ROWS)
    if view is DebugLogView.PROBLEM:
        entries = [e for e in entries if e.to_status in _PROBLEMS]
    remaining = entries
    async for rows in _scan(database, job_id, _VIEWS[view]):
        due = [e for e in remaining if e.at <= rows[-1].at]
        remaining = remaining[len(due) :]
        for content in _merged(due, rows):
            yield content
    for entry in remaining:
        yield entry


_PROBLEMS = frozenset({"FAILED", "AWOL", "TIMED_OUT", "EXPIRED", "ABORTED"})

_VIEWS = {
    DebugLogView.FULL: "true",
    DebugLogView.STANDARD: f"channel <> {Channel.DEBUG:d}",
    DebugLogView.PROBLEM: f"(channel = {Channel.STDERR:d} OR severity >= {Severity.WARNING:d})",
}


async def _scan(database: Database, job_id: int, condition: str) -> AsyncGenerator[list[LogRow], None]:
    """All frames that meet a condition (one of this module's own), in order."""
    query = text(f"""
        SELECT attempt, sequence, at, body FROM queue.log
        WHERE job_id = :job_id AND (attempt, sequence) > (:attempt, :sequence) AND {condition}
        ORDER BY attempt, sequence LIMIT :rows
    """)  # noqa: S608
    attempt, sequence = 0, 0
    while True:
        async with database.begin() as connection:
            found = await connection.execute(
                query, {"job_id": job_id, "attempt": attempt, "sequence": sequence, "rows": _SCAN_ROWS}
            )
            rows = [LogRow(r.attempt, r.sequence, r.at, bytes(r.body)) for r in found]
        if not rows:
            return
        yield rows
        attempt, sequence = rows[-1].attempt, rows[-1].sequence


_SCAN_ROWS = 64
"""Frames are at most some 64 KiB each, so a read stays within a few MiB."""
