"""WatchJobs: where a watch begins, changes to messages."""

from __future__ import annotations

from services.queue import watching
from services.queue.convert.jobs import to_listed
from services.queue.convert.selection import job_filter
from services.queue.listing import JobFilter
from services.queue.watching import Changes, Position
from services.runtime.fields import Violations
from sis.queue.v1 import job_service_pb2


def watch_jobs(request: job_service_pb2.WatchJobsRequest) -> tuple[JobFilter, Position | None]:
    """What is watched and from where on, None for now. Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    wanted = job_filter(wrong, request.filter)
    wrong.refuse()
    return wanted, watching.from_token(_bound(request.filter), request.resume_token)


def to_token(wanted: job_service_pb2.JobFilter, position: Position) -> str:
    """A resume token for a watch with this filter."""
    return watching.to_token(_bound(wanted), position)


def _bound(wanted: job_service_pb2.JobFilter) -> bytes:
    return wanted.SerializeToString(deterministic=True)


def to_changes(wanted: job_service_pb2.JobFilter, changes: Changes) -> job_service_pb2.WatchJobsResponse:
    return job_service_pb2.WatchJobsResponse(
        resume_token=to_token(wanted, changes.position),
        jobs=[to_listed(row) for row in changes.jobs],
        gone_job_ids=changes.gone,
    )
