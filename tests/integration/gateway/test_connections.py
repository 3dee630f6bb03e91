"""What arrives on a connection, and how: each bound holds, and what is no HTTP gets an answer too."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from gateway import connection
from gateway.server import Certificate
from tests.fakes.upstream import Upstream
from tests.support.certificates import CertificateAuthority
from tests.support.gateway_server import GatewayServer, LoopThread


def spoken(gateway: GatewayServer, *pieces: bytes) -> bytes:
    """What is answered until the connection is closed."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as found:
        for piece in pieces:
            found.sendall(piece)
        answer = b""
        with suppress(ConnectionResetError):
            while data := found.recv(65_536):
                answer += data
        return answer


def reason(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-content-type-options: nosniff\r\n" in head and b"\r\nconnection: close" in head
    error = json.loads(body)["error"]
    assert head.startswith(b"HTTP/1.1 %d " % error["code"])
    return error["code"], error["details"][0]["reason"]


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: a\x01\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http(gateway: GatewayServer, request_: bytes) -> None:
    answer = spoken(gateway, request_)
    assert reason(answer) == (400, "MALFORMED_REQUEST")
    assert b"\r\nx-request-id: " in answer


@pytest.mark.parametrize(
    "request_",
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 40_000, b"\r\n\r\n"),
        (b"GET /healthz HTTP/1.1\r\n", b"X: x\r\n" * 10_000),
        (b"GET /" + b"x" * 40_000,),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",),
    ],
)
def test_a_head_that_is_too_large(gateway: GatewayServer, request_: tuple[bytes, ...]) -> None:
    assert reason(spoken(gateway, *request_)) == (431, "MALFORMED_REQUEST")


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"GET"])
def test_a_head_that_does_not_come(gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.1)
    assert spoken(gateway, *([begun] if begun else [])) == b""


def test_what_follows_a_body_is_bounded(gateway: GatewayServer) -> None:
    head = b"POST /v1/jobs:apply HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n"
    typed = b"Content-Type: application/json\r\n\r\n2\r\n{}\r\n0\r\nX: "
    assert reason(spoken(gateway, head + typed, *[b"x" * 100_000] * 12))[1] == "MALFORMED_REQUEST"


def test_connections_have_a_bound(gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTION_LIMIT", 0)
    assert spoken(gateway) == b""


def test_a_connection_is_kept_for_the_next_request(gateway: GatewayServer) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert spoken(gateway, one, one, last).count(b"HTTP/1.1 200 OK") == 3


def test_another_protocol_is_not_spoken(gateway: GatewayServer) -> None:
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert spoken(gateway, upgrade).startswith(b"HTTP/1.1 200 OK")


def test_a_large_body_waits_until_it_is_asked_for(gateway: GatewayServer, upstream: Upstream) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nContent-Type: application/json\r\n"
    answer = spoken(gateway, head + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    assert b"100 Continue" not in answer
    assert reason(answer) == (413, "BODY_TOO_LARGE")


def test_browsers_are_spoken_to_in_tls_and_told_to_stay_with_it(
    thread: LoopThread, authority: CertificateAuthority, upstream_endpoint: str
) -> None:
    tls, site = authority.service("gateway"), authority.service("site")
    found = GatewayServer(thread, tls, queue=upstream_endpoint, site=site)
    try:
        context = ssl.create_default_context(cafile=str(authority.ca))
        connection_ = http.client.HTTPSConnection("localhost", found.port, timeout=20, context=context)
        connection_.request("GET", "/healthz")
        answer = connection_.getresponse()
        assert answer.status == 200
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        connection_.close()
        assert spoken(found, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").count(b"HTTP/1.1 200") == 0
    finally:
        found.stop()


def test_a_certificate_is_read_anew(authority: CertificateAuthority, tmp_path: Path) -> None:
    def shown(certificate: Certificate) -> int:
        client = ssl.create_default_context(cafile=str(authority.ca))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        theirs, ours = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = certificate.context.wrap_bio(incoming, outgoing, server_side=True)
        peer = client.wrap_bio(theirs, ours, server_hostname="localhost")
        for _ in range(3):
            for side, out, into in ((peer, ours, incoming), (server, outgoing, theirs)):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                into.write(out.read())
        return hash(peer.getpeercert(binary_form=True))

    tls = authority.service("site")
    certificate = Certificate(tls.certificate, tls.key)
    first = shown(certificate)
    key = tls.key.read_bytes()
    authority.service("site")  # another key and certificate in the same files
    renewed = tls.key.read_bytes()
    tls.key.write_bytes(key)
    certificate.look()  # they do not belong together
    assert shown(certificate) == first
    tls.key.write_bytes(renewed)
    certificate.look()
    assert shown(certificate) != first
