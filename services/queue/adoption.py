"""Attempts that were claimed after the backup from which the database was restored, and that agents have in hand.

What a restore has put on hold may run at a site at this very moment. Its agent, which journals before it spawns, is the
only one that knows: where it says in its hello that it has a later attempt of such a job in hand, that is the current
one again, and its whole log follows from its spool. Nothing is started by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle
from services.queue.frames import DIGEST_START
from services.queue.model import Actor, Attempt, Job
from services.queue.states import Event, Status

MOST = 10_000
"""Attempts that a job has had since the backup, at the most. Nothing else bounds what an agent says."""


async def adopt(
    connection: AsyncConnection, job: Job, attempt: Attempt, *, group: str, hostname: str, now: datetime, by: Actor
) -> bool:
    """Make `attempt` the current one of a job, which is locked, if a restore holds it, nobody has decided yet, and its
    agent, of this group, is one that may have had it.

    The caller saves the job. Attempts between the last one that is known and this one were never accepted, since one
    that was is not followed by another.
    """
    if job.status is not Status.DEFERRED or job.hidden_at is not None:
        return False
    facts = {"job_id": job.job_id, "sequence": job.history_sequence, "agent": attempt.agent, "group": group}
    newest = (await connection.execute(_NEWEST, facts)).one()
    later = newest.number < attempt.number <= newest.number + MOST
    if not (newest.its_site and newest.event == Event.RESTORE and later):
        return False
    values = {
        "job_id": job.job_id, "number": attempt.number, "agent": attempt.agent, "epoch": attempt.epoch,
        "journal_id": attempt.journal_id, "digest": attempt.digest, "now": now,
    }  # fmt: skip
    await connection.execute(_UNLEAVE, values)
    await leave_out(connection, {job.job_id: (newest.number, attempt.number - 1)}, now)
    await connection.execute(_INSERT, values)
    await connection.execute(_ADOPT, {"job_id": job.job_id, "number": attempt.number, "hostname": hostname})
    lifecycle.adopted(job, attempt, now, by)
    return True


async def leave_out(connection: AsyncConnection, numbers: Mapping[int, tuple[int, int]], now: datetime) -> None:
    """Give these attempts to nobody: of each job, those behind the first number, up to the second. Some may have been
    given since the backup, and who has had one does not take it again."""
    values = {
        "job_ids": list(numbers), "after": [after for after, _ in numbers.values()],
        "last": [last for _, last in numbers.values()], "digest": DIGEST_START, "now": now,
    }  # fmt: skip
    await connection.execute(_LEAVE_OUT, values)


# Those that were left out have no agent.
_NEWEST = text("""
    SELECT (SELECT event FROM queue.history WHERE job_id = :job_id AND sequence = :sequence) AS event,
        (SELECT coalesce(max(number), 0) FROM queue.attempts WHERE job_id = :job_id AND agent <> '') AS number,
        site_name = CASE site_kind WHEN 'agent' THEN :agent ELSE :group END AS its_site
    FROM queue.jobs WHERE job_id = :job_id
""")
_UNLEAVE = text("DELETE FROM queue.attempts WHERE job_id = :job_id AND number >= :number AND agent = ''")
_LEAVE_OUT = text("""
    WITH left_out AS (
        SELECT job_id, number, last
        FROM unnest(CAST(:job_ids AS bigint[]), CAST(:after AS int[]), CAST(:last AS int[])) AS l(job_id, after, last),
            generate_series(after + 1, last) AS number
    ), inserted AS (
        INSERT INTO queue.attempts
            (job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at, active_at, digest, sealed_at, verdict)
        SELECT job_id, number, '', 0, '', :now, :now, :now, :digest, :now, 'COMPLETE' FROM left_out
        ON CONFLICT DO NOTHING)
    UPDATE queue.jobs j SET attempt = l.last
    FROM (SELECT DISTINCT job_id, last FROM left_out) AS l WHERE j.job_id = l.job_id
""")
_INSERT = text("""
    INSERT INTO queue.attempts
        (job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at, active_at, accepted_at, digest)
    VALUES (:job_id, :number, :agent, :epoch, :journal_id, :now, :now, :now, :now, :digest)
""")
_ADOPT = text("UPDATE queue.jobs SET attempt = :number, target = :hostname WHERE job_id = :job_id")
