"""What people typed, as the requests of `sis.queue.v1`. Pure but for the files that options name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.message import Message

from sis.cli import values
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """The options that make a job, as they were typed. What is empty, or None, was not."""

    name: str = ""
    type: str | None = None
    package: str = ""
    operation: str = ""
    site: str = ""
    parameters: Sequence[str] = ()
    files: Sequence[str] = ()
    secret_parameters: Sequence[str] = ()
    typed_parameters: Sequence[str] = ()
    """The inputs whose secrets are to be asked for."""
    admin: str = ""
    run_as: str = ""
    credentials: Sequence[str] = ()
    deferred: bool | None = None
    not_before: str | None = None
    latest_start: str | None = None
    run_timeout: str | None = None
    heartbeat_timeout: str | None = None
    deferral_limit: str | None = None
    start_timeout: str | None = None
    output_timeout: str | None = None
    cancel_grace: str | None = None
    priority: str | None = None
    labels: Sequence[str] = ()
    request_id: str = ""


def job(options: JobOptions, now: datetime | None = None) -> pb.CreateJobRequest:
    """The request for a job, as far as the options say what it is.

    Raises:
        OptionError: an option cannot be understood, or contradicts another.
    """
    moment = now or datetime.now(UTC)
    request = pb.CreateJobRequest(
        display_name=options.name,
        operation=options.operation,
        parameters=_parameters(options),
        deferred=bool(options.deferred),
        labels=values.named_once("--label", options.labels),
        request_id=options.request_id,
        admin=options.admin,
        run_as=options.run_as,
        credentials=values.named_once("--credential", options.credentials),
    )
    if options.type is not None:
        request.type = job_pb2.JobType.Value(f"JOB_TYPE_{_constant(options.type)}")
    if options.package:
        request.package.CopyFrom(values.package("--package", options.package))
    if options.site:
        request.site_target.CopyFrom(values.site(options.site))
    if options.priority is not None:
        request.priority = job_pb2.Priority.Value(f"PRIORITY_{_constant(options.priority)}")
    if options.not_before is not None:
        request.not_before.FromDatetime(values.time("--not-before", options.not_before, moment))
    if options.latest_start is not None:
        request.latest_start.FromDatetime(values.time("--latest-start", options.latest_start, moment))
    for option, given, message in (
        ("--timeout", options.run_timeout, request.run_timeout),
        ("--heartbeat-timeout", options.heartbeat_timeout, request.heartbeat_timeout),
        ("--deferral-limit", options.deferral_limit, request.deferral_limit),
        ("--start-timeout", options.start_timeout, request.start_timeout),
        ("--output-timeout", options.output_timeout, request.output_timeout),
        ("--cancel-grace", options.cancel_grace, request.cancel_grace),
    ):
        if given is not None:
            message.FromTimedelta(values.duration(option, given))
            message.SetInParent()  # also for nothing
    return request


def _parameters(options: JobOptions) -> dict[str, job_pb2.ParameterValue]:
    found = values.parameters(options.parameters)
    origin = dict.fromkeys(found, "--param")

    def add(option: str, name: str) -> None:
        if name in origin:
            raise values.OptionError(f"{option}: {name!r} is given by {origin[name]} too; give it once")
        origin[name] = option

    for name, path in values.named_once("--param-file", options.files).items():
        add("--param-file", name)
        found[name] = job_pb2.ParameterValue(file=values.file("--param-file", name, path))
    for name, credential in values.named_once("--param-credential", options.secret_parameters).items():
        add("--param-credential", name)
        found[name] = job_pb2.ParameterValue(credential_ref=credential)
    for name in options.typed_parameters:
        add("--param-secret", name)
    return found


def override(request: pb.CreateJobRequest, changes: pb.CreateJobRequest, options: JobOptions) -> None:
    """Change a request by what `job` made of the options: what was given takes the place of what is there, in maps
    the entries of the same name."""
    message: Message = request
    for field, _ in changes.ListFields():
        if not field.is_repeated and field.message_type is not None:
            message.ClearField(field.name)  # or the two would be merged
    # A job is held either until a time or until somebody activates it.
    if changes.deferred:
        request.ClearField("not_before")
    if options.deferred is False or changes.HasField("not_before"):
        request.deferred = False
        request.ClearField("deferral_limit")
    for name in options.typed_parameters:
        request.parameters.pop(name, None)
    request.MergeFrom(changes)


def job_filter(
    types: Iterable[str] | None,
    run_states: Iterable[str] | None,
    statuses: Iterable[str] | None,
    text: str,
    completed_before: str | None,
    now: datetime | None = None,
) -> pb.JobFilter:
    """The filter of a list, an export or a verb; empty where nothing was given.

    Raises:
        OptionError: the time cannot be understood.
    """
    made = pb.JobFilter(
        types=[job_pb2.JobType.Value(f"JOB_TYPE_{_constant(each)}") for each in types or ()],
        run_states=[job_pb2.RunState.Value(f"RUN_STATE_{_constant(each)}") for each in run_states or ()],
        statuses=[job_pb2.JobStatus.Value(f"JOB_STATUS_{_constant(each)}") for each in statuses or ()],
        text=text,
    )
    if completed_before is not None:
        moment = values.past_time("--completed-before", completed_before, now or datetime.now(UTC))
        made.complete_time_before.FromDatetime(moment)
    return made


def debug_log_view(name: str) -> pb.DebugLogView.ValueType:
    """ "full", "standard" or "problem"."""
    return pb.DebugLogView.Value(f"DEBUG_LOG_VIEW_{_constant(name)}")


def _constant(word: str) -> str:
    return word.upper().replace("-", "_")
