"""Those who watch the revocations hear of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from services.credentials import identity_store as store
from services.credentials.identity_store import CHANNEL, Revocation
from services.runtime import dependencies
from services.runtime.database import Database

POLL_SECONDS = 5.0
"""A notification may be lost, so whoever watches looks by himself this often."""


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
        raise dependencies.ShuttingDown()

    async def drain(self) -> None:
        """End every watch, now and from now on."""
        self._draining = True
        self._wake()
