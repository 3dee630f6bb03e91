"""A hub that does what a test says: the AgentService over TLS, on a port of its own, with nothing behind it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from services.runtime.errors import NotFound, SisError, to_status
from services.runtime.settings import TlsFiles
from sis.agent.v1 import agent_service_pb2 as pb
from sis.agent.v1 import agent_service_pb2_grpc as rpc
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2

PATIENCE_SECONDS = 20.0
Key = tuple[int, int]


def key_of(attempt: dispatch.Attempt) -> Key:
    return attempt.job_id, attempt.number


class Log:
    """The log of one attempt as a server would commit it."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.received = 0
        self.digest = bytes(32)
        self.accepted = 0
        self.declined: list[str] = []

    def append(self, frames: list[bytes]) -> None:
        """Commit frames; those that were committed before must be the same. Fails on a gap."""
        for raw in frames:
            self.received += 1
            sequence = frame_pb2.Frame.FromString(raw).sequence
            if sequence <= len(self.frames):
                assert self.frames[sequence - 1] == raw, f"frame {sequence} was cut anew"
                continue
            assert sequence == len(self.frames) + 1, f"frame {sequence} follows {len(self.frames)}"
            if (finished := frame_pb2.Frame.FromString(raw).notice).WhichOneof("fact") == "finished":
                assert finished.finished.digest == self.digest
            self.frames.append(raw)
            self.digest = hashlib.sha256(self.digest + raw).digest()

    @property
    def output(self) -> bytes:
        return b"".join(frame.chunk.data for frame in map(frame_pb2.Frame.FromString, self.frames))

    @property
    def texts(self) -> list[str]:
        return [text for frame in map(frame_pb2.Frame.FromString, self.frames) if (text := frame.notice.text)]

    def fact(self, name: str) -> Any:
        """The last fact of this name, None if there is none."""
        notices = [frame_pb2.Frame.FromString(raw).notice for raw in self.frames]
        found = [getattr(notice, name) for notice in notices if notice.WhichOneof("fact") == name]
        return found[-1] if found else None

    @property
    def finished(self) -> frame_pb2.Finished | None:
        found = self.fact("finished")
        assert found is None or isinstance(found, frame_pb2.Finished)
        return found


class Stream:
    """One agent's stream, from its hello on. The test plays the hub."""

    def __init__(self, hub: FakeHub, hello: dispatch.AgentHello) -> None:
        self.hello = hello
        self.beats: list[pb.Beat] = []
        self._hub = hub
        self._said: asyncio.Queue[pb.ConnectResponse | SisError | None] = asyncio.Queue()
        self._heard: asyncio.Queue[pb.AgentReport] = asyncio.Queue()
        self._changed = asyncio.Event()

    @property
    def in_hand(self) -> dict[Key, int]:
        return {key_of(each.attempt): each.acknowledged_sequence for each in self.hello.attempts}

    def welcome(
        self,
        *verdicts: tuple[Key, dispatch.Verdict.ValueType, int],
        limit_bytes: int = 1 << 20,
        beat_seconds: float = 0.2,
    ) -> None:
        """Welcome the agent. An attempt in hand without a verdict here goes on from the end of its log, or is to be
        forgotten if that has been reached."""
        given = {key: (verdict, sequence) for key, verdict, sequence in verdicts}
        for key in self.in_hand:
            log = self._hub.logs[key]
            usual = dispatch.VERDICT_GO_ON if log.finished is None else dispatch.VERDICT_FORGET
            given.setdefault(key, (usual, len(log.frames)))
        interval = duration_pb2.Duration()
        interval.FromMilliseconds(int(beat_seconds * 1000))
        welcome = pb.Welcome(
            epoch=self._hub.next_epoch(), beat_interval=interval, unacknowledged_limit_bytes=limit_bytes
        )
        for key, (verdict, sequence) in given.items():
            attempt = dispatch.Attempt(job_id=key[0], number=key[1])
            welcome.verdicts.add(attempt=attempt, verdict=verdict, acknowledged_sequence=sequence)
        self._say(pb.ConnectResponse(welcome=welcome))

    def assign(self, *assignments: dispatch.Assignment) -> None:
        self._say(pb.ConnectResponse(assignments=pb.Assignments(assignments=assignments)))

    def stop(self, key: Key, kind: frame_pb2.StopKind.ValueType, reason: str = "a test says so") -> None:
        command = dispatch.StopCommand(attempt=dispatch.Attempt(job_id=key[0], number=key[1]), kind=kind, reason=reason)
        self._say(pb.ConnectResponse(stops=pb.Stops(stops=[command])))

    def acknowledge(self, report: pb.AgentReport) -> None:
        """Commit a report and say so."""
        log = self._hub.logs[key_of(report.attempt)]
        answer = pb.Acknowledgement(attempt=report.attempt)
        match report.WhichOneof("content"):
            case "accepted":
                log.accepted += 1
                answer.accepted = True
            case "declined":
                log.declined.append(report.declined.reason)
            case _:
                log.append(list(report.frames.frames))
                answer.sealed = log.finished is not None
        answer.acknowledged_sequence = len(log.frames)
        self._say(pb.ConnectResponse(acknowledgements=pb.Acknowledgements(acknowledgements=[answer])))

    def refuse(self, report: pb.AgentReport, error: SisError, acknowledged_sequence: int = 0) -> None:
        status = status_pb2.Status()
        status.CopyFrom(to_status(error))
        answer = pb.Acknowledgement(attempt=report.attempt, error=status, acknowledged_sequence=acknowledged_sequence)
        self._say(pb.ConnectResponse(acknowledgements=pb.Acknowledgements(acknowledgements=[answer])))

    def end(self, error: SisError | None = None) -> None:
        """End the stream, with an error or without."""
        self._said.put_nowait(error)

    async def report(self) -> pb.AgentReport:
        """The next report that was not taken yet."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._heard.get()

    def reports_waiting(self) -> int:
        return self._heard.qsize()

    async def accept(self, *assignments: dispatch.Assignment) -> None:
        """Assign and commit the acceptances."""
        self.assign(*assignments)
        for _ in assignments:
            report = await self.report()
            assert report.HasField("accepted"), report
            self.acknowledge(report)

    async def commit_until(self, enough: Callable[[], bool]) -> None:
        """Commit everything that is reported until it is enough."""
        while not enough():
            self.acknowledge(await self.report())

    async def commit_all(self, *keys: Key) -> None:
        """Commit everything that is reported until these attempts have ended."""
        await self.commit_until(lambda: all(self._hub.logs[key].finished for key in keys))

    async def beat(self, enough: Callable[[pb.Beat], bool]) -> pb.Beat:
        """The next beat that satisfies the test."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                seen = len(self.beats)
                if self.beats and enough(self.beats[-1]):
                    return self.beats[-1]
                while len(self.beats) == seen:
                    self._changed.clear()
                    await self._changed.wait()

    def _say(self, response: pb.ConnectResponse) -> None:
        self._said.put_nowait(response)

    async def listen(self, requests: AsyncIterator[pb.ConnectRequest]) -> None:
        async for request in requests:
            if request.HasField("beat"):
                self.beats.append(request.beat)
            for report in request.reports.reports:
                self._heard.put_nowait(report)
            self._changed.set()

    async def talk(self) -> AsyncIterator[pb.ConnectResponse]:
        while isinstance(said := await self._said.get(), pb.ConnectResponse):
            yield said
        if said is not None:
            raise said


class FakeHub(rpc.AgentServiceServicer):
    """Listens on a loopback port and hands its streams to the test."""

    def __init__(self, tls: TlsFiles) -> None:
        self.logs: defaultdict[Key, Log] = defaultdict(Log)
        self.packages: dict[str, bytes] = {}
        self.fetches: list[tuple[str, int]] = []
        self.on_fetch: Callable[[], Any] = lambda: None
        self.port = 0
        self._tls = tls
        self._epoch = 0
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    async def start(self) -> None:
        """Serve, on the same port as before if there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_AgentServiceServicer_to_server(self, self._server)
        credentials = grpc.ssl_server_credentials(
            [(self._tls.key.read_bytes(), self._tls.certificate.read_bytes())],
            root_certificates=self._tls.ca.read_bytes(),
            require_client_auth=True,
        )
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Cut every stream and listen no longer. Repeatable."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def stream(self) -> Stream:
        """The next stream that an agent opens; its hello has been heard."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._streams.get()

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ConnectResponse]:
        hello = await anext(request_iterator)
        stream = Stream(self, hello.hello)
        self._streams.put_nowait(stream)
        listening = asyncio.create_task(stream.listen(request_iterator))
        try:
            async for response in stream.talk():
                yield response
        except SisError as error:
            await _abort(context, error)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def FetchPackage(
        self, request: pb.FetchPackageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.FetchPackageResponse]:
        self.fetches.append((request.digest, request.offset))
        await asyncio.sleep(0)
        try:
            self.on_fetch()
        except SisError as error:
            await _abort(context, error)
        archive = self.packages.get(request.digest)
        if archive is None:
            await _abort(context, NotFound("there is no such package", reason="PACKAGE_NOT_FOUND"))
            return
        for offset in range(request.offset, len(archive), 1024):
            chunk = archive[offset : offset + 1024]
            yield pb.FetchPackageResponse(chunk=chunk, size_bytes=len(archive))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SisError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
