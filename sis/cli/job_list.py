"""The list of jobs: its columns, its table, a page of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sis.cli import terminal, words
from sis.client import Client
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

COLUMNS = (
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
_ALL_COLUMNS = 100
"""A terminal with fewer has no room for the columns that tell least."""


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
    if whole.jobs:
        out.print(job_table(out, whole.jobs))
    out.print(f"Total Matching Jobs {whole.total_size}")
    if whole.next_page_token:
        out.print(f"More: --page-token {whole.next_page_token}")


def job_table(out: Console, jobs: Iterable[job_pb2.Job]) -> Table:
    """The jobs, a row each."""
    narrow = out.width < terminal.NARROW
    time = words.short_time if narrow else words.local_time
    shown = [header for header in COLUMNS if out.width >= _ALL_COLUMNS or header not in ("Type", "Child Jobs")]
    headers = [header.replace(" ", "\n") if narrow else header for header in shown]
    fixed = [header for header in headers if header not in ("Name", "Type", "Target")]
    table = terminal.table(out, *headers, right=headers[:1], fixed=fixed)
    for job in jobs:
        cells: dict[str, RenderableType] = {
            "Job Id": str(job.job_id),
            "Name": terminal.cell(job.display_name),
            "Type": words.job_type(job.type),
            "Status": Text(words.status(job.status), style=words.status_style(job.status)),
            "Target": terminal.cell(target(job)),
            "Child Jobs": words.NOT_APPLICABLE,
            "Created On": time(job.create_time),
            "Started On": time(job.start_time),
            "Completed On": time(job.complete_time),
        }
        table.add_row(*(cells[header] for header in shown))
    return table


def target(job: job_pb2.Job) -> str:
    """The machine that the job acts on, or where it may go before that is known."""
    return job.target or words.site(job.site_target)
