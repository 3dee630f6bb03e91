"""Showing a job as it runs: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self

from rich.ansi import AnsiDecoder
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sis.cli import words
from sis.cli.text import coloured, uncoloured, visible
from sis.cli.transcript import Line, Source, Transcript
from sis.client import ApiError
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

# A payload cannot write into the first columns, so it cannot pass for the server or the site.
_MARKS = {
    Source.SERVER: "◆",
    Source.SITE: "●",
    Source.VIEWER: "○",
    Source.STDOUT: "│",
    Source.STDERR: "┃",
}
_PLAIN_MARKS = {
    Source.SERVER: "*",
    Source.SITE: "*",
    Source.VIEWER: "-",
    Source.STDOUT: "|",
    Source.STDERR: "!",
}
_OUTPUT = (Source.STDOUT, Source.STDERR)
_NO_TIME = " " * 8
_BEGUN_CHARACTERS = 200


class MonitorView(AbstractContextManager["MonitorView"]):
    """Shows the responses of one job's monitor. `hint` is shown beside the status while it is live."""

    def __init__(self, out: Console, hint: str = "") -> None:
        self._out = out
        self._hint = hint
        self._transcript = Transcript()
        self._decoders = {source: AnsiDecoder() for source in _OUTPUT}
        self._interrupted = False
        self._spinner = Spinner("dots", style="cyan")
        self._open = ExitStack()

    @property
    def job(self) -> job_pb2.Job:
        """The job as last seen."""
        return self._transcript.job

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            live = Live(
                get_renderable=self._footer,
                console=self._out,
                transient=True,
                refresh_per_second=8,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._open.enter_context(live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(self._transcript.end())
        self._open.close()

    def show(self, response: pb.MonitorJobResponse) -> None:
        """Show what a response brings."""
        if self._interrupted:
            self._interrupted = False
            self._show([Line(Source.VIEWER, "Connected again")])
        self._show(self._transcript.feed(response))

    def interrupted(self, error: ApiError) -> None:
        """Say once that the connection is lost."""
        if not self._interrupted:
            self._interrupted = True
            self._show([Line(Source.VIEWER, f"Connection lost, trying again: {error.message}", style="yellow")])

    def _show(self, lines: Iterable[Line]) -> None:
        terminal = self._out.is_terminal
        rendered = [
            self._render(line) if terminal else plain(line) for line in lines if not (terminal and line.progress)
        ]
        if rendered:
            # All at once: printing each line by itself would redraw the footer for every one.
            self._out.print(Text("\n").join(rendered), soft_wrap=True)
            self._out.file.flush()

    def _render(self, line: Line) -> Text:
        mark = _MARKS[line.source]
        if line.source in _OUTPUT:
            text = self._decoders[line.source].decode_line(coloured(line.text))
            return Text.assemble((f"{_NO_TIME} {mark} ", "red" if line.source is Source.STDERR else "dim"), text)
        moment = words.clock(line.time) if line.time else _NO_TIME
        return Text.assemble((f"{moment} {mark} {visible(line.text)}", line.style or "dim"))

    def _footer(self) -> Group:
        begun = [
            Text(f"{_NO_TIME} {_MARKS[line.source]} {uncoloured(line.text)[-_BEGUN_CHARACTERS:]}", style="dim")
            for line in self._transcript.begun
        ]
        for text in begun:
            text.no_wrap, text.overflow = True, "ellipsis"
        job, progress = self._transcript.job, self._transcript.progress
        row = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [
            self._spinner,
            Text(words.status(job.status) if job.status else "Connecting", style=words.status_style(job.status)),
        ]
        if job.HasField("start_time"):
            seconds = int(max(time.time() - job.start_time.ToNanoseconds() / 1e9, 0))
            cells.append(Text(words.duration(seconds) if seconds else "0 s", style="dim"))
        if progress is not None:
            cells.append(ProgressBar(total=100, completed=progress.percent, width=24))
            cells.append(Text(f"{progress.percent} % {visible(progress.text)}"))
        cells.append(Text(self._hint, style="dim"))
        row.add_row(*cells)
        return Group(*begun, row)


def plain(line: Line) -> Text:
    """A line for a file or a pipe."""
    moment = words.clock(line.time) if line.time and line.source not in _OUTPUT else _NO_TIME
    return Text(f"{moment} {_PLAIN_MARKS[line.source]} {uncoloured(line.text)}".rstrip(" "))


def verdict(job: job_pb2.Job, subject: str = "") -> Text:
    """One line that says how a job ended: "Job 7: Success, exit code 0, after 3.2 s"."""
    parts = [words.status(job.status)]
    if job.HasField("result_code"):
        parts.append(f"exit code {job.result_code}")
    if job.HasField("start_time") and job.HasField("complete_time"):
        seconds = (job.complete_time.ToNanoseconds() - job.start_time.ToNanoseconds()) / 1e9
        parts.append(f"after {words.duration(max(seconds, 0.0))}")
    said = ", ".join(parts)
    message = job.status_message.removeprefix(f"{words.status(job.status)}: ")
    why = ": ".join(part for part in (job.failure_reason, message) if part)
    if why and job.status != job_pb2.JOB_STATUS_SUCCEEDED:
        said += f" ({visible(why)})"
    return Text(f"{subject or f'Job {job.job_id}'}: {said}", style=words.status_style(job.status))
