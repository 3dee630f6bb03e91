"""`sis jobs export`: jobs as lines of JSON or CSV."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from google.protobuf.timestamp_pb2 import Timestamp

from sis.cli import files, terminal, words
from sis.cli.job_list import COLUMNS, target
from sis.cli.text import visible
from sis.cli.values import OptionError
from sis.client import Client
from sis.paths import expanded
from sis.queue.v1 import job_service_pb2 as pb

_IN_MEMORY = 4 * 1024 * 1024
"""A job that is larger waits in a temporary file until all of it is there."""


def export(
    data: Path | None,
    job_ids: Sequence[int],
    job_filter: pb.JobFilter,
    *,
    logs: bool,
    form: str,
    output: Path | None,
) -> None:
    """Write the jobs to `output`, or to standard output, and say how many they are on standard error."""
    by_filter = job_filter != pb.JobFilter()
    if job_ids and by_filter:
        raise OptionError("give the ids of jobs, or options that choose them; not both")
    if logs and form == "csv":
        raise OptionError("--logs does not go with --format csv: a row has no room for a log")
    with Client.find(data) as client, _sink(output) as sink:
        responses = client.jobs.export(
            job_filter if by_filter else None, list(dict.fromkeys(job_ids)), include_logs=logs
        )
        if form == "csv":
            sink.write(_csv(COLUMNS))
        count = write(responses, _csv_row if form == "csv" else _json_line, sink)
    jobs = "1 job" if count == 1 else f"{count} jobs"
    print(f"{jobs} exported" + (f" to {output}" if output else ""), file=sys.stderr)


@contextmanager
def _sink(output: Path | None) -> Iterator[BinaryIO]:
    if output is not None:
        with files.replaced("--output", expanded(output)) as file:
            yield file
        return
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def write(
    responses: Iterable[pb.ExportJobsResponse], render: Callable[[pb.ExportJobsResponse], bytes], sink: BinaryIO
) -> int:
    """Write what each response is rendered as; how many jobs they were.

    A job is written once all of it is there: after a broken connection it begins anew.
    """
    count = 0
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as job:
        for response in responses:
            if response.HasField("job"):
                job.seek(0)
                job.truncate()
            job.write(render(response))
            if response.resume_token:
                count += 1
                job.seek(0)
                shutil.copyfileobj(job, sink)
                job.seek(0)
                job.truncate()
    return count


def _json_line(response: pb.ExportJobsResponse) -> bytes:
    return f"{terminal.line(response)}\n".encode()


def _csv_row(response: pb.ExportJobsResponse) -> bytes:
    if not response.HasField("job"):
        return b""
    job = response.job
    return _csv(
        [
            str(job.job_id),
            _text(job.display_name),
            words.job_type(job.type),
            words.status(job.status),
            _text(target(job)),
            "",
            *map(_time, (job.create_time, job.start_time, job.complete_time)),
        ]
    )


def _csv(cells: Sequence[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue().encode("utf-8", "backslashreplace")


def _text(text: str) -> str:
    """Foreign text for a cell: without control characters, and nothing that a spreadsheet would take for a formula."""
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@")) else shown


def _time(time: Timestamp) -> str:
    return words.utc(time) if time != Timestamp() else ""
