"""The rulebook says what DESIGN section 4 says: what `tests.support.agreed_states` has of that table, which is written
from its words, not from `states.TRANSITIONS`."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from services.queue import states
from services.queue.bulk import Verb
from services.queue.creation import Priority
from services.queue.errors import IllegalTransition
from services.queue.frames import Channel, Outcome, Severity, StopKind
from services.queue.logs import DebugLogView
from services.queue.model import LogVerdict, RefusalReason, WaitReason
from services.queue.sessions import Verdict
from services.queue.states import HELD_BY_AGENT, RUN_STATES, TERMINAL, Event, RunState, Status, StopState, next_status
from services.queue.tables import JobType
from sis.credentials.v1 import credential_pb2, lease_pb2
from sis.packages.operation import CredentialKind
from sis.queue.v1 import dispatch_service_pb2, frame_pb2, job_pb2, job_service_pb2
from tests.support import agreed_states

AGREED_MOVES = {
    (Status(status), Event(event), accepted, canceled): Status(to)
    for (status, event, accepted, canceled), to in agreed_states.MOVES.items()
}


@pytest.mark.parametrize("status", Status)
def test_every_event_has_the_outcome_that_was_agreed(status: Status) -> None:
    for event, accepted, canceled in itertools.product(Event, (False, True), (False, True)):
        expected = AGREED_MOVES.get((status, event, accepted, canceled))
        if expected is None:
            with pytest.raises(IllegalTransition):
                next_status(status, event, accepted=accepted, cancel_recorded=canceled)
        else:
            found = next_status(status, event, accepted=accepted, cancel_recorded=canceled)
            assert found is expected, (event, accepted, canceled)


def test_terminal_is_final() -> None:
    assert agreed_states.TERMINAL == TERMINAL
    for status, event, accepted, canceled in itertools.product(TERMINAL, Event, (False, True), (False, True)):
        with contextlib.suppress(IllegalTransition):
            assert next_status(status, event, accepted=accepted, cancel_recorded=canceled) is status


def test_an_agent_holds_what_was_agreed() -> None:
    assert agreed_states.HELD_BY_AGENT == HELD_BY_AGENT


def test_every_status_is_reached_and_every_event_acts() -> None:
    moves = {to for (status, *_), to in AGREED_MOVES.items() if to is not status}
    assert moves == set(Status)
    assert {event for _, event, *_ in AGREED_MOVES} == set(Event)


def test_no_two_rows_of_the_rulebook_contradict_each_other() -> None:
    """The first row that holds wins, so of two without a guard for one pair the second would be dead."""
    rows = [(rule.status, rule.event, rule.guard) for rule in states.TRANSITIONS]
    assert len(rows) == len(set(rows))


def test_the_run_states_are_the_user_guides() -> None:
    assert {group.name: {status.name for status in found} for group, found in RUN_STATES.items()} == {
        "READY": {"DEFERRED", "WAITING"},
        "ACTIVE": {"PROCESSING_OUTPUT", "STARTING", "RUNNING"},
        "CANCELING": {"CANCEL_REQUESTED", "CANCELED"},
        "SUCCEEDED": {"SUCCEEDED"},
        "FAILED": {"AWOL", "FAILED"},
        "TIMED_OUT": {"TIMED_OUT", "EXPIRED"},
        "HALTED": {"ABORTED", "CANCELED"},
    }
    assert set().union(*RUN_STATES.values()) == set(Status)


@pytest.mark.parametrize(
    ("wrapper", "prefix", "kind"),
    [
        (job_pb2.JobStatus, "JOB_STATUS_", Status),
        (job_pb2.RunState, "RUN_STATE_", RunState),
        (job_pb2.JobType, "JOB_TYPE_", JobType),
        (job_pb2.Priority, "PRIORITY_", Priority),
        (job_pb2.StopState, "STOP_STATE_", StopState),
        (job_pb2.LogVerdict, "LOG_VERDICT_", LogVerdict),
        (job_pb2.WaitReason, "WAIT_REASON_", WaitReason),
        (lease_pb2.LeaseRefusalReason, "LEASE_REFUSAL_REASON_", RefusalReason),
        (credential_pb2.CredentialKind, "CREDENTIAL_KIND_", CredentialKind),
        (job_pb2.Channel, "CHANNEL_", Channel),
        (frame_pb2.StopKind, "STOP_KIND_", StopKind),
        (frame_pb2.Outcome, "OUTCOME_", Outcome),
        (dispatch_service_pb2.Verdict, "VERDICT_", Verdict),
        (job_service_pb2.DebugLogView, "DEBUG_LOG_VIEW_", DebugLogView),
        (job_pb2.JobVerb, "JOB_VERB_", Verb),
    ],
)
def test_contract_and_domain_have_the_same_words(wrapper, prefix, kind) -> None:  # type: ignore[no-untyped-def]
    names = {name.removeprefix(prefix): number for name, number in wrapper.items()}
    assert names.pop("UNSPECIFIED") == 0
    assert set(names) == {member.name for member in kind}
    if isinstance(next(iter(kind)).value, int):
        assert names == {member.name: member.value for member in kind}


def test_severities_have_the_numbers_of_the_contract() -> None:
    names = {name.removeprefix("SEVERITY_"): number for name, number in frame_pb2.Severity.items()}
    assert names.pop("UNSPECIFIED") == Severity.NONE
    assert names == {member.name: member.value for member in Severity if member is not Severity.NONE}


def test_a_refusal_says_what_stands_in_the_way() -> None:
    with pytest.raises(IllegalTransition) as caught:
        next_status(Status.PROCESSING_OUTPUT, Event.CANCEL)
    assert "processing output" in caught.value.message and "abort" in caught.value.message
    assert caught.value.condition == "STATUS_PROCESSING_OUTPUT"
