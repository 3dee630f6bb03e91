"""What the commands of `sis jobs` do that show one job: one call of the client, then its answer as text or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer
from rich.console import RenderableType

from sis.cli import failures, history, requests, terminal, values, words
from sis.cli.details import job_page
from sis.cli.explanation import explanation_page
from sis.cli.monitor import MonitorView, verdict
from sis.cli.text import LineJoiner, uncoloured
from sis.cli.values import OptionError
from sis.client import ApiError, Client
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb


def monitor(data: Path | None, job_id: int, resume_token: str, tail: str, *, json: bool) -> None:
    """Follow a job to its end."""
    if tail and resume_token:
        raise OptionError("--tail: leave it out, as --resume-token says where to go on")
    tail_bytes = values.size("--tail", tail) if tail else 0
    with Client.find(data) as client:
        try:
            follow_to_end(client, job_id, resume_token, tail_bytes, json=json, hint="Ctrl-C ends the monitor")
        except KeyboardInterrupt:
            say_detached(job_id)
            raise typer.Exit(130) from None


def follow_to_end(
    client: Client, job_id: int, resume_token: str = "", tail_bytes: int = 0, *, json: bool, hint: str
) -> job_pb2.Job:
    """Show the monitor of a job until it has ended; the job as it is then."""
    if json:
        job = job_pb2.Job()
        for response in client.jobs.monitor(job_id, resume_token, tail_bytes=tail_bytes):
            if response.WhichOneof("content") == "job":
                job = response.job
            print(terminal.line(response), flush=True)
        return job
    out = terminal.console()
    with MonitorView(out, hint) as view:
        responses = client.jobs.monitor(job_id, resume_token, tail_bytes=tail_bytes, on_interruption=view.interrupted)
        for response in responses:
            view.show(response)
    out.print(verdict(view.job))
    return view.job


def say_detached(job_id: int) -> None:
    """Say that the job goes on without anybody watching."""
    print(
        f"\nJob {job_id} goes on. Follow it: sis jobs monitor {job_id} - end it: sis jobs cancel {job_id}",
        file=sys.stderr,
    )


def get(data: Path | None, job_ids: Sequence[int], *, json: bool) -> None:
    """Print jobs whole, whatever becomes of the others; exit 1 in the end if one cannot be had."""
    out = terminal.console()
    failed = False
    with Client.find(data) as client:
        for job_id in dict.fromkeys(job_ids):
            try:
                job = client.jobs.get(job_id)
            except ApiError as error:
                failed = True
                failures.report(error, f"job {job_id}")
                continue
            if json:
                print(terminal.document(job) if len(job_ids) == 1 else terminal.line(job))
            else:
                job_page(out, job)
    if failed:
        raise typer.Exit(1)


def explain(data: Path | None, job_id: int, *, json: bool) -> None:
    """Print why a job waits."""
    with Client.find(data) as client:
        found = client.jobs.explain(job_id)
    if json:
        print(terminal.document(found))
    else:
        explanation_page(terminal.console(), job_id, found)


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


def search(data: Path | None, job_id: int, text: str, *, json: bool) -> None:
    """Print the lines of the log in which a text occurs: time, channel, line; exit 1 when there is none."""
    found = False
    with Client.find(data) as client:
        for match in client.jobs.search_log(job_id, text):
            found = True
            if json:
                print(terminal.line(match))
            else:
                channel = words.channel(match.channel)
                print(f"{words.local_time(match.time)} {channel:6} {uncoloured(match.line)}")
    if not found:
        raise typer.Exit(1)


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
    # The sentence says too who it was.
    by = () if out.width < terminal.NARROW else ("By", "From")
    headers = ("Time", "What", "Status", *by, "Attempt")
    table = terminal.table(out, *headers, right=("Attempt",))
    for entry in entries:
        cells: dict[str, RenderableType] = {
            "Time": words.local_time(entry.time),
            "What": terminal.cell(history.sentence(entry), history.style(entry)),
            "Status": history.movement(entry),
            "By": terminal.cell(entry.actor),
            "From": terminal.cell(entry.origin),
            "Attempt": str(entry.attempt) if entry.attempt else words.NOT_APPLICABLE,
        }
        table.add_row(*(cells[header] for header in headers))
    out.print(table)
