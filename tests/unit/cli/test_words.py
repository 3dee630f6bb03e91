from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from sis.cli import job_options, words
from sis.queue.v1 import job_pb2


def test_every_status_has_its_word() -> None:
    shown = {words.status(value) for value in job_pb2.JobStatus.values() if value}
    assert shown == {
        "Deferred", "Waiting", "Starting", "Running", "Processing Output", "Cancel Request", "Canceled", "Success",
        "Failed", "Aborted", "Timed Out", "Expired", "AWOL",
    }  # fmt: skip


def test_every_reason_to_wait_has_its_words() -> None:
    said = [words.wait(value) for value in job_pb2.WaitReason.values() if value]
    assert len(set(said)) == len(said)
    assert not any(each.startswith("unknown") for each in said)


def test_a_status_of_the_future_can_be_shown() -> None:
    assert words.status(job_pb2.JobStatus.ValueType(99)) == "unknown (99)"


def test_the_type_of_a_package_job() -> None:
    assert words.job_type(job_pb2.JOB_TYPE_PACKAGE) == "IT Automation"


@pytest.mark.parametrize(
    ("choices", "enum", "prefix"),
    [
        (job_options.Status, job_pb2.JobStatus, "JOB_STATUS_"),
        (job_options.RunState, job_pb2.RunState, "RUN_STATE_"),
        (job_options.JobType, job_pb2.JobType, "JOB_TYPE_"),
        (job_options.Priority, job_pb2.Priority, "PRIORITY_"),
    ],
)
def test_the_choices_of_an_option_are_those_of_the_contract(choices: Any, enum: Any, prefix: str) -> None:
    offered = {prefix + each.value.upper().replace("-", "_") for each in choices}
    assert offered == {name for name in enum.DESCRIPTOR.values_by_name if not name.endswith("_UNSPECIFIED")}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.35, "350 ms"),
        (4.2, "4.2 s"),
        (30, "30 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (90_061, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


def test_times_are_local_in_tables_and_utc_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        moment = Timestamp(seconds=1_000_000_000, nanos=123_000_000)
        assert words.local_time(moment) == "2001-09-09 10:46:40"
        assert words.clock(moment) == "10:46:40"
        assert words.utc(moment) == "2001-09-09T01:46:40.123Z"
        assert words.local_time(Timestamp()) == "n/a"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_sizes(count: int, shown: str) -> None:
    assert words.size(count) == shown


def test_how_a_process_ended() -> None:
    assert words.end_of(job_pb2.Process(ended=True, exit_code=0)) == "exit code 0"
    assert words.end_of(job_pb2.Process(ended=True, end_signal="KILL")) == "ended by KILL"
    assert words.end_of(job_pb2.Process(ended=True)) == "ended"
    assert words.end_of(job_pb2.Process()) == "still there"


def test_signals_have_the_times_that_are_known() -> None:
    process = job_pb2.Process(signals=["TERM", "KILL"])
    assert words.signals_of(process) == "TERM, KILL"
    process.signal_times.add(seconds=1)
    first, second = words.signals_of(process).split(", ")
    assert (len(first), second) == (len("TERM 00:00:01"), "KILL")
