"""The statements of the reconciler. Each takes a small batch, and leaves what another replica has in its hands."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials import store
from services.credentials.store import Credential
from services.credentials.tables import State, credentials

BATCH: Final = 100

# In the words of the indexes.
_LEAVING: Final = text("(state = 'DELETING' OR state = 'ABANDONED' AND deleted_at IS NULL)")
_INTENDED: Final = credentials.c.intent.is_not(None)


async def interrupted(connection: AsyncConnection, after: timedelta, attended: timedelta) -> list[Credential]:
    """Credentials with an intent that has been unsettled for so long; this caller's for `attended`."""
    return await _attend(connection, attended, _INTENDED, credentials.c.intent_at < func.now() - after)


async def leaving(connection: AsyncConnection, attended: timedelta) -> list[Credential]:
    """Credentials whose value has to be removed; this caller's for `attended`."""
    return await _attend(connection, attended, _LEAVING)


async def missing(connection: AsyncConnection, attended: timedelta) -> list[Credential]:
    """Credentials whose value was not in Vault `attended` ago; this caller's for as long."""
    return await _attend(connection, attended, credentials.c.state == State.VALUE_MISSING)


async def _attend(connection: AsyncConnection, attended: timedelta, *which: Any) -> list[Credential]:
    free = or_(credentials.c.attended_at.is_(None), credentials.c.attended_at < func.now() - attended)
    due = (
        select(credentials.c.credential_id)
        .where(*which, free)
        .order_by(credentials.c.attended_at.nulls_first())
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    query = (
        update(credentials)
        .where(credentials.c.credential_id == due.c.credential_id)
        .values(attended_at=func.now())
        .returning(credentials)
    )
    return [Credential.from_row(row) for row in await connection.execute(query)]


async def expire(connection: AsyncConnection) -> int:
    """Have credentials deleted whose job did not come in time, or is over."""
    over = text(
        "EXISTS (SELECT FROM credentials.attempts a WHERE a.job_id = credentials.credentials.job_id AND a.job_over)"
    )
    late = and_(credentials.c.expires_at.is_not(None), credentials.c.expires_at <= func.now())
    return await _send_off(connection, late) + await _send_off(
        connection, and_(credentials.c.for_one_job, credentials.c.job_id.is_not(None), over)
    )


async def _send_off(connection: AsyncConnection, which: ColumnElement[bool]) -> int:
    due = (
        select(credentials.c.credential_id)
        .where(which, credentials.c.state.in_([State.PENDING, *store.HELD]))
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    query = (
        update(credentials)
        .where(credentials.c.credential_id == due.c.credential_id)
        .values(state=State.DELETING, intent=None, intent_at=None, intent_change=None, attended_at=None)
    )
    return (await connection.execute(query)).rowcount


async def states(connection: AsyncConnection, after: UUID) -> dict[UUID, State]:
    """The states of the next credentials, by id, after one; a thousand at most."""
    query = (
        select(credentials.c.credential_id, credentials.c.state)
        .where(credentials.c.credential_id > after)
        .order_by(credentials.c.credential_id)
        .limit(1_000)
    )
    return {row.credential_id: State(row.state) for row in await connection.execute(query)}


async def purge(connection: AsyncConnection, tombstones: timedelta, usage: timedelta) -> int:
    """Remove what is older than it is kept for; returns the most rows that one of the statements has removed."""
    removed = [
        (await connection.execute(statement, {"tombstones": tombstones, "usage": usage, "batch": BATCH})).rowcount
        for statement in _PURGES
    ]
    return max(removed)


_PURGES: Final = [
    text(f"""
        DELETE FROM credentials.{table} WHERE ctid IN (
            SELECT ctid FROM credentials.{table} t WHERE {condition} LIMIT :batch FOR UPDATE SKIP LOCKED)
    """)  # noqa: S608  (put together from the words below)
    for table, condition in (
        ("attempts", "ended_at < now() - CAST(:tombstones AS interval)"),
        ("request_ids", "created_at < now() - CAST(:tombstones AS interval)"),
        ("leases", "ended_at < now() - CAST(:usage AS interval)"),
        (
            "credentials",
            "deleted_at < now() - CASE state WHEN 'ABANDONED' THEN CAST(:tombstones AS interval)"
            " ELSE CAST(:usage AS interval) END AND NOT EXISTS ("
            " SELECT FROM credentials.leases l WHERE l.credential_id = t.credential_id)",
        ),
    )
]
