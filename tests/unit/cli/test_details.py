from __future__ import annotations

import io
import re

from sis.cli import terminal
from sis.cli.demo import _humane
from sis.cli.details import job_page
from sis.queue.v1 import job_pb2


def page(job: job_pb2.Job) -> str:
    file = io.StringIO()
    job_page(terminal.console(file), job)
    return file.getvalue()


def ended() -> job_pb2.Job:
    job = job_pb2.Job(
        job_id=42,
        display_name="Nightly \x1b[2J",
        status=job_pb2.JOB_STATUS_CANCELED,
        attempt=1,
        stop_state=job_pb2.STOP_STATE_CONFIRMED,
        outputs=[job_pb2.OutputParameter(name="os_name", value="Debian\n\x1b]0;x\x07")],
        processes=[job_pb2.Process(pid=7, name="seen while it ran")],
        log=job_pb2.LogSummary(verdict=job_pb2.LOG_VERDICT_TRUNCATED, discarded_bytes=1536),
    )
    job.parameters["script"].plain = "echo one\necho two"
    payload = job_pb2.Process(
        pid=8, name="sh", identity="root", role=job_pb2.PROCESS_ROLE_PAYLOAD, signals=["TERM", "KILL"], ended=True,
        end_signal="KILL",
    )  # fmt: skip
    job.stop_evidence.CopyFrom(job_pb2.StopEvidence(method="cgroup", tree_empty=True, processes=[payload]))
    return job


def test_everything_of_a_job_is_on_its_page() -> None:
    shown = page(ended())
    for part in ("Canceled", "echo two", "TERM, KILL", "ended by KILL", "Process tree empty", "cgroup", "truncated",
                 "1.5 KiB", "confirmed: the process tree is empty", "Debian"):  # fmt: skip
        assert part in shown
    assert "seen while it ran" not in shown


def test_nothing_of_a_job_reaches_the_terminal_as_it_is() -> None:
    assert "\x1b" not in page(ended())
    assert r"Nightly \x1b[2J" in page(ended())


def test_a_job_that_never_ran_has_no_log_to_judge() -> None:
    shown = page(job_pb2.Job(job_id=1, log=job_pb2.LogSummary(verdict=job_pb2.LOG_VERDICT_OPEN)))
    assert "Log" not in shown


def test_a_rerun_with_a_file() -> None:
    job = job_pb2.Job(job_id=2, rerun_of_job_id=1)
    job.parameters["list"].file.CopyFrom(job_pb2.FileValue(name="a\x1b.csv", size_bytes=1536, sha256="ab"))
    shown = page(job)
    assert "Rerun of" in shown
    assert r"(the file a\x1b.csv, 1.5 KiB, SHA-256 ab)" in shown


def test_the_deadlines_of_a_job() -> None:
    job = job_pb2.Job(job_id=1)
    job.deferral_expire_time.FromSeconds(0)
    job.start_timeout.FromSeconds(300)
    job.output_timeout.FromSeconds(90)
    job.cancel_grace.FromSeconds(0)
    shown = page(job)
    for part in (
        "Held until",
        "at the latest",
        "Start timeout",
        "5 min",
        "Output timeout",
        "1 min 30 s",
        "Cancel grace",
    ):
        assert part in shown


def test_json_is_laid_out_and_stays_json() -> None:
    job = job_pb2.Job(job_id=1)
    job.outputs.add(name="differences", value='[{"name": "git", "from": null, "to": true, "in": 1, "at": ["a", "b"]}]')
    job.outputs.add(name="body", value='{"healthy": true}')
    shown = page(job)
    assert "name git  from null  to true  in 1  at a, b\n" in shown
    assert '{"healthy": true}' in shown


def test_json_that_is_nested_too_deeply_is_shown_as_it_is() -> None:
    job = job_pb2.Job(job_id=1)
    # At some of these depths it can be read, but not written.
    depths = [*range(800, 1_000), 5_000]
    for depth in depths:
        job.outputs.add(name="deep", value=f'[{{"x": {"[" * depth}{"]" * depth}}}]')
    shown = "".join(page(job).split())
    assert [len(found) for found in re.findall(r"(\[+)\]", shown)] == depths


def test_survivors_are_named() -> None:
    job = ended()
    job.stop_state = job_pb2.STOP_STATE_UNCONFIRMED
    job.stop_evidence.tree_empty = False
    job.stop_evidence.survivors.add(pid=9, name="immortal")
    shown = page(job)
    assert "Survivors" in shown
    assert "immortal" in shown


def test_facts_for_a_person() -> None:
    assert _humane("memory_total_bytes", "8589934592") == ("memory total", "8.0 GiB")
    assert _humane("uptime_seconds", "90061") == ("uptime", "1 d 1 h")
    assert _humane("disks", '[{"mount": "/", "size_bytes": 1024}, {"mount": "/x"}]') == (
        "disks",
        "mount /  size 1.0 KiB\nmount /x",
    )
