"""What the frames of an attempt do to its job."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.queue import evidence, lifecycle
from services.queue.errors import LogSealed, SequenceGap, StaleAttempt
from services.queue.frames import DIGEST_START, Frame, StopKind
from services.queue.model import Job, LogVerdict
from services.queue.states import HELD_BY_AGENT, TERMINAL, Status, StopState
from sis.queue.v1 import frame_pb2, job_pb2
from tests.support.frames import Spool
from tests.unit.queue.samples import AGENT, ALICE, NOW, attempt, events, job, running, starting

LATER = NOW + timedelta(seconds=5)


def accepted() -> Job:
    return job(Status.STARTING, attempt(accepted_at=NOW))


def tell(found: Job, *frames: tuple[Frame, ...]) -> None:
    for batch in frames:
        for frame in batch:
            evidence.append(found, frame, LATER, AGENT)


def test_a_job_from_its_first_process_to_its_end() -> None:
    found, spool = accepted(), Spool()
    tell(found, spool.process_started(100))
    assert found.status is Status.RUNNING and found.started_at == LATER
    tell(found, spool.output(b"hello\n"), spool.progress(40, "nearly"), spool.payload_ended(3))
    assert found.status is Status.PROCESSING_OUTPUT and found.result_code == 3
    assert (found.progress_percent, found.progress_text) == (40, "nearly")
    tell(found, spool.finished("SUCCEEDED", outputs={"answer": "42"}))
    assert (found.status, found.stop_state, found.outputs) == (
        Status.SUCCEEDED,
        StopState.CONFIRMED,
        {"answer": "42"},
    )
    current = found.attempt
    assert current is not None
    assert (current.verdict, current.sealed_at, current.output_bytes) == (LogVerdict.COMPLETE, LATER, 6)
    assert (current.sequence, current.digest) == (5, spool.digest)


def test_the_digest_runs_over_the_bytes_of_the_frames() -> None:
    found, spool = running(), Spool()
    tell(found, spool.output(b"a"), spool.output(b"b"))
    expected = DIGEST_START
    for body in spool.bodies:
        expected = hashlib.sha256(expected + body).digest()
    assert found.attempt is not None and found.attempt.digest == expected


def test_nothing_is_taken_before_the_acceptance_is_committed() -> None:
    with pytest.raises(StaleAttempt, match="not accepted"):
        tell(starting(), Spool().process_started(1))


@pytest.mark.parametrize("missing", [1, 5])
def test_a_gap_is_refused_and_says_what_comes_next(missing: int) -> None:
    found, spool = running(), Spool()
    tell(found, spool.output(b"1"))
    for _ in range(missing):
        spool.output(b"lost")
    before = found.attempt
    with pytest.raises(SequenceGap) as caught:
        tell(found, spool.output(b"next"))
    assert caught.value.metadata["expected"] == "2"
    assert found.attempt == before


def test_a_duplicate_is_not_for_the_log_to_take_twice() -> None:
    found, spool = running(), Spool()
    frame = spool.output(b"1")
    tell(found, frame)
    with pytest.raises(SequenceGap):
        tell(found, frame)
    assert found.attempt is not None and found.attempt.output_bytes == 1


def test_nothing_comes_behind_the_last_frame() -> None:
    found, spool = running(), Spool()
    tell(found, spool.payload_ended(0), spool.finished("SUCCEEDED"))
    with pytest.raises(LogSealed):
        tell(found, spool.output(b"more"))


def test_another_digest_at_the_site_is_called_a_gap() -> None:
    found, spool = running(), Spool()
    tell(found, spool.payload_ended(0), spool.finished("SUCCEEDED", digest=bytes(32)))
    assert found.attempt is not None and found.attempt.verdict is LogVerdict.GAPPED


def test_a_log_that_was_cut_at_its_cap_is_called_truncated() -> None:
    found, spool = running(), Spool()
    tell(found, spool.payload_ended(0), spool.finished("SUCCEEDED", discarded_bytes=9))
    assert found.attempt is not None
    assert (found.attempt.verdict, found.attempt.discarded_bytes) == (LogVerdict.TRUNCATED, 9)


def test_a_log_whose_end_went_with_its_supervisor_is_called_a_gap() -> None:
    """Whatever digest the site has of what is left, and however much it had discarded before."""
    for discarded in (0, 9):
        found, spool = running(), Spool()
        tell(found, spool.finished("FAILED", reason="SUPERVISOR_LOST", output_cut=True, discarded_bytes=discarded))
        assert found.attempt is not None and found.attempt.verdict is LogVerdict.GAPPED


def test_a_signal_without_a_time_is_given_that_of_no_other() -> None:
    found, spool = accepted(), Spool()
    tell(found, spool.process_started(100), spool.process_signalled(100, "TERM"))
    assert found.attempt is not None
    del found.attempt.processes[0]["signalTimes"]  # as the release before has kept it
    tell(found, spool.process_signalled(100, "KILL"))
    assert (found.attempt.processes[0]["signals"], found.attempt.processes[0]["signalTimes"]) == (["TERM", "KILL"], [])


def test_every_process_is_named_with_its_signals_and_its_end() -> None:
    found, spool = accepted(), Spool()
    tell(
        found,
        spool.process_started(99, job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR),
        spool.process_started(100),
        spool.process_started(101, job_pb2.PROCESS_ROLE_DESCENDANT),
        spool.process_signalled(101, "TERM"),
        spool.process_signalled(101, "KILL"),
        spool.process_signalled(4242, "KILL"),
        spool.process_exited(101, signal="KILL"),
        spool.process_exited(100, code=0),
    )
    assert found.attempt is not None
    by_pid = {process["pid"]: process for process in found.attempt.processes}
    assert len(by_pid["101"]["signalTimes"]) == 2  # type: ignore[arg-type]
    assert by_pid["101"]["signals"] == ["TERM", "KILL"] and by_pid["101"]["endSignal"] == "KILL"
    assert by_pid["100"]["ended"] and by_pid["100"]["exitCode"] == 0
    assert "ended" not in by_pid["99"]


def test_a_process_id_that_was_used_again_is_another_process() -> None:
    found, spool = running(), Spool()
    tell(found, spool.process_started(5), spool.process_exited(5, code=1), spool.process_started(5))
    assert found.attempt is not None
    first, second = found.attempt.processes
    assert first["ended"] and "ended" not in second


def test_no_job_names_more_processes_than_its_row_can_hold() -> None:
    found, spool = running(), Spool()
    for pid in range(1, evidence.PROCESSES + 10):
        tell(found, spool.process_started(pid, job_pb2.PROCESS_ROLE_DESCENDANT))
    assert found.attempt is not None and len(found.attempt.processes) == evidence.PROCESSES


def test_only_the_payload_makes_a_job_run_and_only_once() -> None:
    found, spool = accepted(), Spool()
    tell(found, spool.process_started(99, job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR))
    assert found.status is Status.STARTING
    tell(found, spool.process_started(100), spool.process_started(101))
    assert events(found) == [("FIRST_PROCESS", "STARTING", "RUNNING")]


# Stops.


def test_a_stop_that_was_asked_for_ends_in_canceled() -> None:
    found, spool = running(), Spool()
    lifecycle.cancel(found, NOW, ALICE, "")
    tell(found, spool.stop_begun("CANCEL"), spool.payload_ended(143))
    assert found.status is Status.CANCEL_REQUESTED
    assert found.attempt is not None and found.attempt.stop_begun is StopKind.CANCEL
    tell(found, spool.finished("STOPPED"))
    assert (found.status, found.stop_state) == (Status.CANCELED, StopState.CONFIRMED)


@pytest.mark.parametrize(("outcome", "to"), [("SUCCEEDED", Status.SUCCEEDED), ("FAILED", Status.FAILED)])
def test_a_payload_that_was_reaped_before_the_stop_keeps_its_outcome(outcome: str, to: Status) -> None:
    found, spool = running(), Spool()
    lifecycle.cancel(found, NOW, ALICE, "")
    tell(found, spool.payload_ended(0), spool.finished(outcome, reason="EXIT_CODE" if outcome == "FAILED" else ""))
    assert found.status is to


def test_a_tree_that_was_not_empty_is_never_called_stopped() -> None:
    found, spool = running(), Spool()
    lifecycle.cancel(found, NOW, ALICE, "")
    tell(found, spool.stop_begun("CANCEL"), spool.finished("FAILED", tree_empty=False, reason="STOP_UNCONFIRMED"))
    assert (found.status, found.stop_state) == (Status.FAILED, StopState.UNCONFIRMED)
    assert found.failure_reason == "STOP_UNCONFIRMED"


def test_a_stop_that_nobody_asked_for_is_a_failure() -> None:
    found, spool = running(), Spool()
    tell(found, spool.finished("STOPPED"))
    assert (found.status, found.failure_reason) == (Status.FAILED, "STOPPED_AT_SITE")


def test_a_run_timeout_at_the_site_ends_the_job_at_once_and_its_stop_later() -> None:
    found, spool = running(), Spool()
    tell(found, spool.stop_begun("TIME_OUT"))
    assert (found.status, found.stop_state) == (Status.TIMED_OUT, StopState.PENDING)
    assert found.failure_reason == "RUN_TIMEOUT"
    tell(found, spool.payload_ended(143), spool.finished("TIMED_OUT"))
    assert (found.status, found.stop_state) == (Status.TIMED_OUT, StopState.CONFIRMED)


@pytest.mark.parametrize("status", sorted(TERMINAL - {Status.EXPIRED}))
def test_what_arrives_after_the_end_is_evidence_and_settles_the_stop(status: Status) -> None:
    found = job(status, attempt(accepted_at=NOW), stop_state=StopState.PENDING, outputs={"kept": "1"})
    spool = Spool()
    tell(found, spool.process_started(1), spool.payload_ended(0), spool.finished("SUCCEEDED", outputs={"late": "2"}))
    assert (found.status, found.stop_state, found.outputs) == (status, StopState.CONFIRMED, {"kept": "1"})
    assert found.attempt is not None and found.attempt.verdict is LogVerdict.COMPLETE


@pytest.mark.parametrize("outcome", ["SUCCEEDED", "FAILED", "STOPPED", "TIMED_OUT"])
@pytest.mark.parametrize("status", sorted(HELD_BY_AGENT))
def test_the_last_frame_ends_the_job_whatever_was_said_before(status: Status, outcome: str) -> None:
    """A sealed attempt is heard of no more, and no sweeper looks at it: a job that stayed would stay for ever."""
    found = job(status, attempt(accepted_at=NOW))
    tell(found, Spool().finished(outcome))
    assert found.status in TERMINAL and found.completed_at == LATER
    assert found.attempt is not None and found.attempt.sealed_at == LATER


FACTS = st.sampled_from(
    [
        lambda s: s.process_started(100), lambda s: s.payload_ended(0), lambda s: s.stop_begun("CANCEL"),
        lambda s: s.stop_begun("TIME_OUT"), lambda s: s.stop_begun("ABORT"), lambda s: s.progress(101, "x"),
        lambda s: s.process_exited(100, 1), lambda s: s.output(b"x"), lambda s: s.notice("said"),
    ]
)  # fmt: skip


@given(
    st.sampled_from(sorted(HELD_BY_AGENT)),
    st.lists(FACTS, max_size=8),
    st.sampled_from(["SUCCEEDED", "FAILED", "STOPPED", "TIMED_OUT"]),
    st.integers(0, 8),
    st.sampled_from([lifecycle.cancel, lifecycle.abort, None]),
)
def test_no_order_of_facts_wedges_a_job(status, facts, outcome, at, verb) -> None:  # type: ignore[no-untyped-def]
    found, spool = job(status, attempt(accepted_at=NOW)), Spool()
    for number, fact in enumerate(facts):
        if number == at and verb is not None and found.status in (Status.STARTING, Status.RUNNING):
            verb(found, NOW, ALICE, "")
        tell(found, fact(spool))
    ended = found.status if found.status in TERMINAL else None
    tell(found, spool.finished(outcome))
    assert found.status in TERMINAL and (ended is None or found.status is ended)
    assert found.stop_state is StopState.CONFIRMED
    assert found.attempt is not None and found.attempt.verdict is LogVerdict.COMPLETE
    before = None
    for entry in found.new_history:
        assert before is None or entry.from_status == before
        before = entry.to_status


def test_a_fact_that_is_not_known_yet_is_only_logged() -> None:
    """A newer agent may say more than this server understands."""
    found, spool = running(), Spool()
    tell(found, spool.notice("Truncated", log_truncated=frame_pb2.LogTruncated(cap_bytes=1)))
    assert found.attempt is not None and found.attempt.sequence == 1 and not found.new_history
