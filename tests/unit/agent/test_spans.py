"""The spans of an attempt follow from its assignment and its log."""

from __future__ import annotations

import pytest

from services.sis_agent.agent import spans
from services.sis_agent.agent.recording.milestones import Milestones
from services.sis_agent.agent.trace_contexts import contexts_of
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as frame
from sis.queue.v1 import job_pb2
from sis.trace_context import TraceContext
from tests.support.recorded_spans import Spans, context_of, recorded_spans

JOB = TraceContext(0xABC, 0xDEF)
ATTEMPT = dispatch.Attempt(job_id=42, number=1)
NAMES = ["job attempt", "job run", "job supervise"]


def _notice(seconds: int, **fact: object) -> frame.Frame:
    found = frame.Frame(sequence=1, notice=frame.Notice(text="secret text", **fact))  # type: ignore[arg-type]
    found.time.seconds = seconds
    return found


def _started(role: job_pb2.ProcessRole.ValueType) -> frame.ProcessStarted:
    return frame.ProcessStarted(process=job_pb2.Process(pid=7, name="secret name", role=role))


def _whole() -> Milestones:
    milestones = Milestones()
    for each in (
        _notice(110, process_started=_started(job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR)),
        _notice(111, process_started=_started(job_pb2.PROCESS_ROLE_PAYLOAD)),
        _notice(112, process_started=_started(job_pb2.PROCESS_ROLE_DESCENDANT)),
        _notice(113, progress=frame.Progress(percent=10, text="secret text")),
        _notice(120, payload_ended=frame.PayloadEnded(exit_code=3)),
        _notice(121, finished=frame.Finished()),
    ):
        milestones.note(each)
    return milestones


def _record(assignment: dispatch.Assignment, milestones: Milestones, finished: frame.Finished) -> Spans:
    with recorded_spans(spans.SUPERVISOR) as recorded:
        spans.record(assignment, 100.0, milestones, finished, 130.0)
        return recorded


def _seconds(recorded: Spans, name: str) -> tuple[float, float]:
    span = recorded.one(name)
    assert span.start_time is not None and span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def test_an_attempt_has_its_parts_in_order() -> None:
    assignment = dispatch.Assignment(attempt=ATTEMPT, traceparent=str(JOB), display_name="secret name")
    failed = frame.Finished(outcome=frame.OUTCOME_FAILED, failure_reason="EXIT_CODE", result_code=3)
    recorded = _record(assignment, _whole(), failed)
    assert sorted(span.name for span in recorded.all()) == NAMES
    assert _seconds(recorded, "job attempt") == (100, 130)
    assert _seconds(recorded, "job supervise") == (110, 121)
    assert _seconds(recorded, "job run") == (111, 120)
    attempt, supervision = recorded.one("job attempt"), recorded.one("job supervise")
    assert attempt.parent is not None and attempt.parent.span_id == JOB.span_id
    assert supervision.parent is not None and supervision.parent.span_id == context_of(attempt).span_id
    run = recorded.one("job run")
    assert run.parent is not None and run.parent.span_id == context_of(supervision).span_id
    contexts = contexts_of(assignment)
    assert contexts is not None and context_of(run) == contexts.payload
    assert attempt.resource.attributes["service.name"] == "sis-test"
    assert {run.resource.attributes["service.name"], supervision.resource.attributes["service.name"]} == {
        "sis-supervisor"
    }
    assert run.attributes is not None and run.attributes["process.exit.code"] == 3
    assert not attempt.status.is_ok and attempt.attributes is not None
    assert attempt.attributes["error.type"] == "EXIT_CODE"


def test_nothing_that_was_written_is_in_them() -> None:
    assignment = dispatch.Assignment(attempt=ATTEMPT, traceparent=str(JOB), display_name="secret name")
    finished = frame.Finished(
        outcome=frame.OUTCOME_SUCCEEDED, outputs=[job_pb2.OutputParameter(name="x", value="secret value")]
    )
    recorded = _record(assignment, _whole(), finished)
    assert len(recorded.all()) == len(NAMES)
    assert "secret" not in "".join(span.to_json() for span in recorded.all())


def test_an_attempt_without_a_process_has_none_of_its_spans() -> None:
    assignment = dispatch.Assignment(attempt=ATTEMPT, traceparent=str(JOB))
    milestones = Milestones()
    milestones.note(_notice(105, finished=frame.Finished()))
    recorded = _record(assignment, milestones, frame.Finished(outcome=frame.OUTCOME_STOPPED))
    assert sorted(span.name for span in recorded.all()) == ["job attempt"]
    assert _seconds(recorded, "job attempt") == (100, 130)


@pytest.mark.parametrize("traceparent", ["", "hostile", str(TraceContext(1, 2, sampled=False))])
def test_what_nobody_traces_has_no_spans(traceparent: str) -> None:
    assignment = dispatch.Assignment(attempt=ATTEMPT, traceparent=traceparent)
    assert not _record(assignment, _whole(), frame.Finished(outcome=frame.OUTCOME_SUCCEEDED)).all()


def test_the_payload_is_told_where_it_is_also_where_nothing_is_recorded() -> None:
    unrecorded = TraceContext(1, 2, sampled=False)
    contexts = contexts_of(dispatch.Assignment(attempt=ATTEMPT, traceparent=str(unrecorded)))
    assert contexts is not None
    assert (contexts.payload.trace_id, contexts.payload.sampled) == (1, False)
    assert contexts_of(dispatch.Assignment(attempt=ATTEMPT, traceparent="hostile")) is None
