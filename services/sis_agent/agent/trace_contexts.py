"""The contexts of the spans of an attempt. They follow from the one in its assignment: so the payload is told its own
(TRACEPARENT) before anything is recorded, and nothing has to be remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.trace_context import TraceContext


@dataclass(frozen=True, slots=True)
class TraceContexts:
    """Of an attempt, each within the one before."""

    job: TraceContext
    attempt: TraceContext
    supervision: TraceContext
    payload: TraceContext


def contexts_of(assignment: dispatch.Assignment) -> TraceContexts | None:
    """None where nobody traces the job."""
    job = TraceContext.parse(assignment.traceparent)
    if job is None:
        return None
    attempt = job.within(f"attempt {assignment.attempt.job_id}.{assignment.attempt.number}")
    supervision = attempt.within("supervise")
    return TraceContexts(job, attempt, supervision, supervision.within("run"))
