from __future__ import annotations

import io

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from sis.cli import terminal
from sis.cli.monitor import MonitorView, verdict
from sis.cli.transcript import Line, Source, Transcript
from sis.client import ApiError
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb

TIME = Timestamp(seconds=1_000_000_000)


def frames(*items: frame_pb2.Frame, attempt: int = 1) -> pb.MonitorJobResponse:
    return pb.MonitorJobResponse(frames=pb.AttemptFrames(attempt=attempt, frames=items))


def chunk(data: bytes, channel: job_pb2.Channel.ValueType = job_pb2.CHANNEL_STDOUT) -> frame_pb2.Frame:
    return frame_pb2.Frame(time=TIME, chunk=frame_pb2.Chunk(channel=channel, data=data))


def notice(text: str, severity: frame_pb2.Severity.ValueType = frame_pb2.SEVERITY_INFO) -> frame_pb2.Frame:
    return frame_pb2.Frame(time=TIME, notice=frame_pb2.Notice(severity=severity, text=text))


def progress(percent: int, text: str) -> frame_pb2.Frame:
    fact = frame_pb2.Progress(percent=percent, text=text)
    return frame_pb2.Frame(time=TIME, notice=frame_pb2.Notice(severity=frame_pb2.SEVERITY_INFO, progress=fact))


def payload_ended() -> frame_pb2.Frame:
    ended = frame_pb2.PayloadEnded(exit_code=0)
    return frame_pb2.Frame(time=TIME, notice=frame_pb2.Notice(text="Payload ended", payload_ended=ended))


def history(event: str, actor: str = "administrator", message: str = "") -> pb.MonitorJobResponse:
    entry = job_pb2.HistoryEntry(time=TIME, event=event, actor=actor, message=message)
    return pb.MonitorJobResponse(history=entry)


def texts(lines: list[Line]) -> list[tuple[Source, str]]:
    return [(line.source, line.text) for line in lines]


def test_lines_are_joined_for_each_channel() -> None:
    transcript = Transcript()
    first = transcript.feed(frames(chunk(b"one t"), chunk(b"err", job_pb2.CHANNEL_STDERR), chunk(b"wo\nthr")))
    assert texts(first) == [(Source.STDOUT, "one two")]
    assert texts(transcript.begun) == [(Source.STDOUT, "thr"), (Source.STDERR, "err")]
    second = transcript.feed(frames(chunk(b"or\n", job_pb2.CHANNEL_STDERR), chunk(b"ee\n")))
    assert texts(second) == [(Source.STDERR, "error"), (Source.STDOUT, "three")]
    assert transcript.begun == []


def test_the_end_of_the_payload_ends_its_last_line() -> None:
    lines = Transcript().feed(frames(chunk(b"no newline"), payload_ended()))
    assert texts(lines) == [(Source.STDOUT, "no newline"), (Source.SITE, "Payload ended")]


def test_another_attempt_begins_anew() -> None:
    transcript = Transcript()
    transcript.feed(frames(chunk(b"caf\xc3")))
    lines = transcript.feed(frames(chunk(b"again\n"), attempt=2))
    assert texts(lines) == [
        (Source.STDOUT, r"caf\xc3"),
        (Source.VIEWER, "Attempt 2"),
        (Source.STDOUT, "again"),
    ]


def test_a_monitor_that_begins_later_says_what_it_leaves_out() -> None:
    transcript = Transcript()
    late = chunk(b"late\n")
    late.sequence = 1235
    assert texts(transcript.feed(frames(late))) == [
        (Source.VIEWER, "Not shown: the 1,234 frames before"),
        (Source.STDOUT, "late"),
    ]
    later = chunk(b"later\n")
    later.sequence = 1236
    assert texts(transcript.feed(frames(later))) == [(Source.STDOUT, "later")]


def test_history_is_said_in_sentences() -> None:
    transcript = Transcript()
    assert texts(transcript.feed(history("CANCEL"))) == [(Source.SERVER, "Cancel requested by administrator")]
    assert texts(transcript.feed(history("CANCEL", message="too slow"))) == [
        (Source.SERVER, "Cancel requested by administrator: too slow")
    ]
    assert texts(transcript.feed(history("RERUN", message="as job 7"))) == [
        (Source.SERVER, "Rerun by administrator, as job 7")
    ]
    assert texts(transcript.feed(history("START_LIMIT", message="Failed: it never started"))) == [
        (Source.SERVER, "Failed: it never started")
    ]
    assert texts(transcript.feed(history("NEW_EVENT", actor=""))) == [(Source.SERVER, "NEW_EVENT by the server")]


def test_what_the_site_says_itself_is_not_said_twice() -> None:
    moved = job_pb2.HistoryEntry(event="FINISH_SUCCEEDED", to_status=job_pb2.JOB_STATUS_SUCCEEDED)
    recorded = job_pb2.HistoryEntry(event="PAYLOAD_ENDED", from_status=6, to_status=6)
    assert texts(Transcript().feed(pb.MonitorJobResponse(history=moved))) == [(Source.SERVER, "Status: Success")]
    assert Transcript().feed(pb.MonitorJobResponse(history=recorded)) == []


def test_debug_lines_are_for_the_debug_log() -> None:
    quiet = frames(notice("x", frame_pb2.SEVERITY_DEBUG), chunk(b"y\n", job_pb2.CHANNEL_DEBUG))
    assert Transcript().feed(quiet) == []


def test_a_snapshot_brings_the_progress() -> None:
    transcript = Transcript()
    transcript.feed(pb.MonitorJobResponse(job=job_pb2.Job(progress_percent=40, progress_text="copying")))
    assert transcript.progress is not None
    assert (transcript.progress.percent, transcript.progress.text) == (40, "copying")


def shown(*responses: pb.MonitorJobResponse, tty: bool = False) -> str:
    file = Terminal() if tty else io.StringIO()
    with MonitorView(terminal.console(file)) as view:
        for each in responses:
            view.show(each)
    return file.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    output = shown(
        history("CLAIM", actor="local-1"),
        frames(
            notice("Payload processing started, PID 7"),
            chunk(b"\x1b[32mgreen\x1b[0m \x1b]0;evil\x07\n\n"),
            chunk(b"oops\n", job_pb2.CHANNEL_STDERR),
            progress(50, "half"),
        ),
    )
    assert [line[9:] for line in output.splitlines()] == [
        "* Claimed by local-1",
        "* Payload processing started, PID 7",
        r"| green \x1b]0;evil\x07",
        "|",
        "! oops",
        "* 50 % half",
    ]


def test_a_payload_cannot_pass_for_the_server() -> None:
    forged = shown(frames(chunk(b"10:00:00 * Cancel requested by administrator\r\x1b[2K10:00:00 * x\n")))
    assert all(line.startswith("         | ") for line in forged.splitlines())


def test_a_terminal_gets_colours_and_nothing_else_of_the_payload() -> None:
    hostile = b"\x1b[32mgreen\x1b[0m \x1b]0;evil\x07 \x1b[1A\x1b[2K\n"
    output = shown(frames(chunk(hostile)), tty=True)
    assert "\x1b[32m" in output
    assert "\x1b]0;" not in output
    assert r"\x1b]0;evil\x07 \x1b[1A\x1b[2K" in output


def test_a_broken_connection_is_said_once() -> None:
    file = io.StringIO()
    with MonitorView(terminal.console(file)) as view:
        view.interrupted(ApiError("UNAVAILABLE", "gone"))
        view.interrupted(ApiError("UNAVAILABLE", "gone"))
        view.show(frames(chunk(b"more\n")))
    assert [line[9:] for line in file.getvalue().splitlines()] == [
        "- Connection lost, trying again: gone",
        "- Connected again",
        "| more",
    ]


def test_the_verdict() -> None:
    job = job_pb2.Job(job_id=42, status=job_pb2.JOB_STATUS_FAILED, result_code=3, failure_reason="EXIT_CODE")
    job.start_time.FromSeconds(100)
    job.complete_time.FromMilliseconds(103_200)
    job.status_message = "the payload ended with exit code 3"
    assert str(verdict(job)) == (
        "Job 42: Failed, exit code 3, after 3.2 s (EXIT_CODE: the payload ended with exit code 3)"
    )


def test_markup_is_not_obeyed() -> None:
    file = io.StringIO()
    console: Console = terminal.console(file)
    table = terminal.table(console, "Name")
    table.add_row(terminal.cell("[bold]x[/bold] :smile: \x1b[31m"))
    console.print(table)
    assert r"[bold]x[/bold] :smile: \x1b[31m" in file.getvalue()
