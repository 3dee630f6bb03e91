"""Channels to several replicas, one of which may be away; and connections that become old."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import cast

import grpc
import pytest

from services.runtime import server as runtime_server
from services.runtime.channels import Balancing, secure_channel
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_service_pb2 as job_pb
from sis.queue.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from sis.queue.v1.job_service_pb2_grpc import JobServiceStub
from tests.integration.runtime.conftest import BEARER, JobServicer, Site, build
from tests.support.certificates import CertificateAuthority
from tests.support.tcp_proxy import TcpProxy

CALLS = 20


class Replicas:
    """Two ways to the server of a site, each as good as a replica."""

    def __init__(self, site: Site, ways: tuple[TcpProxy, TcpProxy]) -> None:
        self.ways = ways
        self.target = f"ipv4:{','.join(way.endpoint for way in ways)}"
        self.tls = site.authority.service("hub")

    async def call(self, balancing: Balancing) -> None:
        """Make a channel, and calls of which none may fail."""
        async with secure_channel(self.target, self.tls, server_name="queue", balancing=balancing) as channel:
            for _ in range(CALLS):
                await _called(channel)

    async def kept(self) -> int:
        """Make a channel and calls; which of the ways it keeps. Where one is slow, both are tried at once."""
        async with secure_channel(self.target, self.tls, server_name="queue", balancing=Balancing.ONE) as channel:
            for _ in range(CALLS):
                await _called(channel)
            async with asyncio.timeout(20):
                while sum(way.connections for way in self.ways) != 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            return [way.connections for way in self.ways].index(1)

    @property
    def used(self) -> list[bool]:
        """Whether each has had a connection."""
        return [way.accepted > 0 for way in self.ways]


async def _called(channel: object) -> None:
    await DispatchServiceStub(channel).CloseSession(dispatch_pb.CloseSessionRequest(), timeout=20)  # type: ignore[arg-type]


@pytest.fixture
async def replicas(site: Site) -> AsyncIterator[Replicas]:
    target = f"127.0.0.1:{site.server.ports[1]}"
    async with TcpProxy(target) as first, TcpProxy(target) as second:
        yield Replicas(site, (first, second))


async def test_calls_of_servers_go_to_all_replicas(replicas: Replicas) -> None:
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(
            secure_channel(replicas.target, replicas.tls, server_name="queue", balancing=Balancing.ALL)
        )
        async with asyncio.timeout(20):
            while replicas.used != [True, True]:
                await _called(channel)
        assert [way.accepted for way in replicas.ways] == [1, 1]


async def test_a_client_has_one_replica_and_clients_are_spread(replicas: Replicas) -> None:
    kept = {await replicas.kept()}
    for _ in range(100):  # that they all drew the same one has a chance of 1 in 2 to the power of 100
        if len(kept) == 2:
            break
        kept.add(await replicas.kept())
    assert kept == {0, 1}


@pytest.mark.parametrize("balancing", Balancing)
@pytest.mark.parametrize("away", [0, 1])
async def test_no_call_fails_for_a_replica_that_is_away(replicas: Replicas, balancing: Balancing, away: int) -> None:
    await replicas.ways[away].refuse()
    for _ in range(3):
        await replicas.call(balancing)
    assert replicas.ways[1 - away].accepted == 3


class NameServer(asyncio.DatagramProtocol):
    """Knows one name by addresses that change, and that nobody may keep."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0
        """How often for IPv4 addresses."""
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        found = []
        if question.endswith(struct.pack("!HH", 1, 1)):
            self.asked += 1
            found = [bytes(map(int, each.split("."))) for each in self.addresses]
        header = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        answers = [struct.pack("!HHHIH", 0xC00C, 1, 1, 0, len(each)) + each for each in found]
        assert self._transport is not None
        self._transport.sendto(header + question + b"".join(answers), addr)


async def test_who_was_told_former_addresses_soon_asks_again(site: Site) -> None:
    """Within the half minute in which replicas are there beside those that come after them."""
    target = f"127.0.0.1:{site.server.ports[1]}"
    names = NameServer("127.0.0.1")
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: names, ("127.0.0.1", 0))
    try:
        async with AsyncExitStack() as stack:
            former = await stack.enter_async_context(TcpProxy(target))
            latter = await stack.enter_async_context(TcpProxy(target, "127.0.0.2", former.port))
            channel = await stack.enter_async_context(
                secure_channel(
                    f"dns://127.0.0.1:{names.port}/replicas.example:{former.port}",
                    site.authority.service("hub"),
                    server_name="queue",
                    balancing=Balancing.ALL,
                )
            )
            await _called(channel)
            told = names.asked
            await former.refuse()
            former.cut()
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            called = asyncio.ensure_future(
                DispatchServiceStub(channel).CloseSession(  # type: ignore[no-untyped-call]
                    dispatch_pb.CloseSessionRequest(), timeout=25, wait_for_ready=True
                )
            )
            while names.asked == told and not called.done():  # it is told what is no longer true
                await asyncio.wait([called], timeout=0.1)
            names.addresses = ("127.0.0.2",)
            await called
            assert latter.accepted == 1
    finally:
        transport.close()


async def test_connections_that_are_old_take_no_new_calls_and_lose_none(
    authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_server, "CONNECTION_SECONDS", 0.3)
    jobs = JobServicer()
    server = build(authority, jobs)
    await server.start()
    try:
        async with TcpProxy(f"127.0.0.1:{server.ports[1]}") as proxy:
            tls = authority.service("gateway")
            async with secure_channel(proxy.endpoint, tls, server_name="queue") as channel:
                stub = JobServiceStub(channel)
                long = asyncio.ensure_future(stub.GetJob(job_pb.GetJobRequest(job_id=1000), metadata=BEARER))
                await jobs.waiting.get()
                async with asyncio.timeout(20):
                    while proxy.accepted < 4:
                        await stub.GetJob(job_pb.GetJobRequest(job_id=1), metadata=BEARER)
                jobs.release.set()
                assert (await long).job.job_id == 1000
    finally:
        await server.stop(0)
