"""What follows from the facts of a job that waits, or does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from services.queue.convert.explanations import to_explanation
from services.queue.explanations import AHEAD, Agent, Explanation, Site, SlotHolder, Subject, because
from services.queue.model import WaitReason
from services.queue.states import TERMINAL, Status
from sis.queue.v1 import job_pb2
from tests.unit.queue.samples import NOW

HOUR = timedelta(hours=1)


def subject(status: Status = Status.WAITING, **changes: Any) -> Subject:
    values: dict[str, Any] = {"site_kind": "group", "site_name": "berlin", "platforms": ["linux"]}
    return Subject(job_id=7, status=status, now=NOW, **(values | changes))


def agent(name: str = "a", **changes: Any) -> Agent:
    values: dict[str, Any] = {
        "platform": "linux", "online": True, "fits": True, "draining": False, "full": False, "slots": 2,
    }  # fmt: skip
    return Agent(name=name, **(values | changes))


def holder(job_id: int, deadline: timedelta | None = None) -> SlotHolder:
    return SlotHolder("a", job_id, Status.RUNNING, NOW, None if deadline is None else NOW + deadline)


def reasons(found: Explanation) -> list[str]:
    return [cause.reason.value if cause.reason else "" for cause in found.causes]


ONE_OF_EACH = [agent("off", online=False), agent("w", fits=False, platform="windows"), agent("d", draining=True)]


@pytest.mark.parametrize(
    ("agents", "ahead", "expected", "named", "words"),
    [
        ([], 0, ["NO_AGENT_KNOWN"], [], "no agent of group berlin has ever been connected"),
        ([], 2, ["NO_AGENT_KNOWN", "JOBS_AHEAD"], [], "2 other jobs for the same group come first"),
        (ONE_OF_EACH[:1], 0, ["NO_AGENT_ONLINE"], ["off"], "no agent of group berlin is connected"),
        (
            ONE_OF_EACH[:2],
            0,
            ["NO_AGENT_FITS"],
            ["w"],
            "for linux, and the agents of group berlin that are connected run",
        ),
        (ONE_OF_EACH[:2], 0, ["NO_AGENT_FITS"], ["w"], "run windows"),
        (
            ONE_OF_EACH,
            1,
            ["AGENTS_DRAINING", "JOBS_AHEAD"],
            ["d"],
            "take no new work; 1 other job for the same group comes first",
        ),
        ([*ONE_OF_EACH, agent("f", full=True)], 0, ["AT_CAPACITY"], ["f"], "all 2 slots of the agents of group"),
        ([agent("f", full=True), agent("a")], 0, ["NOTHING"], ["a"], "agent a has a free slot"),
        ([agent("a")], AHEAD, ["JOBS_AHEAD"], [], "1,000 or more other jobs"),
        ([agent("a", slots=0)], 0, ["NOTHING"], ["a"], "agent a has a free slot"),
    ],
)
def test_what_keeps_a_waiting_job(
    agents: list[Agent], ahead: int, expected: list[str], named: list[str], words: str
) -> None:
    found = because(subject(), Site(agents, (), ahead))
    assert reasons(found) == expected
    assert list(found.causes[0].agents) == named
    assert words in found.summary and found.summary.startswith("It waits: ") and found.summary.endswith(".")
    assert sum(cause.jobs_ahead for cause in found.causes) == ahead
    assert found.estimated_start_at is None


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        ([], "agent berlin has never been connected"),
        ([agent(online=False)], "agent berlin is not connected"),
        ([agent(fits=False, platform="windows")], "for linux, and agent berlin runs windows"),
        ([agent(draining=True)], "agent berlin takes no new work"),
        ([agent(full=True, slots=1)], "the only slot of agent berlin is taken"),
        ([agent(full=True)], "all 2 slots of agent berlin are taken"),
    ],
)
def test_of_a_single_agent_it_is_said_in_the_singular(agents: list[Agent], words: str) -> None:
    assert words in because(subject(site_kind="agent"), Site(agents)).summary


def test_the_agents_that_are_named_are_bounded() -> None:
    found = because(subject(), Site([agent(str(n), online=False) for n in range(50)]))
    assert len(found.causes[0].agents) == 20


@pytest.mark.parametrize(
    ("deadlines", "ahead", "passes", "estimate"),
    [
        ([None, None], 0, None, None),
        ([2 * HOUR, HOUR, None], 0, HOUR, HOUR),
        # The slot that is free first is not its own.
        ([2 * HOUR, HOUR, None], 1, HOUR, 2 * HOUR),
        ([2 * HOUR, HOUR, None], 2, HOUR, None),
        # Its agent is late: it may come at any time, and certainly not in the past.
        ([-HOUR], 0, -HOUR, timedelta()),
    ],
)
def test_at_capacity_the_deadlines_of_those_who_hold_the_slots_tell_when(
    deadlines: list[timedelta | None], ahead: int, passes: timedelta | None, estimate: timedelta | None
) -> None:
    holders = [holder(n, deadline) for n, deadline in enumerate(deadlines, 1)]
    found = because(subject(), Site([agent(full=True)], holders, ahead))
    assert found.causes[0].reason is WaitReason.AT_CAPACITY and list(found.causes[0].holders) == holders
    assert found.causes[0].retry_at == (None if passes is None else NOW + passes)
    assert found.estimated_start_at == (None if estimate is None else NOW + estimate)


def test_the_jobs_in_the_slots_are_named_as_far_as_there_is_room() -> None:
    found = because(subject(), Site([agent(full=True)], [holder(n) for n in range(1, 8)]))
    assert "taken, by jobs 1, 2, 3, 4, 5 and others" in found.summary
    assert "taken, by job 1." in because(subject(), Site([agent(full=True)], [holder(1)])).summary


def test_what_the_job_says_itself_comes_first_while_its_time_has_not_come() -> None:
    told = {"retry_at": NOW + HOUR, "wait_reason": WaitReason.VAULT_SEALED, "wait_message": "Vault is sealed"}
    found = because(subject(**told), Site([agent()]))
    assert (
        reasons(found) == ["VAULT_SEALED"] and "Vault is sealed; it is tried again at 2026-03-01 13:00" in found.summary
    )
    assert found.causes[0].retry_at == found.estimated_start_at == NOW + HOUR
    full = Site([agent(full=True)], [holder(1, 3 * HOUR)])
    assert because(subject(**told), full).estimated_start_at == NOW + 3 * HOUR
    assert reasons(because(subject(**told), Site())) == ["VAULT_SEALED", "NO_AGENT_KNOWN"]
    assert because(subject(**told), Site()).estimated_start_at is None
    assert reasons(because(subject(**(told | {"retry_at": NOW})), Site([agent()]))) == ["NOTHING"]
    assert reasons(because(subject(**(told | {"wait_reason": None})), Site([agent()]))) == [""]


def test_a_deferred_job_is_held_or_waits_for_its_time() -> None:
    held = because(subject(Status.DEFERRED))
    assert reasons(held) == ["HELD"] and held.estimated_start_at is None
    timed = because(subject(Status.DEFERRED, not_before=NOW + HOUR, latest_start=NOW + 2 * HOUR))
    assert reasons(timed) == ["NOT_BEFORE"]
    assert timed.causes[0].retry_at == timed.estimated_start_at == NOW + HOUR
    assert "expires if it has not started by 2026-03-01 14:00:00 UTC" in timed.summary


@pytest.mark.parametrize(
    ("status", "changes", "words"),
    [
        (Status.STARTING, {"claimed_at": NOW}, "agent a claimed it at 2026-03-01 12:00:00 UTC"),
        (Status.RUNNING, {"started_at": NOW}, "it has been running on agent a since 2026-03-01 12:00:00 UTC"),
        (Status.PROCESSING_OUTPUT, {"payload_ended_at": NOW}, "agent a is processing its output"),
        (Status.CANCEL_REQUESTED, {"cancel_requested_at": NOW}, "agent a has been canceling it since 2026-03-01"),
        (Status.AWOL, {"last_heard_at": NOW}, "agent a has been silent since 2026-03-01 12:00:00 UTC, and"),
        (Status.AWOL, {"lost": True}, "came back without its journal"),
        (Status.TIMED_OUT, {"completed_at": NOW}, "it ended at 2026-03-01 12:00:00 UTC as timed out."),
        *((s, {"completed_at": NOW, "status_message": "why"}, " (why).") for s in sorted(TERMINAL)),
    ],
)  # fmt: skip
def test_a_job_that_does_not_wait_has_no_causes_and_says_what_it_does(
    status: Status, changes: dict[str, Any], words: str
) -> None:
    found = because(subject(status, agent="a", **changes))
    assert not found.causes and found.estimated_start_at is None
    assert words in found.summary and found.summary.startswith("It does not wait: ")


def test_an_explanation_as_a_message() -> None:
    site = Site([agent(full=True)], [holder(3, HOUR), holder(4)], 1)
    message = to_explanation(because(subject(), site))
    assert message.status == job_pb2.JOB_STATUS_WAITING and message.summary
    assert not message.HasField("estimated_start_time")
    capacity, ahead = message.causes
    assert (capacity.reason, ahead.reason) == (job_pb2.WAIT_REASON_AT_CAPACITY, job_pb2.WAIT_REASON_JOBS_AHEAD)
    assert (capacity.agents, ahead.jobs_ahead) == (["a"], 1)
    first, second = capacity.holders
    assert (first.agent, first.job_id, first.status) == ("a", 3, job_pb2.JOB_STATUS_RUNNING)
    assert first.deadline.ToDatetime(NOW.tzinfo) == NOW + HOUR and first.claim_time.ToDatetime(NOW.tzinfo) == NOW
    assert not second.HasField("deadline") and capacity.retry_time == first.deadline
