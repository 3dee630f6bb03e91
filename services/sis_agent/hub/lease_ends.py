"""The ends of leases, on their way from the queue to the credential service.

The queue hands each one out again until it is acknowledged, so nothing is tried twice here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from services.runtime.errors import SisError
from services.sis_agent.hub.credentials_connection import CredentialsConnection
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.slots import AttemptKey
from sis.credentials.v1 import lease_service_pb2 as leases
from sis.queue.v1 import dispatch_service_pb2 as queue

WAITING = 10_000
"""What may wait here; the rest is left to the queue."""

CALL_ENDS = 1_000

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
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                await self._deliver([self._waiting.pop(key) for key in list(self._waiting)[:CALL_ENDS]])

    async def _deliver(self, ends: list[leases.EndedAttempt]) -> None:
        try:
            await self._credentials.end_leases(leases.EndLeasesRequest(attempts=ends))
            await self._connection.acknowledge_lease_ends(queue.AcknowledgeLeaseEndsRequest(lease_ends=ends))
        except SisError as error:
            _log.warning("the ends of %d leases wait: %s", len(ends), error.message)
