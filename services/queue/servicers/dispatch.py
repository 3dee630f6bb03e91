"""DispatchService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

from services.queue import dispatch, lease_ends, packages, reports, sessions, wakes
from services.queue.convert import dispatch as convert
from services.queue.convert import packages as convert_packages
from services.queue.wakes import Wakes
from services.runtime import faults
from services.runtime.database import Database
from services.runtime.errors import InvalidArgument, SisError
from services.runtime.interceptors import Context
from sis.queue.v1 import dispatch_service_pb2, dispatch_service_pb2_grpc

WATCH_POLL_SECONDS = 5.0
"""A wake-up may be lost, and what is not done has to be said again: everything is looked at this often anyhow."""
TAKE_BACK_SECONDS = 2.0


class DispatchServicer(dispatch_service_pb2_grpc.DispatchServiceServicer):
    """Adapts DispatchService to `sessions`, `dispatch`, `reports` and `lease_ends`."""

    def __init__(self, database: Database, waker: Wakes) -> None:
        self._database = database
        self._waker = waker

    async def OpenSession(
        self, request: dispatch_service_pb2.OpenSessionRequest, context: Context
    ) -> dispatch_service_pb2.OpenSessionResponse:
        hello = convert.open_session(request)
        async with self._database.begin("queue.session") as connection:
            welcome = await sessions.open_session(connection, hello)
        return convert.to_welcome(welcome)

    async def CloseSession(
        self, request: dispatch_service_pb2.CloseSessionRequest, context: Context
    ) -> dispatch_service_pb2.CloseSessionResponse:
        session = convert.session(request.session)
        async with self._database.begin("queue.session_end") as connection:
            await sessions.close_session(connection, session)
        return dispatch_service_pb2.CloseSessionResponse()

    async def Claim(
        self, request: dispatch_service_pb2.ClaimRequest, context: Context
    ) -> dispatch_service_pb2.ClaimResponse:
        capacities = convert.capacities(request)
        async with self._database.begin("queue.claim") as connection:
            assignments, stale = await dispatch.claim(connection, capacities)
        return convert.to_claims(assignments, stale)

    async def Report(
        self, request: dispatch_service_pb2.ReportRequest, context: Context
    ) -> dispatch_service_pb2.ReportResponse:
        if len(request.reports) > convert.REPORTS:
            raise InvalidArgument.field("reports", f"has more than {convert.REPORTS:,}; send them in parts")
        results: list[reports.Result | None] = []
        sound: list[reports.Report] = []
        for message in request.reports:
            try:
                sound.append(convert.report(message))
                results.append(None)
            except SisError as error:
                results.append(reports.Result(error=error))
        committed = iter(await reports.commit(self._database, sound) if sound else ())
        return dispatch_service_pb2.ReportResponse(
            results=[convert.to_result(result or next(committed)) for result in results]
        )

    async def Heartbeat(
        self, request: dispatch_service_pb2.HeartbeatRequest, context: Context
    ) -> dispatch_service_pb2.HeartbeatResponse:
        heartbeats = convert.heartbeats(request)
        async with self._database.begin("queue.beat") as connection:
            answer = await sessions.heartbeat(connection, heartbeats)
        return convert.to_heartbeat_response(answer)

    async def Watch(
        self, request: dispatch_service_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[dispatch_service_pb2.WatchResponse]:
        hub = convert.hub(request)
        clock = asyncio.get_running_loop().time
        # What needs the database comes first: the first response proves that it serves.
        due = dict.fromkeys((wakes.STOP, wakes.LEASES, wakes.WORK), clock())
        heard: set[str] = set()
        in_hand = lease_ends.InHand()
        try:
            with self._waker.subscribe(*due) as news:
                while True:
                    for topic in due:
                        if topic in heard or clock() >= due[topic]:
                            due[topic] = clock() + WATCH_POLL_SECONDS
                            if (response := await self._news(topic, hub, in_hand)) is not None:
                                faults.point(f"queue.{topic}.sending")
                                yield response
                                faults.point(f"queue.{topic}.sent")
                    heard = await self._waker.wait(news, max(0.0, min(due.values()) - clock()))
        finally:
            # Where it fails, the ends are handed out again a little later.
            with suppress(SisError, TimeoutError):
                async with asyncio.timeout(TAKE_BACK_SECONDS), self._database.begin("queue.take_back") as connection:
                    await in_hand.take_back(connection)

    async def _news(
        self, topic: str, hub: str, in_hand: lease_ends.InHand
    ) -> dispatch_service_pb2.WatchResponse | None:
        if topic == wakes.WORK:
            return dispatch_service_pb2.WatchResponse(wake=True)
        if topic == wakes.STOP:
            async with self._database.begin() as connection:
                stops = await sessions.stops(connection, hub)
            return convert.to_watch(stops) if stops else None
        async with self._database.begin("queue.leases") as connection:
            ends = await in_hand.hand_out(connection)
        return convert.to_lease_ends(ends) if ends else None

    async def AcknowledgeLeaseEnds(
        self, request: dispatch_service_pb2.AcknowledgeLeaseEndsRequest, context: Context
    ) -> dispatch_service_pb2.AcknowledgeLeaseEndsResponse:
        delivered = convert.lease_ends(request)
        async with self._database.begin("queue.acknowledgement") as connection:
            await lease_ends.acknowledge(connection, delivered)
        return dispatch_service_pb2.AcknowledgeLeaseEndsResponse()

    async def GetPackageArchive(
        self, request: dispatch_service_pb2.GetPackageArchiveRequest, context: Context
    ) -> AsyncIterator[dispatch_service_pb2.GetPackageArchiveResponse]:
        digest = convert_packages.digest("digest", request.digest)
        if request.offset < 0:
            raise InvalidArgument.field("offset", "must not be negative")
        async with self._database.begin() as connection:
            size = await packages.archive_size(connection, digest)
        count = max(0, size - request.offset)
        async with aclosing(packages.archive_chunks(self._database, digest, request.offset, count)) as chunks:
            async for chunk in chunks:
                yield dispatch_service_pb2.GetPackageArchiveResponse(chunk=chunk, size_bytes=size)
