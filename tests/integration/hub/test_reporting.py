"""Reports of agents: grouped, ordered, answered one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from services.runtime.errors import Aborted, Internal, InvalidArgument, Unavailable
from services.sis_agent.hub import reporter
from sis.queue.v1 import dispatch_service_pb2 as queue
from tests.integration.hub.agent_client import AgentClient, accepted, declined, finished, output
from tests.integration.hub.conftest import Bench


async def all_acknowledged(agent: AgentClient, count: int) -> None:
    await agent.until(lambda: len(agent.acknowledgements) == count)


def beaten(bench: Bench) -> set[int]:
    """The jobs in the heartbeats."""
    return {a.job_id for h in bench.queue.heartbeats for s in h.heartbeats for a in s.attempts}


async def test_each_report_is_answered(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    await agent.report(accepted(1), output(1, 1, 2), finished(1, 3), declined(2))
    await agent.until(lambda: len(agent.acknowledgements) == 4)
    answers = [(a.attempt.job_id, a.acknowledged_sequence, a.accepted, a.sealed) for a in agent.acknowledgements]
    assert answers == [(1, 0, True, False), (1, 2, False, False), (1, 3, False, True), (2, 0, False, False)]
    assert {r.session.epoch for r in bench.queue.committed} == {1}


async def test_a_message_of_too_many_reports_is_refused_before_anything_is_made_of_it(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    await agent.report(*[accepted(1)] * (reporter.MESSAGE_REPORTS + 1))
    error = await agent.end()
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "reports"
    assert not bench.queue.reports


async def test_what_arrives_during_a_commit_goes_with_the_next_one(quick_bench: Bench) -> None:
    one, two = await quick_bench.agent("one"), await quick_bench.agent("two")
    await one.hello()
    await two.hello()
    quick_bench.queue.gate.clear()
    await one.report(output(1, 1))
    await quick_bench.queue.until(lambda: quick_bench.queue.reports_in_flight == 1)
    await two.report(output(2, 1))
    await quick_bench.queue.until(lambda: quick_bench.queue.reports_in_flight == 2)
    for sequence in (2, 3, 4):
        await one.report(output(1, sequence))
        await two.report(output(2, sequence))
        await two.report(output(3, sequence - 1))
    # A beat that has passed says that the reports before it are in.
    await one.beat([(77, 1)])
    await two.beat([(78, 1)])
    await quick_bench.queue.until(lambda: {77, 78} <= beaten(quick_bench))
    assert len(quick_bench.queue.reports) == 2
    quick_bench.queue.gate.set()
    await one.until(lambda: len(one.acknowledgements) == 4)
    await two.until(lambda: len(two.acknowledgements) == 7)
    assert len(quick_bench.queue.reports) <= 4
    assert quick_bench.queue.most_reports_in_flight == 2
    assert [quick_bench.queue.sequences[job, 1] for job in (1, 2, 3)] == [4, 4, 3]


async def test_an_attempt_is_never_in_two_calls(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    bench.queue.gate.clear()
    await agent.report(output(1, 1))
    await bench.queue.until(lambda: bench.queue.reports_in_flight == 1)
    await agent.report(output(1, 2))
    await agent.report(output(2, 1))
    await bench.queue.until(lambda: bench.queue.reports_in_flight == 2)
    assert [r.attempt.job_id for r in bench.queue.reports[1]] == [2]
    bench.queue.gate.set()
    await agent.until(lambda: len(agent.acknowledgements) == 3)
    assert not any(a.HasField("error") for a in agent.acknowledgements)


async def test_many_frames_keep_their_order(bench: Bench) -> None:
    agents = [await bench.agent(f"a{n}") for n in range(3)]
    for agent in agents:
        await agent.hello()
    for sequence in range(1, 201):
        for number, agent in enumerate(agents):
            await agent.report(output(number + 1, sequence))
    for agent in agents:
        await all_acknowledged(agent, 200)
        assert [a.acknowledged_sequence for a in agent.acknowledgements] == list(range(1, 201))
    assert len(bench.queue.reports) < 600


async def test_a_refused_report_fails_alone(bench: Bench) -> None:
    def refuse(report: queue.AttemptReport) -> Aborted | None:
        return Aborted("not yours", reason="STALE_ATTEMPT") if report.attempt.job_id == 2 else None

    bench.queue.refuse_report = refuse
    agent = await bench.agent()
    await agent.hello()
    await agent.report(output(1, 1), accepted(2), output(3, 1))
    await agent.until(lambda: len(agent.acknowledgements) == 3)
    one, two, three = agent.acknowledgements
    assert not one.HasField("error") and not three.HasField("error")
    assert "not yours" in two.error.message
    assert not two.accepted
    assert not agent.ended


async def test_a_report_that_fails_the_whole_call_is_found(bench: Bench) -> None:
    def refuse(request: queue.ReportRequest) -> Exception | None:
        bad = any(report.attempt.job_id == 5 for report in request.reports)
        return InvalidArgument.field("reports[4]", "cannot be read") if bad else None

    bench.queue.refuse_call = refuse  # type: ignore[assignment]
    agent = await bench.agent()
    await agent.hello()
    await agent.report(*(output(job, 1) for job in range(1, 10)))
    await agent.until(lambda: len(agent.acknowledgements) == 9)
    failed = [a.attempt.job_id for a in agent.acknowledgements if a.HasField("error")]
    assert failed == [5]


async def test_a_fault_is_tried_again(bench: Bench) -> None:
    bench.queue.failures["Report"].extend([Internal("a hiccup"), Unavailable("and another one")])
    agent = await bench.agent()
    await agent.hello()
    await agent.report(accepted(1))
    await agent.until(lambda: agent.acknowledgements)
    assert agent.acknowledgements[0].accepted


async def test_a_full_hub_stops_reading_and_goes_on(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    bench.queue.gate.clear()
    sent = 0

    async def send() -> None:
        nonlocal sent
        for number in range(200):  # 12.8 MB, three times what the hub takes of one agent
            await agent.report(output(number + 1, 1, data=bytes(64_000)))
            sent += 1

    sending = asyncio.create_task(send())
    await bench.queue.until(lambda: bench.queue.reports_in_flight == 2)
    other = await bench.agent("a2")
    await other.hello()  # only that agent has to wait
    assert sent < 200
    bench.queue.gate.set()
    await sending
    await agent.until(lambda: len(agent.acknowledgements) == 200)
    assert not agent.ended


async def test_reports_of_an_agent_that_has_left_do_not_pile_up(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    await bench.stop_queue()
    await agent.report(output(1, 1), output(2, 1))
    await bench.logged.until("takes no reports")
    agent.call.cancel()
    await bench.start_queue()
    again = await bench.agent("a1")
    await again.hello(attempts=[(1, 1), (2, 1)])
    await again.report(output(1, 1), output(2, 1))
    await again.until(lambda: len(again.acknowledgements) == 2)
    assert {r.session.epoch for r in bench.queue.committed} == {2}


async def test_garbage_ends_the_stream(bench: Bench) -> None:
    agent = await bench.agent()
    raw: Any = agent.channel.stream_stream("/sis.agent.v1.AgentService/Connect")()
    await raw.write(b"\xff\xff\xff")
    assert await raw.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_report_that_is_too_large_is_refused(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    await agent.report(output(1, 1), output(1, 2, data=bytes(9_000_000)))
    error = await agent.end()
    assert error is not None
    assert error.violations[0].field == "reports[1]"
