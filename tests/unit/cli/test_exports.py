from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from sis.cli import exports, files
from sis.cli.values import OptionError
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb


def begins(job_id: int) -> pb.ExportJobsResponse:
    return pb.ExportJobsResponse(job_id=job_id, job=job_pb2.Job(job_id=job_id))


def goes_on(job_id: int, token: str = "") -> pb.ExportJobsResponse:
    return pb.ExportJobsResponse(job_id=job_id, resume_token=token, history=job_pb2.HistoryEntry(sequence=1))


def rendered(response: pb.ExportJobsResponse) -> bytes:
    return f"{response.job_id}{'J' if response.HasField('job') else 'h'} ".encode()


def test_a_job_that_begins_anew_is_written_once() -> None:
    sink = io.BytesIO()
    broken = [begins(1), goes_on(1, "after 1"), begins(2), goes_on(2), begins(2), goes_on(2), goes_on(2, "after 2")]
    assert exports.write(broken, rendered, sink) == 2
    assert sink.getvalue() == b"1J 1h 2J 2h 2h "


def test_a_job_that_is_not_all_there_is_not_written() -> None:
    sink = io.BytesIO()
    assert exports.write([begins(1), goes_on(1)], rendered, sink) == 0
    assert sink.getvalue() == b""


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_a_cell_is_no_formula(name: str) -> None:
    row = exports._csv_row(pb.ExportJobsResponse(job=job_pb2.Job(job_id=1, display_name=name)))
    assert row.split(b",")[1] == f"'{name}".encode()


def test_a_row_of_csv() -> None:
    job = job_pb2.Job(
        job_id=7, display_name='a "b", c\x1b', type=job_pb2.JOB_TYPE_PACKAGE, status=job_pb2.JOB_STATUS_SUCCEEDED,
        site_target=job_pb2.SiteTarget(group="local"),
    )  # fmt: skip
    job.create_time.FromMilliseconds(1_000_000_000_500)
    row = exports._csv_row(pb.ExportJobsResponse(job=job)).decode()
    assert row == '7,"a ""b"", c\\x1b",IT Automation,Success,group:local,,2001-09-09T01:46:40.500Z,,\n'
    assert exports._csv_row(goes_on(7)) == b""


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), files.replaced("--output", path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    with files.replaced("--output", path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_permissions_and_a_link_its_place(tmp_path: Path) -> None:
    path, link = tmp_path / "out", tmp_path / "link"
    path.touch(0o600)
    link.symlink_to("out")
    with files.replaced("--output", link) as file:
        file.write(b"after")
    assert (path.read_text(), path.stat().st_mode & 0o777, link.is_symlink()) == ("after", 0o600, True)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (".", "is a directory; name a file"),
        ("-", "is no file; name one"),
        ("pipe", "is no file; name a file"),
        ("missing/out", "missing/out cannot be written: No such file or directory"),
        ("pipe/out", "pipe/out cannot be written: Not a directory"),
    ],
)
def test_only_a_file_is_replaced(tmp_path: Path, name: str, problem: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match=f"^--output: .*{problem}$"), files.replaced("--output", tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
