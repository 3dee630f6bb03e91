"""The two sides of a session, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from services.runtime.errors import SisError
from services.sis_agent.hub import streams
from services.sis_agent.hub.errors import AgentQuarantined, AgentRevoked, SilentAgent, StaleEpoch
from services.sis_agent.hub.sessions import Session, Sessions
from services.sis_agent.hub.streams import Streams
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue
from tests.unit.hub.test_hub_sessions import assignment, session

REPORT = stream.ConnectRequest(
    reports=stream.AttemptReports(
        reports=[stream.AgentReport(attempt=queue.Attempt(job_id=1, number=1), accepted=queue.Accepted())]
    )
)


class Agent:
    """It says what it is told to, and reads nothing until it may."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[stream.ConnectRequest | None] = asyncio.Queue()
        self.may_read = asyncio.Event()
        self.written = asyncio.Event()
        self.heard: list[stream.AgentReport] = []
        self.taken = asyncio.Event()

    async def requests(self) -> AsyncIterator[stream.ConnectRequest]:
        while (request := await self.says.get()) is not None:
            yield request

    async def write(self, message: stream.ConnectResponse) -> None:
        self.written.set()
        await self.may_read.wait()

    async def submit(self, _: Session, reports: list[stream.AgentReport]) -> None:
        self.heard += reports
        self.taken.set()


def conversation(agent: Agent, found: Session) -> asyncio.Task[None]:
    """A session on which the hub writes what its agent leaves unread."""
    parts: Any = None
    reporter: Any = SimpleNamespace(submit=agent.submit)
    hub = Streams(
        *(parts, Sessions(), reporter, parts, parts, parts, parts),
        hub="hub-1",
        beat_interval=60.0,
        unacknowledged_limit_bytes=1,
        stream_seconds=600.0,
        on_free=lambda: None,
    )
    found.assign(assignment(1))
    return asyncio.create_task(hub.converse(found, agent.requests(), agent.write))


@pytest.mark.parametrize("error", [AgentRevoked("a1"), AgentQuarantined("a1")], ids=["revoked", "in quarantine"])
async def test_who_is_not_let_in_again_is_not_waited_for(error: SisError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LAST_WORD_SECONDS", 0.01)
    agent, found = Agent(), session()
    conversing = conversation(agent, found)
    await agent.written.wait()
    found.close(error)
    with pytest.raises(type(error)):
        await asyncio.wait_for(conversing, 10)


@pytest.mark.parametrize("error", [StaleEpoch("a1"), SilentAgent("a1", 1.0)], ids=["superseded", "silent"])
async def test_who_may_come_again_keeps_its_place_until_it_has_read(
    error: SisError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LAST_WORD_SECONDS", 0.01)
    agent, found = Agent(), session()
    conversing = conversation(agent, found)
    await agent.written.wait()
    found.close(error)
    assert not (await asyncio.wait([conversing], timeout=0.1))[0]
    agent.may_read.set()
    with pytest.raises(type(error)):
        await asyncio.wait_for(conversing, 10)


async def test_what_was_said_before_the_close_is_taken_and_nothing_else() -> None:
    agent, found = Agent(), session()
    conversing = conversation(agent, found)
    agent.says.put_nowait(REPORT)
    await agent.written.wait()
    await asyncio.wait_for(agent.taken.wait(), 10)
    # There before the close is noticed, and ahead of it.
    for _ in range(3):
        agent.says.put_nowait(REPORT)
    found.close(StaleEpoch("a1"))
    agent.may_read.set()
    with pytest.raises(StaleEpoch):
        await asyncio.wait_for(conversing, 10)
    assert len(agent.heard) == 1


async def test_an_agent_that_ends_its_side_has_its_stream_ended_well() -> None:
    agent, found = Agent(), session()
    conversing = conversation(agent, found)
    agent.may_read.set()
    agent.says.put_nowait(None)
    await asyncio.wait_for(conversing, 10)
    assert found.closed


async def test_a_write_that_fails_closes_the_session() -> None:
    agent, found = Agent(), session()

    async def fail(_: stream.ConnectResponse) -> None:
        raise ValueError("it cannot be written")

    agent.write = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="cannot be written"):
        await asyncio.wait_for(conversation(agent, found), 10)
    assert found.closed


async def test_a_call_that_is_cancelled_closes_the_session() -> None:
    agent, found = Agent(), session()
    conversing = conversation(agent, found)
    await agent.written.wait()
    conversing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await conversing
    assert found.closed
