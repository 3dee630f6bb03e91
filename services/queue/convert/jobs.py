"""JobService: requests to commands, jobs to messages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from services.queue import credentials, lifecycle, logs, states
from services.queue.convert import parameters
from services.queue.convert.selection import JOB_TYPES, STATUSES, job_filter
from services.queue.creation import CreateJob, Limits, Priority
from services.queue.jobs import JobView
from services.queue.listing import ORDERS, JobPage, ListJobs
from services.queue.logs import DebugLogView, LogRow, News
from services.queue.model import HistoryEntry, LogVerdict, WaitReason
from services.queue.states import TERMINAL, Status, StopState
from services.queue.tables import JobType
from services.runtime.errors import InvalidArgument
from services.runtime.fields import Violations, members, numbers, to_duration, to_timestamp
from sis.packages.operation import ADMIN, RUN_AS
from sis.queue.v1 import frame_pb2, job_pb2, job_service_pb2

if TYPE_CHECKING:
    from sqlalchemy import Row

PRIORITIES = members(job_pb2.Priority, "PRIORITY_", Priority)
STOP_STATES = members(job_pb2.StopState, "STOP_STATE_", StopState)
VERDICTS = members(job_pb2.LogVerdict, "LOG_VERDICT_", LogVerdict)
VIEWS = members(job_service_pb2.DebugLogView, "DEBUG_LOG_VIEW_", DebugLogView)

WAIT_REASONS = members(job_pb2.WaitReason, "WAIT_REASON_", WaitReason)

_STATUS_NUMBERS = numbers(STATUSES)
_TYPE_NUMBERS = numbers(JOB_TYPES)
_STOP_NUMBERS = numbers(STOP_STATES)
_VERDICT_NUMBERS = numbers(VERDICTS)
_WAIT_NUMBERS = numbers(WAIT_REASONS)
_PERMITTED = {
    (status, canceled): [
        job_pb2.JobVerb.Value(f"JOB_VERB_{verb}") for verb in states.permitted(status, cancel_recorded=canceled)
    ]
    for status in Status
    for canceled in (False, True)
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
HEARTBEAT_TIMEOUTS = timedelta(seconds=60), timedelta(days=1)
SHORTEST_DEFERRAL = timedelta(minutes=1)
_START_TIMEOUT = timedelta(minutes=5)
_OUTPUT_TIMEOUT = timedelta(seconds=60)
LONGEST_RUN = timedelta(days=30)
REASON_CHARACTERS = 500


def create_job(request: job_service_pb2.CreateJobRequest, limits: Limits) -> CreateJob:
    """Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    wrong.line("display_name", request.display_name, 200, required=True)
    kind = wrong.member("type", request.type, JOB_TYPES)
    if kind is not None and kind is not JobType.PACKAGE:
        wrong.add("type", f"{kind.name} jobs cannot be created yet; give PACKAGE")
    wrong.line("package.name", request.package.name, 100, required=True)
    wrong.line("package.version", request.package.version, 100)
    wrong.line("operation", request.operation, 100, required=True)
    values, parameter_credentials = parameters.given(wrong, request.parameters)
    for field, name in (("admin", request.admin), ("run_as", request.run_as)):
        if name:
            parameters.credential_name(wrong, field, name)
    for ref, name in sorted(request.credentials.items()):
        parameters.credential_name(wrong, f"credentials.{ref[:100]}", name)
    site_kind, site_name = _site(wrong, request.site_target)
    priority = wrong.member("priority", request.priority, PRIORITIES, Priority.NORMAL)
    not_before = wrong.time("not_before", request.not_before) if request.HasField("not_before") else None
    latest_start = wrong.time("latest_start", request.latest_start) if request.HasField("latest_start") else None
    if request.deferred and request.HasField("not_before"):
        wrong.add("not_before", "does not go together with deferred; give one of the two")
    run_timeout = None
    if request.HasField("run_timeout"):
        run_timeout = wrong.duration("run_timeout", request.run_timeout, timedelta(seconds=1), LONGEST_RUN)
    heartbeat: timedelta | None = limits.heartbeat_timeout
    if request.HasField("heartbeat_timeout"):
        heartbeat = wrong.duration("heartbeat_timeout", request.heartbeat_timeout, *HEARTBEAT_TIMEOUTS)
    deferral_limit = limits.deferral if request.deferred else None
    if request.HasField("deferral_limit"):
        if not request.deferred:
            wrong.add("deferral_limit", "goes together with deferred alone; latest_start is a limit for any job")
        deferral_limit = wrong.duration("deferral_limit", request.deferral_limit, SHORTEST_DEFERRAL, limits.deferral)
    start_timeout: timedelta | None = _START_TIMEOUT
    if request.HasField("start_timeout"):
        start_timeout = wrong.duration("start_timeout", request.start_timeout, timedelta(seconds=10), timedelta(days=1))
    output_timeout: timedelta | None = _OUTPUT_TIMEOUT
    if request.HasField("output_timeout"):
        output_timeout = wrong.duration(
            "output_timeout", request.output_timeout, timedelta(seconds=10), timedelta(hours=1)
        )
    cancel_grace = None
    if request.HasField("cancel_grace"):
        cancel_grace = wrong.duration("cancel_grace", request.cancel_grace, timedelta(), timedelta(hours=1))
    wrong.labels("labels", request.labels)
    wrong.line("request_id", request.request_id, 64)
    wrong.refuse()
    assert priority is not None and heartbeat is not None
    assert start_timeout is not None and output_timeout is not None
    return CreateJob(
        display_name=request.display_name,
        package_name=request.package.name,
        package_version=request.package.version,
        operation=request.operation,
        parameters=values,
        site_kind=site_kind,
        site_name=site_name,
        priority=priority,
        deferral_limit=deferral_limit,
        not_before=not_before,
        latest_start=latest_start,
        run_timeout=run_timeout,
        heartbeat_timeout=heartbeat,
        start_timeout=start_timeout,
        output_timeout=output_timeout,
        cancel_grace=cancel_grace,
        labels=dict(request.labels),
        request_id=request.request_id,
        fingerprint=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
        admin=request.admin,
        run_as=request.run_as,
        credentials=dict(request.credentials),
        parameter_credentials=parameter_credentials,
    )


def _site(wrong: Violations, target: job_pb2.SiteTarget) -> tuple[str, str]:
    which = target.WhichOneof("target")
    if which is None:
        wrong.add("site_target", "is required: give group or agent")
        return "group", ""
    name = target.group if which == "group" else target.agent
    if not _NAME.fullmatch(name):
        wrong.add(
            f"site_target.{which}",
            "must be 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        )
    return which, name


def job_id(value: int) -> int:
    """Raises InvalidArgument unless it can be a job's."""
    if value <= 0:
        raise InvalidArgument.field("job_id", "is required: give the number of a job, from 1 on")
    return value


def reason(value: str) -> str:
    """Raises InvalidArgument unless it can stand in a history."""
    wrong = Violations()
    wrong.line("reason", value, REASON_CHARACTERS)
    wrong.refuse()
    return value


def list_jobs(request: job_service_pb2.ListJobsRequest) -> ListJobs:
    """Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    wanted = job_filter(wrong, request.filter)
    size = wrong.page_size(request.page_size)
    words = request.order_by.split()
    column, direction = (*words, "", "")[:2]
    descending = direction == "desc" or not words
    if len(words) > 2 or (column or "job_id") not in ORDERS or direction not in ("", "asc", "desc"):
        wrong.add("order_by", f"must be one of {', '.join(ORDERS)}, then optionally desc")
    wrong.refuse()
    bound = job_service_pb2.ListJobsRequest()
    bound.CopyFrom(request)
    bound.ClearField("page_token")
    bound.ClearField("page_size")
    return ListJobs(
        wanted,
        size,
        request.page_token,
        column or "job_id",
        descending,
        bound.SerializeToString(deterministic=True),
    )


def to_page(page: JobPage, watch_token: str) -> job_service_pb2.ListJobsResponse:
    return job_service_pb2.ListJobsResponse(
        jobs=[to_listed(row) for row in page.jobs],
        next_page_token=page.next_page_token,
        total_size=page.total,
        watch_token=watch_token,
    )


def to_listed(row: Row[Any]) -> job_pb2.Job:
    uses = credentials.from_rows(row.credentials)
    accounts = {use.ref: use.credential for use in uses if use.ref in (ADMIN, RUN_AS)}
    return job_pb2.Job(
        job_id=row.job_id,
        display_name=row.display_name,
        type=_TYPE_NUMBERS[JobType(row.type)],
        status=_STATUS_NUMBERS[Status(row.status)],
        operation=row.operation,
        package=job_pb2.PackageReference(name=row.package_name, version=row.package_version, digest=row.package_digest),
        site_target=job_pb2.SiteTarget(**{row.site_kind: row.site_name}),
        target=row.target,
        priority=row.priority,
        not_before=to_timestamp(row.not_before),
        latest_start=to_timestamp(row.latest_start),
        run_timeout=to_duration(row.run_timeout),
        heartbeat_timeout=to_duration(row.heartbeat_timeout),
        labels=row.labels,
        create_time=to_timestamp(row.created_at),
        start_time=to_timestamp(row.started_at),
        complete_time=to_timestamp(row.completed_at),
        creator=row.creator,
        attempt=row.attempt,
        agent=row.agent,
        result_code=row.result_code,
        failure_reason=row.failure_reason,
        status_message=row.status_message,
        progress_percent=row.progress_percent,
        progress_text=row.progress_text,
        cancel_requested=row.cancel_requested_at is not None,
        stop_state=_STOP_NUMBERS[StopState(row.stop_state)],
        admin=accounts.get(ADMIN, ""),
        run_as=accounts.get(RUN_AS, ""),
        credentials=credentials.references(uses),
        wait=_wait(row),
        rerun_of_job_id=row.rerun_of,
        deferral_expire_time=to_timestamp(row.deferral_ends_at if row.status == Status.DEFERRED else None),
        start_timeout=to_duration(row.start_timeout),
        output_timeout=to_duration(row.output_timeout),
        cancel_grace=to_duration(row.cancel_grace),
        permitted_verbs=_PERMITTED[Status(row.status), row.cancel_requested_at is not None],
    )


def _wait(row: Row[Any]) -> job_pb2.JobWait | None:
    if not row.wait_message:
        return None
    return job_pb2.JobWait(
        reason=_WAIT_NUMBERS[WaitReason(row.wait_reason)] if row.wait_reason else job_pb2.WAIT_REASON_UNSPECIFIED,
        message=row.wait_message,
        retry_time=to_timestamp(row.retry_at),
    )


def to_job(view: JobView) -> job_pb2.Job:
    """A job, whole."""
    job = to_listed(view.job)
    for name, value in parameters.shown(view.job.parameters, credentials.from_rows(view.job.credentials)).items():
        job.parameters[name].CopyFrom(value)
    job.outputs.extend(
        job_pb2.OutputParameter(name=name, value=value) for name, value in sorted(view.job.outputs.items())
    )
    job.log.CopyFrom(to_log_summary(view))
    if view.attempt is not None:
        given_up = lifecycle.given_up(Status(view.job.status), StopState(view.job.stop_state))
        job.force_permitted = given_up and view.attempt.sealed_at is None
        job.processes.extend(
            json_format.ParseDict(process, job_pb2.Process(), ignore_unknown_fields=True)
            for process in view.attempt.processes
        )
        if view.attempt.evidence is not None:
            json_format.ParseDict(view.attempt.evidence, job.stop_evidence, ignore_unknown_fields=True)
    return job


def to_log_summary(view: JobView) -> job_pb2.LogSummary:
    attempt = view.attempt
    if attempt is None:
        ended = Status(view.job.status) in TERMINAL
        return job_pb2.LogSummary(verdict=job_pb2.LOG_VERDICT_COMPLETE if ended else job_pb2.LOG_VERDICT_OPEN)
    return job_pb2.LogSummary(
        verdict=_VERDICT_NUMBERS[LogVerdict(attempt.verdict)],
        frames=attempt.sequence,
        output_bytes=attempt.output_bytes,
        digest=bytes(attempt.digest).hex(),
        discarded_bytes=attempt.discarded_bytes,
    )


def to_history_entry(entry: HistoryEntry) -> job_pb2.HistoryEntry:
    return job_pb2.HistoryEntry(
        sequence=entry.sequence,
        time=to_timestamp(entry.at),
        from_status=_STATUS_NUMBERS[entry.from_status] if entry.from_status else job_pb2.JOB_STATUS_UNSPECIFIED,
        to_status=_STATUS_NUMBERS[entry.to_status],
        event=entry.event,
        actor=entry.actor,
        origin=entry.origin,
        message=entry.message,
        attempt=entry.attempt,
    )


def to_frames(rows: Sequence[LogRow]) -> job_service_pb2.AttemptFrames:
    """Frames of one attempt, from the bytes that the site cut."""
    return job_service_pb2.AttemptFrames(
        attempt=rows[0].attempt, frames=[frame_pb2.Frame.FromString(row.body) for row in rows]
    )


def to_news(number: int, news: News) -> job_service_pb2.MonitorJobResponse:
    response = job_service_pb2.MonitorJobResponse(resume_token=logs.to_token(number, news.position))
    put(response, news.content)
    return response


def put(
    response: job_service_pb2.MonitorJobResponse | job_service_pb2.ExportJobsResponse,
    content: JobView | HistoryEntry | Sequence[LogRow],
) -> None:
    """Fill the content of a response."""
    match content:
        case JobView():
            response.job.CopyFrom(to_job(content))
        case HistoryEntry():
            response.history.CopyFrom(to_history_entry(content))
        case rows:
            response.frames.CopyFrom(to_frames(rows))


def debug_log_view(number: int) -> DebugLogView:
    """Raises InvalidArgument for a view that is not known."""
    wrong = Violations()
    view = wrong.member("view", number, VIEWS, DebugLogView.STANDARD)
    wrong.refuse()
    assert view is not None
    return view


def history_size(request: job_service_pb2.ListJobHistoryRequest) -> int:
    """The size of the page. Raises InvalidArgument."""
    wrong = Violations()
    size = wrong.page_size(request.page_size, default=200)
    wrong.refuse()
    return size
