"""What the command line does with many jobs at once: verbs, exports, a list that is watched."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.runtime import errors
from services.runtime.tls import TlsFiles
from sis.cli import bulk
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.fakes.job_service import Cut, Script
from tests.integration.client.conftest import Sis
from tests.integration.client.samples import JobNotFound, job


def results(*found: pb.JobResult) -> list[pb.ApplyVerbResponse]:
    return [pb.ApplyVerbResponse(total=len(found)), *(pb.ApplyVerbResponse(result=each) for each in found)]


REFUSED = pb.JobResult(job_id=2, error=errors.to_status(JobNotFound("job 2 is gone")))


def test_a_verb_for_all_that_options_choose(sis: Sis, script: Script) -> None:
    done = pb.JobResult(job_id=1, job=job(1, job_pb2.JOB_STATUS_CANCEL_REQUESTED))
    script.answer("ApplyVerb", results(done, REFUSED), results(done))
    chosen = ("jobs", "cancel", "--state", "active", "--text", "x", "--completed-before", "2026-01-01T00:00:00Z")
    ran = sis(*chosen, "--reason", "late", "--yes")
    assert (ran.code, ran.err) == (1, "error: job 2 is gone\n")
    assert ran.out == "Job 1: Cancel Request\n2 jobs: 1 done, 1 refused\n"
    (request,) = script.asked("ApplyVerb")
    assert (request.verb, request.reason, request.validate_only) == (job_pb2.JOB_VERB_CANCEL, "late", False)
    assert (list(request.filter.run_states), request.filter.text) == ([job_pb2.RUN_STATE_ACTIVE], "x")
    assert request.filter.complete_time_before.ToJsonString() == "2026-01-01T00:00:00Z"
    assert not request.HasField("expected_count")
    ran = sis(*chosen, "--yes", "--json")
    assert [next(iter(json.loads(line))) for line in ran.out.splitlines()] == ["total", "result"]
    assert ran.code == 0


def test_many_are_let_go_by_force(sis: Sis, script: Script) -> None:
    script.answer("ApplyVerb", results(REFUSED), results(REFUSED))
    for more in (("--dry-run",), ("--yes",)):
        assert sis("jobs", "abort", "--status", "awol", "--force", "--reason", "scrapped", *more).code == 1
    assert [(r.verb, r.force, r.reason) for r in script.asked("ApplyVerb")] == [
        (job_pb2.JOB_VERB_ABORT, True, "scrapped"),
    ] * 2


@pytest.mark.parametrize("which", [("1", "2", "1"), ("--status", "waiting")])
def test_a_dry_run_does_nothing(sis: Sis, script: Script, which: tuple[str, ...]) -> None:
    script.answer("ApplyVerb", results(pb.JobResult(job_id=1), REFUSED))
    ran = sis("jobs", "delete", *which, "--dry-run")
    assert (ran.code, ran.err) == (1, "error: job 2 is gone\n")
    assert ran.out == "Job 1: would be deleted\n2 jobs: 1 would be deleted, 1 refused\n"
    ((method, request),) = script.requests
    assert (method, request.validate_only) == ("ApplyVerb", True)
    assert (list(request.job_ids), request.HasField("filter")) in [([1, 2], False), ([], True)]


def test_nobody_is_there_to_agree(sis: Sis, script: Script) -> None:
    ran = sis("jobs", "delete", "--status", "failed")
    assert (ran.code, ran.err) == (2, "error: --yes is missing: there is no terminal on which you could be asked\n")
    assert script.requests == []


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1)])
def test_somebody_agrees_to_a_count(sis: Sis, script: Script, answer: bytes, code: int) -> None:
    found = results(pb.JobResult(job_id=1))
    script.answer("ApplyVerb", found, found)
    ran = sis("jobs", "delete", "--status", "failed", stdin=answer, terminal=True)
    assert ran.code == code
    assert "Delete 1 job?" in ran.err
    first, *rest = script.asked("ApplyVerb")
    assert first.validate_only
    assert [(each.validate_only, each.expected_count) for each in rest] == ([(False, 1)] if code == 0 else [])


def test_an_answer_that_breaks_off_says_how_far_it_went(sis: Sis, script: Script) -> None:
    script.answer("ApplyVerb", [pb.ApplyVerbResponse(total=2), *results(pb.JobResult(job_id=1))[1:], Cut()])
    ran = sis("jobs", "delete", "--status", "failed", "--yes")
    assert (ran.code, ran.out) == (1, "Job 1: deleted\n")
    assert ran.err.startswith(
        "error: 1 of 2 jobs were answered for; others may have been deleted\nerror: the server at"
    )


def test_an_export(sis: Sis, script: Script, tmp_path: Path) -> None:
    def of(job_id: int, token: str) -> pb.ExportJobsResponse:
        return pb.ExportJobsResponse(resume_token=token, job_id=job_id, job=job(job_id))

    script.answer("ExportJobs", [of(1, "a"), of(2, ""), Cut()], [of(2, "b")], [of(1, "a")], [of(1, "a"), Cut(), Cut()])
    ran = sis("jobs", "export", "--status", "failed", "--logs")
    assert (ran.code, ran.err) == (0, "2 jobs exported\n")
    assert [json.loads(line)["jobId"] for line in ran.out.splitlines()] == ["1", "2"]
    assert [(r.resume_token, r.include_logs) for r in script.asked("ExportJobs")] == [("", True), ("a", True)]
    path = tmp_path / "jobs.csv"
    ran = sis("jobs", "export", "1", "1", "--format", "csv", "--output", str(path))
    assert (ran.code, ran.out, ran.err) == (0, "", f"1 job exported to {path}\n")
    assert path.read_text().splitlines() == [
        "Job Id,Name,Type,Status,Target,Child Jobs,Created On,Started On,Completed On",
        r"1,Nightly \x1b]0;x\x07,IT Automation,Waiting,group:local,,,,",
    ]
    assert list(script.asked("ExportJobs")[2].job_ids) == [1]


def test_an_export_that_is_refused_leaves_the_file_alone(sis: Sis, script: Script, tmp_path: Path) -> None:
    script.answer("ExportJobs", [JobNotFound("job 1 is gone")])
    path = tmp_path / "jobs"
    path.write_text("before")
    ran = sis("jobs", "export", "1", "--output", str(path))
    assert (ran.code, ran.err, path.read_text()) == (1, "error: job 1 is gone\n", "before")


class ResumeTokenExpired(errors.Aborted):
    reason = "RESUME_EXPIRED"


def test_a_list_that_is_watched(sis: Sis, script: Script) -> None:
    def changed(token: str, *job_ids: int) -> pb.WatchJobsResponse:
        return pb.WatchJobsResponse(resume_token=token, jobs=map(job, job_ids))

    script.answer("ListJobs", *[pb.ListJobsResponse(jobs=[job(each)], watch_token=str(each)) for each in (1, 2, 3)])
    expired = ResumeTokenExpired("resume_token: list again")
    script.answer(
        "WatchJobs", [changed("a"), changed("b", 7), Cut()], [changed("b"), expired], [changed("c"), expired], [expired]
    )
    ran = sis("jobs", "list", "--watch", "--text", "x")
    assert [[each["jobId"] for each in json.loads(line)["jobs"]] for line in ran.out.splitlines()] == [
        ["1"], ["7"], ["2"], ["3"],
    ]  # fmt: skip
    # A token that has expired before anything came would be asked for without end.
    assert (ran.code, ran.err) == (1, "error: resume_token: list again\n")
    assert [(r.resume_token, r.filter.text) for r in script.asked("WatchJobs")] == [
        ("1", "x"), ("b", "x"), ("2", "x"), ("3", "x"),
    ]  # fmt: skip


def test_a_watched_list_on_a_terminal_ends_with_an_interrupt(
    endpoint: str, script: Script, queue_tls: TlsFiles, tmp_path: Path
) -> None:
    quiet = threading.Event()

    def changes() -> Iterator[pb.WatchJobsResponse]:
        yield pb.WatchJobsResponse(resume_token="a", jobs=[job(7, job_pb2.JOB_STATUS_SUCCEEDED)])
        quiet.wait(30)

    script.answer("ListJobs", pb.ListJobsResponse(jobs=[job(6)], watch_token="t"))
    script.answer("WatchJobs", changes())  # type: ignore[arg-type]
    (tmp_path / "token").write_text("t")
    settings = {"QUEUE_ENDPOINT": endpoint, "TOKEN_FILE": tmp_path / "token", "CA": queue_tls.ca}
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sis.cli", "jobs", "list", "--watch"],
        env={"TERM": "xterm", "COLUMNS": "200", **{f"SIS_{name}": str(value) for name, value in settings.items()}},
        stdin=there,
        stdout=there,
        stderr=subprocess.PIPE,
    )
    os.close(there)
    try:
        shown = b""
        while b"Success" not in shown:
            assert select.select([here], [], [], 30)[0], shown
            shown += os.read(here, 65_536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the other end is closed
            while os.read(here, 65_536):
                pass
        _, problems = process.communicate(timeout=30)
    finally:
        quiet.set()
        process.kill()
        process.wait()
        os.close(here)
    assert (process.returncode, problems) == (0, b"")
    assert "Ctrl-C ends it" in shown.decode()
    assert shown.rindex(b"\r") > 0  # in place


def test_an_interrupted_verb_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def answers() -> Iterator[pb.ApplyVerbResponse]:
        yield from results(pb.JobResult(job_id=1), pb.JobResult(job_id=3))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk._report(bulk.VERBS["DELETE"], answers(), dry_run=False, json=False)
    assert "1 of 2 jobs were answered for; others may have been deleted" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        bulk._report(bulk.VERBS["DELETE"], answers(), dry_run=True, json=False)
    assert capsys.readouterr().err == ""
