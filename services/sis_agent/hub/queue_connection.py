"""The hub's side of DispatchService: each call with its deadline, its refusals as this process's errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

from services.runtime.channels import Peer, refusals
from services.runtime.errors import Unavailable
from services.runtime.identity import Identity
from sis.queue.v1 import dispatch_service_pb2 as pb
from sis.queue.v1 import dispatch_service_pb2_grpc as rpc

_OPEN_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_CLAIM_SECONDS = 10.0
_REPORT_SECONDS = 15.0
_HEARTBEAT_SECONDS = 5.0
_ACKNOWLEDGE_SECONDS = 10.0
_CHUNK_SECONDS = 30.0
_ARCHIVE_SECONDS = 3_600.0

# Claim is not among them: one that was committed twice would have been answered once.
# No stream: gRPC, when a server dies between its repeated tries, at times gives the call neither answer nor end.
_RETRIED = [
    f"sis.queue.v1.DispatchService/{method}" for method in ("OpenSession", "CloseSession", "AcknowledgeLeaseEnds")
]

Answer = TypeVar("Answer")


class QueueConnection:
    """DispatchService. Every method raises what the queue refused with, Unavailable if it does not answer."""

    def __init__(self, target: str, identity: Identity) -> None:
        self._peer: Peer[rpc.DispatchServiceAsyncStub] = Peer(
            target, identity, rpc.DispatchServiceStub, server_name="queue", retried=_RETRIED
        )

    async def open_session(self, request: pb.OpenSessionRequest) -> pb.OpenSessionResponse:
        return await _answer(self._peer.stub.OpenSession(request, timeout=_OPEN_SECONDS))

    async def close_session(self, session: pb.Session) -> None:
        await _answer(self._peer.stub.CloseSession(pb.CloseSessionRequest(session=session), timeout=_CLOSE_SECONDS))

    async def claim(self, capacities: Sequence[pb.Capacity]) -> pb.ClaimResponse:
        """If it fails, jobs may have been claimed: a heartbeat's answer or the next session brings them."""
        return await _answer(self._peer.stub.Claim(pb.ClaimRequest(capacities=capacities), timeout=_CLAIM_SECONDS))

    async def report(self, request: pb.ReportRequest) -> pb.ReportResponse:
        return await _answer(self._peer.stub.Report(request, timeout=_REPORT_SECONDS))

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        return await _answer(self._peer.stub.Heartbeat(request, timeout=_HEARTBEAT_SECONDS))

    async def acknowledge_lease_ends(self, request: pb.AcknowledgeLeaseEndsRequest) -> None:
        await _answer(self._peer.stub.AcknowledgeLeaseEnds(request, timeout=_ACKNOWLEDGE_SECONDS))

    async def watch(self, hub: str) -> AsyncGenerator[pb.WatchResponse]:
        """Wake-ups, stops and ends of leases, for as long as the queue sends them; a dead connection ends it by
        keepalive."""
        call = self._peer.stub.Watch(pb.WatchRequest(hub=hub))
        try:
            with refusals():
                async for response in call:
                    yield response
        finally:
            call.cancel()

    async def package_archive(self, digest: str, offset: int) -> AsyncGenerator[pb.GetPackageArchiveResponse]:
        """The archive from an offset, no faster than it is taken."""
        request = pb.GetPackageArchiveRequest(digest=digest, offset=offset)
        call = self._peer.stub.GetPackageArchive(request, timeout=_ARCHIVE_SECONDS)
        chunks = aiter(call)
        try:
            while True:
                with refusals():
                    async with asyncio.timeout(_CHUNK_SECONDS):
                        chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        except TimeoutError:
            raise Unavailable("the queue does not send the package; go on from the offset", retry_after=1.0) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._peer.close()


async def _answer(call: Awaitable[Answer]) -> Answer:
    with refusals():
        return await call
