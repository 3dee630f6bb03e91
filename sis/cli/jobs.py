"""`sis jobs`: the options of each command. What one does is in the modules imported when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sis.cli import job_verbs
from sis.cli.job_options import (
    Admin,
    CancelGrace,
    CompletedBefore,
    Containing,
    Credentials,
    DeferralLimit,
    Follow,
    HeartbeatTimeout,
    JobPriority,
    JobType,
    Labels,
    LatestStart,
    NotBefore,
    OutputTimeout,
    ParamCredentials,
    ParamFiles,
    Params,
    ParamSecrets,
    RequestId,
    RunAs,
    SomeJobIds,
    StartTimeout,
    States,
    Statuses,
    Timeout,
    Types,
)
from sis.cli.options import Data, JobId, JobIds, Json

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Create, follow and stop jobs.")


class View(StrEnum):
    FULL = "full"
    STANDARD = "standard"
    PROBLEM = "problem"


class Format(StrEnum):
    NDJSON = "ndjson"
    CSV = "csv"


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="What people call the job.")],
    package: Annotated[
        str, typer.Option("--package", metavar="NAME[@VERSION]", help="The highest version unless given.")
    ],
    operation: Annotated[str, typer.Option("--operation", metavar="NAME")],
    site: Annotated[str, typer.Option("--site", metavar="agent:NAME|group:NAME", help="Which agents may take it.")],
    type_: Annotated[JobType, typer.Option("--type", case_sensitive=False)] = JobType.PACKAGE,
    param: Params = None,
    param_file: ParamFiles = None,
    admin: Admin = "",
    run_as: RunAs = "",
    credential: Credentials = None,
    param_credential: ParamCredentials = None,
    param_secret: ParamSecrets = None,
    defer: Annotated[bool, typer.Option("--defer", help="Hold it until somebody activates it.")] = False,
    deferral_limit: DeferralLimit = None,
    not_before: NotBefore = None,
    latest_start: LatestStart = None,
    timeout: Timeout = None,
    heartbeat_timeout: HeartbeatTimeout = None,
    start_timeout: StartTimeout = None,
    output_timeout: OutputTimeout = None,
    cancel_grace: CancelGrace = None,
    priority: JobPriority = None,
    label: Labels = None,
    request_id: RequestId = "",
    follow: Follow = False,
    json: Json = False,
    data: Data = None,
) -> None:
    """Put a job on the queue."""
    from sis.cli import creation
    from sis.cli.requests import JobOptions

    options = JobOptions(
        name=name,
        type=type_,
        package=package,
        operation=operation,
        site=site,
        parameters=param or (),
        files=param_file or (),
        secret_parameters=param_credential or (),
        typed_parameters=param_secret or (),
        admin=admin,
        run_as=run_as,
        credentials=credential or (),
        deferred=defer,
        deferral_limit=deferral_limit,
        not_before=not_before,
        latest_start=latest_start,
        run_timeout=timeout,
        heartbeat_timeout=heartbeat_timeout,
        start_timeout=start_timeout,
        output_timeout=output_timeout,
        cancel_grace=cancel_grace,
        priority=priority,
        labels=label or (),
        request_id=request_id,
    )
    creation.create(data, options, follow=follow, json=json)


@app.command()
def copy(
    job_id: JobId,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="What people call the new job.")] = "",
    package: Annotated[str, typer.Option("--package", metavar="NAME[@VERSION]")] = "",
    operation: Annotated[str, typer.Option("--operation", metavar="NAME")] = "",
    site: Annotated[str, typer.Option("--site", metavar="agent:NAME|group:NAME")] = "",
    param: Params = None,
    param_file: ParamFiles = None,
    admin: Admin = "",
    run_as: RunAs = "",
    credential: Credentials = None,
    param_credential: ParamCredentials = None,
    param_secret: ParamSecrets = None,
    defer: Annotated[
        bool | None, typer.Option("--defer/--no-defer", help="Whether to hold it until somebody activates it.")
    ] = None,
    deferral_limit: DeferralLimit = None,
    not_before: NotBefore = None,
    latest_start: LatestStart = None,
    timeout: Timeout = None,
    heartbeat_timeout: HeartbeatTimeout = None,
    start_timeout: StartTimeout = None,
    output_timeout: OutputTimeout = None,
    cancel_grace: CancelGrace = None,
    priority: JobPriority = None,
    label: Labels = None,
    request_id: RequestId = "",
    show: Annotated[bool, typer.Option("--show", help="Print the request as JSON and make nothing.")] = False,
    follow: Follow = False,
    json: Json = False,
    data: Data = None,
) -> None:
    """Put a job on the queue like another one.

    What an option gives takes the place of what that one has.
    """
    from sis.cli import creation
    from sis.cli.requests import JobOptions

    options = JobOptions(
        name=name,
        package=package,
        operation=operation,
        site=site,
        parameters=param or (),
        files=param_file or (),
        secret_parameters=param_credential or (),
        typed_parameters=param_secret or (),
        admin=admin,
        run_as=run_as,
        credentials=credential or (),
        deferred=defer,
        deferral_limit=deferral_limit,
        not_before=not_before,
        latest_start=latest_start,
        run_timeout=timeout,
        heartbeat_timeout=heartbeat_timeout,
        start_timeout=start_timeout,
        output_timeout=output_timeout,
        cancel_grace=cancel_grace,
        priority=priority,
        labels=label or (),
        request_id=request_id,
    )
    creation.copy(data, job_id, options, show=show, follow=follow, json=json)


@app.command("list")
def list_(
    type_: Types = None,
    state: States = None,
    status: Statuses = None,
    text: Containing = "",
    completed_before: CompletedBefore = None,
    order: Annotated[str, typer.Option("--order", metavar="FIELD [desc]", help='For example "create_time desc".')] = "",
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=1000)] = 50,
    page_token: Annotated[str, typer.Option("--page-token", metavar="TOKEN")] = "",
    all_: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the changes as they happen, until Ctrl-C; JSON where it is piped.")
    ] = False,
    json: Json = False,
    data: Data = None,
) -> None:
    """List jobs, newest first."""
    from sis.cli import job_list, job_watch, requests

    job_filter = requests.job_filter(type_, state, status, text, completed_before)
    if watch:
        job_watch.watch(data, job_filter, page_size=page_size, paged=bool(order or page_token or all_), json=json)
    else:
        job_list.list_jobs(
            data, job_filter, order_by=order, page_size=page_size, page_token=page_token, every=all_, json=json
        )


@app.command()
def get(job_ids: JobIds, json: Json = False, data: Data = None) -> None:
    """Show all that is known of jobs.

    That is target, execution, outputs, processes, evidence for the stop, and the log's verdict.
    """
    from sis.cli import job_actions

    job_actions.get(data, job_ids, json=json)


@app.command()
def explain(job_id: JobId, json: Json = False, data: Data = None) -> None:
    """Tell why a job waits, and for whom."""
    from sis.cli import job_actions

    job_actions.explain(data, job_id, json=json)


@app.command()
def monitor(
    job_id: JobId,
    resume_token: Annotated[
        str, typer.Option("--resume-token", metavar="TOKEN", help="Go on behind it; --json shows them.")
    ] = "",
    tail: Annotated[
        str,
        typer.Option("--tail", metavar="SIZE", help="Begin so much before the end of the log: 64KiB, 1MiB."),
    ] = "",
    json: Json = False,
    data: Data = None,
) -> None:
    """Follow a job, live: system lines, processes, progress, output."""
    from sis.cli import job_actions

    job_actions.monitor(data, job_id, resume_token, tail, json=json)


@app.command()
def search(
    job_id: JobId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Within a line, in any case; not a pattern.")],
    json: Json = False,
    data: Data = None,
) -> None:
    """Print the lines of a job's log in which a text occurs.

    Each with the time, which is local, and the channel. Exit 1 when there is none.
    """
    from sis.cli import job_actions

    job_actions.search(data, job_id, text, json=json)


@app.command()
def output(
    job_id: JobId,
    raw: Annotated[
        bool, typer.Option("--raw", help="The bytes as they were written. Not for a terminal: it obeys them.")
    ] = False,
    json: Json = False,
    data: Data = None,
) -> None:
    """Print what the payload wrote."""
    from sis.cli import job_actions

    job_actions.output(data, job_id, raw=raw, json=json)


@app.command("debug-log")
def debug_log(
    job_id: JobId,
    view: Annotated[
        View, typer.Option("--view", help="full; standard: not the debug channel; problem: what went wrong.")
    ] = View.STANDARD,
    json: Json = False,
    data: Data = None,
) -> None:
    """Print the log of all attempts and the history, by time, in UTC."""
    from sis.cli import job_actions

    job_actions.debug_log(data, job_id, view.value, json=json)


@app.command()
def history(job_id: JobId, json: Json = False, data: Data = None) -> None:
    """Show who did what to a job, when, and why."""
    from sis.cli import job_actions

    job_actions.show_history(data, job_id, json=json)


@app.command()
def export(
    job_ids: SomeJobIds = None,
    type_: Types = None,
    state: States = None,
    status: Statuses = None,
    text: Containing = "",
    completed_before: CompletedBefore = None,
    logs: Annotated[bool, typer.Option("--logs", help="With their logs.")] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="ndjson: jobs and histories, as the proto's JSON; csv: as in the list.")
    ] = Format.NDJSON,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="There whole or not at all; else standard output.")
    ] = None,
    data: Data = None,
) -> None:
    """Write jobs with their histories.

    Those named, those that the options choose, or all.
    """
    from sis.cli import exports, requests

    job_filter = requests.job_filter(type_, state, status, text, completed_before)
    exports.export(data, job_ids or (), job_filter, logs=logs, form=format_.value, output=output)


job_verbs.register(app)
