"""Between claim and delivery: assignments that want credentials, and the ends of their leases."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.runtime.errors import (
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    SisError,
    Unavailable,
)
from services.sis_agent.hub import credentials_connection, lease_ends, leases
from sis.credentials.v1 import lease_pb2, lease_service_pb2
from sis.queue.v1 import dispatch_service_pb2 as queue
from tests.integration.hub.agent_client import AgentClient, assignment, output
from tests.integration.hub.conftest import Bench

SEALED = lease_pb2.LeaseRefusal(
    reason=lease_pb2.LEASE_REFUSAL_REASON_VAULT_SEALED, message="Vault is sealed: somebody has to unseal it"
)


def jobs(agent: AgentClient) -> list[int]:
    return sorted(a.attempt.job_id for a in agent.assignments)


def refusals(bench: Bench) -> list[queue.AttemptReport]:
    return [report for report in bench.queue.committed if report.HasField("lease_refused")]


async def refused(bench: Bench) -> lease_pb2.LeaseRefusal:
    """Wait for the first refusal that the queue is told."""
    await bench.queue.until(lambda: refusals(bench))
    return refusals(bench)[0].lease_refused


async def test_an_assignment_is_delivered_with_its_leases(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    bench.queue.put(assignment(1, refs=["admin", "credential.db"]))
    await agent.until(lambda: agent.assignments)
    (request,) = bench.credentials.requests
    assert (request.job_id, request.attempt, request.agent, request.requester) == (1, 1, "a1", "somebody")
    assert [(use.ref, use.credential) for use in request.uses] == [
        ("admin", "c-admin"),
        ("credential.db", "c-credential.db"),
    ]
    expected = [bench.credentials.leases[1, 1, "a1", ref] for ref in ("admin", "credential.db")]
    assert list(agent.assignments[0].leases) == expected


async def test_a_slow_vault_does_not_delay_jobs_without_credentials(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello(slots=2)
    bench.credentials.gate.clear()
    bench.queue.put(assignment(1, refs=["admin"]), assignment(2))
    await agent.until(lambda: jobs(agent) == [2])
    await bench.credentials.until(lambda: bench.credentials.takes_in_flight)
    bench.credentials.gate.set()
    await agent.until(lambda: jobs(agent) == [1, 2])


async def test_what_is_being_leased_has_its_slot(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello(slots=1)
    bench.credentials.gate.clear()
    bench.queue.put(assignment(1, refs=["admin"]), assignment(2))
    await bench.credentials.until(lambda: bench.credentials.takes_in_flight)
    bench.queue.wake()
    other = await bench.agent("a2")
    await other.hello()
    await other.until(lambda: jobs(other) == [2])  # it was left for whoever has room
    bench.credentials.gate.set()
    await agent.until(lambda: jobs(agent) == [1])


async def test_a_second_delivery_while_leasing_is_dropped(quick_bench: Bench) -> None:
    agent = await quick_bench.agent()
    await agent.hello()
    quick_bench.credentials.gate.clear()
    quick_bench.queue.put(assignment(1, refs=["admin"]))
    await quick_bench.credentials.until(lambda: quick_bench.credentials.takes_in_flight)
    again = queue.AgentAssignment(agent="a1", assignment=assignment(1, refs=["admin"]))
    quick_bench.queue.undelivered = [again]
    await agent.beat([], 4)
    await quick_bench.queue.until(lambda: not quick_bench.queue.undelivered)
    quick_bench.queue.put(assignment(2))
    await agent.until(lambda: jobs(agent) == [2])  # the heartbeat's answer was taken in before
    quick_bench.credentials.gate.set()
    await agent.until(lambda: jobs(agent) == [1, 2])
    assert len(quick_bench.credentials.requests) == 1


async def test_a_session_that_is_superseded_while_leasing_gets_nothing(bench: Bench) -> None:
    before = await bench.agent()
    await before.hello()
    bench.credentials.gate.clear()
    bench.queue.put(assignment(1, refs=["admin"]))
    await bench.credentials.until(lambda: bench.credentials.takes_in_flight == 1)
    bench.queue.redelivered = [assignment(1, refs=["admin"])]
    after = await bench.agent()
    await after.hello()
    await before.end()
    await bench.credentials.until(lambda: bench.credentials.takes_in_flight == 2)
    bench.credentials.gate.set()
    await after.until(lambda: jobs(after) == [1])
    assert not before.assignments
    assert list(after.assignments[0].leases) == [bench.credentials.leases[1, 1, "a1", "admin"]]


async def test_a_refusal_is_reported_once_and_frees_the_slot(bench: Bench) -> None:
    bench.credentials.refusals[1, 1] = SEALED
    agent = await bench.agent()
    await agent.hello(slots=1)
    bench.queue.gate.clear()
    bench.queue.put(assignment(1, refs=["admin"]), assignment(2))
    await bench.queue.until(lambda: bench.queue.reports_in_flight)
    bench.queue.wake()
    await agent.beat([], 1)
    assert len(bench.queue.waiting) == 1  # the slot is taken until that is committed
    bench.queue.gate.set()
    await agent.until(lambda: jobs(agent) == [2])
    (report,) = refusals(bench)
    assert report.lease_refused == SEALED
    assert (report.session.agent, report.session.epoch) == ("a1", 1)
    assert (report.attempt.job_id, report.attempt.number) == (1, 1)
    assert not agent.acknowledgements  # the agent never knew


async def test_a_refusal_that_the_queue_does_not_take_is_not_lost(bench: Bench) -> None:
    bench.credentials.refusals[1, 1] = SEALED
    bench.queue.failures["Report"].append(Unavailable("not now"))
    agent = await bench.agent()
    await agent.hello(slots=1)
    bench.queue.put(assignment(1, refs=["admin"]), assignment(2))
    await agent.until(lambda: jobs(agent) == [2])
    assert len(refusals(bench)) == 2


async def test_nothing_is_said_of_an_attempt_that_has_ended(bench: Bench) -> None:
    bench.credentials.ended.add((1, 1))
    agent = await bench.agent()
    await agent.hello(slots=1)
    bench.queue.put(assignment(1, refs=["admin"]), assignment(2))
    await agent.until(lambda: jobs(agent) == [2])
    await agent.report(output(2, 1))
    await agent.until(lambda: agent.acknowledgements)
    assert not refusals(bench)


async def test_a_credential_service_that_is_away_is_a_reason_to_wait(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    await bench.stop_credentials()
    bench.queue.put(assignment(1, refs=["admin"]), assignment(2))
    found = await refused(bench)
    assert found.reason == lease_pb2.LEASE_REFUSAL_REASON_CREDENTIALS_UNREACHABLE
    assert not found.permanent
    assert found.message.startswith("the credential service does not answer the hub: ")
    assert found.retry_after.seconds == 1
    await agent.until(lambda: jobs(agent) == [2])
    await bench.start_credentials()
    bench.queue.put(assignment(1, 2, refs=["admin"]))
    await agent.until(lambda: jobs(agent) == [1, 2])


async def test_a_credential_service_that_is_slow_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_connection, "TAKE_SECONDS", 0.2)
    bench.credentials.gate.clear()
    agent = await bench.agent()
    await agent.hello()
    bench.queue.put(assignment(1, refs=["admin"]))
    found = await refused(bench)
    assert found.reason == lease_pb2.LEASE_REFUSAL_REASON_CREDENTIALS_UNREACHABLE
    assert found.message.startswith("the credential service is too slow: ")


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (InvalidArgument.field("requests[0].uses", "cannot be read"), 1),
        (ResourceExhausted("this server has 256 calls in flight", retry_after=6.2), 7),
        (Internal("its operators find the reason under fault 12ab"), 1),
    ],
)
async def test_a_refusal_of_the_call_is_told_as_it_is(bench: Bench, error: SisError, seconds: int) -> None:
    bench.credentials.failures["TakeLeases"].append(error)
    agent = await bench.agent()
    await agent.hello()
    bench.queue.put(assignment(1, refs=["admin"]))
    found = await refused(bench)
    assert found.reason == lease_pb2.LEASE_REFUSAL_REASON_VAULT_FAILED
    assert found.message == f"the credential service gives the hub no leases: {error.message}"
    assert found.retry_after.seconds == seconds
    assert not found.permanent


async def test_what_waits_behind_a_slow_call_for_too_long_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "CALLS", 1)
    monkeypatch.setattr(leases, "TAKE_SECONDS", 0.0)
    found = [assignment(number, refs=["admin"]) for number in (1, 2)]
    parts = leases.Leases(bench.parts._credentials, bench.parts._reporter, on_free=lambda: None)
    agent = await bench.agent()
    await agent.hello()
    session = bench.parts._sessions.of("a1")
    assert session is not None
    for each in found:
        parts.deliver(session, each)
    running = asyncio.create_task(parts.run())
    await bench.queue.until(lambda: len(refusals(bench)) == 2)
    running.cancel()
    await asyncio.wait([running])
    assert not bench.credentials.taken


async def test_other_leases_than_were_asked_for_are_not_delivered(bench: Bench) -> None:
    def drop(result: lease_service_pb2.LeaseResult) -> None:
        del result.leases[1:]

    bench.credentials.alter = drop
    agent = await bench.agent()
    await agent.hello()
    bench.queue.put(assignment(1, refs=["admin", "run_as"]), assignment(2, refs=["admin"]))
    await agent.until(lambda: jobs(agent) == [2])
    assert (await refused(bench)).reason == lease_pb2.LEASE_REFUSAL_REASON_VAULT_FAILED


async def test_leases_are_taken_in_batches_and_few_calls(bench: Bench) -> None:
    bench.credentials.gate.clear()
    agent = await bench.agent()
    await agent.hello(slots=700)
    bench.queue.put(*(assignment(number, refs=["admin"]) for number in range(1, 701)))
    await bench.queue.until(lambda: not bench.queue.waiting)
    await bench.credentials.until(lambda: bench.credentials.takes_in_flight == leases.CALLS)
    bench.credentials.gate.set()
    await agent.until(lambda: len(agent.assignments) == 700)
    assert bench.credentials.most_takes_in_flight <= leases.CALLS
    assert max(map(len, bench.credentials.taken)) == leases.CALL_ATTEMPTS
    assert len(bench.credentials.taken) < 20
    assert sorted(request.job_id for request in bench.credentials.requests) == list(range(1, 701))


async def test_an_answer_never_has_more_leases_than_fit(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello(slots=10)
    many = [f"param.p{number}" for number in range(60)]
    bench.queue.put(*(assignment(number, refs=many) for number in range(1, 8)))
    await agent.until(lambda: len(agent.assignments) == 7)
    sizes = [sum(len(request.uses) for request in call) for call in bench.credentials.taken]
    assert max(sizes) <= leases.CALL_LEASES


async def test_a_bad_request_does_not_fail_its_neighbours(bench: Bench) -> None:
    def refuse(request: lease_service_pb2.TakeLeasesRequest) -> InvalidArgument | None:
        bad = any(each.job_id == 5 for each in request.requests)
        return InvalidArgument.field("requests", "cannot be read") if bad else None

    bench.credentials.refuse_take = refuse
    agent = await bench.agent()
    await agent.hello(slots=9)
    bench.queue.put(*(assignment(number, refs=["admin"]) for number in range(1, 10)))
    await agent.until(lambda: len(agent.assignments) == 8)
    await refused(bench)
    assert [report.attempt.job_id for report in refusals(bench)] == [5]


async def test_a_hub_that_is_not_taken_for_one_says_so(bench: Bench) -> None:
    bench.credentials.failures["TakeLeases"].append(PermissionDenied("this is for the hub"))
    agent = await bench.agent()
    await agent.hello()
    bench.queue.put(assignment(1, refs=["admin"]))
    await bench.logged.until("refuses this hub")
    found = await refused(bench)
    assert found.reason == lease_pb2.LEASE_REFUSAL_REASON_VAULT_FAILED
    assert found.message.endswith("the credential service refuses this hub: this is for the hub")


def hand_out(bench: Bench, *ends: tuple[int, int, bool]) -> None:
    """As the queue does until they are acknowledged."""
    found = [lease_service_pb2.EndedAttempt(job_id=job, attempt=number, job_over=over) for job, number, over in ends]
    bench.queue.push(queue.WatchResponse(lease_ends=found))


async def test_ends_are_delivered_before_they_are_acknowledged(bench: Bench) -> None:
    hand_out(bench, (1, 1, False), (2, 3, True))
    await bench.queue.until(lambda: bench.queue.acknowledged_ends == [(1, 1, False), (2, 3, True)])
    assert [[(end.job_id, end.attempt, end.job_over) for end in call] for call in bench.credentials.ends] == [
        [(1, 1, False), (2, 3, True)]
    ]


async def test_ends_are_tried_until_they_are_acknowledged(bench: Bench) -> None:
    """By the hub that has them in hand: nobody hands them out again in the meantime."""
    bench.credentials.failures["EndLeases"].append(Unavailable("not now", reason="VAULT_SEALED"))
    bench.credentials.failures["EndLeases"].extend([Unavailable("not now")] * 3)  # the channel tries it four times
    bench.queue.failures["AcknowledgeLeaseEnds"].extend([Unavailable("nor now")] * 4)
    hand_out(bench, (1, 1, True))
    await bench.logged.until("not now")
    await bench.logged.until("nor now")
    await bench.queue.until(lambda: bench.queue.acknowledged_ends == [(1, 1, True)])
    assert bench.credentials.ended == {(1, 1)}


async def test_an_end_that_grows_while_it_is_tried_is_delivered_as_it_is_then(bench: Bench) -> None:
    bench.credentials.failures["EndLeases"].extend([Unavailable("not now")] * 4)
    hand_out(bench, (1, 1, False))
    await bench.logged.until("not now")
    hand_out(bench, (1, 1, True))
    await bench.queue.until(lambda: (1, 1, True) in bench.queue.acknowledged_ends)


async def test_ends_that_are_refused_for_good_keep_no_others(bench: Bench) -> None:
    """The queue hands them out again."""
    bench.credentials.failures["EndLeases"].append(InvalidArgument("this one is none"))
    hand_out(bench, (1, 1, False))
    await bench.logged.until("are refused: this one is none")
    hand_out(bench, (2, 1, False))
    await bench.queue.until(lambda: bench.queue.acknowledged_ends == [(2, 1, False)])
    hand_out(bench, (1, 1, False))
    await bench.queue.until(lambda: bench.queue.acknowledged_ends == [(2, 1, False), (1, 1, False)])


async def test_more_ends_than_there_is_room_for_are_left_to_the_queue(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_ends, "WAITING", 2)
    hand_out(bench, (1, 1, False), (2, 1, False), (3, 1, False))
    await bench.queue.until(lambda: len(bench.queue.acknowledged_ends) == 2)
    while len(bench.queue.acknowledged_ends) == 2:  # there is room once the hub has heard of its acknowledgement
        hand_out(bench, (3, 1, False))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await bench.queue.until(lambda: len(bench.queue.acknowledged_ends) > 2)
    assert [job for job, _, _ in bench.queue.acknowledged_ends][:3] == [1, 2, 3]
