"""The certificates that are valid by their dates and not to be accepted.

The credential service says which; the table keeps them for a hub that starts while it is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta

from services.runtime.backoff import Backoff
from services.runtime.database import Database
from services.runtime.dependencies import Complaints, Trouble, of_peer
from services.runtime.errors import SisError
from services.sis_agent.hub import convert, store
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.credentials_connection import CredentialsConnection
from services.sis_agent.hub.errors import AgentRevoked, Starting
from services.sis_agent.hub.sessions import Sessions
from services.sis_agent.hub.store import Revocation

KEPT_AFTER = timedelta(days=1)
"""For so long a revocation is remembered after its certificate has expired: no clock is that wrong."""

# Reading them takes less, if nothing is wrong.
_LOAD_SECONDS = 1.0

_log = logging.getLogger("revocations")


class Revocations:
    """`run` learns of them and closes the streams that they end; `check` refuses new ones."""

    def __init__(self, connection: CredentialsConnection, database: Database, sessions: Sessions) -> None:
        self._connection = connection
        self._database = database
        self._sessions = sessions
        self._known: dict[str, Revocation] = {}
        self._loaded = asyncio.Event()
        """What was known before is known again."""
        self._trouble: Trouble | None = Trouble("NO_ANSWER", "it has not answered yet")
        self._unwritten: dict[str, Revocation] = {}
        self._news = asyncio.Event()

    def check(self, agent: str, certificate: AgentCertificate) -> None:
        """Whether a certificate may be used.

        Raises:
            AgentRevoked: it may not.
            Starting: what is known has not been read yet.
        """
        if not self._loaded.is_set():
            raise Starting
        if certificate.serial in self._known:
            raise AgentRevoked(agent)

    async def run(self) -> None:
        """Learn of revocations, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._load())
            group.create_task(self._watch())
            group.create_task(self._write())

    async def _load(self) -> None:
        backoff = Backoff(initial=0.1, maximum=5.0)
        complaints = Complaints(_log, "the revocations cannot be read")
        while not self._loaded.is_set():
            try:
                async with self._database.begin() as connection:
                    found = await store.revocations(connection, _oldest())
            except SisError as error:
                complaints.note(error)
                await asyncio.sleep(backoff.next_delay())
            else:
                complaints.over()
                self._take(found)
                self._loaded.set()

    async def _watch(self) -> None:
        backoff = Backoff(initial=0.1, maximum=5.0)
        complaints = Complaints(_log, "the credential service tells of no revocations")
        while True:
            try:
                async with aclosing(self._connection.watch_revocations()) as responses:
                    async for response in responses:
                        backoff.reset()
                        complaints.over()
                        self._trouble = None
                        found = convert.revocations(response)
                        self._take(found)
                        self._unwritten |= {each.serial: each for each in found}
                        self._news.set()
                _log.info("the credential service has ended the watch for revocations")
            except SisError as error:
                complaints.note(error)
                self._trouble = of_peer(error)
            await asyncio.sleep(backoff.next_delay())

    def _take(self, found: Iterable[Revocation]) -> None:
        oldest = _oldest()
        new = {each.serial: each for each in found if each.serial not in self._known and each.not_after > oldest}
        kept = {serial: each for serial, each in self._known.items() if each.not_after > oldest}
        self._known = kept | new
        agents = {each.agent for each in new.values()}
        now = datetime.now(UTC)
        for session in self._sessions:
            # A stream outlasts its certificate, and what has expired need not be listed: then the agent decides.
            expired = session.certificate.not_after <= now
            if session.certificate.serial in new or (expired and session.agent in agents):
                _log.info("the certificate of agent %s was revoked; its stream is closed", session.agent)
                session.close(AgentRevoked(session.agent))

    async def _write(self) -> None:
        backoff = Backoff(initial=0.5, maximum=10.0)
        complaints = Complaints(_log, "revocations cannot be written")
        while True:
            await self._news.wait()
            self._news.clear()
            batch, self._unwritten = self._unwritten, {}
            try:
                async with self._database.begin() as connection:
                    await store.keep_revocations(connection, batch.values(), _oldest())
            except SisError as error:
                complaints.note(error)
                self._unwritten = batch | self._unwritten
                self._news.set()
                await asyncio.sleep(backoff.next_delay())
            else:
                backoff.reset()
                complaints.over()

    async def unread(self) -> Trouble | None:
        """Why no agent can be let in yet, after a second in which it might be over; None once one can."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOAD_SECONDS):
                await self._loaded.wait()
        return None if self._loaded.is_set() else Trouble("STARTING", "who was revoked is not read yet")

    async def trouble(self) -> Trouble | None:
        """Why the credential service does not answer; None while it does."""
        return self._trouble


def _oldest() -> datetime:
    return datetime.now(UTC) - KEPT_AFTER
