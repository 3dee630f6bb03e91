"""The stream by which the queue wakes this hub and sends it stops and the ends of leases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from services.runtime.backoff import Backoff
from services.runtime.dependencies import Complaints, Trouble, of_peer
from services.runtime.errors import SisError
from services.sis_agent.hub.lease_ends import LeaseEnds
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.sessions import Sessions

GRACE_SECONDS = 10.0
"""For so long a hub whose queue is gone still counts as healthy: a restart of the queue takes less."""

_log = logging.getLogger("watch")


class Watch:
    """Keeps one Watch call open, for ever. `on_wake` is called for each wake-up, `on_open` once the queue has
    answered a new call."""

    def __init__(
        self,
        connection: QueueConnection,
        sessions: Sessions,
        lease_ends: LeaseEnds,
        *,
        hub: str,
        on_open: Callable[[], None],
        on_wake: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._sessions = sessions
        self._lease_ends = lease_ends
        self._hub = hub
        self._on_open = on_open
        self._on_wake = on_wake
        self._open = False
        self._trouble: Trouble | None = Trouble("NO_ANSWER", "it has not answered yet")
        self._complaints = Complaints(_log, "the queue cannot be watched")

    async def run(self) -> None:
        """Watch, again and again."""
        backoff = Backoff(initial=0.1, maximum=2.0)
        while True:
            try:
                await self._follow(backoff)
                _log.info("the queue has ended the watch")
            except SisError as error:
                self._complaints.note(error)
                self._trouble = of_peer(error)
            finally:
                self._open = False
            await asyncio.sleep(backoff.next_delay())

    async def _follow(self, backoff: Backoff) -> None:
        async with aclosing(self._connection.watch(self._hub)) as responses:
            async for response in responses:
                if not self._open:
                    self._open = True
                    self._trouble = None
                    self._complaints.over()
                    backoff.reset()
                    self._on_open()
                self._sessions.stop(response.stops)
                self._lease_ends.take(response.lease_ends)
                if response.wake:
                    self._on_wake()

    async def trouble(self) -> Trouble | None:
        """Why the queue does not answer; None while it does."""
        return self._trouble
