"""Messages and errors as the gateway prints them."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gateway.errors import (
    BodyTooLarge,
    Failure,
    HttpError,
    MethodNotAllowed,
    NotAcceptable,
    RangeNotSatisfiable,
    Refused,
    RouteNotFound,
    UnsupportedMediaType,
    failure,
)
from gateway.printing import document, json_path, printed
from services.runtime import errors
from sis.errors.v1.reason_pb2 import Reason
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb


def test_a_message_has_every_field_without_presence() -> None:
    found = printed(pb.ListJobsResponse(jobs=[job_pb2.Job(job_id=2**60, status=job_pb2.JOB_STATUS_RUNNING)]))
    (job,) = found["jobs"]
    assert (job["jobId"], job["status"], job["displayName"]) == ("1152921504606846976", "JOB_STATUS_RUNNING", "")
    assert "startTime" not in job and found["totalSize"] == "0" and found["nextPageToken"] == ""


def test_a_document_is_one_line_of_utf8() -> None:
    assert document({"a": "ü\n\r\u2028"}) == '{"a":"ü\\n\\r\u2028"}'.encode()


def packed(url: str, value: bytes) -> AnyMessage:
    return AnyMessage(type_url=url, value=value)


@pytest.mark.parametrize(
    "detail",
    [
        packed("type.googleapis.com/not.known.Here", b"x"),
        packed("type.googleapis.com/google.rpc.ErrorInfo", b"\xff\xff"),
        packed("nonsense", b""),
        packed("type.googleapis.com/google.protobuf.Timestamp", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    ],
    ids=lambda each: each.type_url.rpartition("/")[2],
)
def test_an_unknown_or_damaged_detail_is_left_out(detail: AnyMessage) -> None:
    known = packed(
        "type.googleapis.com/google.rpc.ErrorInfo", error_details_pb2.ErrorInfo(reason="X").SerializeToString()
    )
    status = status_pb2.Status(code=5, message="no", details=[detail, known])
    response = pb.ApplyVerbResponse(result=pb.JobResult(job_id=1, error=status))
    (info,) = printed(response)["result"]["error"]["details"]
    assert info["reason"] == "X" and len(response.result.error.details) == 2
    assert json.loads(failure(Refused(status)).document)["error"]["details"] == [info]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("display_name", "displayName"),
        ("filter.run_states[3]", "filter.runStates[3]"),
        ("parameters.host_name.plain", "parameters.host_name.plain"),
        ("site_target.group", "siteTarget.group"),
        ("labels.a_b", "labels.a_b"),
        ("no_such.thing_here", "no_such.thing_here"),
        ("", ""),
    ],
)
def test_fields_have_their_json_names(path: str, expected: str) -> None:
    descriptor = pb.ListJobsRequest.DESCRIPTOR if path.startswith("filter") else pb.CreateJobRequest.DESCRIPTOR
    assert json_path(descriptor, path) == expected


def said(found: Failure) -> tuple[int, str, str]:
    error = json.loads(found.document)["error"]
    assert error["code"] == found.http
    return found.http, error["status"], error["details"][0]["reason"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.InvalidArgument("x"), (400, "INVALID_ARGUMENT", "INVALID_FIELD")),
        (errors.Unauthenticated("x"), (401, "UNAUTHENTICATED", "UNAUTHENTICATED")),
        (errors.PermissionDenied("x"), (403, "PERMISSION_DENIED", "PERMISSION_DENIED")),
        (errors.NotFound("x", reason="JOB_NOT_FOUND"), (404, "NOT_FOUND", "JOB_NOT_FOUND")),
        (errors.AlreadyExists("x", reason="CREDENTIAL_EXISTS"), (409, "ALREADY_EXISTS", "CREDENTIAL_EXISTS")),
        (errors.FailedPrecondition("x", subject="s", condition="c"), (400, "FAILED_PRECONDITION", "INTERNAL")),
        (errors.Aborted("x", reason="RESUME_EXPIRED"), (409, "ABORTED", "RESUME_EXPIRED")),
        (errors.ResourceExhausted("x"), (429, "RESOURCE_EXHAUSTED", "OVERLOADED")),
        (errors.DeadlineExceeded("x"), (504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")),
        (errors.Unavailable("x"), (503, "UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")),
        (errors.Internal("x"), (500, "INTERNAL", "INTERNAL")),
        (RouteNotFound(), (404, "NOT_FOUND", "ROUTE_NOT_FOUND")),
        (MethodNotAllowed(["GET"]), (405, "UNIMPLEMENTED", "METHOD_NOT_ALLOWED")),
        (NotAcceptable(["a/b"]), (406, "INVALID_ARGUMENT", "NOT_ACCEPTABLE")),
        (BodyTooLarge(5), (413, "INVALID_ARGUMENT", "BODY_TOO_LARGE")),
        (UnsupportedMediaType(["a/b"]), (415, "INVALID_ARGUMENT", "UNSUPPORTED_MEDIA_TYPE")),
        (RangeNotSatisfiable(5), (416, "OUT_OF_RANGE", "RANGE_NOT_SATISFIABLE")),
    ],
    ids=lambda each: type(each).__name__,
)
def test_each_error_has_its_code(error: errors.SisError, expected: tuple[int, str, str]) -> None:
    assert said(failure(error)) == expected


def test_every_code_and_every_reason_is_known() -> None:
    for name, number in code_pb2.Code.items():
        if number != code_pb2.OK:
            found = failure(Refused(status_pb2.Status(code=number, message="x")))
            assert 400 <= found.http < 600 and json.loads(found.document)["error"]["status"] == name
    assert failure(Refused(status_pb2.Status(code=99, message="x"))).http == 500
    reasons = [kind.reason for kind in HttpError.__subclasses__()]
    assert len(reasons) == 9 and {f"REASON_{reason}" for reason in reasons} <= set(Reason.keys())


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.Unavailable("x", retry_after=0.2), (b"retry-after", b"1")),
        (errors.ResourceExhausted("x", retry_after=2.5), (b"retry-after", b"3")),
        (errors.Unauthenticated("x"), (b"www-authenticate", b'Bearer realm="sis"')),
        (MethodNotAllowed(["GET", "HEAD"]), (b"allow", b"GET, HEAD")),
        (RangeNotSatisfiable(5), (b"content-range", b"bytes */5")),
        (errors.NotFound("x"), None),
    ],
)
def test_headers_say_what_clients_of_http_look_for(error: errors.SisError, header: tuple[bytes, bytes] | None) -> None:
    assert list(failure(error).headers) == ([header] if header else [])


def test_a_damaged_delay_is_none() -> None:
    status = status_pb2.Status(code=14, details=[packed("type.googleapis.com/google.rpc.RetryInfo", b"\xff")])
    assert list(failure(Refused(status)).headers) == []


def test_violations_are_in_the_words_of_json() -> None:
    error = errors.InvalidArgument.field("run_timeout", "is too long")
    found = json.loads(failure(error, pb.CreateJobRequest.DESCRIPTOR).document)["error"]["details"]
    assert found[1]["fieldViolations"][0]["field"] == "runTimeout"
