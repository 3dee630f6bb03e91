"""The spans of an attempt, recorded when it is over, as its log has it: so they hold across restarts of this agent, and
supervisors, which know nothing of OpenTelemetry, have theirs.
"""

from __future__ import annotations

from typing import Final

from services.runtime import tracing
from services.runtime.tracing import Attribute
from services.sis_agent.agent.recording.milestones import Milestones
from services.sis_agent.agent.trace_contexts import contexts_of
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as frame

SUPERVISOR: Final = "supervisor"
"""Whose spans this agent records beside its own."""

_OUTCOMES: Final = {number: name.removeprefix("OUTCOME_") for name, number in frame.Outcome.items()}
_GOOD: Final = (frame.OUTCOME_SUCCEEDED, frame.OUTCOME_STOPPED)


def record(
    assignment: dispatch.Assignment, received_at: float, milestones: Milestones, finished: frame.Finished, now: float
) -> None:
    """Record an attempt of which the server has everything, now in seconds of the epoch. What the attempt did before it
    was supervised (the package, the word that it may start) and after it (the report) is seen between the spans."""
    contexts = contexts_of(assignment)
    if not tracing.records() or contexts is None:
        return
    about: dict[Attribute, str | int] = {
        Attribute.JOB_ID: assignment.attempt.job_id,
        Attribute.JOB_ATTEMPT: assignment.attempt.number,
    }
    outcome = _OUTCOMES.get(finished.outcome, "UNKNOWN")
    result = {**about, Attribute.JOB_OUTCOME: outcome}
    if finished.outcome not in _GOOD:
        result[Attribute.ERROR_TYPE] = finished.failure_reason or outcome
    over = milestones.finished or now
    tracing.record("job attempt", contexts.job, received_at, now, result, own=contexts.attempt)
    if milestones.supervised:
        own = contexts.supervision
        tracing.record("job supervise", contexts.attempt, milestones.supervised, over, result, own=own, of=SUPERVISOR)
    if milestones.started:
        exit_code = {Attribute.EXIT_CODE: finished.result_code} if finished.HasField("result_code") else {}
        until = milestones.payload_ended or over
        run = {**about, **exit_code}
        tracing.record(
            "job run", contexts.supervision, milestones.started, until, run, own=contexts.payload, of=SUPERVISOR
        )
