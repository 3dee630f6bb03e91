"""ExportJobs: to a command, what an export has of a job to messages."""

from __future__ import annotations

from google.protobuf import json_format

from services.queue import exports
from services.queue.convert.jobs import put
from services.queue.convert.selection import check_ids, job_filter
from services.queue.exports import ExportJobs, Part
from services.queue.jobs import JobView
from services.queue.parameters import from_rows
from services.runtime.fields import Violations
from sis.packages.values import File
from sis.queue.v1 import job_service_pb2


def export_jobs(request: job_service_pb2.ExportJobsRequest) -> ExportJobs:
    """Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    wanted = job_filter(wrong, request.filter)
    if request.job_ids and request.filter.ListFields():
        wrong.add("filter", "does not go together with job_ids; give one of the two")
    check_ids(wrong, request.job_ids)
    wrong.refuse()
    start = exports.from_token(_bound(request), request.resume_token)
    return ExportJobs(tuple(request.job_ids), wanted, request.include_logs, start)


def _bound(request: job_service_pb2.ExportJobsRequest) -> bytes:
    bound = job_service_pb2.ExportJobsRequest()
    bound.CopyFrom(request)
    bound.ClearField("resume_token")
    return bound.SerializeToString(deterministic=True)


def to_part(request: job_service_pb2.ExportJobsRequest, part: Part) -> job_service_pb2.ExportJobsResponse:
    """A part as it is sent; a job, other than where it is shown, with the contents of its files."""
    token = "" if part.position is None else exports.to_token(_bound(request), part.position)
    response = job_service_pb2.ExportJobsResponse(job_id=part.job_id, resume_token=token)
    put(response, part.content)
    if isinstance(part.content, JobView):
        for name, value in from_rows(part.content.job.parameters).items():
            if isinstance(value, File):
                response.job.parameters[name].file.content = value.content
    return response


def to_line(part: Part) -> bytes:
    """A line of what `sis jobs export --logs` writes of all jobs."""
    response = to_part(_ALL, part)
    return f"{json_format.MessageToJson(response, always_print_fields_with_no_presence=True, indent=None)}\n".encode()


_ALL = job_service_pb2.ExportJobsRequest(include_logs=True)
