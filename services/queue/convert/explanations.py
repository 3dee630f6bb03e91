"""ExplainJob: explanations to messages."""

from __future__ import annotations

from services.queue.convert.jobs import WAIT_REASONS
from services.queue.convert.selection import STATUSES
from services.queue.explanations import Cause, Explanation, SlotHolder
from services.runtime.fields import numbers, to_timestamp
from sis.queue.v1 import job_pb2, job_service_pb2

_STATUS_NUMBERS = numbers(STATUSES)
_REASON_NUMBERS = numbers(WAIT_REASONS)


def to_explanation(found: Explanation) -> job_service_pb2.ExplainJobResponse:
    return job_service_pb2.ExplainJobResponse(
        status=_STATUS_NUMBERS[found.status],
        causes=[_cause(cause) for cause in found.causes],
        summary=found.summary,
        estimated_start_time=to_timestamp(found.estimated_start_at),
    )


def _cause(cause: Cause) -> job_service_pb2.WaitCause:
    return job_service_pb2.WaitCause(
        reason=_REASON_NUMBERS[cause.reason] if cause.reason else job_pb2.WAIT_REASON_UNSPECIFIED,
        message=cause.message,
        retry_time=to_timestamp(cause.retry_at),
        agents=cause.agents,
        holders=[_holder(holder) for holder in cause.holders],
        jobs_ahead=cause.jobs_ahead,
    )


def _holder(holder: SlotHolder) -> job_service_pb2.SlotHolder:
    return job_service_pb2.SlotHolder(
        agent=holder.agent,
        job_id=holder.job_id,
        status=_STATUS_NUMBERS[holder.status],
        claim_time=to_timestamp(holder.claimed_at),
        deadline=to_timestamp(holder.deadline),
    )
