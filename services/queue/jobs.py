"""What people and programs do with the jobs that there are: look at them, and the verbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle, store, wakes
from services.queue.errors import JobNotFound
from services.queue.model import Actor, HistoryEntry
from services.queue.states import Status
from services.queue.tables import attempts, history, jobs


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it is shown: its row, and the row of its current attempt, if it has one."""

    job: Row[Any]
    attempt: Row[Any] | None


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


async def get(connection: AsyncConnection, job_id: int, *, contents: bool = False) -> JobView:
    """One job, whole, but without the contents of its files, unless they are asked for.

    Raises:
        JobNotFound
    """
    found = await view(connection, job_id, contents=contents)
    if found.job.hidden_at is not None:
        raise JobNotFound(job_id)
    return found


async def view(connection: AsyncConnection, job_id: int, *, contents: bool = False) -> JobView:
    """As `get`, of a job that may be deleted, but not yet purged.

    Raises:
        JobNotFound
    """
    columns = jobs.columns if contents else _SHOWN
    job = (await connection.execute(select(*columns).where(jobs.c.job_id == job_id))).first()
    if job is None:
        raise JobNotFound(job_id)
    query = select(attempts).where(attempts.c.job_id == job_id, attempts.c.number == job.attempt)
    return JobView(job, (await connection.execute(query)).first())


HISTORY_ROWS = 10_000
"""More rows of a history than this are not read at once."""


async def activate(connection: AsyncConnection, job_id: int, by: Actor) -> JobView:
    """Release a deferred job now. Repeating it returns the job unchanged, so callers may retry.

    Raises:
        JobNotFound, IllegalTransition
    """
    job = await store.lock_visible(connection, job_id)
    released = lifecycle.activate(job, await store.now(connection), by)
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


async def abort(connection: AsyncConnection, job_id: int, by: Actor, reason: str) -> JobView:
    """End a job by force. Repeating it returns the job as it is, so callers may retry.

    Raises:
        JobNotFound
        IllegalTransition: the job has ended.
    """
    job = await store.lock_visible(connection, job_id)
    lifecycle.abort(job, await store.now(connection), by, reason)
    await store.save(connection, [job], [wakes.STOP])
    return await view(connection, job_id)


async def delete(connection: AsyncConnection, job_id: int, by: Actor) -> None:
    """Hide a job for good; the sweeper purges it when its stop is settled.

    Raises:
        JobNotFound: also the second time.
        IllegalTransition: an agent has it.
    """
    job = await store.lock_visible(connection, job_id)
    lifecycle.delete(job, await store.now(connection), by)
    await store.save(connection, [job], [wakes.STOP])


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
