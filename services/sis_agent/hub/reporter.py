"""Reports of all agents on their way to the queue, committed in groups.

Two calls are under way at the most, never two with the same attempt; what arrives meanwhile goes with the next call.
The reports of an attempt keep their order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.runtime import faults
from services.runtime.backoff import Backoff
from services.runtime.dependencies import Complaints
from services.runtime.errors import Internal, InvalidArgument, SisError, to_status
from services.sis_agent.hub.errors import StaleEpoch
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.sessions import Session
from services.sis_agent.hub.slots import AttemptKey
from sis.agent.v1 import agent_service_pb2 as stream
from sis.credentials.v1 import lease_pb2
from sis.queue.v1 import dispatch_service_pb2 as queue

CALLS = 2
CALL_REPORTS = 2_000
CALL_BYTES = 8 * 1024 * 1024
MESSAGE_REPORTS = 4_000
"""How many reports a message of an agent may have: an agent has one of each attempt, and answers."""
TOTAL_BYTES = 128 * 1024 * 1024
"""What may be in memory for all sessions together; then the hub stops reading."""

FAULTS = 2
"""How often a call that ends with INTERNAL is tried again: a broken connection can look like a fault."""

LATE = 2
"""How many calls in a row may come to nothing in their time before they are made smaller: a queue that is slow may bear
less, and whatever takes too long is taken back whole."""

# By how much calls grow again with each that succeeds, of what they may be.
_GROWTH = 0.05

# What a report costs beside its bytes, in Python's objects.
_OVERHEAD_BYTES = 700

# Codes by which the queue refuses what it was sent, rather than being in trouble itself.
_REFUSALS = frozenset(
    (
        code_pb2.INVALID_ARGUMENT,
        code_pb2.NOT_FOUND,
        code_pb2.FAILED_PRECONDITION,
        code_pb2.ABORTED,
    )
)

_log = logging.getLogger("reporter")


@dataclass(slots=True)
class _Item:
    session: Session
    # The agent's, or the hub's own.
    report: stream.AgentReport | queue.AttemptReport
    bytes: int
    lane: tuple[str, AttemptKey]


class Reporter:
    """`run` commits what `submit` takes. `on_free` is called when a slot has become free."""

    def __init__(self, connection: QueueConnection, *, session_bytes: int, on_free: Callable[[], None]) -> None:
        self._connection = connection
        self._session_bytes = session_bytes
        self._on_free = on_free
        # Each attempt is a lane of its own; those in _ready have reports and no call under way.
        self._waiting: dict[tuple[str, AttemptKey], deque[_Item]] = {}
        self._under_way: set[tuple[str, AttemptKey]] = set()
        self._ready: deque[tuple[str, AttemptKey]] = deque()
        self._total_bytes = 0
        self._arrived = asyncio.Event()
        self._freed = asyncio.Event()
        self._retry = asyncio.Event()
        # Of CALL_REPORTS and CALL_BYTES, what the next calls may have.
        self._share = 1.0
        self._complaints = Complaints(_log, "the queue takes no reports")

    async def submit(self, session: Session, reports: Sequence[stream.AgentReport]) -> None:
        """Take the reports of one message, in order; waits while too much is unacknowledged. None is taken of a session
        that is closed meanwhile: its agent has them still.

        Raises:
            InvalidArgument: they are too many, or one of them is too large for a call; none is taken.
        """
        if len(reports) > MESSAGE_REPORTS:
            raise InvalidArgument.field("reports", f"are more than {MESSAGE_REPORTS:,}: send them in several messages")
        items = []
        for report in reports:
            items.append(_item(session, report))
            if items[-1].bytes > CALL_BYTES:
                raise InvalidArgument.field(
                    f"reports[{len(items) - 1}]", f"has more than {CALL_BYTES:,} bytes: send its frames in parts"
                )
        for item in items:
            session.slots.answered(item.lane[1])
        size = sum(item.bytes for item in items)
        while self._full(session, size):
            self._freed.clear()
            await self._freed.wait()
            if session.closed:
                return
        self._take_in(items)

    def refuse(self, session: Session, attempt: queue.Attempt, refusal: lease_pb2.LeaseRefusal) -> None:
        """Have the queue know that an attempt was not delivered for want of leases. Its reserved slot is free once that
        is committed; there are no more of these reports than slots."""
        self._take_in([_item(session, queue.AttemptReport(attempt=attempt, lease_refused=refusal))])

    def _take_in(self, items: Iterable[_Item]) -> None:
        for item in items:
            item.session.unacknowledged_bytes += item.bytes
            self._total_bytes += item.bytes
            lane = self._waiting.setdefault(item.lane, deque())
            if not lane and item.lane not in self._under_way:
                self._ready.append(item.lane)
            lane.append(item)
        self._arrived.set()

    def _full(self, session: Session, size: int) -> bool:
        return (session.unacknowledged_bytes > 0 and session.unacknowledged_bytes + size > self._session_bytes) or (
            self._total_bytes > 0 and self._total_bytes + size > TOTAL_BYTES
        )

    @property
    def unacknowledged_bytes(self) -> int:
        """Of what waits or is under way."""
        return self._total_bytes

    def wake(self) -> None:
        """The queue is there again: retry now."""
        self._retry.set()

    async def drained(self) -> None:
        """Wait until nothing is waiting or under way."""
        while self._total_bytes:
            self._freed.clear()
            await self._freed.wait()

    async def run(self) -> None:
        """Commit, for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLS):
                group.create_task(self._commit_forever())

    async def _commit_forever(self) -> None:
        while True:
            while not self._ready:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._take()
            lanes = {item.lane for item in batch}
            await self._commit(batch)
            self._release(lanes)

    def _take(self) -> list[_Item]:
        most, most_bytes = max(1, int(CALL_REPORTS * self._share)), CALL_BYTES * self._share
        batch: list[_Item] = []
        size = 0
        while self._ready:
            lane = self._waiting[self._ready[0]]
            while lane and len(batch) < most and (not batch or size + lane[0].bytes <= most_bytes):
                batch.append(lane.popleft())
                size += batch[-1].bytes
            if not batch or batch[-1].lane != self._ready[0]:
                break  # not even its first report has room
            self._under_way.add(self._ready.popleft())
            if lane:
                break
        return batch

    def _release(self, lanes: set[tuple[str, AttemptKey]]) -> None:
        for name in lanes:
            self._under_way.discard(name)
            if self._waiting[name]:
                self._ready.append(name)
                self._arrived.set()
            else:
                del self._waiting[name]

    async def _commit(self, batch: list[_Item], late: int = 0) -> None:
        """Have the queue take a batch. `late` is how many calls with it in them have just taken too long."""
        backoff = Backoff(initial=0.05, maximum=2.0)
        failures = 0
        while batch:
            request = queue.ReportRequest()
            for item in batch:
                _add(request, item)
            try:
                faults.point("hub.report.sending")
                response = await self._connection.report(request)
                faults.point("hub.report.answered")
                if len(response.results) != len(batch):
                    raise Internal(f"the queue gave {len(response.results)} results for {len(batch)} reports")
            except SisError as error:
                failures += error.code == code_pb2.INTERNAL
                late = late + 1 if error.code == code_pb2.DEADLINE_EXCEEDED else 0
                if error.code in _REFUSALS or failures > FAULTS:
                    await self._divide(batch, error)
                    return
                self._complaints.note(error)
                await self._pause(backoff.next_delay())
                batch = self._without_the_dead(batch)
                if late >= LATE:
                    self._share /= 2
                    if len(batch) > 1:
                        for half in _halves(batch):
                            await self._commit(half, LATE - 1)
                        return
            else:
                self._complaints.over()
                self._share = min(1.0, self._share + _GROWTH)
                for item, result in zip(batch, response.results, strict=True):
                    self._answer(item, result)
                return

    async def _divide(self, batch: list[_Item], error: SisError) -> None:
        """One bad report must not fail its neighbours: find it."""
        if len(batch) == 1:
            _log.error("the queue refuses a report of %s: %s", batch[0].lane, error.message)
            self._answer(batch[0], queue.ReportResult(error=to_status(error)))
            return
        for half in _halves(batch):
            await self._commit(half)

    async def _pause(self, seconds: float) -> None:
        self._retry.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._retry.wait()
        except TimeoutError:
            pass

    def _without_the_dead(self, batch: list[_Item]) -> list[_Item]:
        """The items of living sessions; nobody waits for the others, their agents have them still."""
        for name in self._ready:
            self._waiting[name] = deque(self._living(self._waiting[name]))
        for name in [name for name in self._ready if not self._waiting[name]]:
            del self._waiting[name]
        self._ready = deque(name for name in self._ready if name in self._waiting)
        return self._living(batch)

    def _living(self, items: Iterable[_Item]) -> list[_Item]:
        living = []
        for item in items:
            if item.session.closed:
                self._settle(item)
            else:
                living.append(item)
        return living

    def _settle(self, item: _Item) -> None:
        item.session.unacknowledged_bytes -= item.bytes
        self._total_bytes -= item.bytes
        self._freed.set()

    def _answer(self, item: _Item, result: queue.ReportResult) -> None:
        self._settle(item)
        session, report = item.session, item.report
        if session.closed:
            return
        error = result.error if result.HasField("error") else None
        if error is not None and _is_stale_epoch(error):
            session.close(StaleEpoch(session.agent))
            return
        if isinstance(report, queue.AttemptReport):
            if error is not None:
                _log.warning("the queue takes no refusal of leases for %s: %s", item.lane, error.message)
            session.deliveries.end(item.lane[1], "LEASE_REFUSED")
            session.slots.release(item.lane[1])
            self._on_free()
            return
        if report.HasField("accepted") and error is None:
            session.deliveries.end(item.lane[1])
        elif report.HasField("declined"):
            session.deliveries.end(item.lane[1], "DECLINED")
        if result.sealed or (error is None and report.HasField("declined")):
            session.slots.settle(item.lane[1])
            session.deliveries.forget(item.lane[1])
            self._on_free()
        session.acknowledge(
            stream.Acknowledgement(
                attempt=report.attempt,
                acknowledged_sequence=result.acknowledged_sequence,
                error=error,
                sealed=result.sealed,
                accepted=error is None and report.HasField("accepted"),
            )
        )


def _item(session: Session, report: stream.AgentReport | queue.AttemptReport) -> _Item:
    key = AttemptKey(report.attempt.job_id, report.attempt.number)
    return _Item(session, report, report.ByteSize() + _OVERHEAD_BYTES, (session.agent, key))


def _halves(batch: list[_Item]) -> tuple[list[_Item], list[_Item]]:
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]


def _is_stale_epoch(status: status_pb2.Status) -> bool:
    info = error_details_pb2.ErrorInfo()
    return any(detail.Unpack(info) and info.reason == StaleEpoch.reason for detail in status.details)


def _add(request: queue.ReportRequest, item: _Item) -> None:
    report = item.report
    if isinstance(report, queue.AttemptReport):
        request.reports.add(session=item.session.reference).MergeFrom(report)
        return
    added = request.reports.add(session=item.session.reference, attempt=report.attempt)
    match report.WhichOneof("content"):
        case "accepted":
            added.accepted.CopyFrom(report.accepted)
        case "declined":
            added.declined.CopyFrom(report.declined)
        case "frames":
            added.frames.CopyFrom(report.frames)
