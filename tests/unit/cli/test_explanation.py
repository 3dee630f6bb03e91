from __future__ import annotations

import io

from google.protobuf import text_format

from sis.cli import terminal
from sis.cli.explanation import explanation_page
from sis.queue.v1 import job_service_pb2 as pb


def page(found: str) -> str:
    file = io.StringIO()
    explanation_page(terminal.console(file), 42, text_format.Parse(found, pb.ExplainJobResponse()))
    return file.getvalue()


def test_causes_and_who_holds_the_slots() -> None:
    shown = page("""
        status: JOB_STATUS_WAITING summary: "Both slots are taken." estimated_start_time { seconds: 1000000000 }
        causes {
            reason: WAIT_REASON_AT_CAPACITY message: "2 of 2 slots" agents: "web-1" agents: "web-2\\033"
            holders { agent: "web-1" job_id: 17 status: JOB_STATUS_RUNNING deadline { seconds: 1000000000 } }
        }
        causes { reason: WAIT_REASON_JOBS_AHEAD jobs_ahead: 1000 }
    """)
    for part in ("Job 42", "Waiting", "Both slots are taken.", "2001-09-09", "(no promise)", "All slots are taken",
                 r"web-1, web-2\x1b", "17", "Running", "Jobs ahead  1,000"):  # fmt: skip
        assert part in shown


def test_what_the_summary_says_is_said_once() -> None:
    shown = page("""
        status: JOB_STATUS_DEFERRED summary: "It waits: it is held."
        causes { reason: WAIT_REASON_HELD message: "it is held" }
    """)
    assert shown.split() == ["Job", "42", "Status", "Deferred", "Why", "It", "waits:", "it", "is", "held."]


def test_a_job_that_does_not_wait() -> None:
    shown = page('status: JOB_STATUS_SUCCEEDED summary: "It has ended."')
    assert shown.split() == ["Job", "42", "Status", "Success", "Why", "It", "has", "ended."]
