"""What people and programs do with the jobs that there are: look at them, and the verbs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Row, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle, removals, store, wakes
from services.queue.model import Actor, HistoryEntry
from services.queue.states import Status
from services.queue.tables import attempts, history, jobs


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it is shown, at one moment: its row, and that of its current attempt, if it has one."""

    job: Row[Any]
    attempt: SimpleNamespace | None


# Without the contents of files: megabytes, which a monitor would read again with every line of its log.
_SHOWN = [c for c in jobs.columns if c.name != "parameters"] + [
    literal_column(
        """(
            SELECT coalesce(jsonb_object_agg(key,
                CASE WHEN jsonb_typeof(value) = 'object' THEN value #- '{file,content}' ELSE value END), '{}')
            FROM jsonb_each(queue.jobs.parameters))""",
        jobs.c.parameters.type,
    ).label("parameters")
]

_CURRENT = {column.name: column.label(f"current_{column.name}") for column in attempts.columns}


async def get(connection: AsyncConnection, job_id: int, *, contents: bool = False) -> JobView:
    """One job, whole, but without the contents of its files, unless they are asked for.

    Raises:
        JobNotFound
    """
    found = await view(connection, job_id, contents=contents)
    if found.job.hidden_at is not None:
        raise await removals.not_found(connection, job_id)
    return found


async def view(connection: AsyncConnection, job_id: int, *, contents: bool = False) -> JobView:
    """As `get`, of a job that may be deleted, but not yet purged.

    Raises:
        JobNotFound
    """
    columns = jobs.columns if contents else _SHOWN
    current = (attempts.c.job_id == jobs.c.job_id) & (attempts.c.number == jobs.c.attempt)
    # In one statement: of two, the second would show what has happened since the first.
    query = select(*columns, *_CURRENT.values()).select_from(jobs).outerjoin(attempts, current)
    job = (await connection.execute(query.where(jobs.c.job_id == job_id))).first()
    if job is None:
        raise await removals.not_found(connection, job_id)
    attempt = {name: job._mapping[column.name] for name, column in _CURRENT.items()}
    return JobView(job, SimpleNamespace(**attempt) if job.attempt else None)


HISTORY_ROWS = 10_000
"""More rows of a history than this are not read at once."""


async def activate(connection: AsyncConnection, job_id: int, by: Actor, reason: str = "") -> JobView:
    """Release a deferred job now. Repeating it returns the job unchanged, so callers may retry.

    Raises:
        JobNotFound, IllegalTransition
    """
    job = await store.lock_visible(connection, job_id)
    released = lifecycle.activate(job, await store.now(connection), by, reason)
    await store.save(connection, [job], [wakes.WORK] if released else [])
    return await view(connection, job_id)


async def cancel(connection: AsyncConnection, job_id: int, by: Actor, reason: str) -> JobView:
    """End a job gracefully. Repeating it returns the job as it is, so callers may retry.

    Raises:
        JobNotFound
        IllegalTransition: the job has ended or is processing its output.
    """
    job = await store.lock_visible(connection, job_id)
    lifecycle.cancel(job, await store.now(connection), by, reason)
    await store.save(connection, [job], [wakes.STOP])
    return await view(connection, job_id)


async def abort(connection: AsyncConnection, job_id: int, by: Actor, reason: str, *, force: bool = False) -> JobView:
    """End a job by force. Repeating it returns the job as it is, so callers may retry. `force` lets go of one whose
    agent is gone.

    Raises:
        JobNotFound
        IllegalTransition: the job has ended.
        ForceRefused: with `force`; its agent may still tell how it ends.
    """
    job = await store.lock_visible(connection, job_id)
    end = lifecycle.force if force else lifecycle.abort
    end(job, await store.now(connection), by, reason)
    await store.save(connection, [job], [wakes.STOP])
    return await view(connection, job_id)


async def delete(connection: AsyncConnection, job_id: int, by: Actor, reason: str = "") -> None:
    """Hide a job for good; the sweeper purges it when its stop is settled, and `removals` remembers it.

    Raises:
        JobNotFound: also the second time.
        IllegalTransition: an agent has it.
    """
    job = await store.lock_visible(connection, job_id)
    lifecycle.delete(job, await store.now(connection), by, reason)
    await store.save(connection, [job], [wakes.STOP])
    await removals.note(connection, [job_id], by, reason)


async def history_page(connection: AsyncConnection, job_id: int, after: int, limit: int) -> list[HistoryEntry]:
    """The history of a job behind a sequence, oldest first.

    Raises:
        JobNotFound
    """
    await get(connection, job_id)
    return await history_after(connection, job_id, after, limit)


async def history_after(connection: AsyncConnection, job_id: int, after: int, limit: int) -> list[HistoryEntry]:
    """As `history_page`, of a job that is known to be there."""
    query = select(history).where(history.c.job_id == job_id, history.c.sequence > after)
    rows = await connection.execute(query.order_by(history.c.sequence).limit(limit))
    return [
        HistoryEntry(
            r.sequence, r.at, Status(r.from_status) if r.from_status else None, Status(r.to_status), r.event, r.actor,
            r.origin, r.message, r.attempt,
        )
        for r in rows
    ]  # fmt: skip
