"""Claims work for the free slots of this hub's sessions and delivers it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable

from services.runtime import faults
from services.runtime.backoff import Backoff
from services.runtime.dependencies import Complaints
from services.runtime.errors import SisError
from services.sis_agent.hub.leases import Leases
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.sessions import Sessions
from sis.queue.v1 import dispatch_service_pb2 as queue

POLL_SECONDS = 5.0
"""A lost wake-up delays a job by this at the most, and a quarter."""

LONGEST_DELAY_SECONDS = 2.0
"""Between two tries while the queue is away: it finds no work waiting for its hubs when it is back."""

# The queue bounds what one claim takes; an answer as long as this may have been cut off.
_LONG_ANSWER = 100

_log = logging.getLogger("dispatcher")


class Dispatcher:
    """One claim at a time, for all sessions together; wakes that come meanwhile make one more."""

    def __init__(self, connection: QueueConnection, sessions: Sessions, leases: Leases) -> None:
        self._connection = connection
        self._sessions = sessions
        self._leases = leases
        self._woken = asyncio.Event()
        self._stopped = False
        sessions.subscribe(opened=lambda _: self.wake(), closed=lambda _: None)

    def wake(self) -> None:
        """There may be work, or a free slot."""
        self._woken.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopped = True

    async def run(self) -> None:
        """Claim when woken, and now and then, for ever."""
        backoff = Backoff(initial=0.1, maximum=LONGEST_DELAY_SECONDS)
        complaints = Complaints(_log, "the queue answers no claim")
        while True:
            try:
                async with asyncio.timeout(POLL_SECONDS * random.uniform(0.75, 1.25)):  # noqa: S311  (jitter)
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                again = await self._claim()
                complaints.over()
            except SisError as error:
                complaints.note(error)
                await asyncio.sleep(backoff.next_delay())
                self.wake()
                continue
            backoff.reset()
            if again:
                self.wake()

    async def _claim(self) -> bool:
        """Claim once and deliver; whether there may be more."""
        capacities = []
        asked = 0
        if not self._stopped:
            for session in self._sessions:
                if free := session.slots.free:
                    capacities.append(queue.Capacity(session=session.reference, free_slots=free))
                    asked += free
        if not capacities:
            return False
        faults.point("hub.claiming")
        response = await self._connection.claim(capacities)
        faults.point("hub.claimed")
        self._sessions.close_stale(response.stale_sessions)
        self.deliver(response.assignments)
        return len(response.assignments) >= min(asked, _LONG_ANSWER)

    def deliver(self, assignments: Iterable[queue.AgentAssignment]) -> None:
        """Send each assignment to its agent. One whose session has ended meanwhile is delivered by the next."""
        for each in assignments:
            session = self._sessions.of(each.agent)
            if session is not None:
                self._leases.deliver(session, each.assignment)
