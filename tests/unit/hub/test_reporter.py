"""Reports on their way to the queue: what a closed session and a slow queue do to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.runtime.errors import DeadlineExceeded
from services.sis_agent.hub import reporter
from services.sis_agent.hub.errors import StaleEpoch
from services.sis_agent.hub.reporter import Reporter
from services.sis_agent.hub.sessions import Session
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue
from tests.unit.hub.test_hub_sessions import session

MOST = 8
"""How many reports a call of these reporters may have."""


class SlowQueue:
    """It takes too long for more than `bears` reports; while the gate is shut, it says nothing."""

    def __init__(self, bears: int = MOST) -> None:
        self.bears = bears
        self.away = 0
        """For so many calls it does not answer in time, whatever they hold."""
        self.called = asyncio.Event()
        self.tried: list[int] = []
        self.committed: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def report(self, request: queue.ReportRequest) -> queue.ReportResponse:
        self.tried.append(len(request.reports))
        self.called.set()
        await self.gate.wait()
        if self.away:
            self.away -= 1
            raise DeadlineExceeded("it takes too long")
        if len(request.reports) > self.bears:
            raise DeadlineExceeded("it takes too long")
        self.committed += [each.attempt.job_id for each in request.reports]
        return queue.ReportResponse(results=[queue.ReportResult() for _ in request.reports])


@asynccontextmanager
async def reporting(slow: SlowQueue, session_bytes: int = 1 << 20) -> AsyncIterator[Reporter]:
    connection: Any = slow
    found = Reporter(connection, session_bytes=session_bytes, on_free=lambda: None)
    running = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture(autouse=True)
def _small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "CALL_REPORTS", MOST)


def reports(jobs: Iterable[int]) -> list[stream.AgentReport]:
    return [stream.AgentReport(attempt=queue.Attempt(job_id=job, number=1), accepted=queue.Accepted()) for job in jobs]


async def say(found: Reporter, agent: Session, jobs: Iterable[int]) -> None:
    """Have these reports committed."""
    await found.submit(agent, reports(jobs))
    await asyncio.wait_for(found.drained(), 20)


async def test_a_report_for_which_there_was_no_room_before_its_session_closed_is_not_taken() -> None:
    slow, agent = SlowQueue(), session()
    slow.gate.clear()
    async with reporting(slow, session_bytes=1_000) as found:
        await found.submit(agent, reports([1]))
        waiting = asyncio.create_task(found.submit(agent, reports([2])))
        await asyncio.wait_for(slow.called.wait(), 10)
        assert not waiting.done()
        agent.close(StaleEpoch("a1"))
        slow.gate.set()
        await asyncio.wait_for(waiting, 10)
        await asyncio.wait_for(found.drained(), 10)
    assert slow.committed == [1]


async def test_a_call_that_takes_too_long_is_made_smaller() -> None:
    slow, agent = SlowQueue(bears=3), session()
    async with reporting(slow) as found:
        await say(found, agent, range(1, MOST + 1))
    assert slow.committed == list(range(1, MOST + 1))
    assert slow.tried == [8, 8, 4, 2, 2, 4, 2, 2]


async def test_a_call_that_took_too_long_once_is_made_again_as_it_is() -> None:
    slow, agent = SlowQueue(), session()
    slow.away = 1
    async with reporting(slow) as found:
        await say(found, agent, range(1, MOST + 1))
    assert slow.tried == [8, 8]


async def test_a_report_that_takes_too_long_alone_is_tried_until_it_is_committed() -> None:
    slow, agent = SlowQueue(), session()
    slow.away = 4
    async with reporting(slow) as found:
        await say(found, agent, [1])
    assert slow.tried == [1] * 5
    assert not any(each.HasField("error") for each in agent._acknowledgements)


async def test_after_a_call_that_took_too_long_the_next_ones_are_smaller_until_the_queue_bears_them() -> None:
    slow, agent = SlowQueue(bears=4), session()
    async with reporting(slow) as found:
        await say(found, agent, range(1, MOST + 1))
        assert slow.tried == [8, 8, 4, 4]
        slow.tried.clear()
        await say(found, agent, range(1, MOST + 1))
        assert max(slow.tried) <= 4
        slow.bears = MOST
        for _ in range(20):
            await say(found, agent, [1])
        slow.tried.clear()
        await say(found, agent, range(1, MOST + 1))
    assert slow.tried == [8]
