"""The ends of leases, on their way from the queue to the credential service.

What was taken is tried until it is delivered and acknowledged; a hub that ends before leaves it to the queue, which
hands it out again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from services.runtime import faults
from services.runtime.backoff import Backoff
from services.runtime.dependencies import Complaints
from services.runtime.errors import DeadlineExceeded, ResourceExhausted, SisError, Unavailable
from services.sis_agent.hub.credentials_connection import CredentialsConnection
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.slots import AttemptKey
from sis.credentials.v1 import lease_service_pb2 as leases
from sis.queue.v1 import dispatch_service_pb2 as queue

WAITING = 10_000
"""What may wait here; the rest is left to the queue."""

CALL_ENDS = 1_000

LONGEST_DELAY_SECONDS = 2.0
"""Between two tries."""

_log = logging.getLogger("lease ends")


class LeaseEnds:
    """`run` delivers what `take` takes."""

    def __init__(self, credentials: CredentialsConnection, connection: QueueConnection) -> None:
        self._credentials = credentials
        self._connection = connection
        self._waiting: dict[AttemptKey, leases.EndedAttempt] = {}
        self._arrived = asyncio.Event()

    def take(self, ends: Iterable[leases.EndedAttempt]) -> None:
        """Have leases ended, as far as there is room."""
        for each in ends:
            key = AttemptKey(each.job_id, each.attempt)
            if key in self._waiting or len(self._waiting) < WAITING:
                self._waiting[key] = each
                self._arrived.set()

    async def run(self) -> None:
        """Deliver, for ever."""
        backoff = Backoff(initial=0.1, maximum=LONGEST_DELAY_SECONDS)
        complaints = Complaints(_log, "the ends of leases wait")
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                try:
                    await self._deliver(list(self._waiting.values())[:CALL_ENDS])
                    backoff.reset()
                    complaints.over()
                except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
                    complaints.note(error)
                    await asyncio.sleep(backoff.next_delay())

    async def _deliver(self, ends: list[leases.EndedAttempt]) -> None:
        """Raises a SisError that passes; what is refused for another reason is left to the queue."""
        try:
            faults.point("hub.lease_ends.sending")
            await self._credentials.end_leases(leases.EndLeasesRequest(attempts=ends))
            faults.point("hub.lease_ends.sent")
            await self._connection.acknowledge_lease_ends(queue.AcknowledgeLeaseEndsRequest(lease_ends=ends))
            faults.point("hub.lease_ends.acknowledged")
        except (Unavailable, DeadlineExceeded, ResourceExhausted):
            raise
        except SisError as error:
            _log.warning("the ends of %d leases are refused: %s", len(ends), error.message)
        for each in ends:
            key = AttemptKey(each.job_id, each.attempt)
            if self._waiting.get(key) == each:  # else its end has become that of its job meanwhile
                del self._waiting[key]
