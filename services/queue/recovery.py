"""Puts a queue right whose database was restored from a backup, before anything is started on it.

A database that has gone back in time does not know what has run since, and agents do. So that nothing is started a
second time, what waited is held for people (`lifecycle.restored`); what agents still have comes home by their hellos
(`sessions`, `adoption`). Everything may be repeated.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, and_, exists, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import adoption, lifecycle, store
from services.queue.model import Actor
from services.queue.states import TERMINAL, Status
from services.queue.tables import attempts, jobs
from services.runtime.database import Database

BATCH = 500
ID_ROUND, ID_GAP = 10_000_000, 5_000_000
"""Job ids go on at the next multiple of the first that leaves out at least the second: nobody knows which ids were
given since the backup, and an agent may still hold one of them."""
EPOCHS = 1_000_000
"""Epochs go on so much later, so that no hub's stream from before the restore passes for a new one."""
ATTEMPTS = 8
"""What is held goes on so many attempts later. An agent that has had one since the backup refuses to take it again; of
more than so many, most of them refused, the job would fail for its start limit."""
BY = Actor("restore")


async def recover(database: Database) -> str:
    """Do it; in words, what was done. Nobody else may be connected.

    Raises:
        Unavailable, DeadlineExceeded: PostgreSQL does not answer; repeat it.
    """
    async with database.begin() as connection:
        next_id = await _skip_ids(connection)
        await connection.execute(_SUPERSEDE, {"epochs": EPOCHS})
    held = away = last = 0
    while True:
        async with database.begin() as connection:
            found = await store.lock_selected(connection, _batch(last))
            now = store.since_locked(await store.now(connection), found.values())
            for job in found.values():
                lifecycle.restored(job, now, BY)
                held += job.status is Status.DEFERRED
                away += job.live
            await store.save(connection, found.values())
            numbers = {job.job_id: (job.attempt_number, job.attempt_number + ATTEMPTS) for job in found.values()
                       if job.status is Status.DEFERRED}  # fmt: skip
            await adoption.leave_out(connection, numbers, now)
        if not found:
            break
        last = max(found)
    while await _note_again(database):
        pass
    return (
        f"jobs that are held for somebody to activate or cancel, since they may have run after the backup: {held}; "
        f"jobs that wait for their agents to come home: {away}; job ids go on at {next_id}"
    )


async def _skip_ids(connection: AsyncConnection) -> int:
    newest = (await connection.execute(_NEWEST_ID)).scalar_one()
    next_id = (newest + ID_GAP + ID_ROUND - 1) // ID_ROUND * ID_ROUND + 1
    await connection.execute(_GO_ON, {"next": next_id})
    return int(next_id)


_SEQUENCE = "pg_get_serial_sequence('queue.jobs', 'job_id')"
_NEWEST_ID = text(f"""
    SELECT greatest(pg_sequence_last_value({_SEQUENCE}), (SELECT max(job_id) FROM queue.jobs),
        (SELECT max(job_id) FROM queue.removals), 0)
""")  # noqa: S608
_GO_ON = text(f"SELECT setval({_SEQUENCE}, :next, false)")
_SUPERSEDE = text("UPDATE queue.agent_sessions SET epoch = epoch + :epochs, open = false")


def _batch(last: int) -> Select[Any]:
    own = and_(attempts.c.job_id == jobs.c.job_id, attempts.c.number == jobs.c.attempt)
    live = exists(select(attempts.c.job_id).where(own, attempts.c.sealed_at.is_(None)))
    open_ = or_(jobs.c.status.not_in(sorted(TERMINAL)), live)
    return store.jobs_to_lock().where(jobs.c.job_id > last, open_).limit(BATCH)


async def _note_again(database: Database) -> bool:
    """Have the trigger note this cluster's transaction with jobs that have one of another cluster, which lies in the
    future here: until it came, no list would show what happened to them. True if there may be more."""
    async with database.begin() as connection:
        return (await connection.execute(_NOTE_AGAIN, {"limit": 10 * BATCH})).rowcount > 0


_NOTE_AGAIN = text("""
    UPDATE queue.jobs SET revision = revision
    WHERE job_id IN (
        SELECT job_id FROM queue.jobs WHERE changed_xid >= pg_snapshot_xmax(pg_current_snapshot())
        ORDER BY changed_xid, job_id LIMIT :limit)
""")
