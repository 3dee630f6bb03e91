"""Agents that leave unread what the hub writes, until no more of it has room on its way."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from services.runtime.errors import SisError
from services.runtime.tls import TlsFiles
from services.sis_agent.hub.errors import AgentRevoked, StreamTooOld
from sis.agent.v1 import agent_service_pb2 as pb
from tests.integration.hub.agent_client import WAIT_SECONDS, AgentClient, assignment, hello, output
from tests.integration.hub.conftest import Bench

ASSIGNMENTS = 7
"""Of 2 MB each, which fit in no window of gRPC's."""


async def unread(bench: Bench, tls: TlsFiles | None = None) -> AgentClient:
    """A stream of a1 that the hub hears, and on which it cannot get rid of what it writes."""
    for job in range(1, ASSIGNMENTS + 1):
        large = assignment(job)
        large.parameters["x"].file.content = bytes(2_000_000)
        bench.queue.redelivered.append(large)
    agent = await bench.agent(tls=tls, reads=False)
    await agent.call.write(pb.ConnectRequest(hello=hello(slots=ASSIGNMENTS)))
    await agent.report(output(1, 1))
    await bench.queue.until(lambda: bench.queue.sequences[1, 1] == 1)
    return agent


async def all_that_was_sent_has_been_read(bench: Bench, agent: AgentClient) -> None:
    """Wait until the hub would have committed what `agent` has sent: another stream over the same connection has come
    to its end, and what another agent said since is committed."""
    behind = agent.stub.Connect()
    await behind.write(pb.ConnectRequest())
    assert await behind.code() != grpc.StatusCode.OK
    other = await bench.agent("other")
    await other.hello()
    for sequence in range(1, 11):
        await other.report(output(100, sequence))
        await other.until(lambda: len(other.acknowledgements) == sequence)  # noqa: B023


async def test_a_revoked_agent_that_does_not_read_is_heard_no_more(bench: Bench) -> None:
    tls = bench.where.authority.agent("g", "a1")
    agent = await unread(bench, tls)
    bench.credentials.revoke("a1", tls)
    await bench.queue.until(lambda: bench.queue.closed)
    await agent.report(output(1, 2), output(2, 1))
    await all_that_was_sent_has_been_read(bench, agent)
    assert (bench.queue.sequences[1, 1], bench.queue.sequences[2, 1]) == (1, 0)


async def test_nothing_is_taken_of_a_closed_stream_that_waits_for_its_agent_to_read(bench: Bench) -> None:
    agent = await unread(bench)
    (session,) = bench.parts._sessions
    session.close(StreamTooOld("a1", 1.0))
    await agent.report(output(1, 2))
    await all_that_was_sent_has_been_read(bench, agent)
    assert bench.queue.sequences[1, 1] == 1


@pytest.mark.parametrize("error", [AgentRevoked("a1"), StreamTooOld("a1", 1.0)], ids=["revoked", "too old"])
async def test_an_agent_that_reads_late_hears_why_its_stream_has_ended(bench: Bench, error: SisError) -> None:
    agent = await unread(bench)
    (session,) = bench.parts._sessions
    session.close(error)
    await all_that_was_sent_has_been_read(bench, agent)
    agent.read()
    found = await agent.end()
    assert found is not None and found.reason == error.reason
    assert len(agent.assignments) < ASSIGNMENTS  # the others had no room and were dropped


class Ends(logging.Handler):
    """The calls of AgentService/Connect that have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.first = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "method", "") == "/sis.agent.v1.AgentService/Connect":
            self.first.set()


async def test_the_call_of_a_revoked_agent_ends_though_it_does_not_read(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await unread(bench)
    ends = Ends()
    caplog.set_level(logging.INFO, "rpc")
    logging.getLogger("rpc").addHandler(ends)
    try:
        (session,) = bench.parts._sessions
        session.close(AgentRevoked("a1"))
        await asyncio.wait_for(ends.first.wait(), WAIT_SECONDS)
    finally:
        logging.getLogger("rpc").removeHandler(ends)
