"""Keeps the registry of agents up to date, in batches, beside everything else: dispatch never waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from services.runtime.backoff import Backoff
from services.runtime.database import Database
from services.runtime.dependencies import Complaints
from services.runtime.errors import SisError
from services.sis_agent.hub import registry
from services.sis_agent.hub.chains import Chains
from services.sis_agent.hub.registry import Changes
from services.sis_agent.hub.sessions import Session, Sessions
from services.sis_agent.hub.store import Beat, Opened

_log = logging.getLogger("presence")


class Presence:
    """Gathers what happens to sessions and writes it, one transaction at a time.

    What could not be written is written with the next batch; there is never more of it than one opening, one beat
    and one end for each agent. After each batch, the streams of those that are in quarantine are closed.
    """

    def __init__(self, database: Database, sessions: Sessions, chains: Chains, *, hub: str) -> None:
        self._database = database
        self._sessions = sessions
        self._chains = chains
        self._hub = hub
        self._changes = Changes()
        self._news = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        sessions.subscribe(opened=self._opened, closed=self._closed)

    def _opened(self, session: Session) -> None:
        hello = session.hello
        self._changes.opened[session.agent] = Opened(
            name=session.agent,
            agent_group=session.group,
            epoch=session.epoch,
            hub=self._hub,
            version=hello.version,
            platform=hello.platform,
            hostname=hello.hostname,
            slots=hello.slots,
            draining=hello.draining,
            labels=dict(hello.labels),
            attempts=sorted(session.slots.held),
        )
        self._changed()

    def _closed(self, session: Session) -> None:
        self._changes.closed[session.agent] = max(session.epoch, self._changes.closed.get(session.agent, 0))
        self._changed()

    def heard(self, sessions: Iterable[Session]) -> None:
        """These sessions were heard."""
        for session in sessions:
            self._changes.beats[session.agent] = Beat(
                name=session.agent,
                epoch=session.epoch,
                draining=session.slots.draining,
                attempts=sorted(session.slots.held),
            )
            self._changed()

    def _changed(self) -> None:
        self._news.set()
        self._written.clear()

    async def run(self) -> None:
        """Write what there is, for ever."""
        backoff = Backoff(initial=0.5, maximum=10.0)
        complaints = Complaints(_log, "the registry of agents cannot be written")
        while True:
            await self._news.wait()
            self._news.clear()
            changes, self._changes = self._changes, Changes()
            try:
                async with self._database.begin() as connection:
                    await registry.record(connection, changes)
                    agents = [session.agent for session in self._sessions]
                    quarantined = await registry.quarantined(connection, agents)
            except SisError as error:
                complaints.note(error)
                self._changes = changes.followed_by(self._changes)
                self._news.set()
                await asyncio.sleep(backoff.next_delay())
            else:
                backoff.reset()
                complaints.over()
                # Another hub may have noticed.
                for agent, key_sha256 in quarantined:
                    self._chains.close(agent, key_sha256)
                if not self._news.is_set():
                    self._written.set()

    async def written(self) -> None:
        """Wait until everything that has happened so far is in the registry."""
        await self._written.wait()
