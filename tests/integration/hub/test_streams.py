"""AgentService.Connect: hello and welcome, succession, silence, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from functools import partial

import pytest

from services.runtime.errors import InvalidArgument, Unavailable
from sis.agent.v1 import agent_service_pb2 as pb
from sis.queue.v1 import dispatch_service_pb2 as queue
from tests.integration.hub.agent_client import AgentClient, Key, accepted, assignment, hello, output
from tests.integration.hub.conftest import Bench


def exceeds(found: Sized, seen: int) -> bool:
    return len(found) > seen


async def test_a_hello_opens_a_session_and_is_welcomed(bench: Bench) -> None:
    bench.queue.sequences[7, 1] = 5
    bench.queue.sealed.add((8, 1))
    bench.queue.redelivered = [assignment(9)]
    agent = await bench.agent("a1", "berlin")
    await agent.hello(slots=4, attempts=[(7, 1), (8, 1)], labels={"site": "x"})
    (opened,) = bench.queue.opened
    assert (opened.agent.name, opened.agent.group, opened.hub) == ("a1", "berlin", "hub-1")
    assert opened.hello.labels == {"site": "x"}
    assert agent.welcome is not None
    assert agent.welcome.epoch == 1
    assert agent.welcome.beat_interval.ToMilliseconds() == 5_000
    assert agent.welcome.unacknowledged_limit_bytes == 4 * 1024 * 1024
    assert [(v.verdict, v.acknowledged_sequence) for v in agent.welcome.verdicts] == [
        (queue.VERDICT_GO_ON, 5),
        (queue.VERDICT_FORGET, 0),
    ]
    await agent.until(lambda: agent.assignments)
    assert [a.attempt.job_id for a in agent.assignments] == [9]


async def test_a_hello_is_needed_first_and_once(bench: Bench) -> None:
    rude = await bench.agent("a1")
    await rude.beat()
    error = await rude.end()
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "hello"
    twice = await bench.agent("a2")
    await twice.hello()
    await twice.call.write(pb.ConnectRequest(hello=hello()))
    assert isinstance(await twice.end(), InvalidArgument)
    empty = await bench.agent("a3")
    await empty.hello()
    await empty.call.write(pb.ConnectRequest())
    assert isinstance(await empty.end(), InvalidArgument)


async def test_a_wrong_hello_never_reaches_the_queue(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.call.write(pb.ConnectRequest(hello=hello(slots=0)))
    error = await agent.end()
    assert error is not None
    assert error.violations[0].field == "hello.slots"
    assert not bench.queue.opened


async def test_a_queue_that_does_not_open_is_unavailable_to_the_agent(bench: Bench) -> None:
    bench.queue.failures["OpenSession"].extend([Unavailable("the database does not answer")] * 4)
    agent = await bench.agent()
    await agent.call.write(pb.ConnectRequest(hello=hello()))
    assert isinstance(await agent.end(), Unavailable)


async def test_a_later_stream_supersedes_the_older_one_at_once(bench: Bench) -> None:
    first = await bench.agent()
    await first.hello()
    second = await bench.agent()
    await second.hello()
    error = await first.end()
    assert error is not None
    assert error.reason == "STALE_EPOCH"
    assert second.welcome is not None
    assert second.welcome.epoch == 2
    bench.queue.put(assignment(1))
    await second.until(lambda: second.assignments)
    assert not bench.queue.closed  # the agent never was offline


async def test_a_session_that_is_stale_for_the_queue_is_closed(quick_bench: Bench) -> None:
    by_claim = await quick_bench.agent("a1")
    await by_claim.hello()
    quick_bench.queue.epochs["a1"] += 1
    quick_bench.queue.wake()
    error = await by_claim.end()
    assert error is not None and error.reason == "STALE_EPOCH"

    by_report = await quick_bench.agent("a2")
    await by_report.hello(draining=True)
    quick_bench.queue.epochs["a2"] += 1
    await by_report.report(output(1, 1))
    error = await by_report.end()
    assert error is not None and error.reason == "STALE_EPOCH"
    assert not by_report.acknowledgements

    by_heartbeat = await quick_bench.agent("a3")
    await by_heartbeat.hello(draining=True)
    quick_bench.queue.epochs["a3"] += 1
    await by_heartbeat.beat()  # its hello may have been told already
    error = await by_heartbeat.end()
    assert error is not None and error.reason == "STALE_EPOCH"


async def test_the_end_of_a_stream_closes_the_session(bench: Bench) -> None:
    ended = await bench.agent("a1")
    await ended.hello()
    await ended.call.done_writing()
    assert await ended.end() is None
    await bench.queue.until(lambda: [s.agent for s in bench.queue.closed] == ["a1"])
    lost = await bench.agent("a2")
    await lost.hello()
    lost.call.cancel()
    await bench.queue.until(lambda: [s.agent for s in bench.queue.closed] == ["a1", "a2"])
    assert [s.epoch for s in bench.queue.closed] == [1, 1]


async def test_a_silent_agent_is_given_up(strict_bench: Bench) -> None:
    agent = await strict_bench.agent()
    await agent.hello()
    assert isinstance(await agent.end(), Unavailable)
    await strict_bench.queue.until(lambda: strict_bench.queue.closed)


async def test_an_agent_that_beats_stays(strict_bench: Bench) -> None:
    agent = await strict_bench.agent()
    await agent.hello(attempts=[(5, 2)])
    for _ in range(6):
        seen = len(strict_bench.queue.heartbeats)
        await agent.beat([(5, 2)], 3)
        await strict_bench.queue.until(partial(exceeds, strict_bench.queue.heartbeats, seen))
    assert not agent.ended
    heartbeat = strict_bench.queue.heartbeats[-1]
    assert heartbeat.hub == "hub-1"
    (one,) = heartbeat.heartbeats
    assert (one.session.agent, one.session.epoch) == ("a1", 1)
    assert [(a.job_id, a.number) for a in one.attempts] == [(5, 2)]


async def test_heartbeats_name_only_those_who_were_heard(quick_bench: Bench) -> None:
    quiet = await quick_bench.agent("quiet")
    await quiet.hello()
    loud = await quick_bench.agent("loud")
    await loud.hello()
    first = len(quick_bench.queue.heartbeats)
    await quick_bench.queue.until(lambda: len(quick_bench.queue.heartbeats) > first)  # both said hello
    before = len(quick_bench.queue.heartbeats)
    await loud.beat()
    await quick_bench.queue.until(lambda: len(quick_bench.queue.heartbeats) > before)
    assert [h.session.agent for h in quick_bench.queue.heartbeats[before].heartbeats] == ["loud"]


@pytest.mark.parametrize(
    "attempts", [[(job, 1) for job in range(1, 1_002)], [(0, 1)], [(1, 0)]], ids=["many", "no job", "no number"]
)
async def test_a_beat_of_too_many_attempts_ends_its_own_stream_alone(quick_bench: Bench, attempts: list[Key]) -> None:
    """One message tells the queue of all sessions: what one agent says must not keep it from the others' beats."""
    quiet = await quick_bench.agent("quiet")
    await quiet.hello(attempts=[(5, 2)])
    loud = await quick_bench.agent("loud")
    await loud.hello()
    await loud.beat(attempts)
    error = await loud.end()
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["beat.attempts"]
    await quick_bench.queue.until(lambda: [s.agent for s in quick_bench.queue.closed] == ["loud"])
    seen = len(quick_bench.queue.heartbeats)
    await quiet.beat([(5, 2)], 3)
    await quick_bench.queue.until(partial(exceeds, quick_bench.queue.heartbeats, seen))
    (one,) = quick_bench.queue.heartbeats[seen].heartbeats
    assert (one.session.agent, [(a.job_id, a.number) for a in one.attempts]) == ("quiet", [(5, 2)])
    assert not quiet.ended


async def test_a_beat_may_name_as_many_attempts_as_a_hello(quick_bench: Bench) -> None:
    agent = await quick_bench.agent()
    await agent.hello(slots=1_000)
    await agent.beat([(job, 1) for job in range(1, 1_001)])
    heartbeats = quick_bench.queue.heartbeats
    await quick_bench.queue.until(lambda: heartbeats and len(heartbeats[-1].heartbeats[0].attempts) == 1_000)


async def test_who_was_heard_while_the_queue_was_away_is_named_later(quick_bench: Bench) -> None:
    agent = await quick_bench.agent()
    quick_bench.queue.failures["Heartbeat"].append(Unavailable("not now"))
    await agent.hello()
    await quick_bench.queue.until(lambda: quick_bench.queue.heartbeats)
    assert quick_bench.queue.heartbeats[0].heartbeats[0].session.agent == "a1"


async def test_only_agents_may_connect(bench: Bench) -> None:
    tls = bench.where.authority.service("hub")
    client = await bench.stack.enter_async_context(AgentClient(bench.hub.agents, tls))
    error = await client.end()
    assert error is not None and error.reason == "PERMISSION_DENIED"


async def test_a_slow_agent_is_closed_and_the_others_are_not(bench: Bench) -> None:
    slow = await bench.agent("slow", reads=False)
    await slow.call.write(pb.ConnectRequest(hello=hello()))
    fast = await bench.agent("fast")
    await bench.queue.until(lambda: bench.queue.epochs["slow"])
    await fast.hello()
    # Far more than the connection's window, and in the end more than the hub keeps for one session.
    for job in range(1, 60):
        command = queue.StopCommand(attempt=queue.Attempt(job_id=job, number=1), reason="x" * 1_000_000)
        session = queue.Session(agent="slow", epoch=1)
        bench.queue.push(queue.WatchResponse(stops=[queue.AgentStop(session=session, stop=command)]))
    await bench.queue.until(lambda: bench.queue.closed)
    assert [s.agent for s in bench.queue.closed] == ["slow"]
    bench.queue.put(assignment(1))
    await fast.until(lambda: fast.assignments)
    slow.read()
    assert isinstance(await slow.end(), Unavailable)


async def test_sigterm_sends_agents_elsewhere_and_finishes_what_they_said(bench: Bench) -> None:
    hub = await bench.process("hub-2")
    agent = await bench.agent(hub=hub.endpoints)
    await agent.hello()
    bench.queue.gate.clear()
    await agent.report(accepted(1))
    await bench.queue.until(lambda: bench.queue.reports_in_flight)
    await agent.report(output(1, 1))
    await agent.report(output(2, 1))
    await bench.queue.until(lambda: bench.queue.reports_in_flight == 2)
    stopped = asyncio.create_task(hub.terminate())
    end = await agent.end()
    assert isinstance(end, Unavailable) and end.reason == "RECONNECT"
    bench.queue.gate.set()
    assert await stopped == 0
    assert bench.queue.sequences[1, 1] == 1
    assert bench.queue.sequences[2, 1] == 1
    assert [s.agent for s in bench.queue.closed] == ["a1"]


async def test_an_agent_whose_stream_is_old_is_sent_on_and_what_it_said_is_committed(bench: Bench) -> None:
    hub = await bench.process("hub-2", SIS_HUB_STREAM_SECONDS="1")
    agent = await bench.agent(hub=hub.endpoints)
    await agent.hello()
    await agent.report(accepted(1), output(1, 1))
    end = await agent.end()
    assert isinstance(end, Unavailable) and end.reason == "RECONNECT", end
    await bench.queue.until(lambda: bench.queue.closed)
    assert [s.agent for s in bench.queue.closed] == ["a1"]
    assert bench.queue.sequences[1, 1] == 1
    again = await bench.agent()  # of the other hub
    assert await again.hello(attempts=[(1, 1)])


async def test_a_hub_that_is_killed_loses_nothing(bench: Bench) -> None:
    hub = await bench.process("hub-2")
    agent = await bench.agent(hub=hub.endpoints)
    await agent.hello()
    bench.queue.put(assignment(1))
    await agent.until(lambda: agent.assignments)
    await hub.kill()
    assert isinstance(await agent.end(), Unavailable)
    again = await bench.agent()
    await again.hello(attempts=[(1, 1)])
    await again.report(accepted(1))
    await again.until(lambda: again.acknowledgements)
    assert again.acknowledgements[0].accepted
