"""An agent that does only what a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from services.runtime.channels import grpc_error, secure_channel
from services.runtime.errors import SisError
from services.runtime.tls import TlsFiles
from sis.agent.v1 import agent_service_pb2 as pb
from sis.agent.v1 import agent_service_pb2_grpc as rpc
from sis.credentials.v1 import lease_pb2
from sis.queue.v1 import dispatch_service_pb2 as queue
from sis.queue.v1 import frame_pb2

WAIT_SECONDS = 20.0

Key = tuple[int, int]


class AgentClient:
    """One stream; what comes in is gathered, and `until` waits for it."""

    def __init__(self, endpoint: str, tls: TlsFiles, *, reads: bool = True) -> None:
        self.channel = secure_channel(endpoint, tls)
        self.stub: rpc.AgentServiceAsyncStub = rpc.AgentServiceStub(self.channel)
        self.call: Any = self.stub.Connect()
        self.welcome: pb.Welcome | None = None
        self.messages: list[pb.ConnectResponse] = []
        self.assignments: list[queue.Assignment] = []
        self.acknowledgements: list[pb.Acknowledgement] = []
        self.stops: list[queue.StopCommand] = []
        self.certificates: list[pb.CertificateAnswer] = []
        self.error: SisError | None = None
        self.ended = False
        self._changed = asyncio.Condition()
        self._reads = reads
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._reads:
            self.read()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        await self.channel.close()

    def read(self) -> None:
        """Begin to read."""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for message in self.call:
                self._take(message)
                async with self._changed:
                    self._changed.notify_all()
        except grpc.aio.AioRpcError as error:
            self.error = grpc_error(error)
        self.ended = True
        async with self._changed:
            self._changed.notify_all()

    def _take(self, message: pb.ConnectResponse) -> None:
        self.messages.append(message)
        match message.WhichOneof("content"):
            case "welcome":
                self.welcome = message.welcome
            case "assignments":
                self.assignments += message.assignments.assignments
            case "acknowledgements":
                self.acknowledgements += message.acknowledgements.acknowledgements
            case "stops":
                self.stops += message.stops.stops
            case "certificate":
                self.certificates.append(message.certificate)

    async def until(self, holds: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        """Wait until something holds that a message changes."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(holds)

    async def live(self, beat_seconds: float) -> None:
        """Beat until the stream has ended."""
        while not self.ended:
            await self.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(beat_seconds), self._changed:
                    await self._changed.wait_for(lambda: self.ended)

    async def end(self) -> SisError | None:
        """Wait for the end of the stream; what it ended with."""
        await self.until(lambda: self.ended)
        return self.error

    async def hello(
        self,
        slots: int = 4,
        attempts: Sequence[Key] = (),
        *,
        resume_secret: bytes = b"",
        seconds: float = WAIT_SECONDS,
        **fields: Any,
    ) -> bytes:
        """Say hello and wait for the welcome; the resume secret that it offers."""
        await self.call.write(pb.ConnectRequest(hello=hello(slots, attempts, **fields), resume_secret=resume_secret))
        await self.until(lambda: self.welcome or self.ended, seconds)
        if self.error is not None:
            raise self.error
        assert self.welcome is not None
        return self.welcome.resume_secret

    async def refused(self, resume_secret: bytes = b"") -> SisError | None:
        """Say hello and wait for the end of the stream; what it ended with."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it may have ended already
            await self.call.write(pb.ConnectRequest(hello=hello(), resume_secret=resume_secret))
        return await self.end()

    async def report(self, *reports: pb.AgentReport) -> None:
        await self.call.write(pb.ConnectRequest(reports=pb.AttemptReports(reports=reports)))

    async def beat(self, attempts: Sequence[Key] = (), free_slots: int = 0, *, draining: bool = False) -> None:
        held = [queue.Attempt(job_id=job, number=number) for job, number in attempts]
        await self.call.write(pb.ConnectRequest(beat=pb.Beat(attempts=held, free_slots=free_slots, draining=draining)))


def hello(slots: int = 4, attempts: Sequence[Key] = (), **fields: Any) -> queue.AgentHello:
    found = queue.AgentHello(
        version="1.2.3", boot_id="b", journal_id="j", slots=slots, platform="linux", hostname="host", **fields
    )
    for job, number in attempts:
        found.attempts.add(attempt=queue.Attempt(job_id=job, number=number))
    return found


def accepted(job: int, number: int = 1) -> pb.AgentReport:
    return pb.AgentReport(attempt=queue.Attempt(job_id=job, number=number), accepted=queue.Accepted())


def declined(job: int, number: int = 1) -> pb.AgentReport:
    return pb.AgentReport(attempt=queue.Attempt(job_id=job, number=number), declined=queue.Declined(reason="full"))


def output(job: int, *sequences: int, data: bytes = b"line\n") -> pb.AgentReport:
    frames = [frame_pb2.Frame(sequence=n, chunk=frame_pb2.Chunk(data=data)).SerializeToString() for n in sequences]
    return pb.AgentReport(attempt=queue.Attempt(job_id=job, number=1), frames=queue.FrameBatch(frames=frames))


def finished(job: int, sequence: int) -> pb.AgentReport:
    notice = frame_pb2.Notice(text="It has ended", finished=frame_pb2.Finished())
    frame = frame_pb2.Frame(sequence=sequence, notice=notice).SerializeToString()
    return pb.AgentReport(attempt=queue.Attempt(job_id=job, number=1), frames=queue.FrameBatch(frames=[frame]))


def assignment(job: int, number: int = 1, *, refs: Sequence[str] = ()) -> queue.Assignment:
    """It wants a credential for each of `refs`."""
    return queue.Assignment(
        attempt=queue.Attempt(job_id=job, number=number),
        operation="run",
        credentials=[lease_pb2.CredentialUse(ref=ref, credential=f"c-{ref}") for ref in refs],
        requester="somebody",
    )
