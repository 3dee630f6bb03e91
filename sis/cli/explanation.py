"""Why a job waits, for a person."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.text import Text

from sis.cli import terminal, words
from sis.cli.terminal import cell
from sis.queue.v1 import job_service_pb2 as pb


def explanation_page(out: Console, job_id: int, found: pb.ExplainJobResponse) -> None:
    """Print what keeps a job, and who holds what it waits for."""
    terminal.section(out, f"Job {job_id}", terminal.facts(_summary(found)))
    for cause in found.causes:
        facts = list(_cause(cause, found.summary))
        if facts:
            why = words.wait(cause.reason)
            terminal.section(out, why[:1].upper() + why[1:], terminal.facts(facts))
        if cause.holders:
            table = terminal.table(
                out, "Job Id", "Status", "Agent", "Since", "Stopped At The Latest", right=("Job Id",)
            )
            for holder in cause.holders:
                table.add_row(
                    str(holder.job_id),
                    Text(words.status(holder.status), style=words.status_style(holder.status)),
                    cell(holder.agent),
                    words.local_time(holder.claim_time),
                    words.local_time(holder.deadline),
                )
            out.print(table)
            out.print()


def _summary(found: pb.ExplainJobResponse) -> Iterable[tuple[str, RenderableType]]:
    yield "Status", Text(words.status(found.status), style=words.status_style(found.status))
    if found.summary:
        yield "Why", found.summary
    if found.HasField("estimated_start_time"):
        yield "Can start", f"{words.local_time(found.estimated_start_time)} (no promise)"


def _cause(cause: pb.WaitCause, summary: str) -> Iterable[tuple[str, RenderableType]]:
    """What the summary does not say."""
    if cause.message not in summary:
        yield "Message", cause.message
    if cause.agents:
        yield "Agents", ", ".join(cause.agents)
    if cause.jobs_ahead:
        yield "Jobs ahead", f"{cause.jobs_ahead:,}"
    if cause.HasField("retry_time"):
        yield "Until", words.local_time(cause.retry_time)
