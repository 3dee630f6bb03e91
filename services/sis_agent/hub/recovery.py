"""Puts a registry right that was restored from a backup, before a hub is started on it."""

from __future__ import annotations

from services.runtime.database import Database
from services.sis_agent.hub import store


async def recover(database: Database) -> str:
    """Have every agent that is in good standing begin its chain of resume secrets anew; in words, what was done.

    The secrets that agents were offered since the backup are not known here, so that each would be taken for its own
    copy. The next one that an agent shows is taken as it is; a copy is noticed from then on as ever. Keys that were
    replaced or in quarantine at the time of the backup stay so. May be repeated.

    Raises:
        Unavailable, DeadlineExceeded: PostgreSQL does not answer; repeat it.
    """
    async with database.begin() as connection:
        count = await store.forget_chains(connection)
    return f"agents that are taken by what they show when they connect next: {count}"
