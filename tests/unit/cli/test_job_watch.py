from __future__ import annotations

import io

from rich.console import Console

from sis.cli.job_watch import LiveView, Rows
from sis.client import ApiError
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

RUNNING, SUCCEEDED = job_pb2.JOB_STATUS_RUNNING, job_pb2.JOB_STATUS_SUCCEEDED


def jobs(*job_ids: int, status: job_pb2.JobStatus.ValueType = RUNNING) -> list[job_pb2.Job]:
    return [job_pb2.Job(job_id=each, status=status) for each in job_ids]


def test_rows_change_in_place_and_new_ones_come_on_top() -> None:
    rows = Rows(3)
    rows.begin(jobs(7, 5))
    rows.change(pb.WatchJobsResponse(jobs=[*jobs(8), *jobs(5, status=SUCCEEDED)]))
    assert [(job.job_id, job.status) for job in rows.jobs] == [(8, RUNNING), (7, RUNNING), (5, SUCCEEDED)]


def test_a_full_page_drops_the_oldest_and_takes_none_that_is_older() -> None:
    rows = Rows(3)
    rows.begin(jobs(9, 8, 7))
    rows.change(pb.WatchJobsResponse(jobs=jobs(10, 2)))
    assert [job.job_id for job in rows.jobs] == [10, 9, 8]


def test_what_is_gone_leaves_its_place() -> None:
    rows = Rows(3)
    rows.begin(jobs(9, 8, 7))
    rows.change(pb.WatchJobsResponse(gone_job_ids=[8, 1], jobs=jobs(6)))
    assert [job.job_id for job in rows.jobs] == [9, 7, 6]


def test_a_lost_connection_is_shown_until_something_comes() -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=200)
    view = LiveView(out, 3)

    def shown() -> str:
        with out.capture() as capture:
            out.print(view.screen())
        return capture.get()

    assert "Connecting" in shown()
    assert "No jobs" not in shown()
    view.begin(pb.ListJobsResponse())
    assert "No jobs match" in shown()
    view.interrupted(ApiError("UNAVAILABLE", "gone\x1b[2J"))
    assert r"trying again: gone\x1b[2J" in shown()
    view.change(pb.WatchJobsResponse(jobs=jobs(42)))
    assert "42" in shown()
    assert "Ctrl-C ends it" in shown()
