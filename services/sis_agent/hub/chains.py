"""The chain of resume secrets by which the copy of an agent is noticed.

Each welcome offers a new secret, which the agent shows with its next hello. The registry takes the one that was shown
last, because the welcome may have been lost, and those that were offered since. Whoever shows anything older runs
beside a copy of itself, and nobody can tell which of the two is the agent: both are refused until one enrols again,
which gives it another key.

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

from services.runtime.database import Database
from services.sis_agent.hub import store
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.errors import AgentQuarantined, AgentRevoked
from services.sis_agent.hub.sessions import Sessions

SECRET_BYTES = 32
OFFERS = 4
"""How many offers count at the most."""

LATE_SECONDS = 1.0
"""A wrong hello is judged only after this: one that was held up on its way is followed by the end of its call."""

_log = logging.getLogger("chains")


class Standing(enum.Enum):
    """What is thought of an agent that says hello."""

    SOUND = enum.auto()
    # It has shown a wrong secret.
    DOUBTFUL = enum.auto()
    # Its key is in quarantine.
    QUARANTINED = enum.auto()
    # It has enrolled again since, with another key.
    REPLACED = enum.auto()


@dataclass(frozen=True, slots=True)
class Chain:
    """The chain of one key; the secrets by their SHA-256."""

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
        matches = [hmac.compare_digest(shown, each) for each in (self.shown, *self.offered)]
        return Standing.SOUND if any(matches) else Standing.DOUBTFUL

    def followed_by(self, shown: bytes, offer: bytes) -> Chain:
        """The chain after an agent in good standing has shown one secret and is offered another."""
        if shown == self.shown:
            return Chain(shown, (*self.offered, offer)[-OFFERS:])
        return Chain(shown, (offer,))


class Chains:
    """The chains of all agents, in the registry."""

    def __init__(self, database: Database, sessions: Sessions) -> None:
        self._database = database
        self._sessions = sessions

    async def resume(self, agent: str, certificate: AgentCertificate, shown: bytes) -> bytes:
        """Take the secret that an agent has shown; the one to offer to it.

        To be cancelled when the agent's call ends: a second of it decides between a late hello and a copy.

        Raises:
            AgentQuarantined: now, or before. An open stream of the same identity is closed.
            AgentRevoked: the agent has enrolled again since, with another key.
            Unavailable, DeadlineExceeded: the registry does not answer.
        """
        offer = secrets.token_bytes(SECRET_BYTES)
        standing = await self._resume(agent, certificate.key_sha256, shown, offer, judge=False)
        if standing is Standing.DOUBTFUL:
            _log.warning("agent %s shows another resume secret than it should", agent)
            await asyncio.sleep(LATE_SECONDS)
            standing = await self._resume(agent, certificate.key_sha256, shown, offer, judge=True)
        if standing is Standing.REPLACED:
            raise AgentRevoked(agent)
        if standing is not Standing.SOUND:
            if standing is Standing.DOUBTFUL:
                _log.error("agent %s is in quarantine from now on: it runs beside a copy of itself", agent)
            self.close(agent, certificate.key_sha256)
            raise AgentQuarantined(agent)
        return offer

    async def _resume(self, agent: str, key: bytes, shown: bytes, offer: bytes, *, judge: bool) -> Standing:
        shown, offer = _digest(shown), _digest(offer)
        async with self._database.begin() as connection:
            await store.lock_chains(connection, agent)
            row = await store.find_chain(connection, agent, key)
            if row is None:
                await store.begin_chain(connection, agent, key, shown, [offer])
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

    def close(self, agent: str, key_sha256: bytes) -> None:
        """Close the stream of an identity that is in quarantine, if it is open here."""
        session = self._sessions.of(agent)
        if session is not None and session.certificate.key_sha256 == key_sha256:
            session.close(AgentQuarantined(agent))


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
