"""What the scripted server answers with."""

from __future__ import annotations

from services.runtime import errors
from sis.queue.v1 import job_pb2


class JobNotFound(errors.NotFound):
    reason = "JOB_NOT_FOUND"


def job(job_id: int = 42, status: job_pb2.JobStatus.ValueType = job_pb2.JOB_STATUS_WAITING) -> job_pb2.Job:
    return job_pb2.Job(
        job_id=job_id,
        display_name="Nightly \x1b]0;x\x07",
        type=job_pb2.JOB_TYPE_PACKAGE,
        status=status,
        site_target=job_pb2.SiteTarget(group="local"),
    )
