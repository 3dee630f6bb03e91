"""The statements on the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from services.sis_agent.hub.tables import agents, chains
from services.sis_agent.hub.tables import revocations as revoked

ONLINE_SECONDS = 30
"""An agent whose hub has not said that it was heard for so long counts as offline."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A session began."""

    name: str
    agent_group: str
    epoch: int
    hub: str
    version: str
    platform: str
    hostname: str
    slots: int
    draining: bool
    labels: dict[str, str]
    attempts: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Beat:
    """A session was heard, with these attempts (job id, number) in its hand."""

    name: str
    epoch: int
    draining: bool
    attempts: list[tuple[int, int]]


# Rows are locked in the order of their names, so that the batches of two hubs cannot deadlock.
_OPEN = text("""
    INSERT INTO agents.agents AS a
        (name, agent_group, epoch, hub, online, draining, version, platform, hostname, slots, labels, attempts,
         first_seen_at, connected_at, last_seen_at)
    SELECT name, agent_group, epoch, hub, true, draining, version, platform, hostname, slots, labels, attempts,
        now(), now(), now()
    FROM jsonb_to_recordset(:rows) AS r(
        name text, agent_group text, epoch bigint, hub text, draining boolean, version text, platform text,
        hostname text, slots int, labels jsonb, attempts jsonb)
    ORDER BY name
    ON CONFLICT (name) DO UPDATE SET
        agent_group = excluded.agent_group, epoch = excluded.epoch, hub = excluded.hub, online = true,
        draining = excluded.draining, version = excluded.version, platform = excluded.platform,
        hostname = excluded.hostname, slots = excluded.slots, labels = excluded.labels,
        attempts = excluded.attempts, connected_at = excluded.connected_at, last_seen_at = excluded.last_seen_at
    WHERE a.epoch < excluded.epoch
""").bindparams(bindparam("rows", type_=JSONB))

_BEAT = text("""
    WITH heard AS (
        SELECT a.name, r.draining, r.attempts
        FROM agents.agents a
        JOIN jsonb_to_recordset(:rows) AS r(name text, epoch bigint, draining boolean, attempts jsonb)
            ON a.name = r.name AND a.epoch = r.epoch
        ORDER BY a.name
        FOR NO KEY UPDATE OF a)
    UPDATE agents.agents a
    SET last_seen_at = now(), draining = heard.draining, attempts = heard.attempts
    FROM heard WHERE a.name = heard.name
""").bindparams(bindparam("rows", type_=JSONB))

_CLOSE = text("""
    WITH ended AS (
        SELECT a.name
        FROM agents.agents a
        JOIN jsonb_to_recordset(:rows) AS r(name text, epoch bigint) ON a.name = r.name AND a.epoch <= r.epoch
        ORDER BY a.name
        FOR NO KEY UPDATE OF a)
    UPDATE agents.agents a SET online = false FROM ended WHERE a.name = ended.name
""").bindparams(bindparam("rows", type_=JSONB))


async def open_sessions(connection: AsyncConnection, opened: Iterable[Opened]) -> None:
    """Note new sessions, except where a newer one is noted."""
    await connection.execute(_OPEN, {"rows": [asdict(each) for each in opened]})


async def beat(connection: AsyncConnection, beats: Iterable[Beat]) -> None:
    """Note that sessions were heard, if they are the newest of their agents."""
    await connection.execute(_BEAT, {"rows": [asdict(each) for each in beats]})


async def close_sessions(connection: AsyncConnection, epochs: Mapping[str, int]) -> None:
    """Note that an agent's sessions up to an epoch have ended."""
    rows = [{"name": name, "epoch": epoch} for name, epoch in epochs.items()]
    await connection.execute(_CLOSE, {"rows": rows})


_lately = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, ONLINE_SECONDS)
_AGENTS = select(
    *(column for column in agents.c if column.name not in ("epoch", "online")),
    (agents.c.online & (agents.c.last_seen_at > _lately)).label("online"),
    chains.c.quarantined_at,
).select_from(agents.outerjoin(chains, (chains.c.agent == agents.c.name) & chains.c.ended_at.is_(None)))


async def page(
    connection: AsyncConnection, agent_group: str, after: str, limit: int
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Agents by name, after a name; of one group, or of all if it is empty."""
    query = _AGENTS.where(agents.c.name > after).order_by(agents.c.name).limit(limit)
    if agent_group:
        query = query.where(agents.c.agent_group == agent_group)
    return (await connection.execute(query)).all()


async def find(connection: AsyncConnection, name: str) -> Row[*tuple[Any, ...]] | None:
    """One agent."""
    return (await connection.execute(_AGENTS.where(agents.c.name == name))).one_or_none()


_LOCK_CHAINS = text("SELECT pg_advisory_xact_lock(hashtextextended('agents.chains ' || :agent, 0))")


async def lock_chains(connection: AsyncConnection, agent: str) -> None:
    """Until the end of the transaction nobody else changes the chains of this agent, the first one included."""
    await connection.execute(_LOCK_CHAINS, {"agent": agent})


def _chain(agent: str, key_sha256: bytes) -> ColumnElement[bool]:
    return (chains.c.agent == agent) & (chains.c.key_sha256 == key_sha256)


async def find_chain(connection: AsyncConnection, agent: str, key_sha256: bytes) -> Row[*tuple[Any, ...]] | None:
    """The chain of one key."""
    return (await connection.execute(select(chains).where(_chain(agent, key_sha256)))).one_or_none()


async def newest_key(connection: AsyncConnection, agent: str) -> datetime | None:
    """When the key was certified whose chain is in force, if there is one."""
    query = select(chains.c.certified_at).where(chains.c.agent == agent, chains.c.ended_at.is_(None))
    return (await connection.execute(query)).scalar_one_or_none()


async def begin_chain(
    connection: AsyncConnection,
    agent: str,
    key_sha256: bytes,
    certified_at: datetime,
    shown_sha256: bytes,
    offered_sha256: Sequence[bytes],
) -> None:
    """The chain of a new key, which ends the one before it."""
    await connection.execute(
        update(chains).where(chains.c.agent == agent, chains.c.ended_at.is_(None)).values(ended_at=func.now())
    )
    await connection.execute(
        insert(chains).values(
            agent=agent,
            key_sha256=key_sha256,
            certified_at=certified_at,
            shown_sha256=shown_sha256,
            offered_sha256=list(offered_sha256),
            began_at=func.now(),
        )
    )


async def continue_chain(
    connection: AsyncConnection, agent: str, key_sha256: bytes, shown_sha256: bytes, offered_sha256: Sequence[bytes]
) -> None:
    """What was shown last, and what was offered since."""
    await connection.execute(
        update(chains)
        .where(_chain(agent, key_sha256))
        .values(shown_sha256=shown_sha256, offered_sha256=list(offered_sha256))
    )


async def quarantine_chain(
    connection: AsyncConnection, agent: str, key_sha256: bytes, refused_sha256: bytes | None
) -> None:
    """Note that a key has a second holder, by the secret that it has shown, if by that. The first time counts."""
    await connection.execute(
        update(chains)
        .where(_chain(agent, key_sha256), chains.c.quarantined_at.is_(None))
        .values(quarantined_at=func.now(), refused_sha256=refused_sha256)
    )


async def forget_chains(connection: AsyncConnection) -> int:
    """Forget what was shown and offered in the chains in force, and let nobody be online; how many chains there are."""
    await connection.execute(update(agents).where(agents.c.online).values(online=False))
    in_force = chains.c.ended_at.is_(None) & chains.c.quarantined_at.is_(None)
    forgotten = update(chains).where(in_force).values(shown_sha256=b"", offered_sha256=[])
    return (await connection.execute(forgotten)).rowcount


async def quarantined(connection: AsyncConnection, names: Iterable[str]) -> set[tuple[str, bytes]]:
    """Agents, and their keys, that are in quarantine."""
    query = select(chains.c.agent, chains.c.key_sha256).where(
        chains.c.quarantined_at.is_not(None), chains.c.agent == func.any(list(names))
    )
    return {(agent, key_sha256) for agent, key_sha256 in await connection.execute(query)}


@dataclass(frozen=True, slots=True)
class Revocation:
    """A certificate that is not to be accepted."""

    serial: str
    agent: str
    not_after: datetime


async def revocations(connection: AsyncConnection, after: datetime) -> list[Revocation]:
    """Those of certificates that are valid after a time."""
    rows = await connection.execute(select(revoked).where(revoked.c.not_after > after))
    return [Revocation(row.serial, row.agent, row.not_after) for row in rows]


async def keep_revocations(connection: AsyncConnection, found: Iterable[Revocation], after: datetime) -> None:
    """Keep these, and forget those of certificates that are not valid after a time."""
    rows = sorted((asdict(each) for each in found), key=lambda row: str(row["serial"]))
    if rows:
        await connection.execute(postgresql.insert(revoked).on_conflict_do_nothing(), rows)
    await connection.execute(delete(revoked).where(revoked.c.not_after <= after))
