"""The registry of agents: who was ever connected, and how each is now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from services.sis_agent.hub import store
from services.sis_agent.hub.errors import AgentNotFound
from services.sis_agent.hub.store import Beat, Opened


@dataclass(slots=True)
class Changes:
    """What has happened to the sessions of a hub, the newest of each kind by agent; of the ended, the epoch."""

    opened: dict[str, Opened] = field(default_factory=dict)
    beats: dict[str, Beat] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)

    def followed_by(self, later: Changes) -> Changes:
        """These, then the later ones."""
        return Changes(
            opened=self.opened | later.opened,
            beats=self.beats | later.beats,
            closed=self.closed | later.closed,
        )


@dataclass(frozen=True, slots=True)
class Agent:
    """A program at a site that takes jobs. It is online while a hub says so and has heard from it lately."""

    name: str
    agent_group: str
    online: bool
    draining: bool
    version: str
    platform: str
    hostname: str
    slots: int
    attempts: list[tuple[int, int]]
    labels: dict[str, str]
    hub: str
    first_seen_at: datetime
    connected_at: datetime
    last_seen_at: datetime
    quarantined_at: datetime | None

    @classmethod
    def from_row(cls, row: Row[*tuple[Any, ...]]) -> Agent:
        attempts = [(job_id, number) for job_id, number in row.attempts]
        return cls(**{**row._mapping, "attempts": attempts})


@dataclass(frozen=True, slots=True)
class ListAgents:
    """A page of agents by name, after `after`; of one group, if it is given."""

    page_size: int
    after: str = ""
    agent_group: str = ""


async def record(connection: AsyncConnection, changes: Changes) -> None:
    """Write what has happened to sessions. Repeating it changes nothing but the times; what comes late from an older
    session of an agent has no effect on a newer one."""
    if changes.opened:
        await store.open_sessions(connection, changes.opened.values())
    if changes.beats:
        await store.beat(connection, changes.beats.values())
    if changes.closed:
        await store.close_sessions(connection, changes.closed)


async def quarantined(connection: AsyncConnection, agents: Iterable[str]) -> set[tuple[str, bytes]]:
    """Which of these agents' identities (SHA-256 of the key) are in quarantine."""
    return await store.quarantined(connection, agents)


async def list_agents(connection: AsyncConnection, query: ListAgents) -> tuple[list[Agent], bool]:
    """A page, and whether another one follows."""
    rows = await store.page(connection, query.agent_group, query.after, query.page_size + 1)
    return [Agent.from_row(row) for row in rows[: query.page_size]], len(rows) > query.page_size


async def get_agent(connection: AsyncConnection, name: str) -> Agent:
    """One agent.

    Raises:
        AgentNotFound: no agent of this name has ever been connected.
    """
    row = await store.find(connection, name)
    if row is None:
        raise AgentNotFound(name)
    return Agent.from_row(row)
