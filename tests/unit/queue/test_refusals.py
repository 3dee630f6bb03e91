"""Leases that are refused, and when the leases of an attempt end."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.queue import lifecycle
from services.queue.errors import IllegalTransition, StaleAttempt
from services.queue.lifecycle import RETRY_LIMIT, RETRY_SPREAD
from services.queue.model import FOR_GOOD, Job, LeaseEnd, LeaseRefusal, RefusalReason, WaitReason
from services.queue.states import HELD_BY_AGENT, TERMINAL, Status, StopState
from tests.unit.queue.samples import AGENT, ALICE, NOW, attempt, events, job, running, starting

FOR_NOW = sorted(set(RefusalReason) - FOR_GOOD - {RefusalReason.ATTEMPT_ENDED})
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def refuse(found: Job, reason: RefusalReason = RefusalReason.VAULT_SEALED, **changes: object) -> None:
    lifecycle.lease_refused(found, NOW, AGENT, LeaseRefusal(reason, "somebody has to unseal it", **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", FOR_NOW)
def test_a_refusal_for_now_lets_the_job_wait_and_says_why(reason: RefusalReason) -> None:
    found = starting()
    refuse(found, reason)
    assert (found.status, found.agent, found.live) == (Status.WAITING, "", False)
    assert (found.wait_reason, found.wait_message) == (WaitReason[reason.name], "somebody has to unseal it")
    assert found.retry_at is not None and SECOND <= found.retry_at - NOW <= SECOND * (1 + RETRY_SPREAD)
    (entry,) = found.new_history
    assert entry.event == "LEASE_REFUSED" and entry.message == f"{reason}: somebody has to unseal it"
    assert found.stop_state is StopState.NONE and found.failure_reason == ""


@pytest.mark.parametrize("reason", sorted(FOR_GOOD))
def test_a_refusal_for_good_fails_the_job_at_once(reason: RefusalReason) -> None:
    found = starting()
    refuse(found, reason, permanent=True)
    assert events(found) == [("LEASE_REFUSED", "STARTING", "WAITING"), ("UNRUNNABLE", "WAITING", "FAILED")]
    assert (found.failure_reason, found.status_message) == (reason, "somebody has to unseal it")
    assert (found.wait_reason, found.wait_message, found.retry_at) == (None, "", None)
    assert found.completed_at == NOW and not found.live


def test_every_refusal_for_now_is_a_reason_to_wait() -> None:
    explained = {"HELD", "NOT_BEFORE", "NO_AGENT_KNOWN", "NO_AGENT_ONLINE", "AGENTS_DRAINING", "AT_CAPACITY"}
    noted = {reason.value for reason in WaitReason} - explained - {"JOBS_AHEAD", "NOTHING", "NO_AGENT_FITS"}
    assert {reason.value for reason in FOR_NOW} | {"DECLINED"} == noted


@pytest.mark.parametrize(
    ("number", "asked", "seconds"),
    [(1, 0, 1), (2, 0, 2), (3, 0, 4), (6, 0, 32), (7, 0, 60), (10, 0, 60), (1, 15, 15), (5, 5, 16), (1, 3_600, 60)],
)
def test_refusals_in_a_row_come_slower_and_slower(number: int, asked: int, seconds: int) -> None:
    found = starting(number=number)
    refuse(found, retry_after=timedelta(seconds=asked))
    assert found.retry_at is not None
    delay = (found.retry_at - NOW).total_seconds()
    assert seconds <= delay <= seconds * (1 + RETRY_SPREAD)


@pytest.mark.parametrize(
    ("number", "asked", "seconds"),
    [(11, 0, 66), (12, 0, 72.6), (20, 0, 155.6), (34, 0, 590.9), (35, 0, 600), (10**6, 0, 600), (20, 3_600, 155.6)],
)
def test_a_long_outage_is_asked_after_less_and_less_often(number: int, asked: int, seconds: float) -> None:
    found = starting(number=number)
    refuse(found, retry_after=timedelta(seconds=asked))
    assert found.retry_at is not None
    delay = (found.retry_at - NOW).total_seconds()
    assert seconds <= delay <= (seconds + 0.1) * (1 + RETRY_SPREAD)


def test_an_outage_of_a_day_adds_few_attempts() -> None:
    """Where one try a minute would be 1,440 of them."""
    now, number = NOW, 0
    while now < NOW + timedelta(days=1):
        number += 1
        found = starting(number=number)
        refuse(found)
        assert found.retry_at is not None
        now += found.retry_at - NOW
    assert number < 200


@given(st.integers(1, 2**62), st.integers(1, 10_000), st.integers(0, 10**6))
def test_no_refusal_is_retried_early_or_much_later_than_ten_minutes(job_id: int, number: int, asked: int) -> None:
    found = starting(number=number)
    found.job_id = job_id
    refuse(found, retry_after=timedelta(seconds=asked))
    assert found.retry_at is not None
    delay = found.retry_at - NOW
    assert max(min(timedelta(seconds=asked), MINUTE), SECOND) <= delay <= RETRY_LIMIT * (1 + RETRY_SPREAD)


def test_what_was_refused_together_comes_back_apart() -> None:
    delays = []
    for job_id in range(1_000, 1_100):
        found = starting(number=9)
        found.job_id = job_id
        refuse(found)
        assert found.retry_at is not None
        delays.append((found.retry_at - NOW).total_seconds())
    gaps = [b - a for a, b in zip(sorted(delays), sorted(delays)[1:], strict=False)]
    assert len(set(delays)) == 100 and max(gaps) < 0.2


@pytest.mark.parametrize("permanent", [False, True])
def test_a_job_that_is_canceled_meanwhile_is_canceled_by_a_refusal(permanent: bool) -> None:
    found = starting()
    lifecycle.cancel(found, NOW, ALICE, "")
    refuse(found, RefusalReason.CREDENTIAL_NOT_FOUND, permanent=permanent)
    assert (found.status, found.failure_reason, found.live) == (Status.CANCELED, "", False)
    assert (found.wait_reason, found.wait_message, found.retry_at) == (None, "", None)


@pytest.mark.parametrize("permanent", [False, True])
def test_the_stop_of_a_job_that_is_aborted_meanwhile_is_settled_by_a_refusal(permanent: bool) -> None:
    found = starting()
    lifecycle.abort(found, NOW, ALICE, "")
    refuse(found, permanent=permanent)
    assert (found.status, found.stop_state, found.live) == (Status.ABORTED, StopState.CONFIRMED, False)


@pytest.mark.parametrize(("canceled", "to"), [(False, Status.WAITING), (True, Status.CANCELED)])
def test_an_awol_job_that_was_never_delivered_is_given_back(canceled: bool, to: Status) -> None:
    found = job(Status.AWOL, attempt())
    if canceled:
        lifecycle.cancel(found, NOW, ALICE, "")
    refuse(found)
    assert found.status is to and not found.live
    assert found.wait_reason is (None if canceled else WaitReason.VAULT_SEALED)


def test_what_was_accepted_is_never_refused() -> None:
    for status in HELD_BY_AGENT:
        found = running()
        found.status = status
        with pytest.raises(IllegalTransition):
            refuse(found)
        assert found.live and found.status is status


def test_an_acceptance_that_comes_after_the_refusal_changes_nothing() -> None:
    found = starting(number=4)
    refuse(found)
    before = (found.status, found.retry_at, found.wait_reason, len(found.new_history))
    with pytest.raises(StaleAttempt, match="forget it"):
        lifecycle.accept(found, NOW + SECOND, AGENT)
    assert (found.status, found.retry_at, found.wait_reason, len(found.new_history)) == before


def test_a_decline_is_a_reason_to_wait() -> None:
    found = starting()
    lifecycle.declined(found, NOW, AGENT, "full")
    assert (found.wait_reason, found.wait_message) == (WaitReason.DECLINED, "agent a-1 declined it: full")
    assert found.retry_at is None
    assert found.new_history[0].message == "declined: full"


def test_what_is_given_back_again_waits_without_a_typed_reason() -> None:
    found = starting(number=2)
    lifecycle.never_started(found, NOW, AGENT, "the agent came back without having accepted it")
    assert (found.wait_reason, found.wait_message) == (None, "the agent came back without having accepted it")
    first = starting()
    lifecycle.never_started(first, NOW, AGENT, "")
    assert (first.wait_message, first.retry_at) == ("", None)


@pytest.mark.parametrize("verb", ["cancel", "abort", "delete", "expire"])
def test_whatever_ends_a_job_ends_its_wait(verb: str) -> None:
    found = starting()
    refuse(found)
    if verb == "expire":
        lifecycle.expire(found, NOW)
        assert found.status_message.endswith("it waited: somebody has to unseal it")
    elif verb == "delete":
        lifecycle.delete(found, NOW, ALICE)
    else:
        (lifecycle.cancel if verb == "cancel" else lifecycle.abort)(found, NOW, ALICE, "")
    assert (found.wait_reason, found.wait_message, found.retry_at) == (None, "", None)


# The end of leases.


def test_leases_last_as_long_as_something_may_be_at_the_site() -> None:
    for status in Status:
        live = job(status, attempt(), with_credentials=True)
        assert live.lease_end is None
        sealed = job(status, attempt(sealed_at=NOW), with_credentials=True)
        assert sealed.lease_end == LeaseEnd(7, 1, status in TERMINAL)
        never = job(status, with_credentials=True)
        assert never.lease_end == (LeaseEnd(7, 0, True) if status in TERMINAL else None)
        assert job(status, attempt(sealed_at=NOW)).lease_end is None


def test_an_abort_ends_the_leases_when_it_is_settled_and_not_before() -> None:
    found = running()
    found.with_credentials = True
    lifecycle.abort(found, NOW, ALICE, "")
    assert found.lease_end is None
    lifecycle.unheard_stop(found)
    assert found.lease_end is None
    lifecycle.give_up_log(found, NOW)
    assert found.lease_end == LeaseEnd(7, 1, job_over=True)
