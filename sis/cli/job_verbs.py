"""The verbs of `sis jobs`: their options. What they do is in `bulk`, imported when one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sis.cli.job_options import CompletedBefore, Containing, SomeJobIds, States, Statuses, Types
from sis.cli.options import Data, Json, Reason

Force = Annotated[
    bool,
    typer.Option("--force", help="Let go of jobs whose agent is gone: AWOL, or with a stop that nobody can confirm."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Do nothing; tell what would be.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether as many jobs as the options choose are meant.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `sis jobs`."""
    app.command("activate", help="Release deferred jobs now.")(_verb("ACTIVATE"))
    app.command(
        "cancel",
        help="End jobs gracefully.\n\nThe initial process gets TERM and, after the job's grace (ten seconds unless it "
        "or its package says otherwise), the whole process tree KILL.",
    )(_verb("CANCEL"))
    app.command("abort", help="End jobs by force: KILL to the whole process tree at once.")(_abort)
    app.command("delete", help="Hide jobs for good. Active ones are refused.")(_verb("DELETE"))
    app.command("rerun", help="Put jobs on the queue that repeat others which have ended.")(_verb("RERUN"))


def _verb(name: str) -> Callable[..., None]:
    def command(
        job_ids: SomeJobIds = None,
        type_: Types = None,
        state: States = None,
        status: Statuses = None,
        text: Containing = "",
        completed_before: CompletedBefore = None,
        reason: Reason = "",
        dry_run: DryRun = False,
        yes: Yes = False,
        json: Json = False,
        data: Data = None,
    ) -> None:
        _apply(name, data, job_ids, (type_, state, status, text, completed_before), reason, dry_run, yes, json)

    return command


def _abort(
    job_ids: SomeJobIds = None,
    type_: Types = None,
    state: States = None,
    status: Statuses = None,
    text: Containing = "",
    completed_before: CompletedBefore = None,
    reason: Reason = "",
    force: Force = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
    data: Data = None,
) -> None:
    name = "FORCE" if force else "ABORT"
    _apply(name, data, job_ids, (type_, state, status, text, completed_before), reason, dry_run, yes, json)


def _apply(
    verb: str,
    data: Path | None,
    job_ids: list[int] | None,
    conditions: tuple[Types, States, Statuses, str, str | None],
    reason: str,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> None:
    from sis.cli import bulk, requests

    job_filter = requests.job_filter(*conditions)
    bulk.apply(data, bulk.VERBS[verb], job_ids or (), job_filter, reason=reason, dry_run=dry_run, yes=yes, json=json)
