"""The monitor of a job as lines: what arrives in pieces is put together, nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from google.protobuf.timestamp_pb2 import Timestamp

from sis.cli import history
from sis.cli.text import LineJoiner
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb


class Source(Enum):
    """Who speaks in a line."""

    SERVER = "server"
    SITE = "site"
    STDOUT = "stdout"
    STDERR = "stderr"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the monitor. `text` may hold anything: whoever shows it makes it harmless."""

    source: Source
    text: str
    time: Timestamp | None = None
    style: str = ""
    progress: bool = False


_OUTPUT = {job_pb2.CHANNEL_STDOUT: Source.STDOUT, job_pb2.CHANNEL_STDERR: Source.STDERR}
_SEVERITY_STYLE = {frame_pb2.SEVERITY_WARNING: "yellow", frame_pb2.SEVERITY_ERROR: "red"}


class Transcript:
    """Feeds on the responses of a monitor; remembers the job as last seen, begun lines, and the progress."""

    def __init__(self) -> None:
        self.job = job_pb2.Job()
        self.progress: frame_pb2.Progress | None = None
        self._attempt = 0
        self._joiners: dict[Source, LineJoiner] = {}

    @property
    def begun(self) -> list[Line]:
        """What was written so far of lines that have no end yet."""
        return [Line(source, joiner.rest) for source, joiner in self._joiners.items() if joiner.rest]

    def feed(self, response: pb.MonitorJobResponse) -> list[Line]:
        """The lines that a response completes."""
        match response.WhichOneof("content"):
            case "job":
                self.job.CopyFrom(response.job)
                if self.job.progress_percent or self.job.progress_text:
                    self.progress = frame_pb2.Progress(percent=self.job.progress_percent, text=self.job.progress_text)
                return []
            case "history":
                entry = response.history
                text = history.news(entry)
                return [Line(Source.SERVER, text, entry.time, history.style(entry))] if text else []
            case "frames":
                return self._frames(response.frames)
            case _:
                return []

    def end(self) -> list[Line]:
        """The begun lines, as they are: nothing more will come."""
        lines = [Line(source, text) for source, joiner in self._joiners.items() for text in joiner.end()]
        self._joiners.clear()
        return lines

    def _frames(self, frames: pb.AttemptFrames) -> list[Line]:
        lines: list[Line] = []
        if frames.attempt != self._attempt:
            lines += self.end()
            if self._attempt:
                lines.append(Line(Source.VIEWER, f"Attempt {frames.attempt}"))
            elif frames.frames and frames.frames[0].sequence > 1:
                lines.append(Line(Source.VIEWER, f"Not shown: the {frames.frames[0].sequence - 1:,} frames before"))
            self._attempt = frames.attempt
        for frame in frames.frames:
            if frame.WhichOneof("content") == "chunk":
                lines += self._chunk(frame.chunk, frame.time)
            elif frame.WhichOneof("content") == "notice":
                lines += self._notice(frame.notice, frame.time)
        return lines

    def _chunk(self, chunk: frame_pb2.Chunk, time: Timestamp) -> list[Line]:
        if chunk.channel == job_pb2.CHANNEL_DEBUG:
            return []
        source = _OUTPUT.get(chunk.channel, Source.SITE)
        joiner = self._joiners.setdefault(source, LineJoiner())
        return [Line(source, text, time) for text in joiner.feed(chunk.data)]

    def _notice(self, notice: frame_pb2.Notice, time: Timestamp) -> list[Line]:
        fact = notice.WhichOneof("fact")
        if fact == "progress":
            self.progress = notice.progress
            text = notice.text or f"{notice.progress.percent} % {notice.progress.text}".rstrip()
            return [Line(Source.SITE, text, time, progress=True)]
        if notice.severity == frame_pb2.SEVERITY_DEBUG:
            return []
        # What the payload wrote before its end stands before the line that says that it ended.
        flushed = self.end() if fact in ("payload_ended", "finished") else []
        return [*flushed, Line(Source.SITE, notice.text, time, _SEVERITY_STYLE.get(notice.severity, ""))]
