"""The statements on the registry; each takes a whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from services.sis_agent.hub.tables import agents

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
)


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
