"""The shipped package `core.http`, run against servers on this machine."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.packages.values import File
from tests.integration.packages import web_server
from tests.integration.packages.operation_runner import Runner
from tests.integration.packages.web_server import WebServer
from tests.support.certificates import CertificateAuthority

TOKEN = {"SIS_CREDENTIAL_AUTH_TOKEN": "token-of-the-job"}
PASSWORD = {"SIS_CREDENTIAL_AUTH_USERNAME": "ada", "SIS_CREDENTIAL_AUTH_PASSWORD": "pass:wörd"}


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server.running() as running:
        yield running


@pytest.fixture
def other() -> Iterator[WebServer]:
    with web_server.running() as running:
        yield running


def test_an_answer_is_printed_and_given_back(run: Runner, server: WebServer) -> None:
    server.answer("/state?full=1", "fünf\n\nok\n".encode("latin-1"), Content_Type="text/plain; charset=latin-1")
    ended = run("core.http", "request", url=f"{server.url}/state?full=1#part", expect_body="^ok$|f.nf")
    assert (ended.exit_code, ended.stdout) == (0, "f\\xfcnf\n\nok\n")
    assert ended.stderr.startswith(f"200 OK from {server.url}/state?full=1#part: 9 bytes, ")
    assert int(ended.outputs.pop("elapsed_ms")) >= 0
    assert ended.outputs == {
        "status": "200",
        "content_type": "text/plain; charset=latin-1",
        "final_url": f"{server.url}/state?full=1#part",
        "body": "fünf\n\nok\n",
        "body_truncated": "false",
    }
    percents = [int(line.split()[0]) for line in ended.progress]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("GET", "/state?full=1", b"")
    assert asked.headers["host"] == server.url.removeprefix("http://")


def test_a_request_is_sent_as_it_was_given(run: Runner, server: WebServer) -> None:
    server.answer("/", status="201 Created")
    headers = ["Content-Type: application/json", "X-Note:  é $HOME ", "X-Note: twice"]
    assert run("core.http", "request", url=server.url, method="PUT", headers=headers, body='{"a": "é"}').exit_code == 0
    binary = bytes(range(256))
    assert run("core.http", "request", url=server.url, method="POST", body_file=File("x", binary)).exit_code == 0
    put, post = server.asked
    assert (put.method, put.body) == ("PUT", '{"a": "é"}'.encode())
    assert put.headers["content-type"] == "application/json"
    assert put.headers["x-note"].encode("latin-1").decode() == "é $HOME, twice"
    assert (post.method, post.body) == ("POST", binary)


@pytest.mark.parametrize(
    ("credential", "header", "name", "value"),
    [
        (TOKEN, None, "authorization", "Bearer token-of-the-job"),
        (TOKEN, "X-Api-Key", "x-api-key", "token-of-the-job"),
        (PASSWORD, None, "authorization", "Basic " + base64.b64encode("ada:pass:wörd".encode()).decode()),
    ],
)
def test_a_credential_goes_to_the_server_alone(
    run: Runner, server: WebServer, credential: dict[str, str], header: str | None, name: str, value: str
) -> None:
    server.answer("/")
    ended = run("core.http", "check", credential, url=server.url, **({"token_header": header} if header else {}))
    assert ended.exit_code == 0
    assert "unencrypted" in ended.stderr
    assert server.asked[0].headers[name] == value
    assert not any("token-of" in text or "wörd" in text for text in (ended.stdout, ended.stderr, str(ended.outputs)))


def test_a_redirect_is_an_answer_unless_it_is_to_be_followed(run: Runner, server: WebServer) -> None:
    server.redirect("/old", "/new")
    server.answer("/new", b"here")
    ended = run("core.http", "request", url=f"{server.url}/old")
    assert (ended.exit_code, ended.outputs["status"]) == (1, "302")
    assert "the status is 302, not one of 2xx" in ended.stderr
    assert run("core.http", "request", url=f"{server.url}/old", expected_status=["2xx", "302"]).exit_code == 0
    ended = run("core.http", "request", url=f"{server.url}/old", follow_redirects="true")
    assert (ended.exit_code, ended.stdout, ended.outputs["final_url"]) == (0, "here", f"{server.url}/new")


def test_another_host_is_told_no_secret(run: Runner, server: WebServer, other: WebServer) -> None:
    """Nor is the first one any more, after the other one could choose what it is asked."""
    server.redirect("/", f"{other.url}/there", "307 Temporary Redirect")
    other.redirect("/there", f"{server.url}/back")
    server.answer("/back")
    headers = ["X-Secret: s3cret", "Cookie: a=b", "Content-Type: text/plain", "Host: name.example"]
    ended = run(
        "core.http", "request", TOKEN, url=server.url, method="POST", body="text", headers=headers,
        follow_redirects="true",
    )  # fmt: skip
    assert ended.exit_code == 0
    first, back = server.asked
    (there,) = other.asked
    assert {"authorization", "x-secret", "cookie"} <= first.headers.keys()
    assert first.headers["host"] == "name.example"
    assert (there.method, there.body, there.headers["content-type"]) == ("POST", b"text", "text/plain")
    assert there.headers["host"] == other.url.removeprefix("http://")
    assert back.method == "GET"
    for asked in (there, back):
        assert not {"authorization", "x-secret", "cookie"} & asked.headers.keys()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/", "more than 10 redirects"),
        ("http://user:secret@127.0.0.1/", "holds a user name"),
        ("ftp://127.0.0.1/", "is not a URL of http or https"),
        ("http://[::1", "redirects to what is no URL"),
        ("http://127.0.0.1:99999/", "is not a URL"),
    ],
)
def test_redirects_that_are_not_followed(run: Runner, server: WebServer, target: str, words: str) -> None:
    server.redirect("/", target)
    ended = run("core.http", "check", url=f"{server.url}/", follow_redirects="true")
    assert (ended.exit_code, ended.outputs) == (2, {})
    assert words in ended.stderr


def test_servers_must_prove_themselves(run: Runner, server: WebServer, tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "authority")
    ca = File("ca.pem", authority.ca.read_bytes())
    with web_server.running(authority.service("web")) as secure:
        secure.answer("/", b"secure")
        secure.redirect("/down", server.url)
        ended = run("core.http", "check", TOKEN, url=secure.url)
        assert (ended.exit_code, secure.asked) == (2, [])
        assert "its certificate is not trusted: " in ended.stderr
        ended = run("core.http", "check", TOKEN, url=secure.url, ca_file=ca)
        assert (ended.exit_code, ended.stdout) == (0, "secure")
        assert "unencrypted" not in ended.stderr
        ended = run("core.http", "check", url=secure.url, insecure="true")
        assert (ended.exit_code, ended.stdout) == (0, "secure")
        assert "whoever answers is believed" in ended.stderr
        ended = run("core.http", "check", url=f"{secure.url}/down", ca_file=ca, follow_redirects="true")
        assert (ended.exit_code, server.asked) == (2, [])
        assert "from https to http" in ended.stderr


def test_checks_that_fail(run: Runner, server: WebServer) -> None:
    server.answer("/", b"degraded" * 10, "503 Service Unavailable")
    ended = run(
        "core.http", "check", url=server.url, expected_status=["200", "204"], expect_body="healthy", max_bytes="79"
    )
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[1:] == [
        "the status is 503, not one of 200, 204",
        "the body has more than 79 bytes; the rest was not read",
        "nothing in the body matches 'healthy'",
    ]
    assert (ended.outputs["status"], ended.outputs["body_truncated"]) == ("503", "true")
    assert ended.stdout == ("degraded" * 10)[:79]


def test_a_body_that_never_ends_is_not_read_to_its_end(run: Runner, server: WebServer) -> None:
    server.answers["/"] = [b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 2_000_000, None]
    ended = run("core.http", "check", url=server.url)
    assert (ended.exit_code, len(ended.stdout)) == (1, 1 << 20)
    assert ended.outputs["body"] == "a" * 60_000
    assert ended.outputs["body_truncated"] == "true"


def test_a_body_is_not_read_in_a_character_set_that_takes_for_ever(run: Runner, server: WebServer) -> None:
    body = b"9" * 1_000_000
    server.answer("/", body, Content_Type="text/plain; charset=punycode")
    ended = run("core.http", "request", url=server.url, expect_body="9")
    assert (ended.exit_code, ended.outputs["body"]) == (0, body[:60_000].decode())


def test_any_body_fits_an_output(run: Runner, server: WebServer) -> None:
    server.answer("/", b"\0\xff" + "ü".encode() * 40_000, Content_Type="text/\xff; charset=no-such")
    ended = run("core.http", "check", url=server.url)
    assert ended.exit_code == 0
    assert ended.outputs["body"] == "\ufffd\ufffd" + "ü" * 29_997
    assert ended.outputs["body_truncated"] == "true"
    assert ended.outputs["content_type"] == "text/ÿ; charset=no-such"


def test_head_has_no_body(run: Runner, server: WebServer) -> None:
    server.answer("/", b"body")
    ended = run("core.http", "check", url=server.url, method="HEAD")
    assert (ended.exit_code, ended.stdout, ended.outputs["body"]) == (0, "", "")


@pytest.mark.parametrize(
    ("parts", "timeout", "words"),
    [
        ([None], 2, "not done after 2 s, still waiting for the answer of"),
        ([b"HTTP/1.1 200 OK\r\n\r\nso far", None], 4, "not done after 4 s, still reading the answer of"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nso far"], 20, "before the end of the body"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nso"], 20, "before the end of the body"),
        ([], 20, "without an answer"),
        ([b"220 mail.example ESMTP\r\n"], 20, "is not HTTP"),
    ],
)
def test_answers_that_do_not_come(
    run: Runner, server: WebServer, parts: list[bytes | None], timeout: int, words: str
) -> None:
    server.answers["/"] = parts
    ended = run("core.http", "request", url=server.url, timeout=str(timeout))
    assert (ended.exit_code, ended.stdout, ended.outputs) == (2, "", {})
    assert words in ended.stderr


def test_nobody_is_there(run: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ended = run("core.http", "check", url=f"http://127.0.0.1:{port}/")
    assert (ended.exit_code, ended.stderr) == (2, f"127.0.0.1:{port}: no connection: Connection refused\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_end_of_an_ipv6_address_is_no_port(run: Runner, scheme: str) -> None:
    # A multicast address, with which nothing connects.
    ended = run("core.http", "check", url=f"{scheme}://[ff02::1]/")
    assert ended.exit_code == 2
    assert ended.stderr.startswith("[ff02::1]: no connection: ")


@pytest.mark.parametrize(
    ("credential", "values", "words"),
    [
        ({}, {"expect_body": "("}, "expect_body is not a regular expression"),
        ({}, {"expect_body": "x", "method": "HEAD"}, "HEAD has no body"),
        ({}, {"body": "x", "body_file": File("y", b"z")}, "body and body_file are both given"),
        ({}, {"headers": ["authorization: Bearer secret"]}, "name a credential as auth"),
        ({}, {"headers": ["X-Note: a\rX-Other: b"]}, "headers: X-Note has a control character"),
        ({}, {"ca_file": File("ca.pem", b"nothing")}, "ca_file holds no certificate"),
        ({}, {"ca_file": File("ca.pem", b"nothing"), "insecure": "true"}, "ca_file and insecure are both given"),
        ({}, {"url": "http://é.example/"}, "characters beyond ASCII"),
        ({}, {"url": "http://a..b/"}, "is not a URL"),
        ({"SIS_CREDENTIAL_AUTH_TOKEN": "se\ncret"}, {}, "the token has a control character"),
        ({**PASSWORD, "SIS_CREDENTIAL_AUTH_USERNAME": "a:b"}, {}, "has a colon"),
    ],
)
def test_what_cannot_be_asked_is_not_sent(
    run: Runner, server: WebServer, credential: dict[str, str], values: dict[str, str], words: str
) -> None:
    server.answer("/")
    ended = run("core.http", "request", credential, **{"url": f"{server.url}/", **values})
    assert (ended.exit_code, server.asked) == (2, [])
    assert words in ended.stderr
    assert "cret" not in ended.stderr.replace("a secret", "")
