"""RerunJob and CopyJob: requests to commands, jobs to the requests that would make them again."""

from __future__ import annotations

from services.queue import credentials
from services.queue.convert import parameters
from services.queue.convert.jobs import LONGEST_RUN, REASON_CHARACTERS, job_id
from services.queue.convert.selection import JOB_TYPES
from services.queue.jobs import JobView
from services.queue.tables import JobType
from services.runtime.fields import Violations, numbers, to_duration
from sis.packages.operation import ADMIN, RUN_AS
from sis.queue.v1 import job_pb2, job_service_pb2

_TYPE_NUMBERS = numbers(JOB_TYPES)


def rerun(request: job_service_pb2.RerunJobRequest) -> tuple[int, str, str]:
    """The id of the job, the request id and the reason. Raises InvalidArgument."""
    wrong = Violations()
    wrong.line("request_id", request.request_id, 64)
    wrong.line("reason", request.reason, REASON_CHARACTERS)
    wrong.refuse()
    return job_id(request.job_id), request.request_id, request.reason


def to_request(view: JobView) -> job_service_pb2.CreateJobRequest:
    """The request that would create the job again, at once."""
    row = view.job
    uses = credentials.from_rows(row.credentials)
    accounts = {use.ref: use.credential for use in uses if use.ref in (ADMIN, RUN_AS)}
    # One that is longer than a request may ask for is the operation's own, and comes by itself.
    run_timeout = None if row.run_timeout is None or row.run_timeout > LONGEST_RUN else row.run_timeout
    return job_service_pb2.CreateJobRequest(
        display_name=row.display_name,
        type=_TYPE_NUMBERS[JobType(row.type)],
        package=job_pb2.PackageReference(name=row.package_name, version=row.package_version),
        operation=row.operation,
        parameters=parameters.whole(row.parameters, uses),
        site_target=job_pb2.SiteTarget(**{row.site_kind: row.site_name}),
        priority=row.priority,
        run_timeout=to_duration(run_timeout),
        heartbeat_timeout=to_duration(row.heartbeat_timeout),
        start_timeout=to_duration(row.start_timeout),
        output_timeout=to_duration(row.output_timeout),
        cancel_grace=to_duration(row.cancel_grace),
        labels=row.labels,
        admin=accounts.get(ADMIN, ""),
        run_as=accounts.get(RUN_AS, ""),
        credentials=credentials.references(uses),
    )
