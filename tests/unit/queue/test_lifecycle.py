"""What people, the clock and a settled claim do to a job."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from services.queue import lifecycle
from services.queue.errors import ForceRefused, IllegalTransition, StaleAttempt
from services.queue.frames import StopKind
from services.queue.model import Actor, LeaseEnd, LogVerdict
from services.queue.states import HELD_BY_AGENT, TERMINAL, Event, Status, StopState
from tests.unit.queue.samples import AGENT, ALICE, NOW, attempt, events, job, running, starting

SECOND = timedelta(seconds=1)


def test_a_move_is_recorded_with_who_when_why_and_from_where() -> None:
    found = job(Status.WAITING)
    lifecycle.cancel(found, NOW, ALICE, "not needed")
    (entry,) = found.new_history
    assert (entry.sequence, entry.at, entry.event) == (1, NOW, "CANCEL")
    assert (entry.from_status, entry.to_status) == ("WAITING", "CANCELED")
    assert (entry.actor, entry.origin, entry.message, entry.attempt) == ("alice", "10.0.0.1", "not needed", 0)
    assert found.completed_at == NOW and found.cancel_requested_at == NOW


def test_a_refused_event_changes_nothing_and_names_the_job() -> None:
    found = job(Status.SUCCEEDED)
    with pytest.raises(IllegalTransition, match="job 7 is succeeded"):
        lifecycle.abort(found, NOW, ALICE, "")
    assert found == job(Status.SUCCEEDED)


def test_a_client_in_a_loop_cannot_fill_the_history() -> None:
    found = job(Status.CANCELED, history_sequence=lifecycle.NO_OP_ROWS - 1)
    for _ in range(3):
        lifecycle.cancel(found, NOW, ALICE, "")
    assert found.history_sequence == lifecycle.NO_OP_ROWS
    crowded = running()
    crowded.history_sequence = lifecycle.NO_OP_ROWS + 5
    lifecycle.abort(crowded, NOW, ALICE, "")  # a move is recorded however long the history is
    assert events(crowded) == [("ABORT", "RUNNING", "ABORTED")]


def test_what_does_something_is_recorded_however_long_the_history_is() -> None:
    """Of a job that waited for days, its acceptance and who canceled it while it was not heard of."""
    crowded = running()
    crowded.history_sequence = lifecycle.NO_OP_ROWS + 5
    crowded.status, crowded.attempt.accepted_at = Status.STARTING, None  # type: ignore[union-attr]
    lifecycle.accept(crowded, NOW, AGENT)
    lifecycle.silence(crowded, NOW)
    for _ in range(2):
        lifecycle.cancel(crowded, NOW, ALICE, "")
    assert events(crowded) == [
        ("ACCEPT", "STARTING", "STARTING"),
        ("SILENCE", "STARTING", "AWOL"),
        ("CANCEL", "AWOL", "AWOL"),
    ]
    ended = job(Status.FAILED, history_sequence=lifecycle.NO_OP_ROWS + 5)
    lifecycle.rerun(ended, NOW, ALICE, 8)
    lifecycle.delete(ended, NOW, ALICE)
    assert [event for event, _, _ in events(ended)] == ["RERUN", "DELETE"]


def test_activate_releases_and_forgets_the_earliest_start() -> None:
    found = job(Status.DEFERRED, queued_at=None, not_before=NOW + timedelta(days=1))
    assert lifecycle.activate(found, NOW, ALICE)
    assert (found.status, found.queued_at, found.not_before) == (Status.WAITING, NOW, None)
    assert not lifecycle.activate(found, NOW + SECOND, ALICE)
    assert found.queued_at == NOW


def test_cancel_of_a_claimed_job_is_a_wish_that_its_agent_fulfils() -> None:
    found = running()
    lifecycle.cancel(found, NOW, ALICE, "")
    assert found.status is Status.CANCEL_REQUESTED and found.attempt is not None
    assert (found.attempt.stop_wish, found.attempt.stop_reason) == (StopKind.CANCEL, "canceled by alice")
    lifecycle.cancel(found, NOW + SECOND, Actor("bob"), "again")
    assert found.attempt.stop_wished_at == NOW == found.cancel_requested_at
    assert found.attempt.stop_reason == "canceled by alice"


def test_cancel_of_an_awol_job_is_remembered_for_its_homecoming() -> None:
    found = job(Status.AWOL, attempt(accepted_at=NOW, first_process_at=NOW))
    lifecycle.cancel(found, NOW, ALICE, "")
    assert found.status is Status.AWOL and found.attempt is not None
    assert found.attempt.stop_wish is StopKind.CANCEL
    lifecycle.come_back(found, NOW, AGENT)
    assert found.status is Status.CANCEL_REQUESTED


@pytest.mark.parametrize("status", sorted(HELD_BY_AGENT))
def test_abort_is_at_once_and_its_stop_pending(status: Status) -> None:
    found = job(status, attempt(accepted_at=NOW))
    lifecycle.abort(found, NOW, ALICE, "it hangs")
    assert (found.status, found.stop_state) == (Status.ABORTED, StopState.PENDING)
    assert found.attempt is not None and found.attempt.stop_wish is StopKind.ABORT
    assert found.status_message == "it hangs"


def test_abort_overtakes_cancel_and_is_never_weakened() -> None:
    found = running()
    lifecycle.cancel(found, NOW, ALICE, "")
    lifecycle.abort(found, NOW + SECOND, ALICE, "")
    assert found.attempt is not None and found.attempt.stop_wish is StopKind.ABORT
    assert found.attempt.stop_wished_at == NOW + SECOND


@pytest.mark.parametrize("status", [Status.DEFERRED, Status.WAITING])
def test_what_no_agent_has_needs_no_stop(status: Status) -> None:
    found = job(status)
    lifecycle.abort(found, NOW, ALICE, "")
    assert (found.status, found.stop_state) == (Status.ABORTED, StopState.NONE)


def test_a_job_that_was_given_back_needs_no_stop_either() -> None:
    found = starting()
    lifecycle.never_started(found, NOW, AGENT, "declined: full")
    lifecycle.abort(found, NOW, ALICE, "")
    assert (found.status, found.stop_state) == (Status.ABORTED, StopState.NONE)


@pytest.mark.parametrize("verb", ["abort", "delete"])
def test_ending_an_awol_job_confirms_nothing(verb: str) -> None:
    found = job(Status.AWOL, attempt(accepted_at=NOW))
    if verb == "abort":
        lifecycle.abort(found, NOW, ALICE, "")
    else:
        lifecycle.delete(found, NOW, ALICE)
    assert (found.status, found.stop_state) == (Status.ABORTED, StopState.UNCONFIRMED)
    assert (found.hidden_at == NOW) == (verb == "delete")
    # A returning agent is told to kill.
    assert found.attempt is not None and found.attempt.stop_wish is StopKind.ABORT


@pytest.mark.parametrize("status", [Status.STARTING, Status.RUNNING, Status.PROCESSING_OUTPUT])
def test_delete_is_refused_while_a_job_is_active(status: Status) -> None:
    found = job(status, attempt(accepted_at=NOW))
    with pytest.raises(IllegalTransition, match="cancel or abort it first"):
        lifecycle.delete(found, NOW, ALICE)
    assert found.hidden_at is None


@pytest.mark.parametrize("status", [*sorted(TERMINAL), Status.CANCEL_REQUESTED])
def test_delete_hides_and_leaves_the_status(status: Status) -> None:
    found = job(status, attempt(accepted_at=NOW))
    lifecycle.delete(found, NOW, ALICE)
    assert (found.status, found.hidden_at) == (status, NOW)


def test_a_deleted_job_that_nobody_hears_of_any_more_is_ended() -> None:
    """Nobody could end it: to people it is gone already. It would stay, hidden, for ever."""
    for lose in (lifecycle.silence, lambda j, now: lifecycle.journal_lost(j, now, AGENT)):
        found = job(Status.CANCEL_REQUESTED, attempt(accepted_at=NOW))
        lifecycle.delete(found, NOW, ALICE)
        lose(found, NOW)
        assert (found.status, found.stop_state) == (Status.ABORTED, StopState.UNCONFIRMED)


# Between claim and acceptance.


def test_an_acceptance_is_noted_once() -> None:
    found = starting()
    lifecycle.accept(found, NOW, AGENT)
    lifecycle.accept(found, NOW + SECOND, AGENT)
    assert found.attempt is not None and found.attempt.accepted_at == NOW
    assert events(found) == [("ACCEPT", "STARTING", "STARTING")]


def test_an_acceptance_that_comes_after_the_cancel_settles_it() -> None:
    found = starting()
    lifecycle.cancel(found, NOW, ALICE, "")
    with pytest.raises(StaleAttempt, match="forget it"):
        lifecycle.accept(found, NOW, AGENT)
    assert found.status is Status.CANCELED
    assert found.attempt is not None and found.attempt.sealed_at == NOW and found.attempt.accepted_at is None


def test_an_acceptance_that_comes_after_the_abort_confirms_the_stop() -> None:
    found = starting()
    lifecycle.abort(found, NOW, ALICE, "")
    assert found.stop_state is StopState.PENDING
    with pytest.raises(StaleAttempt):
        lifecycle.accept(found, NOW, AGENT)
    assert (found.status, found.stop_state) == (Status.ABORTED, StopState.CONFIRMED)


def test_a_job_that_was_given_back_waits_again_under_its_old_rank() -> None:
    found = starting()
    lifecycle.never_started(found, NOW + SECOND, AGENT, "declined: full")
    assert (found.status, found.agent, found.queued_at) == (Status.WAITING, "", NOW)
    assert found.retry_at is None  # the first time costs nothing
    assert found.attempt is not None and found.attempt.verdict is LogVerdict.COMPLETE


@pytest.mark.parametrize(("number", "seconds"), [(2, 2), (3, 4), (6, 32), (7, 60), (10, 60), (11, 66), (40, 600)])
def test_declines_in_a_row_come_slower_and_slower(number: int, seconds: int) -> None:
    found = starting(number=number)
    lifecycle.never_started(found, NOW, AGENT, "")
    assert found.retry_at == NOW + timedelta(seconds=seconds)


def test_what_was_accepted_is_never_given_back() -> None:
    found = running()
    found.status = Status.STARTING
    with pytest.raises(IllegalTransition):
        lifecycle.never_started(found, NOW, AGENT, "")


@pytest.mark.parametrize("canceled", [False, True])
def test_an_awol_job_that_never_started_waits_again_or_is_canceled(canceled: bool) -> None:
    found = job(Status.AWOL, attempt())
    if canceled:
        lifecycle.cancel(found, NOW, ALICE, "")
    lifecycle.never_started(found, NOW, AGENT, "")
    assert found.status is (Status.CANCELED if canceled else Status.WAITING)


# Silence and return.


def test_a_lost_journal_is_final_for_its_attempt() -> None:
    found = running()
    lifecycle.journal_lost(found, NOW, AGENT)
    assert found.status is Status.AWOL and found.attempt is not None and found.attempt.lost
    with pytest.raises(StaleAttempt):
        lifecycle.come_back(found, NOW, AGENT)
    assert found.status is Status.AWOL


def test_a_lost_journal_is_recorded_once_however_often_its_agent_returns() -> None:
    found = running()
    for _ in range(3):
        lifecycle.journal_lost(found, NOW, AGENT)
    assert events(found) == [("JOURNAL_LOST", "RUNNING", "AWOL")]


def test_a_pending_stop_stays_unconfirmed_when_the_journal_is_lost() -> None:
    found = running()
    lifecycle.abort(found, NOW, ALICE, "")
    lifecycle.journal_lost(found, NOW, AGENT)
    assert (found.status, found.stop_state) == (Status.ABORTED, StopState.UNCONFIRMED)


@pytest.mark.parametrize(
    ("proven", "expected"),
    [
        ({}, Status.STARTING),
        ({"accepted_at": NOW}, Status.STARTING),
        ({"accepted_at": NOW, "first_process_at": NOW}, Status.RUNNING),
        ({"accepted_at": NOW, "first_process_at": NOW, "payload_ended_at": NOW}, Status.PROCESSING_OUTPUT),
    ],
)
def test_a_job_comes_back_to_what_its_journal_has_proven(proven: dict[str, object], expected: Status) -> None:
    found = job(Status.AWOL, attempt(**proven))
    lifecycle.come_back(found, NOW, AGENT)
    assert found.status is expected
    canceled = job(Status.AWOL, attempt(**proven), cancel_requested_at=NOW)
    lifecycle.come_back(canceled, NOW, AGENT)
    assert canceled.status is Status.CANCEL_REQUESTED


def test_a_job_that_was_never_claimed_has_nothing_to_report() -> None:
    for act in (lifecycle.accept, lifecycle.come_back):
        with pytest.raises(StaleAttempt):
            act(job(Status.WAITING), NOW, AGENT)


# The limits that the sweeper keeps for an agent that is heard but does not act.

MARGIN = lifecycle.SWEEPER_MARGIN


@pytest.mark.parametrize(
    ("status", "proven", "limit", "to", "reason"),
    [
        (Status.STARTING, {"claimed_at": NOW}, timedelta(minutes=5), Status.FAILED, "START_TIMEOUT"),
        (Status.PROCESSING_OUTPUT, {"payload_ended_at": NOW}, timedelta(seconds=60), Status.FAILED, "OUTPUT_TIMEOUT"),
        (Status.RUNNING, {"first_process_at": NOW}, timedelta(minutes=10), Status.TIMED_OUT, "RUN_TIMEOUT"),
        (Status.CANCEL_REQUESTED, {"first_process_at": NOW}, timedelta(minutes=10), Status.TIMED_OUT, "RUN_TIMEOUT"),
        (Status.CANCEL_REQUESTED, {"stop_wished_at": NOW}, timedelta(seconds=40), Status.FAILED, "STOP_UNCONFIRMED"),
    ],
)
def test_a_limit_ends_a_job_half_a_minute_late_and_not_before(
    status: Status, proven: dict[str, object], limit: timedelta, to: Status, reason: str
) -> None:
    found = job(status, attempt(accepted_at=NOW, **proven), run_timeout=timedelta(minutes=10))
    assert not lifecycle.overrun(found, NOW + limit + MARGIN, NOW)
    assert found.status is status and not found.new_history
    assert lifecycle.overrun(found, NOW + limit + MARGIN + SECOND, NOW)
    assert (found.status, found.failure_reason, found.stop_state) == (to, reason, StopState.PENDING)
    assert found.attempt is not None and found.attempt.stop_wish is StopKind.ABORT


def test_a_job_without_a_run_timeout_runs_as_long_as_it_likes() -> None:
    assert not lifecycle.overrun(running(), NOW + timedelta(days=365), NOW)


@pytest.mark.parametrize(
    ("status", "latest_start", "held_until", "reason"),
    [
        (Status.WAITING, NOW, None, "LATEST_START"),
        (Status.DEFERRED, NOW, None, "LATEST_START"),
        (Status.DEFERRED, None, NOW, "DEFERRAL_LIMIT"),
        (Status.DEFERRED, NOW, NOW - SECOND, "DEFERRAL_LIMIT"),
        (Status.DEFERRED, NOW - SECOND, NOW, "LATEST_START"),
        # As a replica of the release before leaves one that it activates.
        (Status.WAITING, NOW, NOW - SECOND, "LATEST_START"),
    ],
)
def test_expiry_says_why(
    status: Status, latest_start: datetime | None, held_until: datetime | None, reason: str
) -> None:
    found = job(status, latest_start=latest_start, deferral_ends_at=held_until)
    lifecycle.expire(found, NOW)
    assert (found.status, found.failure_reason) == (Status.EXPIRED, reason)
    assert found.status_message


def test_activation_ends_the_deferral() -> None:
    found = job(Status.DEFERRED, deferral_ends_at=NOW)
    lifecycle.activate(found, NOW, ALICE, "go")
    assert found.deferral_ends_at is None and found.new_history[-1].message == "go"


@pytest.mark.parametrize(
    ("status", "proven", "limit", "reason"),
    [
        (Status.STARTING, {}, {"start_timeout": timedelta(hours=1)}, "START_TIMEOUT"),
        (Status.PROCESSING_OUTPUT, {"payload_ended_at": NOW}, {"output_timeout": timedelta(hours=1)}, "OUTPUT_TIMEOUT"),
        (
            Status.CANCEL_REQUESTED,
            {"stop_wished_at": NOW, "stop_wish": StopKind.CANCEL},
            {"cancel_grace": timedelta(hours=1) - lifecycle.KILL_LIMIT},
            "STOP_UNCONFIRMED",
        ),
    ],
)
def test_each_job_has_its_own_limits(
    status: Status, proven: dict[str, Any], limit: dict[str, timedelta], reason: str
) -> None:
    found = job(status, attempt(accepted_at=NOW, **proven), **limit)
    assert not lifecycle.overrun(found, NOW + timedelta(hours=1) + MARGIN, NOW)
    assert lifecycle.overrun(found, NOW + timedelta(hours=1) + MARGIN + SECOND, NOW)
    assert found.failure_reason == reason


# Status, stop, whether something may be at the site; what becomes of it, or what the refusal says.
FORCED: list[tuple[Status, StopState, bool, Status | str]] = [
    (Status.AWOL, StopState.NONE, True, Status.ABORTED),
    *((s, StopState.UNCONFIRMED, True, s) for s in sorted(TERMINAL - {Status.EXPIRED})),
    *((s, StopState.NONE, False, "unchanged") for s in sorted(TERMINAL)),
    (Status.ABORTED, StopState.UNCONFIRMED, False, "unchanged"),
    (Status.CANCELED, StopState.CONFIRMED, False, "unchanged"),
    (Status.ABORTED, StopState.PENDING, True, "confirm its stop: wait until its agent has been silent for 120 s"),
    *((s, StopState.NONE, True, "end it: abort it without force, or wait until") for s in sorted(HELD_BY_AGENT)),
    (Status.DEFERRED, StopState.NONE, False, "no agent has it: abort it without force"),
    (Status.WAITING, StopState.NONE, False, "no agent has it: abort it without force"),
]


@pytest.mark.parametrize(("status", "stop", "live", "outcome"), FORCED)
def test_force(status: Status, stop: StopState, live: bool, outcome: Status | str) -> None:
    current = attempt(accepted_at=NOW, sealed_at=None if live else NOW)
    found = job(status, current, stop_state=stop, with_credentials=True)
    if not isinstance(outcome, Status) and outcome != "unchanged":
        with pytest.raises(ForceRefused, match=outcome):
            lifecycle.force(found, NOW, ALICE, "its machine was scrapped")
        assert not found.new_history and found.status is status
        return
    lifecycle.force(found, NOW, ALICE, "its machine was scrapped")
    if outcome == "unchanged":
        assert (found.status, found.stop_state, found.new_history) == (status, stop, [])
        return
    assert (found.status, found.stop_state, found.live) == (outcome, StopState.UNCONFIRMED, False)
    assert (current.lost, current.verdict, current.sealed_at) == (True, LogVerdict.GAPPED, NOW)
    assert found.lease_end == LeaseEnd(7, 1, job_over=True)
    (entry,) = found.new_history
    assert (entry.event, entry.actor, entry.origin) == (Event.FORCE, ALICE.name, ALICE.origin)
    assert (entry.message, found.completed_at is None) == ("its machine was scrapped", status in TERMINAL)
    lifecycle.force(found, NOW + SECOND, ALICE, "again")
    assert len(found.new_history) == 1


def test_an_agent_that_has_just_come_back_is_given_time_to_hand_in_what_it_has() -> None:
    found = job(Status.RUNNING, attempt(accepted_at=NOW, first_process_at=NOW), run_timeout=timedelta(minutes=10))
    assert found.attempt is not None
    late = NOW + timedelta(minutes=30)
    found.attempt.active_at = late
    assert not lifecycle.overrun(found, late + MARGIN, NOW)
    assert lifecycle.overrun(found, late + MARGIN + SECOND, NOW)


def test_a_sweeper_judges_no_limit_before_it_has_watched_for_the_margin() -> None:
    late = NOW + timedelta(minutes=30)
    found = job(Status.RUNNING, attempt(accepted_at=NOW, first_process_at=NOW), run_timeout=timedelta(minutes=10))
    assert not lifecycle.overrun(found, late + MARGIN, late)
    assert lifecycle.overrun(found, late + MARGIN + SECOND, late)


@pytest.mark.parametrize(
    ("changes", "reopened"),
    [({}, True), ({"lost": True}, False), ({"sealed_at": NOW}, False)],
    ids=["live", "lost", "sealed"],
)
def test_a_stop_that_was_given_up_is_waited_for_again_once_its_agent_is_heard(
    changes: dict[str, Any], reopened: bool
) -> None:
    found = job(Status.ABORTED, attempt(accepted_at=NOW, **changes), stop_state=StopState.UNCONFIRMED)
    assert found.attempt is not None
    assert lifecycle.reopen_stop(found, NOW + SECOND) is reopened
    assert found.stop_state is (StopState.PENDING if reopened else StopState.UNCONFIRMED)
    assert found.attempt.last_heard_at == NOW + SECOND * reopened
    assert not lifecycle.reopen_stop(found, NOW + 2 * SECOND)


@pytest.mark.parametrize("stop", [StopState.NONE, StopState.PENDING, StopState.CONFIRMED])
def test_only_a_stop_that_was_given_up_is_waited_for_again(stop: StopState) -> None:
    found = job(Status.FAILED, attempt(accepted_at=NOW), stop_state=stop)
    assert not lifecycle.reopen_stop(found, NOW) and found.stop_state is stop
