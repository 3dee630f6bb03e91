"""The outbox of leases: attempts whose leases are to end, each with one hub at a time until it has said so.

`store.save` and the purge fill it, in the transaction that ends the attempt. Nothing leaves it unacknowledged.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import wakes
from services.queue.model import LeaseEnd

BATCH = 500
AGAIN_AFTER = timedelta(seconds=30)
"""This long an end is left to the hub that was given it."""


async def hand_out(connection: AsyncConnection) -> list[LeaseEnd]:
    """The oldest ends that no hub has in hand; with the commit they are the caller's, for AGAIN_AFTER."""
    rows = await connection.execute(_HAND_OUT, {"again": AGAIN_AFTER, "batch": BATCH})
    return [LeaseEnd(row.job_id, row.attempt, row.job_over) for row in rows]


_HAND_OUT = text("""
    WITH due AS (
        SELECT job_id, attempt FROM queue.lease_ends
        WHERE handed_at IS NULL OR handed_at <= (SELECT queue.now()) - CAST(:again AS interval)
        ORDER BY created_at, job_id, attempt LIMIT :batch FOR UPDATE SKIP LOCKED
    ), handed AS (
        UPDATE queue.lease_ends e SET handed_at = (SELECT queue.now())
        FROM due WHERE e.job_id = due.job_id AND e.attempt = due.attempt
        RETURNING e.*
    )
    SELECT job_id, attempt, job_over FROM handed ORDER BY created_at, job_id, attempt
""")


async def acknowledge(connection: AsyncConnection, ends: Collection[LeaseEnd]) -> None:
    """These are delivered: forget them, and wake the hubs for more. Repeating it changes nothing.

    An end that has meanwhile become the end of its whole job stays, as that was not delivered.
    """
    await connection.execute(
        _ACKNOWLEDGE,
        {
            "job_ids": [end.job_id for end in ends],
            "attempts": [end.attempt for end in ends],
            "overs": [end.job_over for end in ends],
        },
    )
    more = text("SELECT EXISTS (SELECT FROM queue.lease_ends WHERE handed_at IS NULL)")
    if (await connection.execute(more)).scalar_one():
        await wakes.notify(connection, [wakes.LEASES])


_ACKNOWLEDGE = text("""
    WITH delivered AS (
        SELECT e.job_id, e.attempt
        FROM queue.lease_ends e
        JOIN unnest(CAST(:job_ids AS bigint[]), CAST(:attempts AS int[]), CAST(:overs AS boolean[]))
            AS d(job_id, attempt, job_over) ON e.job_id = d.job_id AND e.attempt = d.attempt
        WHERE d.job_over OR NOT e.job_over
        ORDER BY e.job_id, e.attempt FOR UPDATE OF e
    )
    DELETE FROM queue.lease_ends e USING delivered d WHERE e.job_id = d.job_id AND e.attempt = d.attempt
""")
