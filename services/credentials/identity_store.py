"""The statements on agents, their pairings and certificates.

Whoever changes an agent's identity holds its lock, `lock_agent`, and judges time by the clock that it returns: a
transaction's own `now()` may lie before what another one did while this one waited.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, Select, and_, delete, exists, func, or_, select, text, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.tables import agents, certificates, pairings

CHANNEL: Final = "sis_revocations"
"""Notified, without a word, with each transaction that revokes a certificate."""

# A verifier's clock may be behind: it has to know of a revocation for longer than the certificate lasts.
_REVOCATION_KEPT: Final = timedelta(hours=1)
_CERTIFICATE_KEPT: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Pairing:
    """A pairing code that has not expired, without what proves it."""

    pairing_id: str
    agent: str
    group: str
    creator: str
    # Of the keys that have used it.
    keys_sha256: bytes | None


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent's keys, and whether it may use them."""

    name: str
    group: str
    public_key: bytes
    sealing_key: bytes
    generation: int
    pairing_id: str
    revoked: bool
    # The database was restored from a backup: it may be generations ahead of what is known of it.
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """An agent as people see it. `serial` and `not_after` are those of its newest certificate."""

    name: str
    group: str
    enrolled_at: datetime
    pairer: str
    revoked_at: datetime | None
    revoker: str
    revoke_reason: str
    serial: str
    not_after: datetime | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """A certificate that is not to be accepted."""

    serial: str
    agent: str
    not_after: datetime


_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('agent'), hashtext(:name))")


async def lock_agent(connection: AsyncConnection, name: str) -> datetime:
    """Keep everybody else from changing this agent's identity until the transaction ends. The time."""
    await connection.execute(_LOCK, {"name": name})
    now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return now


# --- pairings ---


async def insert_pairing(
    connection: AsyncConnection, pairing_id: str, agent: str, group: str, creator: str, life: timedelta
) -> datetime:
    """When it will expire."""
    statement = (
        insert(pairings)
        .values(
            pairing_id=pairing_id,
            agent=agent,
            agent_group=group,
            creator=creator,
            created_at=func.now(),
            expires_at=func.now() + life,
        )
        .returning(pairings.c.expires_at)
    )
    expires_at: datetime = (await connection.execute(statement)).scalar_one()
    return expires_at


async def pairing(connection: AsyncConnection, pairing_id: str) -> Pairing | None:
    """A pairing that has not expired."""
    query = select(pairings).where(pairings.c.pairing_id == pairing_id, pairings.c.expires_at > func.clock_timestamp())
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Pairing(pairing_id, row.agent, row.agent_group, row.creator, row.keys_sha256)


async def use_pairing(
    connection: AsyncConnection, pairing_id: str, keys_sha256: bytes, origin: str, now: datetime
) -> None:
    statement = update(pairings).where(pairings.c.pairing_id == pairing_id)
    await connection.execute(statement.values(used_at=now, used_origin=origin, keys_sha256=keys_sha256))


async def withdraw_pairings(connection: AsyncConnection, agent: str, now: datetime, *, but: str = "") -> None:
    """Have every pairing of the agent expire now, `but` one."""
    others = and_(pairings.c.agent == agent, pairings.c.pairing_id != but, pairings.c.expires_at > now)
    await connection.execute(update(pairings).where(others).values(expires_at=now))


async def expired_pairings(connection: AsyncConnection, limit: int) -> Sequence[str]:
    query = select(pairings.c.pairing_id).where(pairings.c.expires_at <= func.now())
    return (await connection.execute(query.order_by(pairings.c.expires_at).limit(limit))).scalars().all()


async def delete_pairing(connection: AsyncConnection, pairing_id: str) -> None:
    await connection.execute(delete(pairings).where(pairings.c.pairing_id == pairing_id))


# --- agents ---


async def agent(connection: AsyncConnection, name: str) -> Agent | None:
    row = (await connection.execute(select(agents).where(agents.c.name == name))).one_or_none()
    if row is None:
        return None
    return Agent(
        name,
        row.agent_group,
        row.public_key,
        row.sealing_key,
        row.generation,
        row.pairing_id,
        row.revoked_at is not None,
        row.ahead,
    )


async def put_agent(connection: AsyncConnection, found: Agent, pairer: str, now: datetime) -> None:
    """Make it the agent of its name; whatever was said of a former one goes."""
    values = {
        "agent_group": found.group,
        "public_key": found.public_key,
        "sealing_key": found.sealing_key,
        "generation": found.generation,
        "pairing_id": found.pairing_id,
        "ahead": False,
        "pairer": pairer,
        "enrolled_at": now,
        "revoked_at": None,
        "revoker": "",
        "revoke_reason": "",
    }
    statement = insert(agents).values(name=found.name, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


async def put_keys(connection: AsyncConnection, name: str, sealing_key: bytes, generation: int) -> None:
    statement = update(agents).where(agents.c.name == name)
    await connection.execute(statement.values(sealing_key=sealing_key, generation=generation, ahead=False))


async def expect_later_keys(connection: AsyncConnection) -> int:
    """Let the next renewal of every agent be of any later generation; of how many."""
    statement = update(agents).where(agents.c.revoked_at.is_(None))
    return (await connection.execute(statement.values(ahead=True))).rowcount


async def revoke_agent(connection: AsyncConnection, name: str, revoker: str, reason: str, now: datetime) -> None:
    statement = update(agents).where(agents.c.name == name)
    await connection.execute(statement.values(revoked_at=now, revoker=revoker, revoke_reason=reason))


def _identities() -> Select[Any]:
    newest = (
        select(certificates.c.serial, certificates.c.not_after)
        .where(certificates.c.agent == agents.c.name)
        .order_by(certificates.c.issued_at.desc())
        .limit(1)
        .lateral("newest")
    )
    return select(agents, newest.c.serial, newest.c.not_after).select_from(agents.outerjoin(newest, true()))


async def identity(connection: AsyncConnection, name: str) -> AgentIdentity | None:
    row = (await connection.execute(_identities().where(agents.c.name == name))).one_or_none()
    return None if row is None else _identity(row)


async def identities(connection: AsyncConnection, after: str, limit: int) -> Sequence[AgentIdentity]:
    """By name, those behind `after`."""
    query = _identities().where(agents.c.name > after).order_by(agents.c.name).limit(limit)
    return [_identity(row) for row in await connection.execute(query)]


def _identity(row: Row[Any]) -> AgentIdentity:
    return AgentIdentity(
        name=row.name,
        group=row.agent_group,
        enrolled_at=row.enrolled_at,
        pairer=row.pairer,
        revoked_at=row.revoked_at,
        revoker=row.revoker,
        revoke_reason=row.revoke_reason,
        serial=row.serial or "",
        not_after=row.not_after,
    )


# --- certificates ---


async def record_certificate(
    connection: AsyncConnection, serial: str, agent: str, not_after: datetime, now: datetime
) -> None:
    await connection.execute(
        insert(certificates).values(serial=serial, agent=agent, issued_at=now, not_after=not_after)
    )


async def revoke_certificates(connection: AsyncConnection, agent: str, now: datetime) -> None:
    """Revoke all that were recorded for the agent so far; who watches is told at the commit."""
    valid = and_(
        certificates.c.agent == agent,
        certificates.c.revoked_at.is_(None),
        certificates.c.not_after > now - _REVOCATION_KEPT,
    )
    found = await connection.execute(update(certificates).where(valid).values(revoked_at=now))
    if found.rowcount:
        await connection.execute(select(func.pg_notify(CHANNEL, "")))


async def revocations(connection: AsyncConnection) -> Sequence[Revocation]:
    """Every one that still matters."""
    query = select(certificates.c.serial, certificates.c.agent, certificates.c.not_after).where(
        certificates.c.revoked_at.is_not(None), certificates.c.not_after > func.now() - _REVOCATION_KEPT
    )
    return [Revocation(row.serial, row.agent, row.not_after) for row in await connection.execute(query)]


async def untold_revocations(connection: AsyncConnection, limit: int) -> Sequence[str]:
    """The serials of which Vault does not know yet."""
    query = select(certificates.c.serial).where(
        certificates.c.revoked_at.is_not(None),
        certificates.c.vault_revoked_at.is_(None),
        certificates.c.not_after > func.now(),
    )
    return (await connection.execute(query.order_by(certificates.c.revoked_at).limit(limit))).scalars().all()


async def told_revocations(connection: AsyncConnection, serials: Collection[str]) -> None:
    statement = update(certificates).where(certificates.c.serial == func.any(list(serials)))
    await connection.execute(statement.values(vault_revoked_at=func.now()))


async def purge_certificates(connection: AsyncConnection) -> int:
    """Forget what expired a month ago, but the newest certificate of each agent."""
    newer = certificates.alias("newer")
    has_newer = exists().where(
        newer.c.agent == certificates.c.agent,
        or_(
            newer.c.issued_at > certificates.c.issued_at,
            and_(newer.c.issued_at == certificates.c.issued_at, newer.c.serial > certificates.c.serial),
        ),
    )
    old = certificates.c.not_after < func.now() - _CERTIFICATE_KEPT
    return (await connection.execute(delete(certificates).where(old, has_newer))).rowcount
