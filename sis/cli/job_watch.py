"""`sis jobs list --watch`: the list as it changes, in place on a terminal, a line of JSON a change elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sis.cli import terminal
from sis.cli.job_list import job_table
from sis.cli.text import visible
from sis.cli.values import OptionError
from sis.client import ApiError, Client, ResumeExpired
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

_LIVE = Text("Live; Ctrl-C ends it", style="dim")


class Rows:
    """The newest jobs that match, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.jobs: list[job_pb2.Job] = []
        """Newest first. A change makes a new list, so another thread can read this one."""

    def begin(self, jobs: Iterable[job_pb2.Job]) -> None:
        """Show a page of the list."""
        self.jobs = list(jobs)

    def change(self, response: pb.WatchJobsResponse) -> None:
        """Take over what changed. A job that is older than those of a full page stays away."""
        rows = {job.job_id: job for job in self.jobs}
        for gone in response.gone_job_ids:
            rows.pop(gone, None)
        rows.update((job.job_id, job) for job in response.jobs)
        self.jobs = sorted(rows.values(), key=lambda job: -job.job_id)[: self._limit]


class JsonView(AbstractContextManager["JsonView"]):
    """Prints each change as a line; the jobs with which it begins are the first."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, page: pb.ListJobsResponse) -> None:
        self.change(pb.WatchJobsResponse(resume_token=page.watch_token, jobs=page.jobs))

    def change(self, response: pb.WatchJobsResponse) -> None:
        print(terminal.line(response), flush=True)

    def interrupted(self, error: ApiError) -> None:
        """Nothing is lost by it, so there is nothing to say."""


class LiveView(AbstractContextManager["LiveView"]):
    """Shows the rows on a terminal, in place."""

    def __init__(self, out: Console, page_size: int) -> None:
        self._out = out
        self._rows = Rows(page_size)
        self._said = Text("Connecting", style="dim")
        self._open = ExitStack()

    def __enter__(self) -> Self:
        live = Live(
            get_renderable=self.screen,
            console=self._out,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._open.enter_context(live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def begin(self, page: pb.ListJobsResponse) -> None:
        self._rows.begin(page.jobs)
        self._said = _LIVE

    def change(self, response: pb.WatchJobsResponse) -> None:
        self._rows.change(response)
        self._said = _LIVE

    def interrupted(self, error: ApiError) -> None:
        self._said = Text(f"Connection lost, trying again: {visible(error.message)}", style="yellow")

    def screen(self) -> Group:
        """Whether the table is up to date, where a low terminal does not cut it off, and the table."""
        jobs = self._rows.jobs
        if jobs:
            return Group(self._said, job_table(self._out, jobs))
        return Group(self._said, *([Text("No jobs match")] if self._said is _LIVE else []))


def watch(data: Path | None, job_filter: pb.JobFilter, *, page_size: int, paged: bool, json: bool) -> None:
    """Show the newest jobs, and what happens to the list, until Ctrl-C."""
    if paged:
        raise OptionError("--watch shows the newest jobs: leave out --order, --page-token and --all")
    out = terminal.console()
    view: JsonView | LiveView = LiveView(out, page_size) if out.is_terminal and not json else JsonView()
    try:
        with Client.find(data) as client, view:
            _watch(client, job_filter, page_size, view)
    except KeyboardInterrupt:
        return


def _watch(client: Client, job_filter: pb.JobFilter, page_size: int, view: JsonView | LiveView) -> None:
    going = True
    while going:
        page = client.jobs.list(job_filter, page_size=page_size)
        view.begin(page)
        going = False
        try:
            stream = client.jobs.watch(job_filter, page.watch_token, on_interruption=view.interrupted)
            with closing(stream) as responses:
                for response in responses:
                    going = True
                    if response.jobs or response.gone_job_ids:
                        view.change(response)
        except ResumeExpired:
            # What happened meanwhile is not known any more: the list is. Unless its own token has expired at once.
            if not going:
                raise
