"""Files: downloads whole and in ranges, uploads."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from gateway import byte_streams, upstreams
from gateway.errors import Refused
from gateway.routes import bindings
from services.runtime import errors
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as jobs
from sis.queue.v1 import package_service_pb2 as pb
from tests.fakes.upstream import Upstream
from tests.support.gateway_server import GatewayServer, LoopThread, events

CONTENT = bytes(range(256)) * 1_000
DIGEST = "ab" * 32
ETAG = f'"{DIGEST}"'
ARCHIVE = "/v1/packages/core.shell/archive"
PACKAGES = "/v1/packages"
GZIP = {"Content-Type": "application/gzip"}


def _serve(upstream: Upstream, content: bytes = CONTENT, digest: str = DIGEST) -> None:
    async def download(request: pb.DownloadPackageRequest, context: Any) -> AsyncIterator[Any]:
        yield pb.DownloadPackageResponse(info=pb.PackageArchive(digest=digest, size_bytes=len(content)))
        end = request.offset + request.length if request.length else len(content)
        for start in range(request.offset, min(end, len(content)), 7_000):
            yield pb.DownloadPackageResponse(chunk=content[start : min(start + 7_000, end)])

    upstream.answers["DownloadPackage"] = download


def test_a_whole_file(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream)
    for accept in ("*/*", "application/gzip", "application/octet-stream", "text/html, */*;q=0.1"):
        answer = gateway.call("GET", f"{ARCHIVE}?version=1.0.0", headers={"Accept": accept})
        assert (answer.status, answer.body) == (200, CONTENT)
        headers = answer.headers
        assert (headers["Content-Type"], headers["Content-Length"]) == ("application/gzip", str(len(CONTENT)))
        assert (headers["ETag"], headers["Accept-Ranges"]) == (ETAG, "bytes")
        assert headers["Content-Disposition"] == 'attachment; filename="core.shell-archive.tar.gz"'
    assert upstream.asked("DownloadPackage")[0] == pb.DownloadPackageRequest(name="core.shell", version="1.0.0")
    assert len(upstream.requests) == 4


@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-70000", 100, 70_000),
        ("bytes=255990-", 255_990, 255_999),
        ("bytes=-10", 255_990, 255_999),
        ("bytes=255000-999999", 255_000, 255_999),
    ],
)
def test_a_range(gateway: GatewayServer, upstream: Upstream, range_: str, first: int, last: int) -> None:
    _serve(upstream)
    answer = gateway.call("GET", ARCHIVE, headers={"Range": range_})
    assert (answer.status, answer.body) == (206, CONTENT[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/256000"
    assert (answer.headers["Content-Length"], answer.headers["ETag"]) == (str(last - first + 1), ETAG)
    request = upstream.asked("DownloadPackage")[-1]
    assert (request.offset, request.length) == (first, last - first + 1)


def test_several_ranges_are_the_whole(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream)
    assert gateway.call("GET", ARCHIVE, headers={"Range": "bytes=0-1,5-6"}).body == CONTENT


def test_a_range_that_there_is_not(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream)
    answer = gateway.call("GET", ARCHIVE, headers={"Range": "bytes=256000-"})
    assert (answer.status, answer.reason) == (416, "RANGE_NOT_SATISFIABLE")
    assert answer.headers["Content-Range"] == "bytes */256000"


def test_what_the_client_has_is_not_sent_again(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream)
    same = gateway.call("GET", ARCHIVE, headers={"If-None-Match": ETAG})
    assert (same.status, same.body, same.headers["ETag"]) == (304, b"", ETAG)
    assert gateway.call("GET", ARCHIVE, headers={"If-None-Match": '"other"'}).body == CONTENT
    assert gateway.call("GET", ARCHIVE, headers={"Range": "bytes=5-9", "If-Range": ETAG}).status == 206
    changed = gateway.call("GET", ARCHIVE, headers={"Range": "bytes=5-9", "If-Range": '"other"'})
    assert (changed.status, changed.body) == (200, CONTENT)


def test_the_head_of_a_file(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream)
    answer = gateway.call("HEAD", ARCHIVE, headers={"Range": "bytes=5-9"})
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "256000")
    assert answer.headers["ETag"] == ETAG


def test_an_empty_file(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream, b"", "")
    answer = gateway.call("GET", ARCHIVE)
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert "ETag" not in answer.headers
    assert gateway.call("GET", ARCHIVE, headers={"Range": "bytes=0-"}).status == 416


@pytest.mark.parametrize(
    ("query", "headers", "expected", "range_"),
    [
        ("offset=5", {}, CONTENT[5:], None),
        ("length=5", {}, CONTENT[:5], None),
        ("offset=5&length=1", {}, CONTENT[5:6], None),
        ("offset=255999&length=9", {}, CONTENT[-1:], None),
        ("offset=256000", {}, b"", None),
        ("offset=5&length=10", {"Range": "bytes=2-3"}, CONTENT[7:9], "bytes 2-3/10"),
        ("offset=5", {"Range": "bytes=-3"}, CONTENT[-3:], "bytes 255992-255994/255995"),
        ("length=10", {"Range": "bytes=8-"}, CONTENT[8:10], "bytes 8-9/10"),
        ("offset=5&length=10", {"If-None-Match": '"other"'}, CONTENT[5:15], None),
    ],
)
def test_what_the_query_leaves_is_the_file(
    gateway: GatewayServer,
    upstream: Upstream,
    query: str,
    headers: dict[str, str],
    expected: bytes,
    range_: str | None,
) -> None:
    _serve(upstream)
    answer = gateway.call("GET", f"{ARCHIVE}?{query}", headers=headers)
    assert (answer.status, answer.body) == (206 if range_ else 200, expected)
    assert (answer.headers["Content-Length"], answer.headers["Content-Range"]) == (str(len(expected)), range_)
    if not range_:
        assert gateway.call("HEAD", f"{ARCHIVE}?{query}").headers["Content-Length"] == str(len(expected))
        lines = gateway.call("GET", f"{ARCHIVE}?{query}", headers={"Accept": "application/x-ndjson"}).body.splitlines()
        assert b"".join(base64.b64decode(json.loads(line)["chunk"]) for line in lines[1:]) == expected


def test_of_what_the_query_leaves_there_may_be_no_such_range(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream)
    answer = gateway.call("GET", f"{ARCHIVE}?offset=5&length=10", headers={"Range": "bytes=10-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */10")


def test_a_name_is_safe(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream)
    answer = gateway.call("GET", "/v1/packages/..%2F%22%0dSet-Cookie%3A%20a/archive")
    assert answer.headers["Content-Disposition"] == ('attachment; filename="_2F_22_0dSet-Cookie_3A_20a-archive.tar.gz"')
    assert "Set-Cookie" not in answer.headers


def test_the_messages_when_they_are_asked_for(gateway: GatewayServer, upstream: Upstream) -> None:
    _serve(upstream, b"abc")
    with gateway.opened("GET", ARCHIVE, headers={"Accept": "text/event-stream"}) as response:
        first, second, end = events(response)
    assert '"sizeBytes":"3"' in first["data"] and '"chunk":"YWJj"' in second["data"] and end["event"] == "end"


def test_an_error_is_an_answer(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["DownloadPackage"] = [errors.NotFound("x", reason="PACKAGE_NOT_FOUND")]
    for headers in ({}, {"Range": "bytes=0-5"}):
        answer = gateway.call("GET", ARCHIVE, headers=headers)
        assert (answer.status, answer.reason) == (404, "PACKAGE_NOT_FOUND")
    assert gateway.call("HEAD", ARCHIVE).status == 404


def test_what_is_written_meanwhile_does_not_count(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["GetConsoleOutput"] = [
        jobs.GetConsoleOutputResponse(log=job_pb2.LogSummary(output_bytes=5, digest="d")),
        jobs.GetConsoleOutputResponse(chunk=frame_pb2.Chunk(data=b"abc")),
        jobs.GetConsoleOutputResponse(chunk=frame_pb2.Chunk(data=b"defgh")),
    ]
    answer = gateway.call("GET", "/v1/jobs/42/output")
    assert (answer.status, answer.body, answer.headers["ETag"]) == (200, b"abcde", '"d"')
    assert answer.headers["Content-Disposition"] == 'attachment; filename="42-output.bin"'


@pytest.mark.parametrize("end", [None, grpc.StatusCode.UNAVAILABLE, errors.Unavailable("x")])
def test_less_than_was_promised_is_cut_off(gateway: GatewayServer, upstream: Upstream, end: Any) -> None:
    upstream.answers["DownloadPackage"] = [
        pb.DownloadPackageResponse(info=pb.PackageArchive(size_bytes=100, digest="d")),
        pb.DownloadPackageResponse(chunk=b"abc"),
        *([end] if end is not None else []),
    ]
    with gateway.opened("GET", ARCHIVE) as response:
        assert response.status == 200
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def test_a_file_that_changes_between_two_looks(gateway: GatewayServer, upstream: Upstream) -> None:
    sizes = iter([100, 50, 200, 300])

    async def changing(request: pb.DownloadPackageRequest, context: Any) -> AsyncIterator[Any]:
        size = next(sizes)
        yield pb.DownloadPackageResponse(info=pb.PackageArchive(digest=f"d{size}", size_bytes=size))
        yield pb.DownloadPackageResponse(chunk=bytes(request.length))

    upstream.answers["DownloadPackage"] = changing
    answer = gateway.call("GET", ARCHIVE, headers={"Range": "bytes=-80"})
    assert (answer.status, answer.reason) == (503, "DEPENDENCY_UNAVAILABLE")
    assert [(each.offset, each.length) for each in upstream.asked("DownloadPackage")] == [(0, 1), (20, 80), (0, 50)]


@pytest.mark.parametrize("range_", ["bytes=20-", "bytes=20-999"])
def test_a_file_that_grows_all_the_time(gateway: GatewayServer, upstream: Upstream, range_: str) -> None:
    """What it had at the first look is sent, whatever came behind it."""
    sizes = iter([100, 150, 200, 300])

    async def growing(request: pb.DownloadPackageRequest, context: Any) -> AsyncIterator[Any]:
        yield pb.DownloadPackageResponse(info=pb.PackageArchive(size_bytes=next(sizes)))
        yield pb.DownloadPackageResponse(chunk=bytes(request.length))

    upstream.answers["DownloadPackage"] = growing
    answer = gateway.call("GET", ARCHIVE, headers={"Range": range_})
    assert (answer.status, answer.body) == (206, bytes(80))
    assert answer.headers["Content-Range"] == "bytes 20-99/150"


def test_a_client_that_goes_away_ends_the_download(gateway: GatewayServer, upstream: Upstream) -> None:
    async def endless(request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.DownloadPackageResponse(info=pb.PackageArchive(size_bytes=1 << 40))
        while True:
            yield pb.DownloadPackageResponse(chunk=bytes(100_000))

    upstream.answers["DownloadPackage"] = endless
    with gateway.opened("GET", ARCHIVE) as response:
        assert len(response.read(1_000)) == 1_000
    assert upstream.cancelled.get(timeout=20) == "DownloadPackage"


# --- uploads ---

PUSHED = pb.PushPackageResponse(package=pb.Package(name="core.shell"))


def _received(upstream: Upstream) -> tuple[pb.PackageUpload, bytes]:
    (messages,) = upstream.asked("PushPackage")
    first, *rest = messages
    assert first.HasField("upload") and all(len(each.chunk) <= 1024 * 1024 for each in rest)
    return first.upload, b"".join(each.chunk for each in rest)


@pytest.mark.parametrize("media_type", ["application/gzip", "application/octet-stream"])
def test_an_upload(gateway: GatewayServer, upstream: Upstream, media_type: str) -> None:
    upstream.answers["PushPackage"] = PUSHED
    answer = gateway.call("POST", f"{PACKAGES}?upload.digest={DIGEST}", CONTENT * 4, {"Content-Type": media_type})
    assert (answer.status, answer.json["package"]["name"]) == (200, "core.shell")
    assert _received(upstream) == (pb.PackageUpload(digest=DIGEST, size_bytes=len(CONTENT) * 4), CONTENT * 4)


def test_an_upload_of_unknown_length(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["PushPackage"] = PUSHED
    assert gateway.call("POST", PACKAGES, iter([b"ab", b"cd"]), GZIP).status == 200
    assert _received(upstream) == (pb.PackageUpload(), b"abcd")


def test_an_upload_of_nothing(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["PushPackage"] = PUSHED
    assert gateway.call("POST", PACKAGES, b"", GZIP).status == 200
    assert _received(upstream) == (pb.PackageUpload(), b"")


def test_an_upload_that_is_refused(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["PushPackage"] = errors.InvalidArgument.field("upload.size_bytes", "is too large")
    answer = gateway.call("POST", PACKAGES, CONTENT, GZIP)
    assert (answer.status, answer.fields) == (400, ["upload.sizeBytes"])


async def _refuse(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    async for _ in requests:
        break
    await context.abort_with_status(rpc_status.to_status(errors.to_status(errors.PermissionDenied("not yours"))))


def test_an_upload_that_is_refused_early(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["PushPackage"] = _refuse
    with gateway.opened("POST", PACKAGES, iter([CONTENT] * 20), GZIP) as response:
        assert response.status == 403


def test_an_upload_whose_client_pauses_is_refused_meanwhile(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["PushPackage"] = _refuse
    head = b"POST /v1/packages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nContent-Type: application/gzip\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: 64000000\r\n\r\nabc")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 403 ")


def test_the_refusal_of_an_upload_is_not_lost_in_its_writes(
    thread: LoopThread, gateway: GatewayServer, upstream: Upstream
) -> None:
    """Of such calls, grpc.aio gives one in three a status of its own."""
    upstream.answers["PushPackage"] = _refuse
    (push,) = [each for each in bindings() if each.method.name == "PushPackage"]

    async def endless() -> AsyncGenerator[pb.PushPackageRequest]:
        while True:
            yield pb.PushPackageRequest(chunk=bytes(1_000_000))

    async def said() -> str:
        with pytest.raises(Refused) as caught:
            await gateway.upstreams.upload(push, ()).send(endless())
        return str(caught.value)

    assert {thread.run(said()) for _ in range(40)} == {"not yours"}


def test_an_upload_of_an_absurd_length(gateway: GatewayServer, upstream: Upstream) -> None:
    answer = gateway.call("POST", PACKAGES, b"", {**GZIP, "Content-Length": str(2**63)})
    assert (answer.status, answer.reason) == (413, "BODY_TOO_LARGE")
    assert upstream.requests == []


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_that_is_too_large(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(byte_streams, "UPLOAD_BYTES", 1_000)

    async def patient(requests: Any, context: Any) -> Any:
        async for _ in requests:
            pass
        return PUSHED

    upstream.answers["PushPackage"] = patient
    answer = gateway.call("POST", PACKAGES, CONTENT if announced else iter([CONTENT]), GZIP)
    assert (answer.status, answer.reason) == (413, "BODY_TOO_LARGE")


def test_an_upload_waits_for_the_service_but_not_for_ever(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "TAKE_SECONDS", 4.0)

    async def unwilling(requests: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    upstream.answers["PushPackage"] = unwilling
    head = b"POST /v1/packages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nContent-Type: application/gzip\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(head + b"Content-Length: 64000000\r\n\r\n")
        connection.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 60_000_000:
                sent += connection.send(CONTENT)
        assert upstream.cancelled.get(timeout=20) == "PushPackage"
