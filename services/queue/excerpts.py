"""Parts of the log of a job's current attempt, for viewers that hold a piece of a long one; and what is found in it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import jobs
from services.queue.jobs import JobView
from services.queue.log_search import LogSearch, Match
from services.queue.logs import LogRow, Position
from services.runtime.database import Database

ROWS = 2_000
"""No more frames at once, however small they are."""
BYTES = 1 << 20
"""Nor frames of more bytes together."""
READS = 16
"""As often a search reads as much as that."""
MATCHES = 100
"""A search ends with the frame that gives so many."""
BEFORE_BYTES = 256 * 1024
"""So much before the frame where a search goes on is read again, to know the lines that go on there."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a log: with the frame `first`, or with the first one of a time or later; or, if `before` is given, the
    frames that end before that one."""

    first: int = 1
    before: int | None = None
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Consecutive frames, and how many the log has."""

    rows: list[LogRow]
    total: int


@dataclass(frozen=True, slots=True)
class Findings:
    """The matches of a part of a log, in their order; the frame to search on with, 0 at the end; and how many frames
    the log has."""

    matches: list[Match]
    next: int
    total: int


Feed = Callable[[LogSearch, LogRow], Iterable[Match]]
"""Gives a search what is in a frame."""


async def read(connection: AsyncConnection, job_id: int, place: Place, max_bytes: int) -> Excerpt:
    """The frames at a place, at least one if there is any, and no more once there are so many bytes.

    Raises:
        JobNotFound
    """
    return await _read(connection, await jobs.get(connection, job_id), place, max_bytes)


async def tail(connection: AsyncConnection, job_id: int, max_bytes: int) -> Position:
    """From where a monitor shows the last so many bytes of the frames that are there, with all of the history.

    Raises:
        JobNotFound
    """
    rows = (await read(connection, job_id, Place(before=2**63 - 1), max_bytes)).rows
    return Position(0, rows[0].attempt, rows[0].sequence - 1) if rows else Position()


async def search(database: Database, job_id: int, wanted: str, first: int, feed: Feed) -> Findings:
    """The lines with a text in the frames from one on: the next part of those that are there now.

    What ends in the frames before the first one is left to the search of those, so that each match is in one part.

    Raises:
        JobNotFound
    """
    found, matches, last = LogSearch(wanted), list[Match](), first - 1
    async with database.begin() as connection:
        view = await jobs.get(connection, job_id)
        before = await _read(connection, view, Place(before=first), BEFORE_BYTES)
    await asyncio.to_thread(_feed, found, before.rows, feed, math.inf)
    for _ in range(READS):
        async with database.begin() as connection:
            rows = (await _read(connection, view, Place(first=last + 1), BYTES)).rows
        if not rows:
            break
        more, last = await asyncio.to_thread(_feed, found, rows, feed, MATCHES - len(matches))
        matches += more
        if len(matches) >= MATCHES:
            break
    matches = sorted((m for m in matches + found.close() if m.sequence >= first), key=lambda match: match.sequence)
    return Findings(matches, last + 1 if last < before.total else 0, before.total)


def _feed(found: LogSearch, rows: Sequence[LogRow], feed: Feed, enough: float) -> tuple[list[Match], int]:
    """The matches in frames, and the last frame that was searched: once there are enough, the rest is left."""
    matches: list[Match] = []
    sequence = 0
    for row in rows:
        matches += feed(found, row)
        sequence = row.sequence
        if len(matches) >= enough:
            break
    return matches, sequence


async def _read(connection: AsyncConnection, view: JobView, place: Place, max_bytes: int) -> Excerpt:
    if view.attempt is None:
        return Excerpt([], 0)
    last = view.attempt.sequence
    key = {"job_id": view.attempt.job_id, "attempt": view.attempt.number, "bytes": max_bytes, "rows": ROWS}
    if place.before is not None:
        found = await connection.execute(_BACKWARD, {**key, "before": min(place.before, last + 1)})
    else:
        first = place.first if place.time is None else await _first_at(connection, view.attempt, place.time)
        found = await connection.execute(_FORWARD, {**key, "first": first, "last": last})
    return Excerpt([LogRow(r.attempt, r.sequence, r.at, bytes(r.body)) for r in found], last)


async def _first_at(connection: AsyncConnection, attempt: SimpleNamespace, time: datetime) -> int:
    """The first frame of a time or later, found by halves; one behind the last if there is none. A site's clock that
    was set back is found at one of the places where it fits."""
    key = {"job_id": attempt.job_id, "attempt": attempt.number, "last": attempt.sequence, "at": time}
    return int((await connection.execute(_FIRST_AT, key)).scalar_one())


_FORWARD = text("""
    SELECT attempt, sequence, at, body FROM (
        SELECT attempt, sequence, at, body,
            sum(octet_length(body)) OVER (ORDER BY sequence) - octet_length(body) AS before
        FROM (
            SELECT attempt, sequence, at, body FROM queue.log
            WHERE job_id = :job_id AND attempt = :attempt AND sequence BETWEEN :first AND :last
            ORDER BY sequence LIMIT :rows) AS next
    ) AS sized
    WHERE before < :bytes
    ORDER BY sequence
""")

_BACKWARD = text("""
    SELECT attempt, sequence, at, body FROM (
        SELECT attempt, sequence, at, body,
            sum(octet_length(body)) OVER (ORDER BY sequence DESC) - octet_length(body) AS behind
        FROM (
            SELECT attempt, sequence, at, body FROM queue.log
            WHERE job_id = :job_id AND attempt = :attempt AND sequence < :before
            ORDER BY sequence DESC LIMIT :rows) AS next
    ) AS sized
    WHERE behind < :bytes
    ORDER BY sequence
""")

_FIRST_AT = text("""
    WITH RECURSIVE search (low, high) AS (
        SELECT CAST(1 AS bigint), CAST(:last AS bigint) + 1
        UNION ALL
        SELECT CASE WHEN earlier THEN middle + 1 ELSE low END, CASE WHEN earlier THEN high ELSE middle END
        FROM (
            SELECT low, high, middle, at < :at AS earlier
            FROM (SELECT low, high, (low + high) / 2 AS middle FROM search WHERE low < high) AS halved
            JOIN queue.log ON job_id = :job_id AND attempt = :attempt AND sequence = middle
        ) AS probed
    )
    SELECT low FROM search WHERE low = high
""")
