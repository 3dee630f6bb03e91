"""What a job says can be done to it follows from the table of DESIGN section 4, as `tests.support.agreed_states` has it
from its words."""

from __future__ import annotations

import pytest

from services.queue import bulk, states
from services.queue.convert import jobs as convert
from services.queue.states import Event, Status
from sis.queue.v1 import job_pb2
from tests.support import agreed_states

EXPECTED = {
    "DEFERRED": "ACTIVATE CANCEL ABORT DELETE",
    "WAITING": "CANCEL ABORT DELETE",
    "STARTING": "CANCEL ABORT",
    "RUNNING": "CANCEL ABORT",
    "PROCESSING_OUTPUT": "ABORT",
    "CANCEL_REQUESTED": "ABORT DELETE",
    "CANCELED": "DELETE RERUN",
    "SUCCEEDED": "DELETE RERUN",
    "FAILED": "DELETE RERUN",
    "ABORTED": "DELETE RERUN",
    "TIMED_OUT": "DELETE RERUN",
    "EXPIRED": "DELETE RERUN",
    "AWOL": "CANCEL ABORT DELETE",
}
"""The buttons of each status."""


@pytest.mark.parametrize("status", Status)
def test_the_verbs_of_each_status(status: Status) -> None:
    assert " ".join(states.permitted(status)) == EXPECTED[status]


@pytest.mark.parametrize("cancel_recorded", [False, True])
@pytest.mark.parametrize("status", Status)
def test_they_are_those_that_the_table_takes_and_that_were_not_done(status: Status, cancel_recorded: bool) -> None:
    for verb in states.VERBS:
        outcomes = {agreed_states.MOVES.get((status, verb, accepted, cancel_recorded)) for accepted in (False, True)}
        assert len(outcomes) == 1  # no verb depends on an acceptance
        (to,) = outcomes
        # A verb that does not move a job is a repetition, but for those that ask for something besides its status.
        besides = verb in (Event.DELETE, Event.RERUN) or (status, verb, cancel_recorded) == ("AWOL", "CANCEL", False)
        expected = to is not None and (to != status or besides)
        assert (verb in states.permitted(status, cancel_recorded=cancel_recorded)) == expected, verb


def test_force_is_no_verb_of_its_own() -> None:
    assert {verb.value for verb in states.VERBS} == {verb.value for verb in bulk.Verb}


def test_they_have_their_numbers_in_the_contract() -> None:
    names = {name.removeprefix("JOB_VERB_") for name, _ in job_pb2.JobVerb.items()}
    assert names - {"UNSPECIFIED"} == {verb.value for verb in states.VERBS}
    assert convert._PERMITTED[Status.DEFERRED, False] == [
        job_pb2.JOB_VERB_ACTIVATE, job_pb2.JOB_VERB_CANCEL, job_pb2.JOB_VERB_ABORT, job_pb2.JOB_VERB_DELETE,
    ]  # fmt: skip
