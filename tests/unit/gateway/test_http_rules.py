"""Ranges, media types, addresses, the forms of streams, and the settings."""

from __future__ import annotations

import pytest

from gateway.errors import NotAcceptable, RangeNotSatisfiable, UnsupportedMediaType, failure
from gateway.front import _origin
from gateway.main import GatewaySettings
from gateway.negotiation import BYTES, EVENTS, JSON, LINES, accepted, check_content_type
from gateway.ranges import Conditions, File, Part, part
from gateway.server import is_loopback
from gateway.streams import FORMS
from services.runtime.errors import NotFound
from sis.queue.v1 import job_service_pb2 as pb
from tests.support.exchanges import exchange

FILE = File(100, '"abc"')
WHOLE = Part(200, 0, 100)


@pytest.mark.parametrize(
    ("range_", "expected"),
    [
        ("", WHOLE),
        ("bytes=0-", Part(206, 0, 100)),
        ("bytes=0-0", Part(206, 0, 1)),
        ("bytes=10-19", Part(206, 10, 10)),
        ("BYTES=10-19", Part(206, 10, 10)),
        ("bytes= 10-19 ", Part(206, 10, 10)),
        ("bytes=99-", Part(206, 99, 1)),
        ("bytes=90-1000", Part(206, 90, 10)),
        ("bytes=-1", Part(206, 99, 1)),
        ("bytes=-1000", Part(206, 0, 100)),
        ("bytes=0-1,5-6", WHOLE),
        ("bytes=", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=5", WHOLE),
        ("bytes=9-8", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=١-٢", WHOLE),
        ("bytes=--5", WHOLE),
        ("items=0-5", WHOLE),
        ("bytes=0-" + "9" * 30, WHOLE),
    ],
)
def test_a_range(range_: str, expected: Part) -> None:
    assert part(Conditions(range=range_), FILE) == expected


@pytest.mark.parametrize(
    ("range_", "size"),
    [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)],
)
def test_a_range_that_there_is_not(range_: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        part(Conditions(range=range_), File(size, '"abc"'))
    assert list(caught.value.headers) == [(b"content-range", b"bytes */%d" % size)]


@pytest.mark.parametrize(
    ("if_range", "etag", "status"),
    [
        ('"abc"', '"abc"', 206),
        ('"old"', '"abc"', 200),
        ('W/"abc"', '"abc"', 200),
        ("yesterday", '"abc"', 200),
        ('""', "", 200),
    ],
)
def test_a_range_of_what_it_was(if_range: str, etag: str, status: int) -> None:
    assert part(Conditions("bytes=5-", if_range), File(100, etag)).status == status


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [
        ('"abc"', 304),
        ('W/"abc"', 304),
        ('"x", "abc"', 304),
        ("*", 304),
        ('"x"', 200),
        ("abc", 200),
        ('"ab', 200),
        ("", 200),
    ],
)
def test_what_is_there_already(if_none_match: str, status: int) -> None:
    assert part(Conditions(if_none_match=if_none_match), FILE).status == status
    assert part(Conditions(if_none_match=if_none_match), File(100)).status == 200


STREAMED = (EVENTS, LINES)


@pytest.mark.parametrize(
    ("accept", "offered", "expected"),
    [
        (None, STREAMED, EVENTS),
        (b"", STREAMED, EVENTS),
        (b"*/*", STREAMED, EVENTS),
        (b"text/html, application/xhtml+xml, */*;q=0.8", STREAMED, EVENTS),
        (b"application/x-ndjson", STREAMED, LINES),
        (b"APPLICATION/X-NDJSON", STREAMED, LINES),
        (b"text/*", STREAMED, EVENTS),
        (b"application/*", STREAMED, LINES),
        (b"text/event-stream;q=0.5, application/x-ndjson", STREAMED, LINES),
        (b"*/*, text/event-stream;q=0", STREAMED, LINES),
        (b"application/json; charset=utf-8", (JSON,), JSON),
        (b"*/*", ("application/gzip", BYTES, EVENTS), "application/gzip"),
        (b"application/octet-stream", ("application/gzip", BYTES, EVENTS), BYTES),
        (b"application/json", STREAMED, None),
        (b"*/*;q=0", STREAMED, None),
        (b"text/event-stream;q=0", (EVENTS,), None),
        (b"\xff\xfe", (JSON,), None),
        (b"," * 1000, (JSON,), None),
    ],
)
def test_accept(accept: bytes | None, offered: tuple[str, ...], expected: str | None) -> None:
    if expected is not None:
        assert accepted(accept, offered) == expected
    else:
        with pytest.raises(NotAcceptable):
            accepted(accept, offered)


@pytest.mark.parametrize(
    "value", [b"application/json", b"Application/JSON; charset=UTF-8", b'application/json; charset="utf-8"']
)
def test_a_content_type(value: bytes) -> None:
    check_content_type(value, (JSON,))


@pytest.mark.parametrize(
    "value", [None, b"", b"text/plain", b"application/json; charset=latin-1", b"application/jsonp", b"\xff"]
)
def test_another_content_type_is_refused(value: bytes | None) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_content_type(value, (JSON,))


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("br;q=1, gzip;q=0.001", True),
        ("gzip ; Q=1.000", True),
        ("gzip;q=1.", True),
        ("", False),
        ("br, deflate", False),
        ("*", False),
        ("x-gzip, gzipped", False),
        ("gzip;q=0", False),
        ("gzip;q=0.", False),
        ("gzip;q=0.000", False),
        ("gzip;q=0.0000", False),
        ("gzip;q=2", False),
        ("gzip;q=", False),
        ("gzip;level=9", False),
        ("gzip br", False),
    ],
)
def test_who_takes_what_is_compressed(accepted: str, expected: bool) -> None:
    assert exchange(headers=[("accept-encoding", accepted)])[0].takes_gzip is expected


@pytest.mark.parametrize(
    ("forwarded", "behind_proxy", "expected"),
    [
        ([], True, "10.0.0.9"),
        (["1.2.3.4"], False, "10.0.0.9"),
        (["1.2.3.4"], True, "1.2.3.4"),
        (["6.6.6.6, 1.2.3.4"], True, "1.2.3.4"),
        (["6.6.6.6", "1.2.3.4"], True, "1.2.3.4"),
        (["1.2.3.4:5678"], True, "1.2.3.4"),
        (["2001:db8::1"], True, "2001:db8::1"),
        (["[2001:db8::1]:443"], True, "2001:db8::1"),
        (["fe80::1%évil"], True, "fe80::1"),
        (["unknown"], True, "10.0.0.9"),
        (["6.6.6.6, "], True, "10.0.0.9"),
        (["6.6.6.6, évil"], True, "10.0.0.9"),
    ],
)
def test_where_a_caller_is(forwarded: list[str], behind_proxy: bool, expected: str) -> None:
    headers = [(b"x-forwarded-for", each.encode("latin-1")) for each in forwarded]
    assert _origin({"client": ("10.0.0.9", 1), "headers": headers}, behind_proxy) == expected


def test_an_event_carries_its_token() -> None:
    events, lines = FORMS[EVENTS], FORMS[LINES]
    message = pb.WatchJobsResponse(resume_token="t1", gone_job_ids=[1])
    assert events.message(message) == b'id: t1\ndata: {"resumeToken":"t1","goneJobIds":["1"],"jobs":[]}\n\n'
    assert lines.message(message) == b'{"resumeToken":"t1","goneJobIds":["1"],"jobs":[]}\n'
    assert events.message(pb.WatchJobsResponse()).startswith(b"data: ")
    assert events.message(pb.WatchJobsResponse(resume_token="a\nevent: end")).startswith(b"data: ")
    assert events.message(pb.GetDebugLogResponse()) == b"data: {}\n\n"


def test_no_content_can_end_an_event() -> None:
    text = "a\n\n\r\rdata: x\u2028\x85"
    written = FORMS[EVENTS].message(pb.MonitorJobResponse(history={"actor": text}))
    assert written.count(b"\n") == 2 and written.endswith(b"\n\n") and b"\r" not in written


def test_a_failure_is_an_event_or_the_last_line() -> None:
    found = failure(NotFound("x", reason="JOB_NOT_FOUND"))
    assert FORMS[EVENTS].failure(found) == b"event: failure\ndata: " + found.document + b"\n\n"
    assert FORMS[LINES].failure(found) == found.document + b"\n"


# --- settings ---

COMPLETE = {
    "TLS_CA": "/ca.pem",
    "IDENTITY": "/identity",
    "JOIN_ENDPOINT": "credentials:7403",
    "JOIN_TOKEN_FILE": "/token",
    "QUEUE_ENDPOINT": "ipv4:10.0.0.1:7402,10.0.0.2:7402",
    "CREDENTIALS_ENDPOINT": "credentials:7404",
    "HUB_ENDPOINT": "hub:7411",
}


def load(monkeypatch: pytest.MonkeyPatch, **changes: str) -> GatewaySettings:
    for name, value in {**COMPLETE, **changes}.items():
        monkeypatch.setenv(f"SIS_GATEWAY_{name}", value)
    return GatewaySettings.load()


@pytest.mark.parametrize(
    "changes",
    [
        {"LISTEN": "127.0.0.1:0"},
        {"LISTEN": "[::1]:8443"},
        {"LISTEN": "localhost:8443"},
        {"LISTEN": "0.0.0.0:8443", "BEHIND_PROXY": "true"},
        {"LISTEN": "0.0.0.0:8443", "TLS_CERTIFICATE": "/c.pem", "TLS_KEY": "/k.pem"},
    ],
)
def test_where_tokens_are_safe(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    assert load(monkeypatch, **changes).queue_endpoint == "ipv4:10.0.0.1:7402,10.0.0.2:7402"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"LISTEN": "0.0.0.0:8443"}, "SIS_GATEWAY_LISTEN: tokens would cross"),
        ({"LISTEN": "[::]:8443"}, "SIS_GATEWAY_LISTEN: tokens would cross"),
        ({"LISTEN": "example.com:8443"}, "SIS_GATEWAY_LISTEN: tokens would cross"),
        ({"LISTEN": "127.0.0.1:0", "TLS_KEY": "/k.pem"}, "SIS_GATEWAY_TLS_KEY: give it together"),
        ({"LISTEN": "127.0.0.1:0", "TLS_CERTIFICATE": "/c.pem"}, "SIS_GATEWAY_TLS_KEY: give it together"),
        ({"LISTEN": "127.0.0.1"}, "SIS_GATEWAY_LISTEN: give host:port"),
    ],
)
def test_what_is_wrong_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, str], line: str
) -> None:
    with pytest.raises(SystemExit):
        load(monkeypatch, **changes)
    assert f"error: {line}" in capsys.readouterr().err


def test_loopback_is_what_only_this_machine_reaches() -> None:
    assert [is_loopback(each) for each in ("127.9.9.9:1", "[::1]:1", "localhost:1", "10.0.0.1:1", "host:1")] == [
        True,
        True,
        True,
        False,
        False,
    ]
