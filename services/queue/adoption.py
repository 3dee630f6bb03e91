"""Attempts that were claimed after the backup from which the database was restored, and that agents have in hand.

What a restore has put on hold may run at a site at this very moment. Its agent, which journals before it spawns, is the
only one that knows: where it says in its hello that it has a later attempt of such a job in hand, that is the current
one again, and its whole log follows from its spool. Nothing is started by it.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle
from services.queue.model import Actor, Attempt, Job
from services.queue.states import Event, Status


async def adopt(
    connection: AsyncConnection, job: Job, attempt: Attempt, *, hostname: str, now: datetime, by: Actor
) -> bool:
    """Make `attempt` the current one of a job, which is locked, if a restore holds it and nobody has decided yet.

    The caller saves the job. Attempts between the last one that is known and this one were never accepted, since one
    that was is not followed by another.
    """
    if job.status is not Status.DEFERRED or job.hidden_at is not None or attempt.number <= job.attempt_number:
        return False
    newest = await connection.execute(_NEWEST_EVENT, {"job_id": job.job_id, "sequence": job.history_sequence})
    if newest.scalar_one_or_none() != Event.RESTORE:
        return False
    values = {
        "job_id": job.job_id, "first": job.attempt_number + 1, "number": attempt.number, "agent": attempt.agent,
        "epoch": attempt.epoch, "journal_id": attempt.journal_id, "digest": attempt.digest, "now": now,
        "hostname": hostname,
    }  # fmt: skip
    await connection.execute(_BETWEEN, values)
    await connection.execute(_ADOPT, values)
    lifecycle.adopted(job, attempt, now, by)
    return True


_NEWEST_EVENT = text("SELECT event FROM queue.history WHERE job_id = :job_id AND sequence = :sequence")
_BETWEEN = text("""
    INSERT INTO queue.attempts
        (job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at, active_at, digest, sealed_at, verdict)
    SELECT :job_id, number, '', 0, '', :now, :now, :now, :digest, :now, 'COMPLETE'
    FROM generate_series(CAST(:first AS int), CAST(:number AS int) - 1) AS number
""")
_ADOPT = text("""
    WITH adopted AS (
        INSERT INTO queue.attempts
            (job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at, active_at, accepted_at, digest)
        VALUES (:job_id, :number, :agent, :epoch, :journal_id, :now, :now, :now, :now, :digest))
    UPDATE queue.jobs SET attempt = :number, target = :hostname WHERE job_id = :job_id
""")
