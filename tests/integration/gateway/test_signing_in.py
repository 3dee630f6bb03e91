"""Signing in with a browser: what its session proves, and to whom."""

from __future__ import annotations

import http.client
import json
import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet

from gateway import exchange, sessions
from gateway.routes import Binding, bindings
from services.runtime import errors
from services.runtime.telemetry import JsonFormatter
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as packages
from tests.fakes.upstream import Upstream
from tests.support.certificates import CertificateAuthority
from tests.support.gateway_server import Answer, GatewayServer, Http, LoopThread, events

TOKEN = "a-token-4711"
PAGE = {"Sec-Fetch-Site": "same-origin"}
GZIP = {"Content-Type": "application/gzip"}
KEY = Fernet.generate_key()


@pytest.fixture
def upstream(upstream: Upstream) -> Upstream:
    """With an answer of each kind."""
    upstream.answers["ListJobs"] = pb.ListJobsResponse()
    upstream.answers["GetJob"] = pb.GetJobResponse(job=job_pb2.Job(job_id=1))
    upstream.answers["CancelJob"] = pb.CancelJobResponse()
    upstream.answers["WatchJobs"] = [pb.WatchJobsResponse(resume_token="t")]
    upstream.answers["DownloadPackage"] = [
        packages.DownloadPackageResponse(info=packages.PackageArchive(digest="ab", size_bytes=3)),
        packages.DownloadPackageResponse(chunk=b"abc"),
    ]
    upstream.answers["PushPackage"] = packages.PushPackageResponse()
    return upstream


def sign_in(gateway: Http, token: str = TOKEN, headers: Mapping[str, str] = PAGE) -> Answer:
    return gateway.call("POST", "/session", {"token": token}, headers, token=False)


def given(answer: Answer) -> str:
    """The cookie that an answer sets, as it is set; "" for none."""
    (found,) = answer.headers.get_all("Set-Cookie") or [""]
    return str(found)


@pytest.fixture
def cookie(gateway: GatewayServer, upstream: Upstream) -> dict[str, str]:
    """The header of a browser that has signed in."""
    answer = sign_in(gateway)
    assert answer.status == 200
    upstream.requests.clear()
    upstream.metadata.clear()
    return {"Cookie": given(answer).partition(";")[0]}


def read_events(gateway: Http, headers: Mapping[str, str]) -> Answer:
    with gateway.opened("GET", "/v1/jobs:watch", None, headers, token=False) as response:
        if response.status != 200:
            return Answer(response.status, response.headers, response.read())
        return Answer(200, response.headers, json.dumps(list(events(response))).encode())


def call(gateway: Http, kind: str, headers: Mapping[str, str]) -> Answer:
    """One request of a kind, as a browser makes it."""
    if kind == "unary":
        return gateway.call("GET", "/v1/jobs/1", headers=headers, token=False)
    if kind == "unary with a body":
        return gateway.call("POST", "/v1/jobs/1:cancel", {"reason": "x"}, headers, token=False)
    if kind == "events":
        return read_events(gateway, headers)
    if kind == "lines":
        lines = {**headers, "Accept": "application/x-ndjson"}
        return gateway.call("GET", "/v1/jobs:watch", headers=lines, token=False)
    if kind == "download":
        return gateway.call("GET", "/v1/packages/core.shell/archive", headers=headers, token=False)
    return gateway.call("POST", "/v1/packages", b"abc", {**GZIP, **headers}, token=False)


KINDS = ("unary", "unary with a body", "events", "lines", "download", "upload")
READS = ("unary", "events", "lines", "download")


# --- signing in and out ---


def test_who_signs_in_is_asked_about_at_the_service(gateway: GatewayServer, upstream: Upstream) -> None:
    answer = sign_in(gateway, f"  {TOKEN}\n")
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert set(answer.json) == {"expireTime"} and re.fullmatch(r"\S+T\S+Z", answer.json["expireTime"])
    assert re.fullmatch(
        rf"sis-session-{gateway.port}=[\w=-]+; Path=/; HttpOnly; SameSite=Strict; Max-Age=[0-9]+", given(answer)
    )
    assert upstream.asked("ListJobs") == [pb.ListJobsRequest(page_size=1)]
    assert (upstream.metadata[0]["authorization"], upstream.metadata[0]["x-sis-origin"]) == (
        f"Bearer {TOKEN}",
        "127.0.0.1",
    )


def test_a_wrong_token_is_refused_by_the_service(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["ListJobs"] = errors.Unauthenticated("this token is not known")
    answer = sign_in(gateway)
    assert (answer.status, answer.reason, given(answer)) == (401, "UNAUTHENTICATED", "")
    assert answer.json["error"]["message"] == "this token is not known"
    upstream.answers["ListJobs"] = errors.Unavailable("x", retry_after=1.0)
    assert (sign_in(gateway).status, given(sign_in(gateway))) == (503, "")


@pytest.mark.parametrize(
    ("body", "status", "fields"),
    [
        ({"token": "a,b"}, 400, ["token"]),
        ({"token": "a\nb"}, 400, ["token"]),
        ({"token": "a\x00"}, 400, ["token"]),
        ({"token": "ü"}, 400, ["token"]),
        ({"token": "\ud800"}, 400, ["token"]),
        ({"token": "x" * 7_000}, 400, ["token"]),
        ({"token": "x" * 4_000}, 400, ["token"]),
        ({"token": ""}, 400, ["token"]),
        ({"token": " \t"}, 400, ["token"]),
        ({"token": None}, 400, ["token"]),
        ({"token": ["a"]}, 400, ["token"]),
        ({}, 400, ["token"]),
        ({"token": "a", "remember": True}, 400, ["remember"]),
        (b'{"token": "a", "token": "b"}', 400, ["token"]),
        (b"[]", 400, []),
        (b"token=a", 400, []),
        (b"", 400, []),
        ({"token": "x" * 20_000}, 413, []),
    ],
)
def test_what_is_no_token_is_refused(
    gateway: GatewayServer, upstream: Upstream, body: Any, status: int, fields: list[str]
) -> None:
    headers = {**PAGE, "Content-Type": "application/json"}
    answer = gateway.call("POST", "/session", body, headers, token=False)
    assert (answer.status, answer.fields, given(answer)) == (status, fields, "")


def test_a_token_may_have_odd_characters(gateway: GatewayServer, upstream: Upstream) -> None:
    token = 'the administrator\'s "token"; a=b\\ %0d~'
    session = {**PAGE, "Cookie": given(sign_in(gateway, token)).partition(";")[0]}
    assert call(gateway, "unary", session).status == 200
    assert upstream.metadata[-1]["authorization"] == f"Bearer {token}"


def test_only_json_signs_in(gateway: GatewayServer, upstream: Upstream) -> None:
    """A form of somebody else's page can send anything but that."""
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {**PAGE, "Content-Type": media_type}
        assert gateway.call("POST", "/session", b'{"token": "a"}', headers, token=False).status == 415
    assert upstream.requests == []


def test_who_has_no_session_is_told_so(gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str]) -> None:
    for headers in ({}, {"Cookie": "a=b"}, {"Cookie": f"sis-session-{gateway.port}=x"}):
        answer = gateway.call("GET", "/session", headers=headers, token=False)
        assert (answer.status, answer.reason) == (401, "UNAUTHENTICATED")
    shown = gateway.call("GET", "/session", headers={**PAGE, **cookie}, token=False)
    assert (shown.status, list(shown.json), given(shown)) == (200, ["expireTime"], "")
    head = gateway.call("HEAD", "/session", headers={**PAGE, **cookie}, token=False)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(shown.body)))
    # An Authorization header is no session.
    assert gateway.call("GET", "/session").status == 401
    assert upstream.requests == []


def test_signing_out_removes_the_cookie(gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str]) -> None:
    for headers in ({**PAGE, **cookie}, PAGE):
        answer = gateway.call("DELETE", "/session", headers=headers, token=False)
        assert (answer.status, answer.json) == (200, {})
        assert given(answer) == (f"sis-session-{gateway.port}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    emptied = {**PAGE, "Cookie": given(answer).partition(";")[0]}
    assert call(gateway, "unary", emptied).status == 401


def test_signing_in_again_replaces_the_session(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str]
) -> None:
    """What a browser had before, or somebody planted in it, is not carried on."""
    answer = sign_in(gateway, "another", {**PAGE, **cookie})
    assert given(answer).partition(";")[0] != cookie["Cookie"]
    session = {**PAGE, "Cookie": given(answer).partition(";")[0]}
    upstream.metadata.clear()
    assert call(gateway, "unary", session).status == 200
    assert upstream.metadata[0]["authorization"] == "Bearer another"


def test_no_log_has_a_token(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sign_in(gateway)
    gateway.call("POST", "/session", f'{{"token": "{TOKEN}"'.encode(), {**PAGE, "Content-Type": "application/json"})
    gateway.call("POST", "/session", {TOKEN: TOKEN}, PAGE)
    sign_in(gateway, TOKEN + ",")
    call(gateway, "unary", {**PAGE, **cookie})
    call(gateway, "unary", {**PAGE, "Cookie": cookie["Cookie"][:-9]})
    upstream.answers["ListJobs"] = errors.Unauthenticated("unknown")
    sign_in(gateway)
    lines = [JsonFormatter("t").format(each) for each in caplog.records]
    assert [line for line in lines if '"/session"' in line]
    assert not [line for line in lines if TOKEN in line or cookie["Cookie"][-40:-20] in line]


# --- what a session proves ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_proves_every_kind_of_request(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], kind: str
) -> None:
    answer = call(gateway, kind, {**PAGE, **cookie})
    assert (answer.status, given(answer)) == (200, ""), answer.body
    assert upstream.metadata[0]["authorization"] == f"Bearer {TOKEN}"
    assert "cookie" not in upstream.metadata[0]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_cookie_nothing_is_proven(gateway: GatewayServer, upstream: Upstream, kind: str) -> None:
    answer = call(gateway, kind, PAGE)
    assert (answer.status, answer.reason) == (401, "UNAUTHENTICATED")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sis"'
    assert upstream.requests == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
    ids=lambda each: next(iter(each.values())),
)
def test_no_page_of_somebody_else_is_served(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], kind: str, headers: dict[str, str]
) -> None:
    answer = call(gateway, kind, {**headers, **cookie})
    assert (answer.status, answer.reason, given(answer)) == (403, "CROSS_ORIGIN", "")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert upstream.requests == []


@pytest.mark.parametrize("binding", bindings(), ids=lambda each: each.method.name)
def test_no_method_is_called_from_elsewhere(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], binding: Binding
) -> None:
    path = re.sub(r"\{\w+\}", "1", binding.template)
    # A page that was opened by hand may be read, but makes nothing happen.
    for site in ("cross-site", "same-site", *(["none", ""] if binding.verb != "GET" else [])):
        headers = {**cookie, **({"Sec-Fetch-Site": site} if site else {})}
        answer = gateway.call(binding.verb, path, b"{}", headers, token=False)
        assert (answer.status, answer.reason) == (403, "CROSS_ORIGIN")
    assert upstream.requests == []


@pytest.mark.parametrize("verb", ["POST", "DELETE"])
@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"}])
def test_nobody_else_signs_a_browser_in_or_out(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], verb: str, headers: dict[str, str]
) -> None:
    body = {"token": "the attacker's"} if verb == "POST" else None
    answer = gateway.call(verb, "/session", body, {**headers, **cookie})
    assert (answer.status, answer.reason, given(answer)) == (403, "CROSS_ORIGIN", "")
    assert upstream.requests == []


def test_a_browser_that_says_only_origin_is_served(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str]
) -> None:
    own = {"Origin": f"http://127.0.0.1:{gateway.port}"}
    assert sign_in(gateway, headers=own).status == 200
    for kind in KINDS:
        assert call(gateway, kind, {**own, **cookie}).status == 200
    for kind in READS:
        assert call(gateway, kind, cookie).status == 200


def test_a_header_is_what_counts_beside_a_cookie(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_RENEWED_AFTER", timedelta(0))
    answer = gateway.call("GET", "/v1/jobs/1", headers={**cookie, "Sec-Fetch-Site": "cross-site"})
    assert (answer.status, given(answer)) == (200, "")
    assert upstream.metadata[0]["authorization"] == "Bearer the administrator's token"


def test_a_token_that_was_revoked_proves_nothing(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str]
) -> None:
    refused = errors.Unauthenticated("this token is not known")
    for method in ("GetJob", "CancelJob", "PushPackage"):
        upstream.answers[method] = refused
    for method in ("WatchJobs", "DownloadPackage"):
        upstream.answers[method] = [refused]
    for kind in KINDS:
        answer = call(gateway, kind, {**PAGE, **cookie})
        assert (answer.status, answer.reason) == (401, "UNAUTHENTICATED")


# --- how long ---


@pytest.mark.parametrize("kind", KINDS)
def test_what_reads_renews_the_session(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(sessions, "_RENEWED_AFTER", timedelta(0))
    answer = call(gateway, kind, {**PAGE, **cookie})
    assert answer.status == 200
    if kind not in READS:
        assert given(answer) == ""
        return
    assert re.fullmatch(
        rf"sis-session-{gateway.port}=[\w=-]+; Path=/; HttpOnly; SameSite=Strict; Max-Age=[0-9]+", given(answer)
    )
    assert answer.headers["Cache-Control"] == "no-store"
    renewed = {"Cookie": given(answer).partition(";")[0]}
    assert renewed != cookie and call(gateway, kind, {**PAGE, **renewed}).status == 200


def test_a_renewal_goes_with_a_refusal_and_with_nothing_new(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_RENEWED_AFTER", timedelta(0))
    upstream.answers["GetJob"] = errors.NotFound("x", reason="JOB_NOT_FOUND")
    refused = call(gateway, "unary", {**PAGE, **cookie})
    same = call(gateway, "download", {**PAGE, **cookie, "If-None-Match": '"ab"'})
    assert (refused.status, same.status, same.body) == (404, 304, b"")
    assert given(refused) and given(same)


def test_a_session_that_has_ended_proves_nothing(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IDLE", "LONGEST"):
        with monkeypatch.context() as patch:
            patch.setattr(sessions, name, timedelta(0))
            for kind in KINDS:
                answer = call(gateway, kind, {**PAGE, **cookie})
                assert (answer.status, answer.reason, given(answer)) == (401, "UNAUTHENTICATED", "")
    assert upstream.requests == []


# --- gateways ---


@pytest.fixture
def proxied(
    thread: LoopThread, authority: CertificateAuthority, upstream: Upstream, upstream_endpoint: str
) -> Iterator[GatewayServer]:
    """A gateway behind a proxy."""
    found = GatewayServer(
        thread, authority.service("gateway"), queue=upstream_endpoint, behind_proxy=True, session_keys=[KEY]
    )
    yield found
    found.stop()


SECURE = r"__Host-sis-session=[\w=-]+; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=[0-9]+"


def test_behind_a_proxy_the_cookie_is_for_tls_alone(proxied: GatewayServer, upstream: Upstream) -> None:
    answer = sign_in(proxied, headers={"Origin": "https://sis.example", "Host": "sis.example"})
    assert re.fullmatch(SECURE, given(answer))
    session = {"Cookie": given(answer).partition(";")[0], "Host": "sis.example"}
    assert call(proxied, "upload", {**session, "Origin": "https://sis.example"}).status == 200
    assert call(proxied, "upload", {**session, "Origin": "http://sis.example"}).status == 403
    # The proxy says another Host; the browser, whose page it is.
    renamed = {**session, **PAGE, "Host": "10.0.0.1:8080", "Origin": "https://sis.example"}
    assert call(proxied, "upload", renamed).status == 200
    ended = given(proxied.call("DELETE", "/session", headers=PAGE, token=False))
    assert ended == "__Host-sis-session=; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=0"
    plain = {"Cookie": session["Cookie"].removeprefix("__Host-")}
    assert call(proxied, "unary", {**PAGE, **plain}).status == 401


def test_replicas_know_each_others_sessions(
    thread: LoopThread,
    authority: CertificateAuthority,
    upstream_endpoint: str,
    proxied: GatewayServer,
    upstream: Upstream,
) -> None:
    session = {**PAGE, "Cookie": given(sign_in(proxied)).partition(";")[0]}
    replica = GatewayServer(
        thread,
        authority.service("gateway"),
        queue=upstream_endpoint,
        behind_proxy=True,
        session_keys=[Fernet.generate_key(), KEY],
    )
    stranger = GatewayServer(thread, authority.service("gateway"), queue=upstream_endpoint, behind_proxy=True)
    try:
        assert call(replica, "unary", session).status == 200
        assert call(stranger, "unary", session).status == 401
    finally:
        replica.stop()
        stranger.stop()


def test_over_tls_the_cookie_is_for_tls_alone(
    thread: LoopThread, authority: CertificateAuthority, upstream: Upstream, upstream_endpoint: str
) -> None:
    site = authority.service("site")
    found = GatewayServer(thread, authority.service("gateway"), queue=upstream_endpoint, site=site)
    try:
        context = ssl.create_default_context(cafile=str(authority.ca))
        connection = http.client.HTTPSConnection("localhost", found.port, timeout=20, context=context)
        headers = {"Content-Type": "application/json", "Origin": f"https://localhost:{found.port}"}
        connection.request("POST", "/session", json.dumps({"token": TOKEN}), headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200 and re.fullmatch(SECURE, str(answer.headers["Set-Cookie"]))
        headers["Cookie"] = str(answer.headers["Set-Cookie"]).partition(";")[0]
        connection.request("POST", "/v1/jobs/1:cancel", "{}", headers)
        answer = connection.getresponse()
        assert (answer.read(), answer.status) == (b"{}", 200)
        connection.close()
    finally:
        found.stop()


# --- the console ---


def test_the_pages_of_the_console_need_no_session(gateway: GatewayServer, upstream: Upstream) -> None:
    first = gateway.call("GET", "/", token=False, headers={"Sec-Fetch-Site": "cross-site"})
    assert (first.status, first.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for path in ("/jobs", "/jobs/42", "/jobs/new?copy=1", "/credentials/a%2Fb", "/packages", "/agents", "/jobs/"):
        assert gateway.call("GET", path, token=False).body == first.body
    for each in set(re.findall(r'(?:href|src)="([^"]+)"', first.body.decode())):
        loaded = gateway.call("GET", each, token=False)
        assert (loaded.status, loaded.headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
        assert loaded.headers["X-Content-Type-Options"] == "nosniff"
        assert len(loaded.headers.get_all("Content-Security-Policy")) == 1
        assert "'unsafe" not in loaded.headers["Content-Security-Policy"]
    again = gateway.call("GET", "/jobs/7", headers={"If-None-Match": first.headers["ETag"]}, token=False)
    assert (again.status, again.body) == (304, b"")
    head = gateway.call("HEAD", "/jobs/7", token=False)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(first.body)))
    assert upstream.requests == []


def test_no_answer_that_is_kept_has_a_cookie(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_RENEWED_AFTER", timedelta(0))
    for path in ("/", "/console/x/main.js", "/reference", "/openapi.json", "/healthz"):
        answer = gateway.call("GET", path, headers={**PAGE, **cookie, "Accept-Encoding": "gzip"}, token=False)
        assert (answer.status, given(answer)) == (200, "")


def test_a_body_that_was_not_read_does_not_hide_a_refusal(
    gateway: GatewayServer, upstream: Upstream, cookie: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 0.5)
    headers = {**GZIP, **cookie, "Sec-Fetch-Site": "cross-site"}
    answer = gateway.call("POST", "/v1/packages", bytes(2_000_000), headers, token=False)
    assert (answer.status, answer.reason) == (403, "CROSS_ORIGIN")
