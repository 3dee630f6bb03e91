"""Sessions: order, bounds, succession."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import pytest

from services.runtime.errors import SisError
from services.sis_agent.hub import sessions
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.errors import ShuttingDown, SlowAgent, StaleEpoch
from services.sis_agent.hub.sessions import Session, Sessions
from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue

CERTIFICATE = AgentCertificate("1", bytes(32), datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC))


def session(epoch: int = 1, agent: str = "a1") -> Session:
    return Session(agent, "g", CERTIFICATE, epoch, queue.AgentHello(slots=4))


def assignment(job: int, size: int = 0) -> queue.Assignment:
    return queue.Assignment(attempt=queue.Attempt(job_id=job, number=1), operation="x" * size)


def stop(job: int, epoch: int = 1, agent: str = "a1") -> queue.AgentStop:
    command = queue.StopCommand(attempt=queue.Attempt(job_id=job, number=1))
    return queue.AgentStop(session=queue.Session(agent=agent, epoch=epoch), stop=command)


async def outcome(messages: AsyncGenerator[stream.ConnectResponse]) -> tuple[list[str | None], Exception | None]:
    """The kinds of the messages that are left, and the error at the end."""
    kinds: list[str | None] = []
    try:
        kinds.extend([message.WhichOneof("content") async for message in messages])
    except SisError as error:
        return kinds, error
    return kinds, None


async def test_what_waits_goes_out_as_one_message_of_each_kind() -> None:
    found = session()
    found.stop(queue.StopCommand(attempt=queue.Attempt(job_id=1, number=1)))
    found.assign(assignment(1))
    found.assign(assignment(2))
    found.acknowledge(stream.Acknowledgement())
    found.certify(stream.CertificateAnswer())
    found.welcome(stream.Welcome())
    outgoing = found.outgoing()
    messages = [await anext(outgoing) for _ in range(5)]
    kinds = [message.WhichOneof("content") for message in messages]
    assert kinds == ["welcome", "acknowledgements", "assignments", "stops", "certificate"]
    assert len(messages[2].assignments.assignments) == 2
    await outgoing.aclose()


async def test_large_assignments_are_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = session()
    for job in (1, 2, 3):
        found.assign(assignment(job, size=3 * 1024 * 1024))
    outgoing = found.outgoing()
    parts = [(await anext(outgoing)).assignments.assignments for _ in range(3)]
    assert [part[0].attempt.job_id for part in parts] == [1, 2, 3]
    await outgoing.aclose()


async def test_the_first_close_counts_and_what_waits_is_dropped() -> None:
    found = session()
    found.assign(assignment(1))
    found.close(ShuttingDown())
    found.close(SlowAgent("a1"))
    found.assign(assignment(2))
    kinds, error = await outcome(found.outgoing())
    assert kinds == []
    assert isinstance(error, ShuttingDown)


async def test_a_close_lets_go_of_what_waits_behind_an_unread_message() -> None:
    found = session()
    for job in (1, 2, 3):
        found.assign(assignment(job, size=3 * 1024 * 1024))
    outgoing = found.outgoing()
    await anext(outgoing)
    found.assign(assignment(4))
    assert found._leaving and found._assignments
    found.close(ShuttingDown())
    assert not found._leaving and not found._assignments
    kinds, error = await outcome(outgoing)
    assert kinds == []
    assert isinstance(error, ShuttingDown)


async def test_an_agent_that_takes_too_little_is_closed() -> None:
    found = session()
    for _ in range(sessions.PENDING_MESSAGES):
        found.acknowledge(stream.Acknowledgement())
    assert not found.closed
    found.acknowledge(stream.Acknowledgement())
    assert isinstance((await outcome(found.outgoing()))[1], SlowAgent)


async def test_too_many_bytes_close_a_session() -> None:
    found = session()
    for job in range(1, 5):
        found.assign(assignment(job, size=10 * 1024 * 1024))
    assert found.closed


async def test_a_later_session_closes_the_one_before() -> None:
    directory = Sessions()
    ended: list[int] = []
    directory.subscribe(opened=lambda _: None, closed=lambda s: ended.append(s.epoch))
    first, second = session(1), session(2)
    directory.add(first)
    directory.add(second)
    assert ended == [1]
    assert isinstance((await outcome(first.outgoing()))[1], StaleEpoch)
    assert directory.of("a1") is second
    first.close()
    assert directory.of("a1") is second
    second.close()
    assert directory.of("a1") is None


async def test_an_older_session_that_comes_late_is_refused() -> None:
    directory = Sessions()
    directory.add(session(2))
    with pytest.raises(StaleEpoch):
        directory.add(session(1))


async def test_stale_sessions_are_closed_by_their_epoch() -> None:
    directory = Sessions()
    found = session(2)
    directory.add(found)
    directory.close_stale([queue.Session(agent="a1", epoch=1), queue.Session(agent="unknown", epoch=1)])
    assert not found.closed
    directory.close_stale([queue.Session(agent="a1", epoch=2)])
    assert found.closed


async def test_stops_go_to_their_session_alone() -> None:
    directory = Sessions()
    found = session(2)
    directory.add(found)
    directory.stop([stop(1, epoch=1), stop(2, agent="elsewhere"), stop(3, epoch=2)])
    message = await anext(found.outgoing())
    assert [command.attempt.job_id for command in message.stops.stops] == [3]


async def test_a_stop_that_comes_while_its_session_opens_is_kept() -> None:
    directory = Sessions()
    found = session(2)
    with directory.opening("a1"):
        directory.stop([stop(1, epoch=1), stop(2, epoch=2)])
        directory.add(found)
    message = await anext(found.outgoing())
    assert [command.attempt.job_id for command in message.stops.stops] == [2]
