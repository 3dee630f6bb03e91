"""What follows in Vault from what was decided here: certificates are revoked, and what has expired is removed."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import DBAPIError

from services.credentials import identity_store as store
from services.credentials.identities import pairing_path
from services.credentials.vault import Vault
from services.credentials.vault_errors import ValueMissing, VaultFailed
from services.runtime.backoff import Backoff
from services.runtime.database import Database
from services.runtime.dependencies import Complaints
from services.runtime.errors import SisError

TELL_SECONDS = 2.0
_BATCH = 200

_log = logging.getLogger("vault_outbox")


class VaultOutbox:
    """Tells Vault of revocations, and removes expired pairings with their keys. Every replica does; what is done twice
    changes nothing."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def run(self) -> None:
        """For ever; what fails is tried again."""
        backoff = Backoff(TELL_SECONDS, 60.0)
        complaints = Complaints(_log, "Vault is not told of everything")
        while True:
            try:
                await self.deliver()
                backoff.reset()
                complaints.over()
            except SisError as error:
                complaints.note(error)
                await asyncio.sleep(backoff.next_delay())
            except DBAPIError:  # a damaged index, for example: what needs none of this goes on
                _log.exception("Vault is not told of everything")
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
