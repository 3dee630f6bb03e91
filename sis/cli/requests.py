"""What people typed, as the requests of `sis.queue.v1`. Pure but for `--param k=@file`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sis.cli import values
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb


def create_job(
    *,
    name: str,
    type_name: str,
    package: str,
    operation: str,
    site: str,
    parameters: Sequence[str],
    deferred: bool,
    not_before: str | None,
    latest_start: str | None,
    run_timeout: str | None,
    heartbeat_timeout: str | None,
    priority: str,
    labels: Sequence[str],
    request_id: str,
    admin: str = "",
    run_as: str = "",
    credentials: Sequence[str] = (),
    secret_parameters: Sequence[str] = (),
    now: datetime | None = None,
) -> pb.CreateJobRequest:
    """The request for a job.

    Raises:
        OptionError: an option cannot be understood.
    """
    moment = now or datetime.now(UTC)
    request = pb.CreateJobRequest(
        display_name=name,
        type=job_pb2.JobType.Value(f"JOB_TYPE_{_constant(type_name)}"),
        package=values.package("--package", package),
        operation=operation,
        parameters=values.parameters(parameters),
        site_target=values.site(site),
        priority=job_pb2.Priority.Value(f"PRIORITY_{_constant(priority)}"),
        deferred=deferred,
        labels=values.named_once("--label", labels),
        request_id=request_id,
        admin=admin,
        run_as=run_as,
        credentials=values.named_once("--credential", credentials),
    )
    for name, credential in values.named_once("--param-credential", secret_parameters).items():
        if name in request.parameters:
            raise values.OptionError(f"--param-credential: {name!r} is given by --param too; give one of the two")
        request.parameters[name].credential_ref = credential
    if not_before is not None:
        request.not_before.FromDatetime(values.time("--not-before", not_before, moment))
    if latest_start is not None:
        request.latest_start.FromDatetime(values.time("--latest-start", latest_start, moment))
    if run_timeout is not None:
        request.run_timeout.FromTimedelta(values.duration("--timeout", run_timeout))
    if heartbeat_timeout is not None:
        request.heartbeat_timeout.FromTimedelta(values.duration("--heartbeat-timeout", heartbeat_timeout))
    return request


def job_filter(*, types: Sequence[str], run_states: Sequence[str], statuses: Sequence[str], text: str) -> pb.JobFilter:
    """The filter of a list."""
    return pb.JobFilter(
        types=[job_pb2.JobType.Value(f"JOB_TYPE_{_constant(each)}") for each in types],
        run_states=[job_pb2.RunState.Value(f"RUN_STATE_{_constant(each)}") for each in run_states],
        statuses=[job_pb2.JobStatus.Value(f"JOB_STATUS_{_constant(each)}") for each in statuses],
        text=text,
    )


def debug_log_view(name: str) -> pb.DebugLogView.ValueType:
    """ "full", "standard" or "problem"."""
    return pb.DebugLogView.Value(f"DEBUG_LOG_VIEW_{_constant(name)}")


def _constant(word: str) -> str:
    return word.upper().replace("-", "_")
