"""What follows from a revocation: those who watch hear of it, and Vault is told. And what has expired is removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from services.credentials import identity_store as store
from services.credentials.identities import pairing_path
from services.credentials.identity_store import CHANNEL, Revocation
from services.credentials.vault import Vault
from services.credentials.vault_errors import ValueMissing, VaultFailed
from services.runtime.backoff import Backoff
from services.runtime.database import Database
from services.runtime.errors import SisError, Unavailable

POLL_SECONDS = 5.0
"""A notification may be lost, so whoever watches looks by himself this often."""
TELL_SECONDS = 2.0
_BATCH = 200

_log = logging.getLogger("revocations")


class Revocations:
    """The watchers of one process. The table is the truth; a notification only wakes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watching: set[asyncio.Event] = set()
        self._draining = False

    async def listen(self) -> None:
        """Hear of the revocations of every replica; for ever."""
        await self._database.listen(CHANNEL, lambda _: self._wake(), self._wake)

    def _wake(self) -> None:
        for event in self._watching:
            event.set()

    async def watch(self) -> AsyncGenerator[Sequence[Revocation]]:
        """Every revocation that still matters, then each new one. Raises Unavailable when this process drains."""
        event = asyncio.Event()
        self._watching.add(event)
        try:
            known: frozenset[Revocation] | None = None
            while not self._draining:
                event.clear()
                async with self._database.begin() as connection:
                    current = frozenset(await store.revocations(connection))
                # Compared as a whole: what is committed late is not overlooked.
                if known is None or not current <= known:
                    yield sorted(current - (known or frozenset()), key=lambda each: each.serial)
                known = current
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await event.wait()
        finally:
            self._watching.discard(event)
        raise Unavailable("the server shuts down; call again", retry_after=0.2)

    async def drain(self) -> None:
        """End every watch, now and from now on."""
        self._draining = True
        self._wake()


class Outbox:
    """Tells Vault of revocations, and removes expired pairings with their keys. Every replica does; what is done twice
    changes nothing."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def run(self) -> None:
        """For ever; what fails is tried again."""
        backoff = Backoff(TELL_SECONDS, 60.0)
        while True:
            try:
                await self.deliver()
                backoff.reset()
            except SisError as error:
                _log.warning("Vault could not be told of everything, trying again: %s", error)
                await asyncio.sleep(backoff.next_delay())
            await asyncio.sleep(TELL_SECONDS)

    async def deliver(self) -> None:
        """Do once what is to be done. Raises VaultError, Unavailable, DeadlineExceeded."""
        async with self._database.begin() as connection:
            untold = await store.untold_revocations(connection, _BATCH)
            expired = await store.expired_pairings(connection, _BATCH)
            await store.purge_certificates(connection)
        for serial in untold:
            try:
                await self._vault.revoke(serial)
            except ValueMissing:
                _log.info("Vault does not know certificate %s: it is of a former CA", serial)
            except VaultFailed as error:
                _log.warning("certificate %s is not revoked in Vault yet: %s", serial, error)
                continue
            async with self._database.begin() as connection:
                await store.told_revocations(connection, [serial])
        for pairing_id in expired:
            await self._vault.destroy(pairing_path(pairing_id))
            async with self._database.begin() as connection:
                await store.delete_pairing(connection, pairing_id)
