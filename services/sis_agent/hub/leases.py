"""Between claim and delivery: the leases of what an assignment wants.

An assignment that wants none never waits here. The others have their slot from the beginning, so that nothing is
claimed for it and a second delivery of the same attempt is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from google.protobuf import duration_pb2
from google.rpc import code_pb2

from services.runtime import faults, tracing
from services.runtime.errors import Internal, SisError
from services.sis_agent.hub.convert import attempt_key
from services.sis_agent.hub.credentials_connection import TAKE_SECONDS, CredentialsConnection
from services.sis_agent.hub.errors import HubRefused
from services.sis_agent.hub.reporter import Reporter
from services.sis_agent.hub.sessions import Session
from sis.credentials.v1 import lease_pb2, lease_service_pb2
from sis.queue.v1 import dispatch_service_pb2 as queue
from sis.trace_context import TraceContext

CALLS = 4
CALL_ATTEMPTS = 100
CALL_LEASES = 150
"""A lease has up to 64 KiB, an answer up to 16 MiB."""

_UNREACHABLE = lease_pb2.LEASE_REFUSAL_REASON_CREDENTIALS_UNREACHABLE
# It answers, and its log explains the rest: said of the credential service as of Vault behind it.
_FAILED = lease_pb2.LEASE_REFUSAL_REASON_VAULT_FAILED

_log = logging.getLogger("leases")


@dataclass(slots=True)
class _Wanting:
    session: Session
    assignment: queue.Assignment
    since: float


class Leases:
    """`run` leases what `deliver` takes, a few calls at a time. `on_free` is called when a slot has become free."""

    def __init__(self, connection: CredentialsConnection, reporter: Reporter, *, on_free: Callable[[], None]) -> None:
        self._connection = connection
        self._reporter = reporter
        self._on_free = on_free
        # No more than there are slots.
        self._waiting: deque[_Wanting] = deque()
        self._arrived = asyncio.Event()

    def deliver(self, session: Session, assignment: queue.Assignment) -> None:
        """Send an assignment to its agent, as soon as it has what it wants, unless the agent has it.

        A session that ends meanwhile gets nothing: the queue delivers to the next one. Without leases the queue is told
        why, and the slot is free again once it knows.
        """
        session.deliveries.begin(assignment)
        if not assignment.credentials:
            session.assign(assignment)
        elif not session.closed and session.slots.reserve(attempt_key(assignment.attempt)):
            self._waiting.append(_Wanting(session, assignment, asyncio.get_running_loop().time()))
            self._arrived.set()

    async def run(self) -> None:
        """Lease and deliver, for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLS):
                group.create_task(self._lease_forever())

    async def _lease_forever(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if batch := self._take():
                faults.point("hub.leasing")
                await self._lease(batch)

    def _take(self) -> list[_Wanting]:
        batch: list[_Wanting] = []
        leases = 0
        late = asyncio.get_running_loop().time() - TAKE_SECONDS
        while self._waiting and len(batch) < CALL_ATTEMPTS:
            leases += len(self._waiting[0].assignment.credentials)
            if batch and leases > CALL_LEASES:
                break
            found = self._waiting.popleft()
            if found.session.closed:
                continue
            if found.since < late:
                self._refuse(found, _refusal(_UNREACHABLE, "the credential service is too slow for what waits for it"))
            else:
                batch.append(found)
        return batch

    async def _lease(self, batch: list[_Wanting]) -> None:
        try:
            # In the trace of the job, where it is for one.
            alone = TraceContext.parse(batch[0].assignment.traceparent) if len(batch) == 1 else None
            with tracing.within(alone):
                response = await self._connection.take_leases(
                    lease_service_pb2.TakeLeasesRequest(requests=map(_request, batch))
                )
            if len(response.results) != len(batch):
                raise Internal(f"the credential service gave {len(response.results)} results for {len(batch)} requests")
        except SisError as error:
            if error.code == code_pb2.INVALID_ARGUMENT and len(batch) > 1:
                # One bad request must not fail its neighbours: find it.
                middle = len(batch) // 2
                await self._lease(batch[:middle])
                await self._lease(batch[middle:])
                return
            _log.warning("the credential service gives no leases: %s", error.message)
            for each in batch:
                self._refuse(each, _failure(error))
            return
        faults.point("hub.leased")
        for each, result in zip(batch, response.results, strict=True):
            self._answer(each, result)

    def _answer(self, wanting: _Wanting, result: lease_service_pb2.LeaseResult) -> None:
        assignment = wanting.assignment
        if result.HasField("refusal"):
            self._refuse(wanting, result.refusal)
        elif _refs(result.leases) != _refs(assignment.credentials):
            _log.error("job %d got other leases than it wants", assignment.attempt.job_id)
            self._refuse(wanting, _refusal(_FAILED, "the credential service gave other leases than were asked for"))
        else:
            del assignment.leases[:]
            assignment.leases.extend(result.leases)
            wanting.session.assign(assignment)

    def _refuse(self, wanting: _Wanting, refusal: lease_pb2.LeaseRefusal) -> None:
        session, attempt = wanting.session, wanting.assignment.attempt
        if session.closed:
            return
        if refusal.reason == lease_pb2.LEASE_REFUSAL_REASON_ATTEMPT_ENDED:
            session.slots.release(attempt_key(attempt))
            self._on_free()
        else:
            self._reporter.refuse(session, attempt, refusal)


def _request(wanting: _Wanting) -> lease_service_pb2.LeaseRequest:
    assignment = wanting.assignment
    return lease_service_pb2.LeaseRequest(
        job_id=assignment.attempt.job_id,
        attempt=assignment.attempt.number,
        agent=wanting.session.agent,
        uses=assignment.credentials,
        requester=assignment.requester,
    )


def _refs(found: Iterable[lease_pb2.CredentialUse | lease_pb2.SealedLease]) -> list[str]:
    return sorted(each.ref for each in found)


def _failure(error: SisError) -> lease_pb2.LeaseRefusal:
    """What an attempt is refused with when the whole call has failed."""
    message = f"the credential service gives the hub no leases: {error.message}"
    reason = _FAILED
    if error.code == code_pb2.DEADLINE_EXCEEDED:
        reason, message = _UNREACHABLE, f"the credential service is too slow: {error.message}"
    elif error.code == code_pb2.UNAVAILABLE and not isinstance(error, HubRefused):
        reason, message = _UNREACHABLE, f"the credential service does not answer the hub: {error.message}"
    return _refusal(reason, message, error.retry_after or 1.0)


def _refusal(
    reason: lease_pb2.LeaseRefusalReason.ValueType, message: str, retry_after: float = 1.0
) -> lease_pb2.LeaseRefusal:
    seconds = max(1, math.ceil(retry_after))
    return lease_pb2.LeaseRefusal(reason=reason, message=message, retry_after=duration_pb2.Duration(seconds=seconds))
