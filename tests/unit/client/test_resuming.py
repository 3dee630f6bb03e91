"""Streams across broken connections; the asynchronous and the synchronous code are held to the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sis.client import ApiError, aio, patience, sync
from sis.client.patience import Patience
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.support.blocking import blocking

CUT = ApiError("UNAVAILABLE", "cut")


class Flavour:
    """The functions of one of the clients, for streams that are written as lists."""

    def __init__(self, runner: asyncio.Runner | None) -> None:
        self._runner = runner

    def resuming(self, open_stream: Callable[[], list[Any]], *arguments: Any, **named: Any) -> Iterator[Any]:
        return self._begun("resuming", open_stream, *arguments, **named)

    def resuming_bytes(self, open_stream: Callable[..., list[Any]], *arguments: Any, **named: Any) -> Iterator[Any]:
        return self._begun("resuming_bytes", open_stream, *arguments, **named)

    def until_begun(self, open_stream: Callable[[], list[Any]], **named: Any) -> Iterator[Any]:
        return self._begun("until_begun", open_stream, **named)

    def _begun(self, name: str, open_stream: Callable[..., list[Any]], *arguments: Any, **named: Any) -> Iterator[Any]:
        def items(*position: Any) -> Iterator[Any]:
            for item in open_stream(*position):
                if isinstance(item, ApiError):
                    raise item
                yield item

        async def aitems(*position: Any) -> Any:
            for item in items(*position):
                yield item

        if self._runner is None:
            return getattr(sync.resuming, name)(items, *arguments, **named)
        return blocking(self._runner, getattr(aio.resuming, name)(aitems, *arguments, **named))


@pytest.fixture(params=["sync", "async"])
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    if request.param == "sync":
        yield Flavour(None)
        return
    with asyncio.Runner() as runner:
        yield Flavour(runner)


def test_it_gives_up_when_nothing_comes(flavour: Flavour) -> None:
    opened: list[str] = []

    def open_stream() -> list[Any]:
        opened.append("")
        return [CUT]

    with pytest.raises(ApiError, match="cut"):
        list(flavour.resuming(open_stream, lambda response: None, patience=0.3))
    assert 2 <= len(opened) <= 4


def test_a_response_renews_the_patience(flavour: Flavour) -> None:
    streams = iter([[CUT], ["a", CUT], [CUT], ["b"]])
    noted: list[str] = []
    breaks: list[ApiError] = []
    seen = flavour.resuming(lambda: next(streams), noted.append, patience=0.5, on_interruption=breaks.append)
    assert list(seen) == noted == ["a", "b"]
    assert breaks == [CUT] * 3


def test_a_stream_that_has_had_its_time_is_no_interruption(flavour: Flavour) -> None:
    """Unlike one that ends because something behind the server takes too long."""
    over = ApiError("DEADLINE_EXCEEDED", "call again", reason="DEADLINE_EXCEEDED", metadata={"cause": "STREAM_OVER"})
    slow = ApiError("DEADLINE_EXCEEDED", "the database did not answer in time", reason="DEADLINE_EXCEEDED")
    streams = iter([["a", over], ["b", slow], ["c"]])
    breaks: list[ApiError] = []
    seen = flavour.resuming(lambda: next(streams), lambda response: None, on_interruption=breaks.append)
    assert list(seen) == ["a", "b", "c"]
    assert breaks == [slow]


def test_an_end_without_error_is_the_end(flavour: Flavour) -> None:
    streams = iter([["a"]])
    assert list(flavour.resuming(lambda: next(streams), lambda response: None)) == ["a"]


@pytest.mark.parametrize("error", [ApiError("NOT_FOUND", "no", reason="JOB_NOT_FOUND"), ApiError("ABORTED", "no")])
def test_a_refusal_is_not_tried_again(flavour: Flavour, error: ApiError) -> None:
    streams = iter([["a", error]])
    with pytest.raises(ApiError, match="no"):
        list(flavour.resuming(lambda: next(streams), lambda response: None))


def test_what_cannot_be_resumed_is_opened_again_until_it_has_begun(flavour: Flavour) -> None:
    streams: Iterator[list[Any]] = iter([[CUT], [CUT], ["a", "b"]])
    assert list(flavour.until_begun(lambda: next(streams))) == ["a", "b"]
    streams = iter([[CUT], ["a", CUT]])
    seen = flavour.until_begun(lambda: next(streams))
    assert next(seen) == "a"
    with pytest.raises(ApiError, match="cut"):
        next(seen)
    with pytest.raises(ApiError, match="cut"):
        list(flavour.until_begun(lambda: [CUT], patience=0.3))


class Source:
    """A stream of the bytes 0, 1, 2 …, which breaks after some of them, time and again."""

    def __init__(self, size: int, *breaks_after: int) -> None:
        self.asked: list[tuple[int, int]] = []
        self._content = bytes(range(size))
        self._breaks = list(breaks_after)

    def open(self, offset: int, length: int) -> list[Any]:
        self.asked.append((offset, length))
        end = offset + length if length else len(self._content)
        chunks: list[Any] = [self._content[at : at + 1] for at in range(offset, min(end, len(self._content)))]
        head = pb.GetConsoleOutputResponse(log=job_pb2.LogSummary(frames=1))
        items = [head, *(pb.GetConsoleOutputResponse(chunk=frame_pb2.Chunk(data=data)) for data in chunks)]
        return [*items[: self._breaks.pop(0)], CUT] if self._breaks else items


@pytest.mark.parametrize(
    ("offset", "length", "breaks", "asked"),
    [
        (0, 0, (), [(0, 0)]),
        (0, 0, (0, 1, 3, 1), [(0, 0), (0, 0), (0, 0), (2, 0), (2, 0)]),
        (2, 4, (3,), [(2, 4), (4, 2)]),
        # Everything has come, and then it breaks: there is nothing to open it for.
        (2, 4, (5,), [(2, 4)]),
        (4, 0, (5,), [(4, 0), (8, 0)]),
    ],
)
def test_each_byte_comes_once(
    flavour: Flavour, offset: int, length: int, breaks: tuple[int, ...], asked: list[tuple[int, int]]
) -> None:
    source = Source(8, *breaks)
    seen = list(flavour.resuming_bytes(source.open, lambda response: len(response.chunk.data), offset, length))
    assert [each.WhichOneof("content") for each in seen][:2] == ["log", "chunk"]
    assert seen[0].log.frames == 1
    assert sum(each.HasField("log") for each in seen) == 1
    end = offset + length if length else 8
    assert b"".join(each.chunk.data for each in seen) == bytes(range(offset, end))
    assert source.asked == asked


def test_pauses_grow_and_heed_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
    left = Patience(60)
    pauses = [left.pause(CUT) for _ in range(6)]
    assert 0.1 <= pauses[0] <= 0.2
    assert 1.5 <= pauses[-1] <= 3.0
    # A stream that breaks behind its first response, time after time, is not opened again and again at once.
    left.renew()
    now[0] += pauses[-1]
    assert left.pause(CUT) >= 1.5
    left.renew()
    now[0] += 10
    assert left.pause(CUT) <= 0.2
    assert left.pause(ApiError("UNAVAILABLE", "", reason="ANY", retry_after=2.5)) == 2.5


@pytest.mark.parametrize("code", ["UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED"])
def test_a_connection_that_broke_is_passing(code: str) -> None:
    assert ApiError(code, "").passing


@pytest.mark.parametrize(
    ("code", "passing"),
    [("UNAVAILABLE", True), ("RESOURCE_EXHAUSTED", True), ("INTERNAL", False), ("NOT_FOUND", False)],
)
def test_a_refusal_is_passing_where_the_server_says_so(code: str, passing: bool) -> None:
    assert ApiError(code, "", reason="ANY").passing is passing
