"""The outbox of leases: attempts whose leases are to end, each with one hub at a time until it has said so.

`store.save` and the purge fill it, in the transaction that ends the attempt. Nothing leaves it unacknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import wakes
from services.queue.model import LeaseEnd

BATCH = 500
AGAIN_AFTER = timedelta(seconds=30)
"""This long an end is left to the hub that was given it, while its stream stands."""


class InHand:
    """What one hub is given over one stream."""

    def __init__(self) -> None:
        self._moments: deque[datetime] = deque()

    async def hand_out(self, connection: AsyncConnection) -> list[LeaseEnd]:
        """The oldest ends that no hub has in hand; with the commit they are this one's, for AGAIN_AFTER."""
        rows = (await connection.execute(_HAND_OUT, {"again": AGAIN_AFTER, "batch": BATCH})).all()
        if rows:
            now: datetime = rows[0].handed_at
            while self._moments and self._moments[0] <= now - AGAIN_AFTER:
                self._moments.popleft()
            self._moments.append(now)
        return [LeaseEnd(row.job_id, row.attempt, row.job_over) for row in rows]

    async def take_back(self, connection: AsyncConnection) -> None:
        """The stream has ended: what was not acknowledged is anybody's again, at once."""
        if not self._moments:
            return
        taken = await connection.execute(_TAKE_BACK, {"moments": list(self._moments)})
        if taken.rowcount:
            await wakes.notify(connection, [wakes.LEASES])


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
    SELECT job_id, attempt, job_over, handed_at FROM handed ORDER BY created_at, job_id, attempt
""")

# By the moment: no two streams are given something in the same microsecond, and if they were, one of them would only
# get once more what it has.
_TAKE_BACK = text("""
    WITH left_behind AS (
        SELECT job_id, attempt FROM queue.lease_ends
        WHERE handed_at = ANY(CAST(:moments AS timestamptz[])) ORDER BY job_id, attempt FOR UPDATE
    )
    UPDATE queue.lease_ends e SET handed_at = NULL
    FROM left_behind l WHERE e.job_id = l.job_id AND e.attempt = l.attempt
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
