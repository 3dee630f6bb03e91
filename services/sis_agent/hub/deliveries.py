"""The spans of deliveries: from when the hub has an assignment until the queue has committed that its agent accepted
it."""

from __future__ import annotations

import time
from typing import Final

from services.runtime import tracing
from services.runtime.tracing import Attribute
from services.sis_agent.hub.slots import AttemptKey
from sis.queue.v1 import dispatch_service_pb2 as queue
from sis.trace_context import TraceContext

LIMIT: Final = 1_000
"""As many are followed, the most slots that an agent has. The spans of others are lost, nothing else."""


class Deliveries:
    """Those of one session that are not over. Where nothing is traced, there are none."""

    def __init__(self) -> None:
        self._begun: dict[AttemptKey, tuple[TraceContext, float, int]] = {}

    def begin(self, assignment: queue.Assignment) -> None:
        """An assignment is to be delivered; again, nothing."""
        key = AttemptKey(assignment.attempt.job_id, assignment.attempt.number)
        if not tracing.records() or key in self._begun or len(self._begun) >= LIMIT:
            return
        if (context := TraceContext.parse(assignment.traceparent)) is not None:
            self._begun[key] = context, time.time(), len(assignment.credentials)

    def forget(self, key: AttemptKey) -> None:
        """It is settled: one that its agent had already was delivered for nothing."""
        self._begun.pop(key, None)

    def end(self, key: AttemptKey, failure: str = "") -> None:
        """It was accepted, or why it was not."""
        if (begun := self._begun.pop(key, None)) is None:
            return
        context, since, leases = begun
        about: dict[Attribute, str | int] = {
            Attribute.JOB_ID: key.job_id,
            Attribute.JOB_ATTEMPT: key.number,
            Attribute.LEASES: leases,
        }
        if failure:
            about[Attribute.ERROR_TYPE] = failure
        tracing.record("job deliver", context, since, time.time(), about)
