"""Puts the KeySafe's database right that was restored from a backup, before a credential service is started on it.

What PostgreSQL and Vault do not agree about is for the `reconciler`, which looks at all of it when it starts.
"""

from __future__ import annotations

from services.credentials import identity_store
from services.runtime.database import Database


async def recover(database: Database) -> str:
    """Let every agent go on with the keys that it has by now; in words, what was done.

    Agents that renewed their keys since the backup are generations ahead of what is known here, which is otherwise the
    mark of a copy. May be repeated.

    Raises:
        Unavailable, DeadlineExceeded: PostgreSQL does not answer; repeat it.
    """
    async with database.begin() as connection:
        count = await identity_store.expect_later_keys(connection)
    return f"agents that may renew with whatever keys they have by now: {count}"
