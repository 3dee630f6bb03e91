"""Connections that are cut, delayed and swallowed, between each two processes: every line once, in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sis.client import Client
from sis.client.endpoints import Endpoints, Token
from tests.support.enrolled import enrolled_agent, far_hub
from tests.support.numbered_job import NumberedJob, until
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy


class ProxyThread:
    """A TcpProxy that runs beside a synchronous test."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.proxy = TcpProxy(host, int(port))
        self._do(self.proxy.__aenter__())

    def _do(self, work) -> object:  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def __call__(self, action: Callable[[TcpProxy], object]) -> None:
        """Do something to the proxy in its own thread."""

        async def act() -> None:
            action(self.proxy)

        self._do(act())

    def close(self) -> None:
        self._do(self.proxy.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def proxied(endpoint: str) -> Iterator[ProxyThread]:
    proxy = ProxyThread(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


def disturb(proxy: ProxyThread, job: NumberedJob) -> None:
    """Cut, delay, and swallow one direction and both, with the job going on behind each."""
    for _ in range(3):
        proxy(lambda p: p.cut())
        job.wait_lines()
    proxy(lambda p: setattr(p, "delay", 0.2))
    job.wait_lines()
    proxy(lambda p: setattr(p, "delay", 0.0))
    for direction in ({"to_client": False}, {"to_target": False}, {}):
        proxy(lambda p, direction=direction: p.black_hole(**direction))  # type: ignore[misc]
        before = proxy.proxy.accepted
        proxy(lambda p: p.cut())
        # Somebody tries again, into the black hole, before it is healed.
        until(lambda before=before: proxy.proxy.accepted > before, "a new connection")  # type: ignore[misc]
        proxy(lambda p: p.heal())
        proxy(lambda p: p.cut())
        job.wait_lines()


def test_between_agent_and_hub(stack: Stack, tmp_path: Path) -> None:
    with (
        proxied(stack.process_environment("local-1")["SIS_AGENT_HUB_ENDPOINTS"]) as proxy,
        enrolled_agent(stack, tmp_path / "far-1", name="far-1", group="far") as agent,
        stack.client() as client,
    ):
        agent.start(proxy.proxy.endpoint)
        job = NumberedJob(client, tmp_path, site="group:far")
        job.wait_lines()
        disturb(proxy, job)
        job.check()


def test_between_client_and_queue(stack: Stack, tmp_path: Path) -> None:
    state = stack.state
    token = (stack.data / "admin.token").read_text().strip()
    ca = (stack.data / "tls" / "ca.pem").read_bytes()
    with (
        proxied(state.queue_endpoint) as proxy,
        stack.client() as client,
        Client(Endpoints(proxy.proxy.endpoint, Token(token), ca)) as watcher,
    ):
        job = NumberedJob(client, tmp_path, watcher=watcher)
        job.wait_lines()
        disturb(proxy, job)
        job.check()


def test_between_hub_and_queue(stack: Stack, tmp_path: Path) -> None:
    queue = stack.process_environment("hub-1")["SIS_HUB_QUEUE_ENDPOINT"]
    with (
        proxied(queue) as proxy,
        far_hub(stack, tmp_path / "hub", SIS_HUB_QUEUE_ENDPOINT=proxy.proxy.endpoint) as hub,
        enrolled_agent(stack, tmp_path / "remote-1", name="remote-1", group="remote") as agent,
        stack.client() as client,
    ):
        agent.start(hub.agents)
        job = NumberedJob(client, tmp_path, site="group:remote")
        job.wait_lines()
        disturb(proxy, job)
        job.check()


@pytest.fixture(autouse=True)
def _healthy_afterwards(stack: Stack) -> Iterator[None]:
    yield
    stack.wait_healthy()
