"""The client library against a scripted server, over TLS: each test for the synchronous and the asynchronous client."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.runtime import errors
from services.runtime.tls import TlsFiles
from sis.client import ApiError, AsyncClient, Client, ClientClosed, ConfigurationError, ResumeExpired, from_status
from sis.client.endpoints import Endpoints, Token
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as package_pb
from tests.fakes.job_service import Cut, Script
from tests.integration.client.conftest import Connect
from tests.support.certificates import CertificateAuthority


class JobNotFound(errors.NotFound):
    reason = "JOB_NOT_FOUND"


def test_a_call_carries_the_token_and_brings_the_message(client: Client, script: Script) -> None:
    script.answer("GetJob", pb.GetJobResponse(job=job_pb2.Job(job_id=42)))
    assert client.jobs.get(42).job_id == 42
    assert script.tokens == ["Bearer secret-token"]


def test_a_refusal_becomes_a_typed_error(client: Client, script: Script) -> None:
    script.answer(
        "CreateJob",
        errors.InvalidArgument.fields(
            [
                errors.FieldViolation("display_name", "is missing: give a name"),
                errors.FieldViolation("parameters.script", "is required: give a value"),
            ]
        ),
    )
    with pytest.raises(ApiError) as caught:
        client.jobs.create(pb.CreateJobRequest())
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert [v.field for v in caught.value.violations] == ["display_name", "parameters.script"]
    assert not caught.value.unreachable
    assert not caught.value.passing


def test_retry_info_is_read(client: Client, script: Script) -> None:
    script.answer("DeleteJob", errors.Unavailable("the database does not answer", retry_after=1.5))
    with pytest.raises(ApiError) as caught:
        client.jobs.delete(1)
    assert caught.value.retry_after == 1.5
    assert caught.value.passing
    assert not caught.value.unreachable


def test_create_is_repeated_with_one_request_id(client: Client, script: Script) -> None:
    script.answer("CreateJob", Cut(), Cut(), pb.CreateJobResponse(job=job_pb2.Job(job_id=7)))
    assert client.jobs.create(pb.CreateJobRequest(display_name="x")).job_id == 7
    ids = {request.request_id for request in script.asked("CreateJob")}
    assert len(script.asked("CreateJob")) == 3
    assert len(ids) == 1
    assert "" not in ids


def test_a_given_request_id_is_kept(client: Client, script: Script) -> None:
    script.answer("CreateJob", pb.CreateJobResponse())
    client.jobs.create(pb.CreateJobRequest(request_id="mine"))
    assert script.asked("CreateJob")[0].request_id == "mine"


def test_delete_is_not_repeated(client: Client, script: Script) -> None:
    script.answer("DeleteJob", Cut())
    with pytest.raises(ApiError) as caught:
        client.jobs.delete(1)
    assert caught.value.unreachable
    assert len(script.asked("DeleteJob")) == 1


def test_pages_follow_the_token(client: Client, script: Script) -> None:
    script.answer(
        "ListJobs",
        pb.ListJobsResponse(jobs=[job_pb2.Job(job_id=2)], next_page_token="next", total_size=2),
        pb.ListJobsResponse(jobs=[job_pb2.Job(job_id=1)], total_size=2),
    )
    pages = list(client.jobs.pages(pb.JobFilter(text="x"), order_by="job_id", page_size=1))
    assert [job.job_id for page in pages for job in page.jobs] == [2, 1]
    first, second = script.asked("ListJobs")
    assert second.page_token == "next"
    second.page_token = ""
    assert first == second


def response(token: str, job_id: int = 1) -> pb.MonitorJobResponse:
    return pb.MonitorJobResponse(resume_token=token, job=job_pb2.Job(job_id=job_id))


def test_a_monitor_resumes_from_its_last_token(client: Client, script: Script) -> None:
    script.answer(
        "MonitorJob",
        [response("a"), response("b"), Cut()],
        [Cut()],
        [response("c"), errors.ResourceExhausted("too slow", retry_after=0.1)],
        [response("d")],
    )
    breaks: list[ApiError] = []
    seen = [each.resume_token for each in client.jobs.monitor(1, on_interruption=breaks.append)]
    assert seen == ["a", "b", "c", "d"]
    assert [request.resume_token for request in script.asked("MonitorJob")] == ["", "b", "b", "c"]
    assert len(breaks) == 3


def test_a_refused_monitor_is_not_tried_again(client: Client, script: Script) -> None:
    script.answer("MonitorJob", [JobNotFound("job 1 does not exist")])
    with pytest.raises(ApiError, match="does not exist") as caught:
        list(client.jobs.monitor(1))
    assert caught.value.reason == "JOB_NOT_FOUND"
    assert len(script.asked("MonitorJob")) == 1


def test_leaving_a_monitor_ends_its_call(client: Client, script: Script) -> None:
    script.answer("MonitorJob", [response(str(number)) for number in range(100_000)])
    ended = threading.Event()
    script.cancelled = _Signalling(ended)
    for _ in client.jobs.monitor(1):
        break
    assert ended.wait(10)


class _Signalling(list[str]):
    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def append(self, item: str) -> None:
        self._event.set()


class ResumeTokenExpired(errors.Aborted):
    reason = "RESUME_EXPIRED"


def watched(token: str, *job_ids: int) -> pb.WatchJobsResponse:
    return pb.WatchJobsResponse(resume_token=token, jobs=[job_pb2.Job(job_id=each) for each in job_ids])


def test_a_watch_resumes_until_its_token_is_too_old(client: Client, script: Script) -> None:
    script.answer(
        "WatchJobs",
        [watched("a"), watched("b", 1, 2), Cut()],
        [watched("b"), watched("c", 3), Cut()],
        [ResumeTokenExpired("resume_token: list again")],
    )
    seen = []
    with pytest.raises(ResumeExpired, match="list again"):
        for each in client.jobs.watch(pb.JobFilter(text="x"), "start"):
            seen += [job.job_id for job in each.jobs]
    assert seen == [1, 2, 3]
    assert [(r.resume_token, r.filter.text) for r in script.asked("WatchJobs")] == [
        ("start", "x"), ("b", "x"), ("c", "x"),
    ]  # fmt: skip


def test_an_export_begins_a_job_anew(client: Client, script: Script) -> None:
    def of(job_id: int, token: str = "") -> pb.ExportJobsResponse:
        return pb.ExportJobsResponse(resume_token=token, job_id=job_id, job=job_pb2.Job(job_id=job_id))

    script.answer("ExportJobs", [of(1, "after 1"), of(2), Cut()], [of(2), of(2, "after 2")])
    assert [each.job_id for each in client.jobs.export(job_ids=[1, 2], include_logs=True)] == [1, 2, 2, 2]
    first, second = script.asked("ExportJobs")
    assert (list(first.job_ids), first.include_logs, first.resume_token) == ([1, 2], True, "")
    assert (list(second.job_ids), second.include_logs, second.resume_token) == ([1, 2], True, "after 1")


def test_a_monitor_of_the_end_of_a_log_resumes_as_any(client: Client, script: Script) -> None:
    script.answer("MonitorJob", [response("a"), Cut()], [response("b")])
    assert [each.resume_token for each in client.jobs.monitor(1, tail_bytes=500)] == ["a", "b"]
    assert [(r.tail_bytes, r.resume_token) for r in script.asked("MonitorJob")] == [(500, ""), (500, "a")]


def test_a_part_of_a_log(client: Client, script: Script) -> None:
    answer = pb.ReadLogResponse(frames=pb.AttemptFrames(attempt=2), total_frames=7)
    script.answer("ReadLog", *[answer] * 3, Cut(), answer)
    time = Timestamp(seconds=5)
    assert client.jobs.read_log(1).total_frames == 7
    client.jobs.read_log(1, first_sequence=3, max_bytes=100)
    client.jobs.read_log(1, before_sequence=3)
    client.jobs.read_log(1, time=time)  # the connection breaks, and it is asked again
    asked = script.asked("ReadLog")
    assert [request.WhichOneof("place") for request in asked] == [
        None, "first_sequence", "before_sequence", "time", "time",
    ]  # fmt: skip
    assert (asked[1].first_sequence, asked[1].max_bytes) == (3, 100)
    assert asked[4].time == time
    with pytest.raises(ValueError, match="give one of first_sequence"):
        client.jobs.read_log(1, first_sequence=1, time=time)
    assert len(script.asked("ReadLog")) == 5


def test_a_search_goes_on_to_the_end_of_the_log(client: Client, script: Script) -> None:
    def part(after: int, *sequences: int) -> pb.SearchLogResponse:
        matches = [pb.LogMatch(sequence=each, line=f"line {each}") for each in sequences]
        return pb.SearchLogResponse(matches=matches, next_sequence=after)

    script.answer("SearchLog", part(5, 2, 4), Cut(), part(9), part(0, 9, 9))
    assert [match.sequence for match in client.jobs.search_log(1, "line", 2)] == [2, 4, 9, 9]
    assert [request.first_sequence for request in script.asked("SearchLog")] == [2, 5, 5, 9]
    assert {request.text for request in script.asked("SearchLog")} == {"line"}


def test_a_search_asks_for_no_more_than_is_iterated(client: Client, script: Script) -> None:
    script.answer("SearchLog", pb.SearchLogResponse(matches=[pb.LogMatch(sequence=1)], next_sequence=2))
    for match in client.jobs.search_log(1, "x"):
        assert match.sequence == 1
        break
    assert len(script.asked("SearchLog")) == 1


def test_a_refused_search_is_an_error(client: Client, script: Script) -> None:
    script.answer("SearchLog", JobNotFound("job 1 does not exist"))
    with pytest.raises(ApiError, match="does not exist"):
        list(client.jobs.search_log(1, "x"))


def written(data: bytes) -> pb.GetConsoleOutputResponse:
    return pb.GetConsoleOutputResponse(chunk=frame_pb2.Chunk(channel=job_pb2.CHANNEL_STDOUT, data=data))


def test_output_goes_on_at_the_byte_where_it_broke(client: Client, script: Script) -> None:
    head = pb.GetConsoleOutputResponse(log=job_pb2.LogSummary(output_bytes=9))
    script.answer("GetConsoleOutput", [head, written(b"abc"), Cut()], [head, written(b"defg")])
    log, *chunks = client.jobs.output(1, 2, 7)
    assert log.log.output_bytes == 9
    assert b"".join(each.chunk.data for each in chunks) == b"abcdefg"
    assert [(r.offset, r.length) for r in script.asked("GetConsoleOutput")] == [(2, 7), (5, 4)]


def test_a_download_stays_with_its_version(client: Client, script: Script) -> None:
    info = package_pb.DownloadPackageResponse(info=package_pb.PackageArchive(name="p", version="1.9.0", size_bytes=6))
    parts = [package_pb.DownloadPackageResponse(chunk=each) for each in (b"abc", b"def")]
    script.answer("DownloadPackage", [info, parts[0], Cut()], [info, parts[1]])
    first, *chunks = client.packages.download("p")
    assert first.info.version == "1.9.0"
    assert b"".join(each.chunk for each in chunks) == b"abcdef"
    assert [(r.version, r.offset) for r in script.asked("DownloadPackage")] == [("", 0), ("1.9.0", 3)]


def test_many_jobs_at_once(client: Client, script: Script) -> None:
    refused = errors.to_status(JobNotFound("job 2 does not exist"))
    results = [pb.JobResult(job_id=1, job=job_pb2.Job(job_id=9)), pb.JobResult(job_id=2, error=refused)]
    script.answer(
        "ApplyVerb", [pb.ApplyVerbResponse(total=2), *(pb.ApplyVerbResponse(result=each) for each in results)]
    )
    total, done, failed = client.jobs.apply(
        job_pb2.JOB_VERB_RERUN, filter=pb.JobFilter(text="x"), expected_count=2, reason="why"
    )
    assert (total.total, done.result.job.job_id) == (2, 9)
    error = from_status(failed.result.error)
    assert (error.code, error.reason, error.message) == ("NOT_FOUND", "JOB_NOT_FOUND", "job 2 does not exist")
    (request,) = script.asked("ApplyVerb")
    assert request.request_id
    assert (request.expected_count, request.reason, request.validate_only) == (2, "why", False)


def test_a_verb_that_broke_off_is_not_repeated(client: Client, script: Script) -> None:
    script.answer("ApplyVerb", [pb.ApplyVerbResponse(total=0), Cut()])
    with pytest.raises(ApiError) as caught:
        list(client.jobs.apply(job_pb2.JOB_VERB_DELETE, job_ids=[1]))
    assert caught.value.unreachable
    assert not script.asked("ApplyVerb")[0].HasField("expected_count")


def test_what_is_asked_of_one_job(client: Client, script: Script) -> None:
    script.answer("ExplainJob", Cut(), pb.ExplainJobResponse(summary="It is held."))
    script.answer("RerunJob", Cut(), pb.RerunJobResponse(job=job_pb2.Job(job_id=8)))
    script.answer("CopyJob", Cut(), pb.CopyJobResponse(request=pb.CreateJobRequest(display_name="N")))
    assert client.jobs.explain(7).summary == "It is held."
    assert client.jobs.rerun(7).job_id == 8
    assert client.jobs.copy(7).display_name == "N"
    assert [request.job_id for _, request in script.requests] == [7] * 6
    (once,) = {request.request_id for request in script.asked("RerunJob")}
    assert once


def test_the_versions_of_one_package(client: Client, script: Script) -> None:
    script.answer("ListPackages", package_pb.ListPackagesResponse(packages=[package_pb.Package(version="1")]))
    assert [each.version for each in client.packages.all("p")] == ["1"]
    assert script.asked("ListPackages")[0].name == "p"


def test_a_package_is_pushed_in_chunks(client: Client, script: Script) -> None:
    script.answer("PushPackage", package_pb.PushPackageResponse(existed=True))
    archive = bytes(range(256)) * 10_000
    assert client.packages.push(archive).existed
    upload, *chunks = script.asked("PushPackage")[0]
    assert upload.upload.size_bytes == len(archive)
    assert b"".join(each.chunk for each in chunks) == archive
    assert max(len(each.chunk) for each in chunks) <= 1024 * 1024


def test_a_refusal_of_a_package_is_not_lost_in_what_is_sent(client: Client, script: Script) -> None:
    tries = 30
    script.answer("PushPackage", *[errors.PermissionDenied("not yours")] * tries)
    reasons = set()
    for _ in range(tries):
        with pytest.raises(ApiError) as caught:
            client.packages.push(bytes(8_000_000))
        reasons.add(caught.value.reason)
    assert reasons == {"PERMISSION_DENIED"}


def test_nobody_there(connect: Connect, queue_tls: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        connect(Endpoints(f"127.0.0.1:{port}", Token("t"), queue_tls.ca.read_bytes()), seconds=10) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.jobs.delete(1)
    assert caught.value.unreachable
    assert f"127.0.0.1:{port} cannot be reached" in caught.value.message


def test_a_server_that_never_answers(connect: Connect, queue_tls: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            connect(Endpoints(endpoint, Token("t"), queue_tls.ca.read_bytes()), seconds=0.5) as client,
            pytest.raises(ApiError) as caught,
        ):
            client.jobs.get(1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert "in time" in caught.value.message


def test_a_server_of_another_ca_is_not_trusted(connect: Connect, endpoint: str, tmp_path: Path) -> None:
    stranger = CertificateAuthority(tmp_path)
    with (
        connect(Endpoints(endpoint, Token("t"), stranger.ca.read_bytes()), seconds=10) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.jobs.delete(1)
    assert "CA certificate" in caught.value.message


def test_a_closed_client_says_so(client: Client, script: Script) -> None:
    script.answer("WatchJobs", [watched("1", 1)])
    client.close()
    with pytest.raises(ClientClosed, match="the client is closed"):
        client.jobs.get(1)
    with pytest.raises(ClientClosed):
        list(client.jobs.watch())
    assert script.requests == []


async def test_a_client_that_is_closed_during_calls_says_so(endpoint: str, script: Script, queue_tls: TlsFiles) -> None:
    ca, released, begun = queue_tls.ca.read_bytes(), threading.Event(), asyncio.Event()

    def one_and_silence() -> Iterator[Message]:
        yield watched("1", 1)
        released.wait(60)

    async def watch(sis: AsyncClient) -> None:
        async for _ in sis.jobs.watch():
            begun.set()

    script.answer("WatchJobs", one_and_silence())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        talking = AsyncClient(Endpoints(endpoint, Token("t"), ca))
        waiting = AsyncClient(Endpoints(f"127.0.0.1:{silent.getsockname()[1]}", Token("t"), ca))
        call, cancelled = (asyncio.create_task(waiting.jobs.get(1)) for _ in range(2))
        stream = asyncio.create_task(watch(talking))
        accepted, _ = await asyncio.get_running_loop().sock_accept(silent)
        with accepted:
            await begun.wait()
            # Who is cancelled stays so.
            cancelled.cancel()
            await asyncio.gather(waiting.close(), talking.close())
            ended = await asyncio.gather(call, stream, cancelled, return_exceptions=True)
            released.set()
    assert [type(each) for each in ended] == [ClientClosed, ClientClosed, asyncio.CancelledError]


def test_agents_need_a_hub(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="SIS_HUB_ENDPOINT"):
        _ = client.agents


async def test_the_asynchronous_client_of_the_environment(
    endpoint: str, script: Script, queue_tls: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("t")
    settings = {"QUEUE_ENDPOINT": endpoint, "TOKEN_FILE": tmp_path / "token", "CA": queue_tls.ca}
    for name, value in settings.items():
        monkeypatch.setenv(f"SIS_{name}", str(value))
    script.answer("GetJob", *[pb.GetJobResponse(job=job_pb2.Job(job_id=each)) for each in (7, 7)])
    async with AsyncClient.find() as sis:
        found = await asyncio.gather(sis.jobs.get(7), sis.jobs.get(7))
    assert [each.job_id for each in found] == [7, 7]
