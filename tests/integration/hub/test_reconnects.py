"""Connections that end and are made anew: all of them at once, and again and again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc
import pytest

from services.runtime.backoff import Backoff
from services.runtime.errors import SisError
from services.runtime.tls import TlsFiles
from tests.fakes.credentials_service import FakeCredentials
from tests.integration.hub.agent_client import AgentClient, assignment
from tests.integration.hub.conftest import Bench, Environment, HubProcess
from tests.support.certificates import CertificateAuthority
from tests.support.queue_server import QueueServer
from tests.support.tcp_proxy import TcpProxy

AGENTS = 200
WELCOME_SECONDS, BEAT_SECONDS = 30.0, 5.0
BACK_SECONDS = 100.0
"""The delays of an agent end at ten; the rest is for a machine that does a lot besides."""


class Persistent:
    """An agent that comes again as the real one does: after a delay with jitter, with the secret that it was offered
    last."""

    def __init__(self, endpoint: str, tls: TlsFiles) -> None:
        self._endpoint = endpoint
        self._tls = tls
        self._secret = b""
        self.welcomes = 0
        self.tries = 0

    async def run(self) -> None:
        """Hold a stream, for ever."""
        backoff = Backoff()
        while True:
            self.tries += 1
            with suppress(SisError, TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                async with AgentClient(self._endpoint, self._tls) as client:
                    welcome = client.hello(resume_secret=self._secret, seconds=WELCOME_SECONDS)
                    self._secret = await welcome or self._secret
                    self.welcomes += 1
                    backoff.reset()
                    await client.live(BEAT_SECONDS)
            await asyncio.sleep(backoff.next_delay())


@pytest.fixture
async def endpoint(
    authority: CertificateAuthority, hub_database_url: str, queue_database_url: str, tmp_path: Path
) -> AsyncIterator[str]:
    """Where agents find a real hub before a real queue, each a process of its own."""
    credentials = FakeCredentials()
    async with AsyncExitStack() as stack:
        queue = stack.enter_context(QueueServer(queue_database_url, authority, tmp_path))
        port = await stack.enter_async_context(credentials.serving(authority.service("credentials")))
        where = Environment(authority, hub_database_url, queue.ports[1], port, 5.0)
        hub = await stack.enter_async_context(HubProcess.running(where.of_hub("hub-1")))
        yield hub.endpoints.agents


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_hundreds_of_agents_that_are_cut_off_at_once_all_come_back(
    endpoint: str, authority: CertificateAuthority
) -> None:
    async with TcpProxy(endpoint) as proxy:
        agents = [Persistent(proxy.endpoint, authority.agent("g", f"a{number}")) for number in range(AGENTS)]
        tasks = [asyncio.create_task(agent.run()) for agent in agents]
        clock = asyncio.get_running_loop().time

        async def all_welcomed(times: int) -> float:
            """In so many seconds."""
            began = clock()
            async with asyncio.timeout(BACK_SECONDS):
                while any(agent.welcomes < times for agent in agents):
                    assert not any(task.done() for task in tasks)
                    await asyncio.sleep(0.05)
            return clock() - began

        try:
            print(f"all welcomed in {await all_welcomed(1):.1f} s")
            for round_ in (2, 3):
                tries = sum(agent.tries for agent in agents)
                proxy.cut()
                took = await all_welcomed(round_)
                print(f"cut: all back in {took:.1f} s, {sum(agent.tries for agent in agents) - tries} tries")
            tries = sum(agent.tries for agent in agents)
            await proxy.refuse()
            proxy.cut()
            await asyncio.sleep(5)
            await proxy.accept()
            took = await all_welcomed(4)
            print(f"away for 5 s: all back in {took:.1f} s, {sum(agent.tries for agent in agents) - tries} tries")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_streams_that_end_leave_neither_tasks_nor_descriptors(bench: Bench) -> None:
    """Whichever way they end; the hub is in this process."""
    tls = bench.where.authority.agent("g", "a1")
    async with TcpProxy(bench.hub.agents) as proxy:

        async def visit(number: int, secret: bytes) -> bytes:
            async with AgentClient(proxy.endpoint, tls) as agent:
                secret = await agent.hello(resume_secret=secret)
                bench.queue.put(assignment(number))
                await agent.until(lambda: agent.assignments)
                if number % 2:
                    proxy.cut()
                    await agent.end()
            return secret

        secret = await visit(1, b"")
        secret = await visit(2, secret)
        before = await _settled(_held())
        for number in range(3, 33):
            secret = await visit(number, secret)
        assert await _settled(before) <= before


def _held() -> int:
    """Tasks and descriptors of this process."""
    return len(asyncio.all_tasks()) + len(os.listdir("/proc/self/fd"))


async def _settled(enough: int) -> int:
    """What is held once it is no more than `enough`, or after a while."""
    for _ in range(100):
        if _held() <= enough:
            break
        await asyncio.sleep(0.05)
    return _held()
