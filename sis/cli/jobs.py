"""`sis jobs`: the options of each command. What one does is in `job_actions`, imported when it runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sis.cli.options import Data, JobId, JobIds, Json, Reason

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Create, follow and stop jobs.")


class JobType(StrEnum):
    PACKAGE = "package"
    DISCOVERY = "discovery"
    ASSET_IMPORT = "asset-import"


class RunState(StrEnum):
    READY = "ready"
    ACTIVE = "active"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    HALTED = "halted"


class Status(StrEnum):
    DEFERRED = "deferred"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    PROCESSING_OUTPUT = "processing-output"
    CANCEL_REQUESTED = "cancel-requested"
    CANCELED = "canceled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"
    TIMED_OUT = "timed-out"
    EXPIRED = "expired"
    AWOL = "awol"


class Priority(StrEnum):
    IDLE = "idle"
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class View(StrEnum):
    FULL = "full"
    STANDARD = "standard"
    PROBLEM = "problem"


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="What people call the job.")],
    package: Annotated[
        str, typer.Option("--package", metavar="NAME[@VERSION]", help="The highest version unless given.")
    ],
    operation: Annotated[str, typer.Option("--operation", metavar="NAME")],
    site: Annotated[str, typer.Option("--site", metavar="agent:NAME|group:NAME", help="Which agents may take it.")],
    type_: Annotated[JobType, typer.Option("--type")] = JobType.PACKAGE,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="K=V",
            help="An input. Given again, K becomes a list; K=@FILE reads a file, K=@@TEXT means @TEXT.",
        ),
    ] = None,
    admin: Annotated[
        str,
        typer.Option("--admin", metavar="CREDENTIAL", help="With whose rights it is deployed; else the agent's own."),
    ] = "",
    run_as: Annotated[
        str, typer.Option("--run-as", metavar="CREDENTIAL", help="As whom the payload runs; else as the admin.")
    ] = "",
    credential: Annotated[
        list[str] | None,
        typer.Option("--credential", metavar="REF=CREDENTIAL", help="One that the operation declares."),
    ] = None,
    param_credential: Annotated[
        list[str] | None,
        typer.Option("--param-credential", metavar="K=CREDENTIAL", help="The secret for a sensitive input."),
    ] = None,
    param_secret: Annotated[
        list[str] | None,
        typer.Option(
            "--param-secret",
            metavar="K",
            help="Ask for the secret of a sensitive input, or read the only one from standard input; it is kept in "
            "Vault for this job alone.",
        ),
    ] = None,
    defer: Annotated[bool, typer.Option("--defer", help="Hold it until somebody activates it.")] = False,
    not_before: Annotated[
        str | None, typer.Option("--not-before", metavar="TIME", help="RFC 3339, or from now: +5m, +2h.")
    ] = None,
    latest_start: Annotated[
        str | None, typer.Option("--latest-start", metavar="TIME", help="It expires if not started by then.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="How long it may run: 30s, 5m, 2h.")
    ] = None,
    heartbeat_timeout: Annotated[
        str | None,
        typer.Option("--heartbeat-timeout", metavar="DURATION", help="How long its agent may be silent (120s)."),
    ] = None,
    priority: Annotated[Priority | None, typer.Option("--priority", help="normal unless given.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="K=V")] = None,
    request_id: Annotated[
        str, typer.Option("--request-id", metavar="ID", help="Repeating the command with it makes one job.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Show the monitor; exit 0 on Success, 1 otherwise.")] = False,
    json: Json = False,
    data: Data = None,
) -> None:
    """Put a job on the queue."""
    from sis.cli import job_actions, requests

    request = requests.create_job(
        name=name,
        type_name=type_.value,
        package=package,
        operation=operation,
        site=site,
        parameters=param or [],
        deferred=defer,
        not_before=not_before,
        latest_start=latest_start,
        run_timeout=timeout,
        heartbeat_timeout=heartbeat_timeout,
        priority=priority.value if priority else "unspecified",
        labels=label or [],
        request_id=request_id,
        admin=admin,
        run_as=run_as,
        credentials=credential or [],
        secret_parameters=param_credential or [],
    )
    job_actions.create(data, request, param_secret or [], follow=follow, json=json)


@app.command("list")
def list_(
    type_: Annotated[list[JobType] | None, typer.Option("--type")] = None,
    state: Annotated[list[RunState] | None, typer.Option("--state", help="A run state, such as active.")] = None,
    status: Annotated[list[Status] | None, typer.Option("--status")] = None,
    text: Annotated[
        str, typer.Option("--text", metavar="TEXT", help="Part of the name, the operation or the target.")
    ] = "",
    order: Annotated[str, typer.Option("--order", metavar="FIELD [desc]", help='For example "create_time desc".')] = "",
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=1000)] = 50,
    page_token: Annotated[str, typer.Option("--page-token", metavar="TOKEN")] = "",
    all_: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    json: Json = False,
    data: Data = None,
) -> None:
    """List jobs, newest first."""
    from sis.cli import job_actions, requests

    job_filter = requests.job_filter(
        types=[each.value for each in type_ or []],
        run_states=[each.value for each in state or []],
        statuses=[each.value for each in status or []],
        text=text,
    )
    job_actions.list_jobs(
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
def monitor(
    job_id: JobId,
    resume_token: Annotated[
        str, typer.Option("--resume-token", metavar="TOKEN", help="Go on behind it; --json shows them.")
    ] = "",
    json: Json = False,
    data: Data = None,
) -> None:
    """Follow a job, live: system lines, processes, progress, output."""
    from sis.cli import job_actions

    job_actions.monitor(data, job_id, resume_token, json=json)


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
def activate(job_ids: JobIds, json: Json = False, data: Data = None) -> None:
    """Release deferred jobs now."""
    from sis.cli import job_actions

    job_actions.activate(data, job_ids, json=json)


@app.command()
def cancel(job_ids: JobIds, reason: Reason = "", json: Json = False, data: Data = None) -> None:
    """End jobs gracefully.

    The initial process gets TERM, after ten seconds the whole process tree KILL.
    """
    from sis.cli import job_actions

    job_actions.cancel(data, job_ids, reason, json=json)


@app.command()
def abort(job_ids: JobIds, reason: Reason = "", json: Json = False, data: Data = None) -> None:
    """End jobs by force: KILL to the whole process tree at once."""
    from sis.cli import job_actions

    job_actions.abort(data, job_ids, reason, json=json)


@app.command()
def delete(job_ids: JobIds, json: Json = False, data: Data = None) -> None:
    """Hide jobs for good. Active ones are refused."""
    from sis.cli import job_actions

    job_actions.delete(data, job_ids, json=json)
