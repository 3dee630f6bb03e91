"""What a request becomes, and what becomes of what the services answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import socket
import threading
from typing import Any

import grpc
import pytest

from gateway import api, exchange, front, upstreams
from gateway.routes import Binding, bindings
from services.runtime import errors
from services.runtime.errors import FieldViolation, InvalidArgument
from services.runtime.telemetry import JsonFormatter
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.fakes.upstream import Upstream
from tests.support.certificates import CertificateAuthority
from tests.support.gateway_server import GatewayServer, LoopThread

JOB = pb.GetJobResponse(job=job_pb2.Job(job_id=2**60, display_name="Zürich"))


def test_a_call_and_its_answer(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["GetJob"] = JOB
    answer = gateway.call("GET", "/v1/jobs/1152921504606846976", headers={"X-Request-Id": "mine-1"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json["job"]["jobId"] == "1152921504606846976" and answer.json["job"]["displayName"] == "Zürich"
    assert upstream.asked("GetJob") == [pb.GetJobRequest(job_id=2**60)]
    (metadata,) = upstream.metadata
    assert metadata["authorization"] == "Bearer the administrator's token"
    assert (metadata["x-request-id"], metadata["x-sis-origin"]) == ("mine-1", "127.0.0.1")
    assert answer.headers["X-Request-Id"] == "mine-1"


def test_a_body_becomes_the_request(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["CancelJob"] = pb.CancelJobResponse()
    assert gateway.call("POST", "/v1/jobs/7:cancel", {"reason": "enough"}).status == 200
    assert gateway.call("POST", "/v1/jobs/8:cancel").status == 200
    chunks = iter([b'{"reas', b'on": "bit by bit"}'])
    typed = {"Content-Type": "application/json; charset=utf-8"}
    with gateway.opened("POST", "/v1/jobs/9:cancel", chunks, typed) as response:
        assert response.status == 200
    assert upstream.asked("CancelJob") == [
        pb.CancelJobRequest(job_id=7, reason="enough"),
        pb.CancelJobRequest(job_id=8),
        pb.CancelJobRequest(job_id=9, reason="bit by bit"),
    ]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "ü", "a/b"])
def test_a_request_id_that_is_unfit_is_replaced(gateway: GatewayServer, upstream: Upstream, given: str) -> None:
    upstream.answers["GetJob"] = JOB
    answer = gateway.call("GET", "/v1/jobs/1", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-Id"])
    assert upstream.metadata[0]["x-request-id"] == answer.headers["X-Request-Id"]


def test_every_answer_has_the_strict_headers(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["GetJob"] = JOB
    for path in ("/v1/jobs/1", "/v1/jobs/x", "/nowhere", "/healthz", "/readyz", "/openapi.json", "/reference"):
        headers = gateway.call("GET", path, headers={"Origin": "https://evil.example"}).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert (headers["Referrer-Policy"], headers["X-Frame-Options"]) == ("no-referrer", "DENY")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Request-Id"] and "Server" not in headers
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert "Strict-Transport-Security" not in headers  # it is plain HTTP


# --- refusals of the gateway itself ---


def test_a_template_is_a_path_like_any_other(gateway: GatewayServer, upstream: Upstream) -> None:
    answer = gateway.call("GET", "/v1/jobs/{job_id}")
    assert (answer.status, answer.reason) == (400, "INVALID_FIELD")
    assert gateway.call("POST", "/v1/jobs/{job_id}:cancel", {}).status == 400
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("verb", "path", "expected"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v2/jobs", 404),
        ("GET", "/v1/jobs/", 404),
        ("GET", "/v1/jobs/1/", 404),
        ("GET", "/v1/jobs/1/nothing", 404),
        ("GET", "/v1/jobs/1:nothing", 404),
        ("GET", "/v1//jobs", 404),
        ("GET", "//v1/jobs", 404),
        ("GET", "/v1/../v1/jobs", 404),
        ("GET", "/%76%31/jobs", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/static/../main.py", 404),
        ("GET", "/static/%2e%2e/main.py", 404),
        ("GET", "/console/", 404),
        ("GET", "/console/x/index.html", 404),
        ("GET", "/console/x/../../main.py", 404),
        ("GET", "/console/x/%2e%2e/%2e%2e/main.py", 404),
        ("PUT", "/v1/jobs/1", 405),
        ("OPTIONS", "/v1/jobs", 405),
        ("OPTIONS", "*", 404),
        ("PROPFIND", "/v1/jobs", 405),
        ("GET", "/v1/jobs/1:cancel", 405),
        ("POST", "/v1/jobs/1%3Acancel", 405),
        ("POST", "/healthz", 405),
        ("POST", "/jobs", 405),
        ("PUT", "/session", 405),
        ("OPTIONS", "/session", 405),
    ],
)
def test_no_such_path(gateway: GatewayServer, upstream: Upstream, verb: str, path: str, expected: int) -> None:
    answer = gateway.call(verb, path)
    assert answer.status == expected
    assert answer.reason == {404: "ROUTE_NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}[expected]
    assert upstream.requests == []


def test_the_methods_that_there_are_are_named(gateway: GatewayServer) -> None:
    assert gateway.call("PUT", "/v1/jobs/1").headers["Allow"] == "GET, DELETE, HEAD"
    assert gateway.call("PUT", "/v1/jobs").headers["Allow"] == "POST, GET, HEAD"
    assert gateway.call("PUT", "/healthz").headers["Allow"] == "GET, HEAD"
    assert gateway.call("PUT", "/session").headers["Allow"] == "DELETE, GET, HEAD, POST"


@pytest.mark.parametrize(
    ("verb", "path", "body", "headers", "status", "reason"),
    [
        ("GET", "/v1/jobs/x", None, {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/jobs/1%0A", None, {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/jobs/%00", None, {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/packages/a%0Ab%FF", None, {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/jobs?nonsense=1", None, {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/jobs", b"{}", {}, 400, "MALFORMED_REQUEST"),
        ("POST", "/v1/jobs", b"{}", {"Content-Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/v1/jobs", b"{}", {}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/v1/jobs", b"{", {"Content-Type": "application/json"}, 400, "MALFORMED_REQUEST"),
        ("POST", "/v1/jobs", {"a": 1}, {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/jobs", None, {"Accept": "text/html"}, 406, "NOT_ACCEPTABLE"),
        ("GET", "/v1/jobs:watch", None, {"Accept": "application/json"}, 406, "NOT_ACCEPTABLE"),
        ("POST", "/v1/packages", b"x", {"Content-Type": "application/json"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("GET", "/v1/jobs", None, {"Authorization": "Bearer ü"}, 401, "UNAUTHENTICATED"),
        ("GET", "/v1/jobs", None, {"Authorization": "Bearer"}, 401, "UNAUTHENTICATED"),
        ("GET", "/v1/jobs", None, {"Authorization": "Bearer a, Bearer b"}, 401, "UNAUTHENTICATED"),
        ("POST", "/v1/packages", b"x", {"Authorization": "Basic eDp4"}, 401, "UNAUTHENTICATED"),
        ("GET", "/v1/jobs", None, {"Authorization": "Bearer " + "x" * 8_000}, 401, "UNAUTHENTICATED"),
    ],
)
def test_a_request_that_is_wrong(
    gateway: GatewayServer,
    upstream: Upstream,
    verb: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    reason: str,
) -> None:
    answer = gateway.call(verb, path, body, headers)
    assert (answer.status, answer.reason) == (status, reason), answer.body
    assert upstream.requests == []


@pytest.mark.parametrize("binding", bindings(), ids=lambda each: each.method.name)
def test_who_shows_nothing_is_refused_whatever_else_is_wrong(
    gateway: GatewayServer, upstream: Upstream, binding: Binding
) -> None:
    for path, body, headers in (
        ("1", None, {}),
        ("%FF", b"x" * 100_000, {"Accept": "image/png", "Content-Type": "text/plain"}),
    ):
        path = re.sub(r"\{\w+\}", path, binding.template)
        answer = gateway.call(binding.verb, f"{path}?nonsense=%", body, headers, token=False)
        assert (answer.status, answer.reason) == (401, "UNAUTHENTICATED")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sis"'
    assert upstream.requests == []


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(api, "JSON_BYTES", 1_000)
    typed = {"Content-Type": "application/json"}
    body = b" " * 300_000
    with gateway.opened("POST", "/v1/jobs", body if announced else iter([body] * 3), typed) as response:
        assert response.status == 413
        assert json.loads(response.read())["error"]["details"][0]["reason"] == "BODY_TOO_LARGE"
        assert response.headers["Connection"] == "close"
    assert upstream.requests == []


def test_bodies_have_a_bound_together(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUFFERED_BYTES", 10)
    answer = gateway.call("POST", "/v1/jobs", {"displayName": "more than ten"})
    assert (answer.status, answer.reason, answer.headers["Retry-After"]) == (429, "OVERLOADED", "1")
    monkeypatch.undo()
    upstream.answers["CreateJob"] = pb.CreateJobResponse()
    assert gateway.call("POST", "/v1/jobs", {"displayName": "more than ten"}).status == 200


def test_a_body_that_does_not_come(gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 0.1)
    typed = {"Content-Type": "application/json", "Content-Length": "1000"}
    answer = gateway.call("POST", "/v1/jobs", b"{", typed)
    assert (answer.status, answer.reason) == (408, "DEADLINE_EXCEEDED")
    assert upstream.requests == []


def test_requests_have_a_bound(gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "REQUEST_LIMIT", 0)
    answer = gateway.call("GET", "/healthz")
    assert (answer.status, answer.reason, answer.headers["Retry-After"]) == (429, "OVERLOADED", "1")
    monkeypatch.undo()
    assert gateway.call("GET", "/healthz").status == 200


# --- refusals of the services ---


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (errors.NotFound("x", reason="JOB_NOT_FOUND"), 404, "JOB_NOT_FOUND"),
        (errors.PermissionDenied("x"), 403, "PERMISSION_DENIED"),
        (errors.Unauthenticated("x"), 401, "UNAUTHENTICATED"),
        (errors.FailedPrecondition("x", subject="s", condition="c"), 400, "INTERNAL"),
        (errors.Internal("under fault 1234", metadata={"fault": "1234"}), 500, "INTERNAL"),
        (errors.Unavailable("x", retry_after=0.1), 503, "DEPENDENCY_UNAVAILABLE"),
        (grpc.StatusCode.UNAVAILABLE, 503, "DEPENDENCY_UNAVAILABLE"),
        (grpc.StatusCode.CANCELLED, 503, "DEPENDENCY_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.UNIMPLEMENTED, 501, "DEPENDENCY_UNAVAILABLE"),
        (grpc.StatusCode.UNKNOWN, 500, "INTERNAL"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 500, "INTERNAL"),
    ],
)
def test_an_error_of_a_service(
    gateway: GatewayServer, upstream: Upstream, error: Any, status: int, reason: str
) -> None:
    upstream.answers["DeleteJob"] = error
    answer = gateway.call("DELETE", "/v1/jobs/1")
    assert (answer.status, answer.reason) == (status, reason)
    assert b"internal words" not in answer.body and b"10.0.0.1" not in answer.body
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_wrong_fields_have_their_json_names(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["CreateJob"] = InvalidArgument.fields(
        [FieldViolation("display_name", "is required"), FieldViolation("parameters.host_name", "is unknown")]
    )
    answer = gateway.call("POST", "/v1/jobs", {})
    assert answer.fields == ["displayName", "parameters.host_name"]


def test_a_read_is_tried_again_and_a_write_is_not(gateway: GatewayServer, upstream: Upstream) -> None:
    async def second_time(request: Any, context: Any) -> Any:
        if len(upstream.requests) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        return JOB

    upstream.answers["GetJob"] = second_time
    assert gateway.call("GET", "/v1/jobs/1").status == 200
    upstream.requests.clear()
    upstream.answers["DeleteJob"] = grpc.StatusCode.UNAVAILABLE
    assert gateway.call("DELETE", "/v1/jobs/1").status == 503
    assert len(upstream.requests) == 1


def test_a_service_that_is_not_there(
    thread: LoopThread, authority: CertificateAuthority, gateway: GatewayServer
) -> None:
    lonely = GatewayServer(thread, authority.service("gateway"), queue="ipv4:127.0.0.1:1,127.0.0.1:2")
    try:
        answer = lonely.call("DELETE", "/v1/jobs/1")
        assert (answer.status, answer.reason, answer.headers["Retry-After"]) == (503, "DEPENDENCY_UNAVAILABLE", "1")
        assert "127.0.0.1" not in answer.json["error"]["message"]
        ready = lonely.call("GET", "/readyz", token=False)
        assert ready.status == 503
        assert ready.json == {
            "status": "not ready",
            "upstreams": {"queue": "UNREACHABLE", "credentials": "UNREACHABLE", "hub": "UNREACHABLE"},
        }
        assert lonely.call("GET", "/healthz", token=False).json == {"status": "alive"}
    finally:
        lonely.stop()


def test_a_service_that_is_slow(gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(upstreams, "UNARY_SECONDS", 0.2)
    upstream.answers["GetJob"] = never
    answer = gateway.call("GET", "/v1/jobs/1")
    assert (answer.status, answer.reason) == (504, "DEADLINE_EXCEEDED")


def test_a_client_that_goes_away_ends_its_call(gateway: GatewayServer, upstream: Upstream) -> None:
    called = threading.Event()

    async def never(request: Any, context: Any) -> Any:
        called.set()
        await asyncio.Event().wait()

    upstream.answers["CreateJob"] = never
    client = threading.Thread(target=lambda: _give_up(gateway, called))
    client.start()
    assert upstream.cancelled.get(timeout=20) == "CreateJob"
    client.join()


def _give_up(gateway: GatewayServer, called: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        body = b'{"displayName": "x"}'
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        called.wait(20)


def test_a_fault_shows_a_number_and_only_the_log_says_more(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise KeyError("the secret 4711")

    upstream.answers["GetJob"] = JOB
    monkeypatch.setattr(api, "printed", broken)
    answer = gateway.call("GET", "/v1/jobs/1", headers={"X-Request-Id": "mine-2"})
    assert (answer.status, answer.reason) == (500, "INTERNAL")
    number = answer.json["error"]["details"][0]["metadata"]["fault"]
    assert number in answer.json["error"]["message"] and b"4711" not in answer.body
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"fault {number} in /sis.queue.v1.JobService/GetJob"


def test_each_request_is_one_line(gateway: GatewayServer, upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    upstream.answers["GetJob"] = JOB
    gateway.call("GET", "/v1/jobs/1", headers={"X-Request-Id": "mine-3"})
    gateway.call("GET", "/nowhere")
    gateway.call("GET", "/healthz")
    lines = [json.loads(JsonFormatter("t").format(each)) for each in caplog.records if each.name == "http"]
    assert [(line["verb"], line["method"], line["status"]) for line in lines] == [
        ("GET", "/sis.queue.v1.JobService/GetJob", 200),
        ("GET", "/nowhere", 404),
    ]
    assert (lines[0]["request_id"], lines[0]["origin"]) == ("mine-3", "127.0.0.1") and lines[0]["milliseconds"] >= 0
    assert "token" not in json.dumps(lines)


# --- what needs no token ---


def test_pages(gateway: GatewayServer, upstream: Upstream) -> None:
    assert gateway.call("GET", "/healthz", token=False).json == {"status": "alive"}
    document = gateway.call("GET", "/openapi.json", token=False)
    assert document.headers["Content-Type"] == "application/json" and document.json["openapi"].startswith("3.1")
    page = gateway.call("GET", "/reference", token=False)
    assert page.headers["Content-Type"].startswith("text/html") and b"/static/reference.css" in page.body
    assert "style-src 'self'" in page.headers["Content-Security-Policy"]
    style = gateway.call("GET", "/static/reference.css", token=False)
    assert style.headers["Content-Type"].startswith("text/css")
    head = gateway.call("HEAD", "/reference", token=False)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(page.body)))
    assert upstream.requests == []


def test_readiness_is_that_of_the_services(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "_HEALTH_KEPT_SECONDS", 0.0)
    serving = dict.fromkeys(("queue", "credentials", "hub"), "SERVING")
    ready = gateway.call("GET", "/readyz", token=False)
    assert (ready.status, ready.json) == (200, {"status": "ready", "upstreams": serving})
    upstream.serving = False
    assert gateway.call("GET", "/readyz", token=False).status == 503


def test_the_head_of_an_answer(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["GetJob"] = JOB
    whole, head = gateway.call("GET", "/v1/jobs/1"), gateway.call("HEAD", "/v1/jobs/1")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]


def test_a_large_answer_is_compressed_for_who_takes_that(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["GetJob"] = pb.GetJobResponse(job=job_pb2.Job(job_id=1, display_name="x" * 10_000))
    plain = gateway.call("GET", "/v1/jobs/1")
    assert (plain.headers["Content-Encoding"], plain.headers.get_all("Vary")) == (None, ["accept-encoding"])
    for accepted in ("gzip", "br, GZIP;q=0.5"):
        found = gateway.call("GET", "/v1/jobs/1", headers={"Accept-Encoding": accepted})
        assert (found.headers["Content-Encoding"], found.headers.get_all("Vary")) == ("gzip", ["accept-encoding"])
        assert gzip.decompress(found.body) == plain.body and len(found.body) < len(plain.body) / 10
        head = gateway.call("HEAD", "/v1/jobs/1", headers={"Accept-Encoding": accepted})
        assert (head.body, head.headers["Content-Length"]) == (b"", str(len(found.body)))
    upstream.answers["GetJob"] = JOB
    small = gateway.call("GET", "/v1/jobs/1", headers={"Accept-Encoding": "gzip"})
    assert (small.headers["Content-Encoding"], small.json["job"]["displayName"]) == (None, "Zürich")


def test_behind_a_proxy_the_last_address_counts(
    thread: LoopThread, authority: CertificateAuthority, upstream: Upstream, upstream_endpoint: str
) -> None:
    proxied = GatewayServer(thread, authority.service("gateway"), queue=upstream_endpoint, behind_proxy=True)
    try:
        upstream.answers["GetJob"] = JOB
        proxied.call("GET", "/v1/jobs/1", headers={"X-Forwarded-For": "6.6.6.6, 192.0.2.7"})
        assert upstream.metadata[0]["x-sis-origin"] == "192.0.2.7"
    finally:
        proxied.stop()
