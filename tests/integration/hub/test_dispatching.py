"""Claims, assignments, stops, and the watch that brings wake-ups."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from services.runtime.channels import grpc_error
from services.runtime.dependencies import ShuttingDown, Trouble
from services.runtime.errors import Unavailable
from services.sis_agent.hub import watch
from sis.agent.v1 import agent_service_pb2 as pb
from sis.queue.v1 import dispatch_service_pb2 as queue
from sis.queue.v1 import frame_pb2
from tests.integration.hub.agent_client import AgentClient, accepted, assignment, declined, finished, output
from tests.integration.hub.conftest import Bench


def jobs(agent: AgentClient) -> list[int]:
    return sorted(a.attempt.job_id for a in agent.assignments)


async def test_waiting_jobs_go_to_free_slots_and_no_further(bench: Bench) -> None:
    one, two = await bench.agent("one"), await bench.agent("two")
    await one.hello(slots=2)
    await two.hello(slots=3)
    bench.queue.put(*map(assignment, range(1, 9)))
    await one.until(lambda: len(one.assignments) == 2)
    await two.until(lambda: len(two.assignments) == 3)
    assert sorted(jobs(one) + jobs(two)) == [1, 2, 3, 4, 5]
    assert len(bench.queue.waiting) == 3


async def test_several_assignments_come_in_one_message(bench: Bench) -> None:
    agent = await bench.agent()
    bench.queue.waiting.extend(map(assignment, range(1, 5)))
    await agent.hello(slots=4)
    await agent.until(lambda: len(agent.assignments) == 4)
    assert [m.WhichOneof("content") for m in agent.messages] == ["welcome", "assignments"]


async def test_a_sealed_attempt_frees_its_slot_at_once(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello(slots=1)
    bench.queue.put(assignment(1), assignment(2))
    await agent.until(lambda: jobs(agent) == [1])
    await agent.report(accepted(1), output(1, 1), finished(1, 2))
    await agent.until(lambda: jobs(agent) == [1, 2])
    # The agent had the acknowledgement, and so a slot, before it had the assignment.
    kinds = [m.WhichOneof("content") for m in agent.messages]
    assert kinds == ["welcome", "assignments", "acknowledgements", "assignments"]


async def test_a_declined_attempt_frees_its_slot(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello(slots=1)
    bench.queue.put(assignment(1), assignment(2))
    await agent.until(lambda: jobs(agent) == [1])
    await agent.report(declined(1))
    await agent.until(lambda: jobs(agent) == [1, 2])


async def test_a_beat_frees_the_slot_of_what_it_does_not_name(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello(slots=1, attempts=[(9, 1)])
    bench.queue.put(assignment(1))
    await agent.beat([(9, 1)], 0)
    await agent.beat([], 1)
    await agent.until(lambda: jobs(agent) == [1])
    assert all(c.free_slots == 1 for claim in bench.queue.claims for c in claim.capacities)


async def test_a_draining_agent_gets_nothing(quick_bench: Bench) -> None:
    draining, ready = await quick_bench.agent("draining"), await quick_bench.agent("ready")
    await draining.hello(draining=True)
    await ready.hello()
    quick_bench.queue.put(assignment(1))
    await ready.until(lambda: ready.assignments)
    await ready.beat([(1, 1)], 0, draining=True)
    await quick_bench.queue.until(
        lambda: any(
            heartbeat.draining and heartbeat.session.agent == "ready"
            for request in quick_bench.queue.heartbeats
            for heartbeat in request.heartbeats
        )
    )
    assert not draining.assignments
    await draining.beat([], 4)
    quick_bench.queue.put(assignment(2))
    await draining.until(lambda: jobs(draining) == [2])


async def test_one_claim_at_a_time(bench: Bench) -> None:
    agents = [await bench.agent(f"a{n}") for n in range(4)]
    await asyncio.gather(*(agent.hello(slots=100) for agent in agents))
    for first in range(1, 400, 10):
        bench.queue.put(*map(assignment, range(first, first + 10)))
    await bench.queue.until(lambda: not bench.queue.waiting)
    assert len(bench.queue.claims) < 80  # wakes that come during a claim make one more, not one each


async def test_what_a_lost_claim_took_comes_with_a_heartbeat(quick_bench: Bench) -> None:
    agent = await quick_bench.agent()
    await agent.hello()
    quick_bench.queue.failures["Claim"].append(Unavailable("the answer is lost"))
    quick_bench.queue.put(assignment(1))
    await quick_bench.logged.until("answers no claim")
    assert not agent.assignments
    quick_bench.queue.undelivered = [queue.AgentAssignment(agent="a1", assignment=assignment(1))]
    await agent.beat([], 4)
    await agent.until(lambda: jobs(agent) == [1])


async def test_stops_of_what_was_given_up_come_with_a_heartbeat(quick_bench: Bench) -> None:
    agent = await quick_bench.agent()
    await agent.hello()
    quick_bench.queue.given_up = [stop(7, "a1")]
    await agent.beat([], 4)
    await agent.until(lambda: agent.stops)
    assert [command.attempt.job_id for command in agent.stops] == [7]


async def test_an_assignment_is_not_repeated_on_the_same_stream(quick_bench: Bench) -> None:
    agent = await quick_bench.agent()
    await agent.hello()
    quick_bench.queue.put(assignment(1))
    await agent.until(lambda: jobs(agent) == [1])
    quick_bench.queue.undelivered = [queue.AgentAssignment(agent="a1", assignment=assignment(1))]
    await agent.beat([], 4)
    await quick_bench.queue.until(lambda: not quick_bench.queue.undelivered)
    quick_bench.queue.put(assignment(2))
    await agent.until(lambda: len(agent.assignments) > 1)
    assert jobs(agent) == [1, 2]


def stop(job: int, agent: str, epoch: int = 1) -> queue.AgentStop:
    command = queue.StopCommand(
        attempt=queue.Attempt(job_id=job, number=1), kind=frame_pb2.STOP_KIND_CANCEL, reason="asked for"
    )
    return queue.AgentStop(session=queue.Session(agent=agent, epoch=epoch), stop=command)


async def test_stops_go_to_their_session(bench: Bench) -> None:
    one, two = await bench.agent("one"), await bench.agent("two")
    await one.hello()
    await two.hello()
    stops = [stop(1, "nobody"), stop(2, "two"), stop(3, "one", epoch=9), stop(4, "one")]
    bench.queue.push(queue.WatchResponse(stops=stops))
    await two.until(lambda: two.stops)
    await one.until(lambda: one.stops)
    assert [s.attempt.job_id for s in two.stops] == [2]
    assert [(s.attempt.job_id, s.kind, s.reason) for s in one.stops] == [(4, frame_pb2.STOP_KIND_CANCEL, "asked for")]


async def test_a_stop_that_overtakes_the_welcome_is_not_lost(bench: Bench) -> None:
    bench.queue.before_open = lambda agent: bench.queue.push(queue.WatchResponse(stops=[stop(1, agent)]))
    agent = await bench.agent()
    await agent.hello(attempts=[(1, 1)])
    await agent.until(lambda: agent.stops)


async def test_a_watch_that_ends_is_opened_again_and_wakes(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    await bench.queue.watched()
    bench.queue.failures["Watch"].append(Unavailable("not yet"))
    bench.queue.end_watches()
    await bench.queue.unwatched()
    bench.queue.waiting.append(assignment(1))
    await agent.until(lambda: agent.assignments)
    await bench.queue.watched()


async def test_the_queue_may_be_away_for_a_while(bench: Bench) -> None:
    """Its connections are cut off; the agent's stream stays, and what it said meanwhile is committed later."""
    agent = await bench.agent()
    await agent.hello()
    await bench.queue.watched()
    await bench.stop_queue()
    await agent.report(accepted(1), output(1, 1))
    await bench.logged.until("takes no reports")
    await agent.beat([], 4)
    await bench.start_queue()
    bench.queue.put(assignment(2))
    await agent.until(lambda: len(agent.acknowledgements) == 2)
    assert not agent.ended
    assert bench.queue.sequences[1, 1] == 1
    await bench.queue.watched()
    await agent.until(lambda: jobs(agent) == [2])


async def test_a_hub_says_that_it_waits_for_the_queue(bench: Bench) -> None:
    queue_of = next(each for each in bench.parts.dependencies if each.name == "queue")
    assert queue_of.grace == watch.GRACE_SECONDS  # a restart takes no longer than this
    agent = await bench.agent()
    await agent.hello()
    await bench.queue.watched()
    bench.queue.push(queue.WatchResponse(stops=[stop(1, "a1")]))
    await agent.until(lambda: agent.stops)
    assert await queue_of.look() is None
    await bench.stop_queue()
    await bench.logged.until("the queue cannot be watched")
    assert await queue_of.look() == Trouble("UNREACHABLE", "it does not answer")
    await bench.start_queue()
    await bench.queue.watched()
    bench.queue.push(queue.WatchResponse(stops=[stop(2, "a1")]))
    await agent.until(lambda: len(agent.stops) == 2)
    assert await queue_of.look() is None


@pytest.mark.parametrize("name", ["queue", "credentials"])
async def test_a_peer_that_shuts_down_is_not_one_that_does_not_answer(bench: Bench, name: str) -> None:
    found = next(each for each in bench.parts.dependencies if each.name == name)
    always = [ShuttingDown()] * 1_000
    if name == "queue":
        bench.queue.failures["Watch"] += always
        await bench.stop_queue()
        await bench.start_queue()
    else:
        bench.credentials.failures["WatchRevocations"] += always
        await bench.stop_credentials()
        await bench.start_credentials()
    async with asyncio.timeout(10):
        while await found.look() != Trouble("RESTARTING", "it shuts down"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_package_is_streamed_through(bench: Bench) -> None:
    digest = "ab" * 32
    bench.queue.archives[digest] = [b"one", b"two", b"three"]
    agent = await bench.agent()
    request = pb.FetchPackageRequest(digest=digest, offset=4)
    responses = [response async for response in agent.stub.FetchPackage(request, timeout=10)]
    assert b"".join(r.chunk for r in responses) == b"wothree"
    assert {r.size_bytes for r in responses} == {11}


@pytest.mark.parametrize(("digest", "reason"), [("cd" * 32, "PACKAGE_NOT_FOUND"), ("x", "INVALID_FIELD")])
async def test_a_package_that_is_not_there_is_refused(bench: Bench, digest: str, reason: str) -> None:
    agent = await bench.agent()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in agent.stub.FetchPackage(pb.FetchPackageRequest(digest=digest), timeout=10):
            pass
    assert grpc_error(caught.value).reason == reason


async def test_a_package_is_read_no_faster_than_it_is_taken(bench: Bench) -> None:
    digest = "ab" * 32
    bench.queue.archives[digest] = [bytes(256 * 1024)] * 200
    agent = await bench.agent()
    call = agent.stub.FetchPackage(pb.FetchPackageRequest(digest=digest), timeout=30)
    responses = aiter(call)
    size = len((await anext(responses)).chunk)
    # While the agent does not read, its stream stays usable and the queue is not drained into the hub.
    await agent.hello()
    assert bench.queue.chunks_sent < 150
    async for response in responses:
        size += len(response.chunk)
    assert size == 200 * 256 * 1024
