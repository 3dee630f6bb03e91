"""What is left of jobs that were removed: which, when, by whom, why. Whoever asks for one later is told.

A row is written with the removal, in its transaction, and goes by itself after a year.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, literal, or_, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue.errors import JobNotFound
from services.queue.model import Actor
from services.queue.states import Status
from services.queue.tables import jobs, removals

PURGE_AFTER = timedelta(minutes=15)
"""This long a deleted job is kept: longer than the tokens of a watch are good (`watching.TOKEN_LIFE`), also when it was
deleted by a transaction that took its time."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What is known of a job that was removed."""

    job_id: int
    display_name: str
    # The last it had.
    status: Status
    removed_at: datetime
    by: Actor
    # "" where none was given.
    reason: str
    # The file that it was exported to before; "" for none.
    export: str


async def note(connection: AsyncConnection, job_ids: Collection[int], by: Actor, reason: str, export: str = "") -> None:
    """Record that these jobs are removed, as they stand in `queue.jobs` now. One that is recorded is left as it is."""
    shown = select(
        jobs.c.job_id,
        jobs.c.display_name,
        jobs.c.status,
        func.queue.now(),
        *(literal(value) for value in (by.name, by.origin, reason, export)),
    ).where(jobs.c.job_id == func.any(list(job_ids)))
    names = ["job_id", "display_name", "status", "removed_at", "actor", "origin", "reason", "export"]
    await connection.execute(upsert(removals).from_select(names, shown).on_conflict_do_nothing())


async def find(connection: AsyncConnection, job_id: int) -> Removal | None:
    """What is known of the removal of a job; None where there was none, or long ago."""
    row = (await connection.execute(select(removals).where(removals.c.job_id == job_id))).first()
    if row is None:
        return None
    return Removal(
        row.job_id, row.display_name, Status(row.status), row.removed_at, Actor(row.actor, row.origin), row.reason,
        row.export,
    )  # fmt: skip


async def not_found(connection: AsyncConnection, job_id: int) -> JobNotFound:
    """The error for whoever asks for a job that is not there (any more)."""
    gone = await find(connection, job_id)
    if gone is None:
        return JobNotFound(job_id)
    reason = f"{gone.reason}; exported to {gone.export}" if gone.export else gone.reason
    return JobNotFound(
        job_id, deleted_by=gone.by.name, deleted_at=gone.removed_at, reason=reason, display_name=gone.display_name,
        status=gone.status,
    )  # fmt: skip


async def expect_whole(connection: AsyncConnection, job_id: int) -> None:
    """Raises JobNotFound: the job was deleted so long ago that some of it may be gone already."""
    whole = or_(jobs.c.hidden_at.is_(None), jobs.c.hidden_at >= func.queue.now() - literal(PURGE_AFTER))
    if (await connection.execute(select(jobs.c.job_id).where(jobs.c.job_id == job_id, whole))).first() is None:
        raise await not_found(connection, job_id)
