"""Brings PostgreSQL and Vault together again after whatever has come between them, and forgets what is old.

Works beside people's requests and other replicas: it moves a row only from the state in which it saw it, and of two
that do the same, the second one changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials import reconciler_store, store
from services.credentials.store import Credential
from services.credentials.tables import State
from services.credentials.values import Values
from services.credentials.vault_errors import VaultError
from services.runtime.backoff import Backoff
from services.runtime.database import Database
from services.runtime.dependencies import Complaints
from services.runtime.errors import SisError

INTERVAL_SECONDS: Final = 5.0
"""Between two sweeps, unless it is woken, or there is more to do."""

_log = logging.getLogger("reconciler")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long what may last."""

    interrupted: timedelta = timedelta(minutes=1)
    """After which an intent that is not settled counts as interrupted. Longer than any request may take."""
    attended: timedelta = timedelta(seconds=30)
    """For which a credential is left to who took it in hand last."""
    missing: timedelta = timedelta(minutes=5)
    """Between two looks whether a value that was missing is there again."""
    scan: timedelta = timedelta(hours=1)
    """Between two comparisons of all that Vault has with all rows."""
    tombstones: timedelta = timedelta(days=7)
    usage: timedelta = timedelta(days=400)


class Reconciler:
    """Sweeps until cancelled. Without Vault it does what needs PostgreSQL alone, and looks for Vault now and then."""

    def __init__(self, database: Database, values: Values, limits: Limits | None = None) -> None:
        self._database = database
        self._values = values
        self._limits = limits or Limits()
        self._woken = asyncio.Event()
        self._backoff = Backoff(initial=1.0, maximum=60.0)
        # Each has its own: that one succeeds does not mean that another is over its failure.
        self._rules = (
            (reconciler_store.expire, Complaints(_log, "no credential expires")),
            (self._purge, Complaints(_log, "nothing is purged")),
        )
        self._complaints = Complaints(_log, "nothing is settled with Vault")
        self._vault_away = False
        self._vault_due = 0.0
        self._scan_due = 0.0

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            self._woken.clear()
            if not await self.sweep():
                try:
                    async with asyncio.timeout(INTERVAL_SECONDS):
                        await self._woken.wait()
                except TimeoutError:
                    pass

    async def sweep(self) -> bool:
        """Do a batch of everything; True if there is more to be done at once."""
        done = [await self._apply(*each) for each in self._rules]
        if time.monotonic() >= self._vault_due:
            done += await self._with_vault()
        return max(done) >= reconciler_store.BATCH

    async def scan(self) -> bool:
        """Compare all that Vault has with all rows: values that nobody knows are named in the log; a batch of those of
        deleted credentials is removed, and of credentials without a value marked. True if there is more to be done.

        Raises:
            VaultError, Unavailable
        """
        # Vault first: a row is there before its value.
        unknown = await self._values.ids()
        late: list[UUID] = []
        bare: list[UUID] = []
        # Page by page, in the order of the ids: of deleted credentials there are many, and nothing of them is kept.
        last = UUID(int=0)
        while page := await self._states_after(last):
            last = max(page)
            late += sorted(key for key, state in page.items() if state in _GONE and key in unknown)
            bare += sorted(key for key, state in page.items() if state is State.READY and key not in unknown)
            # One more than is done at once says that there are more.
            del late[reconciler_store.BATCH + 1 :], bare[reconciler_store.BATCH + 1 :]
            unknown -= page.keys()
        if unknown:
            # A database that was restored may have forgotten them; nothing but a person can tell.
            _log.warning(
                "Vault keeps %d values that belong to no credential; they are left alone",
                len(unknown),
                extra={"credential_ids": sorted(map(str, unknown))[:20]},
            )
        for credential_id in late[: reconciler_store.BATCH]:
            await self._remove_again(credential_id)
        for credential_id in bare[: reconciler_store.BATCH]:
            await self._look_again(credential_id)
        return max(len(late), len(bare)) > reconciler_store.BATCH

    async def _states_after(self, credential_id: UUID) -> dict[UUID, State]:
        async with self._database.begin() as connection:
            return await reconciler_store.states(connection, credential_id)

    async def _remove_again(self, credential_id: UUID) -> None:
        async with self._database.begin() as connection:
            credential = await store.get(connection, credential_id)
        if credential is not None and credential.state in _GONE:
            await self._values.remove(credential_id)
            _log.info("a value that was written after its credential was deleted has been removed")

    async def _look_again(self, credential_id: UUID) -> None:
        async with self._database.begin() as connection:
            credential = await store.get(connection, credential_id)
        if credential is not None and await self._values.newest_version(credential_id) == 0:
            await self._note_presence(credential, present=False)

    async def _apply(self, rule: Callable[[AsyncConnection], Awaitable[int]], complaints: Complaints) -> int:
        """Apply a rule; one that fails is tried again with the next sweep, and keeps none of the others."""
        try:
            async with self._database.begin() as connection:
                done = await rule(connection)
        except SisError as error:
            complaints.note(error)
        except DBAPIError:
            _log.exception("the rule %s failed", rule.__name__)
        else:
            complaints.over()
            return done
        return 0

    async def _purge(self, connection: AsyncConnection) -> int:
        return await reconciler_store.purge(connection, self._limits.tombstones, self._limits.usage)

    async def _with_vault(self) -> list[int]:
        done = [0]
        try:
            done.append(await self._each(self._interrupted, self._settle))
            done.append(await self._each(self._leaving, self._remove))
            done.append(await self._each(self._missing, self._look))
            if time.monotonic() >= self._scan_due and not await self.scan():
                self._scan_due = time.monotonic() + self._limits.scan.total_seconds()
        except VaultError as error:
            self._vault_due = time.monotonic() + self._backoff.next_delay()
            if not self._vault_away:
                _log.warning("what needs Vault is put off: %s", error)
            self._vault_away = True
        except SisError as error:
            self._complaints.note(error)
        except DBAPIError:
            _log.exception("what needs Vault has failed")
        else:
            self._complaints.over()
            if self._vault_away:
                _log.info("Vault is there again")
            self._vault_away = False
            self._backoff.reset()
        return done

    async def _each(
        self,
        find: Callable[[AsyncConnection], Awaitable[list[Credential]]],
        settle: Callable[[Credential], Awaitable[None]],
    ) -> int:
        async with self._database.begin() as connection:
            found = await find(connection)
        for credential in found:
            await settle(credential)
        return len(found)

    async def _interrupted(self, connection: AsyncConnection) -> list[Credential]:
        return await reconciler_store.interrupted(connection, self._limits.interrupted, self._limits.attended)

    async def _leaving(self, connection: AsyncConnection) -> list[Credential]:
        return await reconciler_store.leaving(connection, self._limits.attended)

    async def _missing(self, connection: AsyncConnection) -> list[Credential]:
        return await reconciler_store.missing(connection, self._limits.missing)

    async def _settle(self, credential: Credential) -> None:
        """Finish the intent whose mark Vault has, take back any other one."""
        assert credential.intent is not None
        stored = await self._values.get(credential.credential_id)
        version = stored.version if stored is not None and stored.intent == credential.intent else None
        async with self._database.begin() as connection:
            if credential.state is State.PENDING:
                if version is None:
                    done = await store.abandon(connection, credential.credential_id)
                else:
                    done = await store.settle_creation(connection, credential.credential_id, version) is not None
            elif version is None:
                done = await store.give_up_replacement(connection, credential.credential_id, credential.intent)
            else:
                done = (
                    await store.settle_replacement(connection, credential.credential_id, credential.intent, version)
                    is not None
                )
        if done:
            what = "creation" if credential.state is State.PENDING else "replacement"
            how = "taken back" if version is None else "finished"
            _log.info("an interrupted %s was %s", what, how, extra={"credential": credential.name})

    async def _remove(self, credential: Credential) -> None:
        await self._values.remove(credential.credential_id)
        async with self._database.begin() as connection:
            await store.settle_removal(connection, credential.credential_id)

    async def _look(self, credential: Credential) -> None:
        if await self._values.get(credential.credential_id, credential.vault_version) is not None:
            await self._note_presence(credential, present=True)

    async def _note_presence(self, credential: Credential, *, present: bool) -> None:
        async with self._database.begin() as connection:
            changed = await store.note_presence(connection, credential, present=present)
        if changed:
            _log.warning(
                "Vault has %s value for a credential",
                "again a" if present else "no",
                extra={"credential": credential.name},
            )


_GONE: Final = (State.DELETED, State.ABANDONED)
