"""The command line against a scripted server: what is asked, what is printed, with which code it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.runtime import errors
from services.runtime.tls import TlsFiles
from sis.cli.main import run
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as package_pb
from tests.fakes.job_service import Cut, Script
from tests.integration.client.conftest import Sis
from tests.integration.client.samples import JobNotFound, job

CREATE = (
    "jobs", "create", "--name", "N", "--package", "core.shell@1.0.0", "--operation", "run", "--site", "agent:a",
)  # fmt: skip


def offer(script: Script, *inputs: package_pb.Input, times: int = 1) -> None:
    """Have the library hold the package that CREATE names, with these inputs."""
    package = package_pb.Package(name="core.shell", version="1.0.0")
    package.operations.add(name="run", inputs=inputs)
    script.answer("GetPackage", *[package_pb.GetPackageResponse(package=package)] * times)


SCRIPT = package_pb.Input(name="script", type="string")


def test_create(sis: Sis, script: Script) -> None:
    offer(script, SCRIPT, package_pb.Input(name="l", type="list"))
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    ran = sis(
        *CREATE, "--type", "package", "--param", "script=echo", "--param", "l=1", "--param", "l=2",
        "--timeout", "5m", "--heartbeat-timeout", "30s", "--not-before", "2026-12-31T18:00:00Z",
        "--latest-start", "+2h", "--priority", "high", "--label", "team=ops", "--request-id", "mine",
    )  # fmt: skip
    assert (ran.code, ran.out) == (0, "Job 42 created: Waiting\n")
    request = script.asked("CreateJob")[0]
    assert request.type == job_pb2.JOB_TYPE_PACKAGE
    assert request.package == job_pb2.PackageReference(name="core.shell", version="1.0.0")
    assert request.parameters["script"].plain == "echo"
    assert list(request.parameters["l"].list.items) == ["1", "2"]
    assert request.site_target.agent == "a"
    assert (request.run_timeout.seconds, request.heartbeat_timeout.seconds) == (300, 30)
    assert request.not_before.ToJsonString() == "2026-12-31T18:00:00Z"
    assert request.HasField("latest_start")
    assert request.priority == job_pb2.PRIORITY_HIGH
    assert dict(request.labels) == {"team": "ops"}
    assert request.request_id == "mine"


def test_what_is_not_given_is_not_sent(sis: Sis, script: Script) -> None:
    offer(script)
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    assert sis(*CREATE, "--defer").code == 0
    request = script.asked("CreateJob")[0]
    assert request.deferred
    assert request.priority == job_pb2.PRIORITY_UNSPECIFIED
    assert not request.HasField("run_timeout")
    assert not request.HasField("not_before")


def test_json_is_the_proto(sis: Sis, script: Script) -> None:
    script.answer("GetJob", pb.GetJobResponse(job=job()))
    found = json.loads(sis("jobs", "get", "42", "--json").out)
    assert found["jobId"] == "42"
    assert found["status"] == "JOB_STATUS_WAITING"
    assert found["outputs"] == []
    assert "resultCode" not in found


def test_a_list(sis: Sis, script: Script) -> None:
    script.answer("ListJobs", pb.ListJobsResponse(jobs=[job()], total_size=51, next_page_token="more"))
    ran = sis(
        "jobs", "list", "--type", "package", "--state", "timed-out", "--state", "ready",
        "--status", "cancel-requested", "--text", "x", "--order", "create_time desc", "--page-size", "1",
    )  # fmt: skip
    header, row, total, more = ran.out.splitlines()
    assert header.split("  ")[0] == "Job Id"
    assert "Child Jobs" in header
    assert "IT Automation" in row
    assert "group:local" in row
    assert r"Nightly \x1b]0;x\x07" in row
    assert total == "Total Matching Jobs 51"
    assert more == "More: --page-token more"
    request = script.asked("ListJobs")[0]
    assert list(request.filter.run_states) == [job_pb2.RUN_STATE_TIMED_OUT, job_pb2.RUN_STATE_READY]
    assert list(request.filter.statuses) == [job_pb2.JOB_STATUS_CANCEL_REQUESTED]
    assert (request.filter.text, request.order_by, request.page_size) == ("x", "create_time desc", 1)


def test_all_pages_are_one_document(sis: Sis, script: Script) -> None:
    script.answer(
        "ListJobs",
        pb.ListJobsResponse(jobs=[job(2)], total_size=2, next_page_token="more"),
        pb.ListJobsResponse(jobs=[job(1)], total_size=2),
    )
    found = json.loads(sis("jobs", "list", "--all", "--json").out)
    assert [each["jobId"] for each in found["jobs"]] == ["2", "1"]
    assert found["nextPageToken"] == ""


def test_one_bad_id_does_not_stop_the_rest(sis: Sis, script: Script) -> None:
    script.answer(
        "CancelJob",
        JobNotFound("job 1 does not exist; `sis jobs list` shows those that do"),
        pb.CancelJobResponse(job=job(2, job_pb2.JOB_STATUS_CANCELED)),
    )
    ran = sis("jobs", "cancel", "1", "2", "--reason", "too slow")
    assert ran.code == 1
    assert ran.out == "Job 2: Canceled\n"
    assert ran.err == "error: job 1 does not exist; `sis jobs list` shows those that do\n"
    assert script.asked("CancelJob")[0].reason == "too slow"


@pytest.mark.parametrize("verb", ["activate", "abort"])
def test_verbs(sis: Sis, script: Script, verb: str) -> None:
    answer = {"activate": pb.ActivateJobResponse(job=job()), "abort": pb.AbortJobResponse(job=job())}[verb]
    script.answer(f"{verb.capitalize()}Job", answer)
    ran = sis("jobs", verb, "42", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["jobId"] == "42"


def test_every_verb_takes_a_reason_and_abort_a_force(sis: Sis, script: Script) -> None:
    script.answer("ActivateJob", pb.ActivateJobResponse(job=job()))
    script.answer("AbortJob", *[pb.AbortJobResponse(job=job())] * 2)
    script.answer("DeleteJob", pb.DeleteJobResponse())
    script.answer("RerunJob", pb.RerunJobResponse(job=job()))
    for verb in ("activate", "abort", "delete", "rerun"):
        assert sis("jobs", verb, "42", "--reason", "why not").code == 0
    assert sis("jobs", "abort", "42", "--force").code == 0
    *reasoned, forced = sorted((request for _, request in script.requests), key=lambda r: getattr(r, "force", False))
    assert [request.reason for request in reasoned] == ["why not"] * 4
    assert (forced.force, forced.reason) == (True, "")


def test_the_deadlines_of_a_job(sis: Sis, script: Script) -> None:
    offer(script)
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    given = ("--deferral-limit", "1d", "--start-timeout", "10m", "--output-timeout", "90s", "--cancel-grace", "0s")
    assert sis(*CREATE, "--defer", *given).code == 0
    request = script.asked("CreateJob")[0]
    assert request.HasField("cancel_grace")
    limits = (request.deferral_limit, request.start_timeout, request.output_timeout, request.cancel_grace)
    assert [limit.seconds for limit in limits] == [86_400, 600, 90, 0]


def test_delete(sis: Sis, script: Script) -> None:
    script.answer("DeleteJob", pb.DeleteJobResponse(), JobNotFound("gone"))
    ran = sis("jobs", "delete", "1", "2")
    assert (ran.code, ran.out, ran.err) == (1, "Job 1: deleted\n", "error: job 2: gone\n")


def frame(**content: frame_pb2.Chunk | frame_pb2.Notice) -> frame_pb2.Frame:
    made = frame_pb2.Frame(**content)  # type: ignore[arg-type]
    made.time.FromSeconds(1_000_000_000)
    return made


def monitor(status: job_pb2.JobStatus.ValueType) -> list[pb.MonitorJobResponse]:
    stdout = frame(chunk=frame_pb2.Chunk(channel=job_pb2.CHANNEL_STDOUT, data=b"hello\n"))
    return [
        pb.MonitorJobResponse(resume_token="a", job=job()),
        pb.MonitorJobResponse(resume_token="b", frames=pb.AttemptFrames(attempt=1, frames=[stdout])),
        pb.MonitorJobResponse(resume_token="c", job=job(status=status)),
    ]


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(job_pb2.JOB_STATUS_SUCCEEDED, 0, "Success"), (job_pb2.JOB_STATUS_FAILED, 1, "Failed")],
)
def test_follow_ends_as_the_job_does(
    sis: Sis, script: Script, status: job_pb2.JobStatus.ValueType, code: int, said: str
) -> None:
    offer(script)
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    script.answer("MonitorJob", monitor(status))
    ran = sis(*CREATE, "--follow")
    assert ran.code == code
    assert ran.out == f"         | hello\nJob 42: {said}\n"


def test_follow_survives_a_broken_connection(sis: Sis, script: Script) -> None:
    offer(script)
    script.answer("CreateJob", Cut(), pb.CreateJobResponse(job=job()))
    first, *rest = monitor(job_pb2.JOB_STATUS_SUCCEEDED)
    script.answer("MonitorJob", [first, Cut()], rest)
    ran = sis(*CREATE, "--follow", "--json")
    assert ran.code == 0
    assert [json.loads(line)["resumeToken"] for line in ran.out.splitlines()] == ["a", "b", "c"]
    assert script.asked("MonitorJob")[1].resume_token == "a"


def test_who_follows_in_vain_learns_which_job_there_is(sis: Sis, script: Script) -> None:
    offer(script)
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    script.answer("MonitorJob", [monitor(job_pb2.JOB_STATUS_RUNNING)[0], errors.PermissionDenied("no more")])
    ran = sis(*CREATE, "--follow")
    assert ran.code == 1
    assert "Job 42 goes on." in ran.err and "error: no more" in ran.err


def test_a_monitor_of_the_end_of_a_log(sis: Sis, script: Script) -> None:
    first, frames, last = monitor(job_pb2.JOB_STATUS_SUCCEEDED)
    frames.frames.frames[0].sequence = 41
    script.answer("MonitorJob", [first, frames, last], [first, frames, last])
    ran = sis("jobs", "monitor", "42", "--tail", "64KiB")
    assert (ran.code, ran.out) == (0, "         - Not shown: the 40 frames before\n         | hello\nJob 42: Success\n")
    assert sis("jobs", "monitor", "42", "--tail", "512", "--json").code == 0
    assert [request.tail_bytes for request in script.asked("MonitorJob")] == [65_536, 512]


def found(sequence: int, channel: job_pb2.Channel.ValueType, line: str) -> pb.LogMatch:
    match = pb.LogMatch(sequence=sequence, channel=channel, line=line)
    match.time.FromSeconds(1_000_000_000)
    return match


def test_a_search(sis: Sis, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    parts = [
        pb.SearchLogResponse(matches=[found(2, job_pb2.CHANNEL_STDOUT, "disk \x1b]0;x\x07full")], next_sequence=5),
        pb.SearchLogResponse(matches=[found(7, job_pb2.CHANNEL_SYSTEM, "The disk\nis full")]),
    ]
    script.answer("SearchLog", *parts, *parts)
    try:
        ran = sis("jobs", "search", "42", "disk")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ran.code == 0
    assert ran.out.splitlines() == [
        r"2001-09-09 03:46:40 stdout disk \x1b]0;x\x07full",
        r"2001-09-09 03:46:40 system The disk\x0ais full",
    ]
    assert [(r.job_id, r.text, r.first_sequence) for r in script.asked("SearchLog")] == [
        (42, "disk", 0), (42, "disk", 5),
    ]  # fmt: skip


def test_a_search_as_json_has_a_match_a_line(sis: Sis, script: Script) -> None:
    matches = [found(n, job_pb2.CHANNEL_STDERR, "x\ny") for n in (2, 3)]
    script.answer("SearchLog", pb.SearchLogResponse(matches=matches))
    ran = sis("jobs", "search", "42", "x", "--json")
    assert [json.loads(line) for line in ran.out.splitlines()] == [
        {"sequence": str(n), "time": "2001-09-09T01:46:40Z", "channel": "CHANNEL_STDERR", "line": "x\ny"}
        for n in (2, 3)
    ]


def test_a_search_that_finds_nothing_ends_with_1(sis: Sis, script: Script) -> None:
    nothing = pb.SearchLogResponse(total_frames=9)
    script.answer("SearchLog", nothing, nothing, JobNotFound("job 42 does not exist"))
    assert [
        (ran.code, ran.out, ran.err)
        for ran in (sis("jobs", "search", "42", "x"), sis("jobs", "search", "42", "x", "--json"))
    ] == [(1, "", "")] * 2
    ran = sis("jobs", "search", "42", "x")
    assert (ran.code, ran.out, ran.err) == (1, "", "error: job 42 does not exist\n")


def test_a_wrong_text_or_size_is_named_as_it_was_given(sis: Sis, script: Script) -> None:
    script.answer("SearchLog", errors.InvalidArgument.field("text", "is required: give a text that is not blank"))
    assert sis("jobs", "search", "42", " ").err == "error: TEXT: is required: give a text that is not blank\n"
    script.answer("MonitorJob", [errors.InvalidArgument.field("tail_bytes", "must be between 0 and 1,048,576")])
    ran = sis("jobs", "monitor", "42", "--tail", "2MiB")
    assert (ran.code, ran.err) == (1, "error: --tail: must be between 0 and 1,048,576\n")


def output(*chunks: tuple[int, bytes]) -> list[pb.GetConsoleOutputResponse]:
    log = job_pb2.LogSummary(verdict=job_pb2.LOG_VERDICT_TRUNCATED)
    return [pb.GetConsoleOutputResponse(log=log)] + [
        pb.GetConsoleOutputResponse(chunk=frame_pb2.Chunk(channel=job_pb2.Channel.ValueType(channel), data=data))
        for channel, data in chunks
    ]


def test_output_is_harmless_unless_raw(sis: Sis, script: Script) -> None:
    written = output((2, b"caf\xc3"), (2, b"\xa9 \x1b]0;x\x07\n"), (3, b"oops\n"), (2, b"end"))
    script.answer("GetConsoleOutput", written, written)
    ran = sis("jobs", "output", "42")
    assert ran.out == "café \\x1b]0;x\\x07\noops\nend\n"
    assert ran.err.startswith("note: the log is truncated")
    assert sis("jobs", "output", "42", "--raw").out == "café \x1b]0;x\x07\noops\nend"


def test_the_debug_log(sis: Sis, script: Script) -> None:
    entry = job_pb2.HistoryEntry(
        event="CANCEL",
        actor="administrator",
        attempt=1,
        from_status=job_pb2.JOB_STATUS_RUNNING,
        to_status=job_pb2.JOB_STATUS_CANCEL_REQUESTED,
    )
    entry.time.FromSeconds(1_000_000_000)
    warning = frame(notice=frame_pb2.Notice(severity=frame_pb2.SEVERITY_WARNING, text="full disk"))
    chunk = frame(chunk=frame_pb2.Chunk(channel=job_pb2.CHANNEL_STDERR, data=b"oops\nno end"))
    script.answer(
        "GetDebugLog",
        [
            pb.GetDebugLogResponse(history=entry),
            pb.GetDebugLogResponse(frames=pb.AttemptFrames(attempt=1, frames=[warning, chunk])),
        ],
    )
    ran = sis("jobs", "debug-log", "42", "--view", "problem")
    assert [line.split(maxsplit=3)[1:] for line in ran.out.splitlines()[:3]] == [
        ["1", "history", "Cancel requested by administrator [Running → Cancel Request]"],
        ["1", "system", "warning full disk"],
        ["1", "stderr", "oops"],
    ]
    assert ran.out.startswith("2001-09-09T01:46:40.000Z")
    assert "no end" in ran.out
    assert script.asked("GetDebugLog")[0].view == pb.DEBUG_LOG_VIEW_PROBLEM


def test_history(sis: Sis, script: Script) -> None:
    entries = [job_pb2.HistoryEntry(sequence=n, event="CREATE", actor="administrator") for n in (1, 2)]
    script.answer(
        "ListJobHistory",
        pb.ListJobHistoryResponse(entries=entries[:1], next_page_token="more"),
        pb.ListJobHistoryResponse(entries=entries[1:]),
    )
    found = json.loads(sis("jobs", "history", "42", "--json").out)
    assert [each["sequence"] for each in found["entries"]] == ["1", "2"]


def test_each_wrong_field_is_a_line_with_its_option(sis: Sis, script: Script) -> None:
    offer(script)
    script.answer(
        "CreateJob",
        errors.InvalidArgument.fields(
            [
                errors.FieldViolation("run_timeout", "must be 1 s to 30 days"),
                errors.FieldViolation("parameters.script", "is required: give a value"),
            ]
        ),
    )
    ran = sis(*CREATE)
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: --timeout: must be 1 s to 30 days",
        "error: --param, parameters.script: is required: give a value",
    ]


def test_a_plain_secret_does_not_leave_the_machine(sis: Sis, script: Script) -> None:
    offer(script, SCRIPT, package_pb.Input(name="password", type="string", sensitive=True))
    ran = sis(*CREATE, "--param", "password=correct horse", "--param", "other=1")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: --param, parameters.other: is not an input of this operation; its inputs: script, password",
        "error: --param, parameters.password: is sensitive: it takes a credential, never a plain value",
    ]
    (request,) = script.requests
    assert b"correct horse" not in request[1].SerializeToString()


def test_a_file_for_an_input(sis: Sis, script: Script, tmp_path: Path) -> None:
    offer(script, package_pb.Input(name="table", type="file", required=True))
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    (tmp_path / "t.bin").write_bytes(b"\0\xff")
    assert sis(*CREATE, "--param-file", f"table={tmp_path}/t.bin").code == 0
    file = script.asked("CreateJob")[0].parameters["table"].file
    assert (file.name, file.content) == ("t.bin", b"\0\xff")


UNVERSIONED = ("jobs", "create", "--name", "N", "--package", "core.shell", "--operation", "run", "--site", "agent:a")


@pytest.mark.parametrize(("options", "version"), [((), "1.0.0"), (("--request-id", "mine"), "")])
def test_the_version_that_was_checked_is_asked_for(
    sis: Sis, script: Script, options: tuple[str, ...], version: str
) -> None:
    offer(script)
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    assert sis(*UNVERSIONED, *options).code == 0
    assert script.asked("CreateJob")[0].package.version == version


def test_a_copy(sis: Sis, script: Script) -> None:
    original = pb.CreateJobRequest(display_name="N", operation="run", deferred=True)
    original.package.name, original.package.version = "core.shell", "1.0.0"
    original.parameters["script"].plain = "echo"
    script.answer("CopyJob", *[pb.CopyJobResponse(request=original)] * 2)
    offer(script, SCRIPT)
    script.answer("CreateJob", pb.CreateJobResponse(job=job()))
    shown = json.loads(sis("jobs", "copy", "7", "--name", "M", "--show").out)
    assert (shown["displayName"], shown["parameters"]) == ("M", {"script": {"plain": "echo"}})
    assert [method for method, _ in script.requests] == ["CopyJob"]
    ran = sis("jobs", "copy", "7", "--name", "M", "--param", "script=date", "--site", "group:g", "--no-defer")
    assert (ran.code, ran.out) == (0, "Job 42 created: Waiting\n")
    (request,) = script.asked("CreateJob")
    assert (request.display_name, request.parameters["script"].plain) == ("M", "date")
    assert (request.site_target.group, request.deferred) == ("g", False)
    assert request.request_id


def test_explain(sis: Sis, script: Script) -> None:
    found = pb.ExplainJobResponse(status=job_pb2.JOB_STATUS_WAITING, summary="All slots are taken.")
    script.answer("ExplainJob", found, found)
    assert "All slots are taken." in sis("jobs", "explain", "42").out
    assert json.loads(sis("jobs", "explain", "42", "--json").out)["causes"] == []


def test_rerun(sis: Sis, script: Script) -> None:
    script.answer("RerunJob", pb.RerunJobResponse(job=job(57)), JobNotFound("gone"))
    ran = sis("jobs", "rerun", "42", "43")
    assert (ran.code, ran.out, ran.err) == (1, "Job 42: rerun as job 57, Waiting\n", "error: job 43: gone\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("jobs", "get", "x"), "JOB_ID"),
        (("jobs", "cancel"), "give the ids of the jobs to cancel, or options that choose them"),
        (("jobs", "rerun", "--text", ""), "give the ids of the jobs to rerun"),
        (("jobs", "delete", "1", "--state", "failed"), "not both"),
        (("jobs", "delete", "--completed-before", "30d"), "--completed-before: '30d' is not a time"),
        (("jobs", "export", "1", "--state", "failed"), "not both"),
        (("jobs", "export", "--logs", "--format", "csv"), "--logs"),
        (("jobs", "list", "--watch", "--all"), "--watch"),
        (("jobs", "monitor", "1", "--tail", "1.5MiB"), "--tail: '1.5MiB' is not a size; write it like 512B, 64KiB"),
        (("jobs", "monitor", "1", "--tail", "1MiB", "--resume-token", "x"), "--tail: leave it out"),
        (("jobs", "search", "1"), "TEXT"),
        (("jobs", "copy", "1", "--param-file", "x=/none"), "--param-file x: /none cannot be read"),
        (("jobs", "get", "0"), "JOB_ID"),
        (("jobs", "get", "9223372036854775808"), "JOB_ID"),
        (("jobs", "create", "--name", "N"), "--package"),
        (("jobs", "list", "--status", "unheard-of"), "--status"),
        (("jobs", "list", "--page-size", "0"), "--page-size"),
        ((*CREATE, "--timeout", "5"), "--timeout: '5' is not a duration; write it like 30s"),
        ((*CREATE, "--site", "x"), "--site"),
        ((*CREATE, "--name", "\udcff"), "not valid UTF-8"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_what_is_not_understood_ends_with_2(sis: Sis, script: Script, arguments: tuple[str, ...], problem: str) -> None:
    ran = sis(*arguments)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("error: ")
    assert problem in ran.err
    assert script.requests == []


@pytest.mark.parametrize("group", [(), ("jobs",), ("packages",), ("credentials",), ("agents",), ("vault",)])
def test_a_group_without_a_command_shows_its_help(sis: Sis, group: tuple[str, ...]) -> None:
    ran = sis(*group)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == sis(*group, "--help").out


@pytest.mark.parametrize("arguments", [(), ("--address", "https://localhost:1", "--output", "x", "--frobnicate")])
def test_the_bootstrap_speaks_as_every_command(sis: Sis, arguments: tuple[str, ...]) -> None:
    ran = sis("vault", "bootstrap", *arguments)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert ran.err.startswith("error: ")


def test_no_stack_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("SIS_QUEUE_ENDPOINT", raising=False)
    assert run(["jobs", "list", "--data", str(tmp_path)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: no stack is up in")
    assert "sis up" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("jobs", "list", "--data", "~nobody-is-called-so/x"), (*CREATE, "--param", "s=@~nobody-is-called-so/x")],
)
def test_a_home_that_there_is_not_is_one_line(sis: Sis, script: Script, arguments: tuple[str, ...]) -> None:
    ran = sis(*arguments)
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
    assert ran.err.startswith("error: ~nobody-is-called-so/x")


def test_nobody_has_to_listen() -> None:
    """The shell's `>&-` leaves no standard output at all."""
    ended = subprocess.run(
        f"{sys.executable} -m sis.cli --version >&-", shell=True, stderr=subprocess.PIPE, timeout=30, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_reader_that_leaves_is_no_fault(endpoint: str, script: Script, queue_tls: TlsFiles, tmp_path: Path) -> None:
    script.answer("GetConsoleOutput", output(*[(2, b"x" * 60_000 + b"\n")] * 50))
    (tmp_path / "token").write_text("t")
    ended = subprocess.run(
        f"{sys.executable} -m sis.cli jobs output 1 | head -c 1",
        shell=True,
        env={
            "SIS_QUEUE_ENDPOINT": endpoint,
            "SIS_TOKEN_FILE": str(tmp_path / "token"),
            "SIS_CA": str(queue_tls.ca),
        },
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout == b"x"
    assert ended.stderr == b""


def test_help_needs_neither_grpc_nor_rich() -> None:
    program = (
        "import sys; from sis.cli.main import run; run(['--help']);"
        "sys.exit(', '.join({'grpc', 'rich', 'google.protobuf'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert ended.stderr == b""
    assert ended.returncode == 0
