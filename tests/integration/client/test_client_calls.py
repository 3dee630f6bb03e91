"""The client library against a scripted server, over TLS."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from services.runtime import errors
from services.runtime.tls import TlsFiles
from sis.client import ApiError, Client, ConfigurationError
from sis.client.endpoints import Endpoints, Token
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as package_pb
from tests.fakes.job_service import Cut, Script
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


def test_a_package_is_pushed_in_chunks(client: Client, script: Script) -> None:
    script.answer("PushPackage", package_pb.PushPackageResponse(existed=True))
    archive = bytes(range(256)) * 10_000
    assert client.packages.push(archive).existed
    upload, *chunks = script.asked("PushPackage")[0]
    assert upload.upload.size_bytes == len(archive)
    assert b"".join(each.chunk for each in chunks) == archive
    assert max(len(each.chunk) for each in chunks) <= 1024 * 1024


def test_nobody_there(queue_tls: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client(Endpoints(f"127.0.0.1:{port}", Token("t"), queue_tls.ca.read_bytes()), seconds=10) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.jobs.delete(1)
    assert caught.value.unreachable
    assert f"127.0.0.1:{port} cannot be reached" in caught.value.message


def test_a_server_that_never_answers(queue_tls: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            Client(Endpoints(endpoint, Token("t"), queue_tls.ca.read_bytes()), seconds=0.5) as client,
            pytest.raises(ApiError) as caught,
        ):
            client.jobs.get(1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert "in time" in caught.value.message


def test_a_server_of_another_ca_is_not_trusted(endpoint: str, tmp_path: Path) -> None:
    stranger = CertificateAuthority(tmp_path)
    with (
        Client(Endpoints(endpoint, Token("t"), stranger.ca.read_bytes()), seconds=10) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.jobs.delete(1)
    assert "CA certificate" in caught.value.message


def test_agents_need_a_hub(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="SIS_HUB_ENDPOINT"):
        _ = client.agents
