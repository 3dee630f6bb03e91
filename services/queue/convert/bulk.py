"""ApplyVerb: to a command, results to messages."""

from __future__ import annotations

from services.queue.bulk import ApplyVerb, Result, Verb
from services.queue.convert.jobs import REASON_CHARACTERS, to_listed
from services.queue.convert.selection import check_ids, job_filter
from services.runtime.errors import to_status
from services.runtime.fields import Violations, members
from sis.queue.v1 import job_pb2, job_service_pb2

VERBS = members(job_pb2.JobVerb, "JOB_VERB_", Verb)
_REQUEST_ID = 36


def apply_verb(request: job_service_pb2.ApplyVerbRequest) -> ApplyVerb:
    """Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    verb = wrong.member("verb", request.verb, VERBS)
    filtered = request.HasField("filter")
    if bool(request.job_ids) == filtered:
        wrong.add("job_ids", "give either job_ids or filter")
    check_ids(wrong, request.job_ids)
    wanted = job_filter(wrong, request.filter)
    if filtered and not request.filter.ListFields():
        wrong.add("filter", "must have a condition: without one it would be for all jobs")
    expected = request.expected_count if request.HasField("expected_count") else None
    if expected is not None and not filtered:
        wrong.add("expected_count", "goes together with filter alone")
    elif expected is not None and expected < 0:
        wrong.add("expected_count", "must not be negative")
    wrong.line("reason", request.reason, REASON_CHARACTERS)
    if request.force and verb not in (None, Verb.ABORT):
        wrong.add("force", "goes together with ABORT alone")
    wrong.line("request_id", request.request_id, _REQUEST_ID)
    if request.request_id and verb not in (None, Verb.RERUN):
        wrong.add("request_id", "goes together with RERUN alone; the other verbs are safe to repeat")
    wrong.refuse()
    assert verb is not None
    return ApplyVerb(
        verb=verb,
        job_ids=tuple(request.job_ids),
        filter=wanted if filtered else None,
        expected_count=expected,
        validate_only=request.validate_only,
        reason=request.reason,
        request_id=request.request_id,
        force=request.force,
    )


def to_response(item: int | Result) -> job_service_pb2.ApplyVerbResponse:
    """The total, or a result."""
    if isinstance(item, int):
        return job_service_pb2.ApplyVerbResponse(total=item)
    return job_service_pb2.ApplyVerbResponse(
        result=job_service_pb2.JobResult(
            job_id=item.job_id,
            error=None if item.error is None else to_status(item.error),
            job=None if item.job is None else to_listed(item.job),
        )
    )
