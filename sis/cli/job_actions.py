"""What the commands of `sis jobs` do: one call of the client, then its answer as text or JSON."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import typer
from rich.text import Text

from sis.cli import failures, history, requests, secrets, terminal, values, words
from sis.cli.details import job_page
from sis.cli.monitor import MonitorView, verdict
from sis.cli.text import LineJoiner, uncoloured
from sis.client import ApiError, Client, ClientError
from sis.credentials.v1 import credential_pb2, credential_service_pb2
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

_T = TypeVar("_T")
_COLUMNS = (
    "Job Id",
    "Name",
    "Type",
    "Status",
    "Target",
    "Child Jobs",
    "Created On",
    "Started On",
    "Completed On",
)


def create(
    data: Path | None, request: pb.CreateJobRequest, secret_inputs: Sequence[str], *, follow: bool, json: bool
) -> None:
    """Put a job on the queue and say which, or follow it to its end. The secrets of `secret_inputs` are asked for, and
    stored as credentials for this job alone."""
    with Client.find(data) as client:
        job = _create_with_secrets(client, request, secret_inputs) if secret_inputs else client.jobs.create(request)
        if not follow:
            print(terminal.document(job) if json else f"Job {job.job_id} created: {words.status(job.status)}")
            return
        try:
            ended = _follow(client, job.job_id, "", json=json, hint="Ctrl-C detaches")
        except KeyboardInterrupt:
            _say_detached(job.job_id)
            raise typer.Exit(130) from None
    if ended.status != job_pb2.JOB_STATUS_SUCCEEDED:
        raise typer.Exit(1)


def _typed(request: pb.CreateJobRequest, secret_inputs: Sequence[str]) -> dict[str, bytes]:
    """The secrets that a person types, by the name of the input."""
    for name in secret_inputs:
        if name in request.parameters or secret_inputs.count(name) > 1:
            raise values.OptionError(f"--param-secret: {name!r} is given twice; give it once")
    if sys.stdin.isatty():
        return {name: secrets.ask(f"Secret for {name}") for name in secret_inputs}
    if len(secret_inputs) > 1:
        raise values.OptionError(
            "--param-secret: there is no terminal on which several secrets could be typed, and standard input takes "
            "one; store the others with `sis credentials create` and give them by --param-credential"
        )
    return {name: secrets.read_stdin("--param-secret") for name in secret_inputs}


def _create_with_secrets(client: Client, request: pb.CreateJobRequest, secret_inputs: Sequence[str]) -> job_pb2.Job:
    credentials = client.credentials  # before anybody is asked for a secret that could not be sent
    typed = _typed(request, secret_inputs)
    made: list[str] = []
    asked = False
    # With the same request id the same names, so that repeating the command makes one of each.
    token = request.request_id or str(uuid.uuid4())
    try:
        for name, secret in typed.items():
            unique = f"typed-{uuid.uuid5(uuid.NAMESPACE_OID, f'{token} {name}')}"
            credential = credentials.create(
                credential_service_pb2.CreateCredentialRequest(
                    name=unique,
                    kind=credential_pb2.CREDENTIAL_KIND_TOKEN,
                    description=f"Typed for {name} of {request.display_name}"[:500],
                    value=credential_pb2.SecretValue(secret=secret),
                    for_one_job=True,
                    request_id=unique,
                )
            )
            made.append(credential.name)
            request.parameters[name].credential_ref = credential.name
        asked = True
        job = client.jobs.create(request)
    except BaseException as error:
        # Where the answer was lost there may be a job, which needs them. What nobody binds expires within the hour.
        if not asked or (isinstance(error, ApiError) and not error.passing):
            for each in made:
                with contextlib.suppress(ClientError):
                    credentials.delete(each)
        raise
    for each in made:
        try:
            credentials.bind(each, job.job_id)
        except ApiError as error:
            failures.report(error, f"job {job.job_id} is created, but has its secret only if it starts within the hour")
    return job


def monitor(data: Path | None, job_id: int, resume_token: str, *, json: bool) -> None:
    """Follow a job to its end."""
    with Client.find(data) as client:
        try:
            _follow(client, job_id, resume_token, json=json, hint="Ctrl-C ends the monitor")
        except KeyboardInterrupt:
            _say_detached(job_id)
            raise typer.Exit(130) from None


def _follow(client: Client, job_id: int, resume_token: str, *, json: bool, hint: str) -> job_pb2.Job:
    if json:
        job = job_pb2.Job()
        for response in client.jobs.monitor(job_id, resume_token):
            if response.WhichOneof("content") == "job":
                job = response.job
            print(terminal.line(response), flush=True)
        return job
    out = terminal.console()
    with MonitorView(out, hint) as view:
        for response in client.jobs.monitor(job_id, resume_token, on_interruption=view.interrupted):
            view.show(response)
    out.print(verdict(view.job))
    return view.job


def _say_detached(job_id: int) -> None:
    print(
        f"\nJob {job_id} goes on. Follow it: sis jobs monitor {job_id} - end it: sis jobs cancel {job_id}",
        file=sys.stderr,
    )


def list_jobs(
    data: Path | None,
    job_filter: pb.JobFilter,
    *,
    order_by: str,
    page_size: int,
    page_token: str,
    every: bool,
    json: bool,
) -> None:
    """Print a page of the jobs, or all."""
    with Client.find(data) as client:
        whole = client.jobs.list(job_filter, order_by=order_by, page_size=page_size, page_token=page_token)
        while every and whole.next_page_token:
            page = client.jobs.list(
                job_filter, order_by=order_by, page_size=page_size, page_token=whole.next_page_token
            )
            whole.jobs.extend(page.jobs)
            whole.next_page_token, whole.total_size = page.next_page_token, page.total_size
    if json:
        print(terminal.document(whole))
        return
    out = terminal.console()
    narrow = out.width < terminal.NARROW
    time = words.short_time if narrow else words.local_time
    headers = [header.replace(" ", "\n") if narrow else header for header in _COLUMNS]
    fixed = [header for header in headers if header not in ("Name", "Type", "Target")]
    table = terminal.table(out, *headers, right=headers[:1], fixed=fixed)
    for job in whole.jobs:
        table.add_row(
            str(job.job_id),
            terminal.cell(job.display_name),
            words.job_type(job.type),
            Text(words.status(job.status), style=words.status_style(job.status)),
            terminal.cell(job.target or words.site(job.site_target)),
            words.NOT_APPLICABLE,
            time(job.create_time),
            time(job.start_time),
            time(job.complete_time),
        )
    if whole.jobs:
        out.print(table)
    out.print(f"Total Matching Jobs {whole.total_size}")
    if whole.next_page_token:
        out.print(f"More: --page-token {whole.next_page_token}")


def get(data: Path | None, job_ids: Sequence[int], *, json: bool) -> None:
    """Print jobs whole."""
    out = terminal.console()

    def show(job: job_pb2.Job) -> None:
        if json:
            print(terminal.document(job) if len(job_ids) == 1 else terminal.line(job))
        else:
            job_page(out, job)

    with Client.find(data) as client:
        _each(job_ids, client.jobs.get, show)


def activate(data: Path | None, job_ids: Sequence[int], *, json: bool) -> None:
    """Release deferred jobs."""
    with Client.find(data) as client:
        _each(job_ids, client.jobs.activate, lambda job: _say_status(job, json))


def cancel(data: Path | None, job_ids: Sequence[int], reason: str, *, json: bool) -> None:
    """End jobs gracefully."""
    with Client.find(data) as client:
        _each(job_ids, lambda job_id: client.jobs.cancel(job_id, reason), lambda job: _say_status(job, json))


def abort(data: Path | None, job_ids: Sequence[int], reason: str, *, json: bool) -> None:
    """End jobs by force."""
    with Client.find(data) as client:
        _each(job_ids, lambda job_id: client.jobs.abort(job_id, reason), lambda job: _say_status(job, json))


def delete(data: Path | None, job_ids: Sequence[int], *, json: bool) -> None:
    """Hide jobs for good."""
    with Client.find(data) as client:

        def delete_one(job_id: int) -> int:
            client.jobs.delete(job_id)
            return job_id

        _each(
            job_ids,
            delete_one,
            lambda job_id: print(terminal.line(pb.DeleteJobResponse()) if json else f"Job {job_id}: deleted"),
        )


def _each(job_ids: Sequence[int], act: Callable[[int], _T], show: Callable[[_T], None]) -> None:
    """Act on every job, whatever becomes of the others; exit 1 in the end if one failed."""
    failed = False
    for job_id in dict.fromkeys(job_ids):
        try:
            result = act(job_id)
        except ApiError as error:
            failed = True
            failures.report(error, f"job {job_id}")
        else:
            show(result)
    if failed:
        raise typer.Exit(1)


def _say_status(job: job_pb2.Job, json: bool) -> None:
    if json:
        print(terminal.line(job))
        return
    print(f"Job {job.job_id}: {words.status(job.status)}")


def output(data: Path | None, job_id: int, *, raw: bool, json: bool) -> None:
    """Print what the payload wrote, and say on standard error if that is not all."""
    joiners = {channel: LineJoiner() for channel in (job_pb2.CHANNEL_STDOUT, job_pb2.CHANNEL_STDERR)}
    summary = job_pb2.LogSummary()
    with Client.find(data) as client:
        for response in client.jobs.output(job_id):
            if response.WhichOneof("content") == "log":
                summary = response.log
            if json:
                print(terminal.line(response))
            elif raw:
                sys.stdout.buffer.write(response.chunk.data)
            else:
                joiner = joiners.setdefault(response.chunk.channel, LineJoiner())
                _write_lines(joiner.feed(response.chunk.data))
    if json:
        return
    _write_lines(text for joiner in joiners.values() for text in joiner.end())
    sys.stdout.flush()
    if summary.verdict != job_pb2.LOG_VERDICT_COMPLETE:
        print(f"note: the log is {words.verdict(summary.verdict)[0]}", file=sys.stderr)


def _write_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{uncoloured(text)}\n" for text in lines))


def debug_log(data: Path | None, job_id: int, view: str, *, json: bool) -> None:
    """Print the debug log: time, attempt, channel, text."""
    joiners: dict[tuple[int, int], LineJoiner] = {}
    with Client.find(data) as client:
        for response in client.jobs.debug_log(job_id, requests.debug_log_view(view)):
            if json:
                print(terminal.line(response))
                continue
            if response.WhichOneof("content") == "history":
                entry = response.history
                text = f"{history.sentence(entry)} [{history.movement(entry)}]"
                _write_debug(words.utc(entry.time), entry.attempt, "history", [text])
                continue
            attempt = response.frames.attempt
            for frame in response.frames.frames:
                if frame.WhichOneof("content") == "notice":
                    name = f"system {words.severity(frame.notice.severity)}"
                    _write_debug(words.utc(frame.time), attempt, name, [frame.notice.text])
                else:
                    chunk = frame.chunk
                    joiner = joiners.setdefault((attempt, chunk.channel), LineJoiner())
                    lines = joiner.feed(chunk.data)
                    _write_debug(words.utc(frame.time), attempt, words.channel(chunk.channel), lines)
    for (attempt, channel), joiner in joiners.items():
        _write_debug("", attempt, words.channel(job_pb2.Channel.ValueType(channel)), joiner.end())


def _write_debug(time: str, attempt: int, name: str, lines: Iterable[str]) -> None:
    for text in lines:
        print(f"{time:24} {attempt:3} {name:14} {uncoloured(text)}")


def show_history(data: Path | None, job_id: int, *, json: bool) -> None:
    """Print who did what."""
    with Client.find(data) as client:
        entries = list(client.jobs.history(job_id))
    if json:
        print(terminal.document(pb.ListJobHistoryResponse(entries=entries)))
        return
    out = terminal.console()
    table = terminal.table(out, "Time", "What", "Status", "By", "From", "Attempt", right=("Attempt",))
    for entry in entries:
        table.add_row(
            words.local_time(entry.time),
            terminal.cell(history.sentence(entry), history.style(entry)),
            history.movement(entry),
            terminal.cell(entry.actor),
            terminal.cell(entry.origin),
            str(entry.attempt) if entry.attempt else words.NOT_APPLICABLE,
        )
    out.print(table)
