"""A DispatchService that keeps everything in memory, over real gRPC and mutual TLS.

It knows epochs, waiting assignments, sequences and seals; what it should do wrong, the test says.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from services.runtime.errors import Aborted, NotFound, SisError, to_status
from services.runtime.interceptors import Context
from services.runtime.server import Listener, Server
from services.runtime.tls import TlsFiles
from sis.queue.v1 import dispatch_service_pb2 as pb
from sis.queue.v1 import dispatch_service_pb2_grpc as rpc
from sis.queue.v1 import frame_pb2

WAIT_SECONDS = 20.0

Key = tuple[int, int]
Message = TypeVar("Message")


class FakeQueue(rpc.DispatchServiceServicer):
    """The queue as a hub sees it. `until` waits for something that a hub does."""

    def __init__(self) -> None:
        self.epochs: defaultdict[str, int] = defaultdict(int)
        self.waiting: deque[pb.Assignment] = deque()
        self.sequences: defaultdict[Key, int] = defaultdict(int)
        self.sealed: set[Key] = set()
        self.archives: dict[str, list[bytes]] = {}
        self.redelivered: list[pb.Assignment] = []
        """For the next session, and for the next heartbeat, with stops of what was given up."""
        self.undelivered: list[pb.AgentAssignment] = []
        self.given_up: list[pb.AgentStop] = []

        self.opened: list[pb.OpenSessionRequest] = []
        self.closed: list[pb.Session] = []
        self.claims: list[pb.ClaimRequest] = []
        self.reports: list[list[pb.AttemptReport]] = []
        self.heartbeats: list[pb.HeartbeatRequest] = []
        self.acknowledged_ends: list[tuple[int, int, bool]] = []
        """Job, attempt, whether the job is over."""
        self.archive_requests: list[pb.GetPackageArchiveRequest] = []
        self.reports_in_flight = 0
        self.most_reports_in_flight = 0
        self.chunks_sent = 0

        self.failures: defaultdict[str, deque[SisError]] = defaultdict(deque)
        """What the next calls of a method fail with."""
        self.refuse_report: Callable[[pb.AttemptReport], SisError | None] = lambda _: None
        """What one report's result is an error for."""
        self.refuse_call: Callable[[pb.ReportRequest], SisError | None] = lambda _: None
        """What a whole Report call fails with."""
        self.before_open: Callable[[str], None] = lambda _: None
        """Called when the epoch is raised, before the answer goes out."""
        self.gate = asyncio.Event()
        """Reports wait while it is cleared."""
        self.gate.set()

        self._watchers: set[asyncio.Queue[pb.WatchResponse | None]] = set()
        self._changed = asyncio.Condition()

    # What tests do

    @asynccontextmanager
    async def serving(self, tls: TlsFiles, port: int = 0) -> AsyncIterator[int]:
        """Serve on a port; the calls in flight are cut off at the end."""
        listener = Listener(f"127.0.0.1:{port}", tls, demand_client_certificate=True)
        server = Server("queue", [(rpc.add_DispatchServiceServicer_to_server, self)], [listener])
        (port,) = await server.start()
        try:
            yield port
        finally:
            await server.stop(grace=0)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds that a call to this fake changes."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(holds)

    async def watched(self, watchers: int = 1) -> None:
        """Wait until so many hubs watch."""
        await self.until(lambda: len(self._watchers) >= watchers)

    async def unwatched(self) -> None:
        """Wait until no hub watches."""
        await self.until(lambda: not self._watchers)

    def push(self, response: pb.WatchResponse) -> None:
        """Send a message on every watch."""
        for watcher in self._watchers:
            watcher.put_nowait(response)

    def wake(self) -> None:
        self.push(pb.WatchResponse(wake=True))

    def put(self, *assignments: pb.Assignment) -> None:
        """Have jobs wait, and wake the hubs."""
        self.waiting.extend(assignments)
        self.wake()

    def end_watches(self) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(None)

    @property
    def committed(self) -> list[pb.AttemptReport]:
        """All reports, in the order of their arrival."""
        return [report for call in self.reports for report in call]

    # What hubs call

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        self._fail("OpenSession")
        agent = request.agent.name
        self.epochs[agent] += 1
        self.before_open(agent)
        response = pb.OpenSessionResponse(epoch=self.epochs[agent], assignments=self.redelivered)
        self.redelivered = []
        for held in request.hello.attempts:
            key = held.attempt.job_id, held.attempt.number
            verdict = pb.VERDICT_FORGET if key in self.sealed else pb.VERDICT_GO_ON
            response.verdicts.add(attempt=held.attempt, verdict=verdict, acknowledged_sequence=self.sequences[key])
        await self._note(self.opened, request)
        return response

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        self._fail("CloseSession")
        await self._note(self.closed, request.session)
        return pb.CloseSessionResponse()

    async def Claim(self, request: pb.ClaimRequest, context: Context) -> pb.ClaimResponse:
        response = pb.ClaimResponse()
        for capacity in request.capacities:
            if capacity.session.epoch != self.epochs[capacity.session.agent]:
                response.stale_sessions.append(capacity.session)
                continue
            for _ in range(min(capacity.free_slots, len(self.waiting))):
                response.assignments.add(agent=capacity.session.agent, assignment=self.waiting.popleft())
        await self._note(self.claims, request)
        self._fail("Claim")  # after it was committed: the worst that can happen
        return response

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportResponse:
        self.reports_in_flight += 1
        self.most_reports_in_flight = max(self.most_reports_in_flight, self.reports_in_flight)
        try:
            await self._note(self.reports, list(request.reports))
            await self.gate.wait()
            self._fail("Report")
            if refused := self.refuse_call(request):
                self.reports.remove(list(request.reports))
                raise refused
            return pb.ReportResponse(results=map(self._commit, request.reports))
        finally:
            self.reports_in_flight -= 1

    def _commit(self, report: pb.AttemptReport) -> pb.ReportResult:
        key = report.attempt.job_id, report.attempt.number
        result = pb.ReportResult(acknowledged_sequence=self.sequences[key])
        error = self.refuse_report(report)
        if report.session.epoch != self.epochs[report.session.agent]:
            error = Aborted("a newer stream was opened", reason="STALE_EPOCH")
        for body in () if error else report.frames.frames:
            frame = frame_pb2.Frame.FromString(body)
            if frame.sequence > self.sequences[key] + 1:
                error = Aborted("frames are missing", reason="SEQUENCE_GAP")
                break
            self.sequences[key] = result.acknowledged_sequence = frame.sequence
            if frame.notice.HasField("finished"):
                self.sealed.add(key)
        result.sealed = key in self.sealed
        if error is not None:
            result.error.CopyFrom(to_status(error))
        return result

    async def AcknowledgeLeaseEnds(
        self, request: pb.AcknowledgeLeaseEndsRequest, context: Context
    ) -> pb.AcknowledgeLeaseEndsResponse:
        self._fail("AcknowledgeLeaseEnds")
        self.acknowledged_ends += [(end.job_id, end.attempt, end.job_over) for end in request.lease_ends]
        await self._notify()
        return pb.AcknowledgeLeaseEndsResponse()

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:
        self._fail("Heartbeat")
        sessions = [heartbeat.session for heartbeat in request.heartbeats]
        response = pb.HeartbeatResponse(
            stale_sessions=[s for s in sessions if s.epoch != self.epochs[s.agent]],
            assignments=self.undelivered,
            stops=self.given_up,
        )
        self.undelivered, self.given_up = [], []
        await self._note(self.heartbeats, request)
        return response

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        self._fail("Watch")
        watcher: asyncio.Queue[pb.WatchResponse | None] = asyncio.Queue()
        try:
            yield pb.WatchResponse(wake=True)
            self._watchers.add(watcher)
            await self._notify()
            while (response := await watcher.get()) is not None:
                yield response
        finally:
            self._watchers.discard(watcher)
            await self._notify()

    async def GetPackageArchive(
        self, request: pb.GetPackageArchiveRequest, context: Context
    ) -> AsyncIterator[pb.GetPackageArchiveResponse]:
        await self._note(self.archive_requests, request)
        chunks = self.archives.get(request.digest)
        if chunks is None:
            raise NotFound("there is no such package", reason="PACKAGE_NOT_FOUND")
        size = sum(map(len, chunks))
        left = request.offset
        for chunk in chunks:
            if left >= len(chunk):
                left -= len(chunk)
                continue
            yield pb.GetPackageArchiveResponse(chunk=chunk[left:], size_bytes=size)
            left = 0
            self.chunks_sent += 1

    def _fail(self, method: str) -> None:
        if self.failures[method]:
            raise self.failures[method].popleft()

    async def _note(self, found: list[Message], message: Message) -> None:
        found.append(message)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
