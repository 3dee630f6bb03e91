"""The chain of resume secrets by which the copy of an agent is noticed.

Each welcome offers a new secret, which the agent shows with its next hello. The registry takes the one that was shown
last, because the welcome may have been lost, and those that were offered since. Whoever shows anything older runs
beside a copy of itself, and nobody can tell which of the two is the agent: both are refused until one enrols again,
which gives it another key.

A key that was certified earlier than the one in force is not taken at all: to a hub that has not heard of its
revocation, it would otherwise be the newer one because it comes later.

The credential service has another proof of a copy, when two programs ask it for different certificates of one key:
`quarantine` takes note of that.

Several offers count, not just the last, because a hello can be processed long after its agent has given it up and been
welcomed elsewhere; its offer must not take the place of the one that the agent holds. A copy is noticed all the same:
whichever of the two shows its offer first ends the other's.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.runtime.database import Database
from services.sis_agent.hub import store
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.errors import AgentQuarantined, AgentRevoked
from services.sis_agent.hub.sessions import Session, Sessions

SECRET_BYTES = 32
OFFERS = 4
"""How many offers count at the most."""

LATE_SECONDS = 16.0
"""A wrong hello is judged only after this: one that was held up on its way is followed by the end of its call. Where
the end was lost on the way, keepalive notices within 15 s (`services.runtime.channels`). Agents wait for 30."""

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

_log = logging.getLogger("chains")


class Standing(enum.Enum):
    """What is thought of an agent that says hello."""

    SOUND = enum.auto()
    # It has shown a wrong secret.
    DOUBTFUL = enum.auto()
    # Its key is in quarantine.
    QUARANTINED = enum.auto()
    # It has enrolled with a newer key.
    REPLACED = enum.auto()


@dataclass(frozen=True, slots=True)
class Chain:
    """The chain of one key; the secrets by their SHA-256. Nothing was shown where the registry was restored from a
    backup, which does not know what was offered since: then the next one that is shown is taken as it is."""

    shown: bytes
    offered: Sequence[bytes]
    replaced: bool = False
    quarantined: bool = False

    def standing(self, shown: bytes) -> Standing:
        """What to think of an agent that shows this."""
        if self.quarantined:
            return Standing.QUARANTINED
        if self.replaced:
            return Standing.REPLACED
        if not self.shown:
            return Standing.SOUND
        matches = [hmac.compare_digest(shown, each) for each in (self.shown, *self.offered)]
        return Standing.SOUND if any(matches) else Standing.DOUBTFUL

    def followed_by(self, shown: bytes, offer: bytes) -> Chain:
        """The chain after an agent in good standing has shown one secret and is offered another."""
        if shown == self.shown:
            return Chain(shown, (*self.offered, offer)[-OFFERS:])
        return Chain(shown, (offer,))


class Chains:
    """The chains of all agents, in the registry."""

    def __init__(self, database: Database, sessions: Sessions, *, late_seconds: float = LATE_SECONDS) -> None:
        self._database = database
        self._sessions = sessions
        self._late_seconds = late_seconds

    async def resume(self, agent: str, certificate: AgentCertificate, shown: bytes) -> bytes:
        """Take the secret that an agent has shown; the one to offer to it.

        To be cancelled when the agent's call ends: that decides between a late hello and a copy.

        Raises:
            AgentQuarantined: now, or before. An open stream of the same identity is closed.
            AgentRevoked: the agent has enrolled with a newer key.
            Unavailable, DeadlineExceeded: the registry does not answer.
        """
        offer = secrets.token_bytes(SECRET_BYTES)
        standing = await self._resume(agent, certificate, shown, offer, judge=False)
        if standing is Standing.DOUBTFUL:
            _log.warning("agent %s shows another resume secret than it should", agent)
            await asyncio.sleep(self._late_seconds)
            standing = await self._resume(agent, certificate, shown, offer, judge=True)
        if standing is Standing.REPLACED:
            raise AgentRevoked(agent)
        if standing is not Standing.SOUND:
            if standing is Standing.DOUBTFUL:
                _log.error("agent %s is in quarantine from now on: it runs beside a copy of itself", agent)
            self.close(agent, certificate.key_sha256)
            raise AgentQuarantined(agent)
        return offer

    async def _resume(
        self, agent: str, certificate: AgentCertificate, shown: bytes, offer: bytes, *, judge: bool
    ) -> Standing:
        key, shown, offer = certificate.key_sha256, _digest(shown), _digest(offer)
        async with self._database.begin("hub.resume") as connection:
            await store.lock_chains(connection, agent)
            row = await store.find_chain(connection, agent, key)
            if row is None:
                newest = await store.newest_key(connection, agent)
                if newest is not None and certificate.not_before <= newest:
                    _log.warning("agent %s shows a key that is older than the one in force", agent)
                    return Standing.REPLACED
                await store.begin_chain(connection, agent, key, certificate.not_before, shown, [offer])
                return Standing.SOUND
            replaced, quarantined = row.ended_at is not None, row.quarantined_at is not None
            chain = Chain(row.shown_sha256, row.offered_sha256, replaced, quarantined)
            standing = chain.standing(shown)
            if standing is Standing.SOUND:
                chain = chain.followed_by(shown, offer)
                await store.continue_chain(connection, agent, key, chain.shown, chain.offered)
            elif standing is Standing.DOUBTFUL and judge:
                await store.quarantine_chain(connection, agent, key, shown)
            return standing

    async def check(self, agent: str, key_sha256: bytes) -> None:
        """Whether a key may be used, by the registry.

        Raises:
            AgentQuarantined: it may not. An open stream of it is closed.
            Unavailable, DeadlineExceeded: the registry does not answer.
        """
        async with self._database.begin() as connection:
            row = await store.find_chain(connection, agent, key_sha256)
        if row is not None and row.quarantined_at is not None:
            self.close(agent, key_sha256)
            raise AgentQuarantined(agent)

    async def quarantine(self, agent: str, key_sha256: bytes) -> None:
        """Put the key that the suite certifies for an agent into quarantine: it is proven that two programs hold it.
        Its stream is closed. Safe to retry.

        Raises:
            Unavailable, DeadlineExceeded: the registry does not answer, and nothing was done.
        """
        async with self._database.begin("hub.quarantine") as connection:
            await store.lock_chains(connection, agent)
            if await store.find_chain(connection, agent, key_sha256) is None:
                # It has not connected yet, so nobody here knows when it was certified, but that it is the newest.
                newest = await store.newest_key(connection, agent)
                await store.begin_chain(connection, agent, key_sha256, newest or _LONG_AGO, _digest(b""), [])
            await store.quarantine_chain(connection, agent, key_sha256, None)
        _log.error("agent %s is in quarantine from now on: two programs ask for certificates of its key", agent)
        self.close(agent, key_sha256)

    def close(self, agent: str, key_sha256: bytes) -> None:
        """Close the stream of an identity that is in quarantine, if it is open here."""
        if (session := self._open(agent, key_sha256)) is not None:
            session.close(AgentQuarantined(agent))

    def connected(self, agent: str, key_sha256: bytes) -> bool:
        """Whether a stream of this identity is open here. It would be closed within a beat of a quarantine."""
        return self._open(agent, key_sha256) is not None

    def _open(self, agent: str, key_sha256: bytes) -> Session | None:
        session = self._sessions.of(agent)
        return session if session is not None and session.certificate.key_sha256 == key_sha256 else None


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
