"""ReadLog and SearchLog: requests to places, frames to what is searched, findings to messages."""

from __future__ import annotations

from services.queue.convert import jobs as convert
from services.queue.convert.dispatch import CHANNELS
from services.queue.excerpts import BYTES, Excerpt, Findings, Place
from services.queue.frames import Channel
from services.queue.log_search import LogSearch, Match
from services.queue.logs import LogRow
from services.runtime.errors import InvalidArgument
from services.runtime.fields import Violations, numbers, to_timestamp
from sis.queue.v1 import frame_pb2, job_service_pb2

READ_BYTES = 256 * 1024
TEXT_CHARACTERS = 200

_CHANNEL_NUMBERS = numbers(CHANNELS)


def read_log(request: job_service_pb2.ReadLogRequest) -> tuple[int, Place, int]:
    """The job, where to read, and how many bytes. Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    place = Place()
    match request.WhichOneof("place"):
        case "first_sequence":
            place = Place(first=_sequence(wrong, "first_sequence", request.first_sequence))
        case "before_sequence":
            place = Place(before=_sequence(wrong, "before_sequence", request.before_sequence))
        case "time":
            place = Place(time=wrong.time("time", request.time))
    if not 0 <= request.max_bytes <= BYTES:
        wrong.add("max_bytes", f"must be between 1 and {BYTES:,}")
    wrong.refuse()
    return convert.job_id(request.job_id), place, request.max_bytes or READ_BYTES


def _sequence(wrong: Violations, field: str, value: int) -> int:
    if value < 1:
        wrong.add(field, "must be the number of a frame, from 1 on")
    return value


def to_log(excerpt: Excerpt) -> job_service_pb2.ReadLogResponse:
    response = job_service_pb2.ReadLogResponse(total_frames=excerpt.total)
    if excerpt.rows:
        response.frames.CopyFrom(convert.to_frames(excerpt.rows))
    return response


def tail_bytes(request: job_service_pb2.MonitorJobRequest) -> int:
    """Of a monitor's log, how much of the end is shown first; 0 for all. Raises InvalidArgument."""
    if not 0 <= request.tail_bytes <= BYTES:
        raise InvalidArgument.field("tail_bytes", f"must be between 0 and {BYTES:,}")
    return 0 if request.resume_token else request.tail_bytes


def search_log(request: job_service_pb2.SearchLogRequest) -> tuple[int, str, int]:
    """The job, the text, and the frame to begin with. Raises InvalidArgument, naming every wrong field."""
    wrong = Violations()
    wrong.line("text", request.text, TEXT_CHARACTERS, required=True)
    first = _sequence(wrong, "first_sequence", request.first_sequence) if request.first_sequence else 1
    wrong.refuse()
    return convert.job_id(request.job_id), request.text, first


def feed(search: LogSearch, row: LogRow) -> list[Match]:
    """The matches that a frame completes."""
    frame = frame_pb2.Frame.FromString(row.body)
    if frame.HasField("chunk"):
        return search.output(row.sequence, row.at, CHANNELS[frame.chunk.channel], frame.chunk.data)
    channel = Channel.DEBUG if frame.notice.severity == frame_pb2.SEVERITY_DEBUG else Channel.SYSTEM
    return search.notice(row.sequence, row.at, channel, frame.notice.text)


def to_findings(findings: Findings) -> job_service_pb2.SearchLogResponse:
    return job_service_pb2.SearchLogResponse(
        matches=[
            job_service_pb2.LogMatch(
                sequence=match.sequence,
                time=to_timestamp(match.at),
                channel=_CHANNEL_NUMBERS[match.channel],
                line=match.line,
            )
            for match in findings.matches
        ],
        next_sequence=findings.next,
        total_frames=findings.total,
    )
