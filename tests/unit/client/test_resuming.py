from __future__ import annotations

from collections.abc import Iterator

import pytest

from sis.client import ApiError
from sis.client.monitor import resuming
from sis.queue.v1 import job_service_pb2 as pb

CUT = ApiError("UNAVAILABLE", "cut")


def stream(*items: str | ApiError) -> Iterator[pb.MonitorJobResponse]:
    for item in items:
        if isinstance(item, ApiError):
            raise item
        yield pb.MonitorJobResponse(resume_token=item)


def test_it_gives_up_when_nothing_comes() -> None:
    opened: list[str] = []

    def open_stream(token: str) -> Iterator[pb.MonitorJobResponse]:
        opened.append(token)
        return stream(CUT)

    with pytest.raises(ApiError, match="cut"):
        list(resuming(open_stream, "start", patience=0.3))
    assert opened == ["start"] * len(opened)
    assert 2 <= len(opened) <= 4


def test_a_response_renews_the_patience() -> None:
    streams = iter([stream(CUT), stream("a", CUT), stream(CUT), stream("b")])
    seen = [each.resume_token for each in resuming(lambda token: next(streams), patience=0.5)]
    assert seen == ["a", "b"]


def test_an_end_without_error_is_the_end() -> None:
    streams = iter([stream("a")])
    assert [each.resume_token for each in resuming(lambda token: next(streams))] == ["a"]


@pytest.mark.parametrize("code", ["UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED"])
def test_a_connection_that_broke_is_passing(code: str) -> None:
    assert ApiError(code, "").passing


@pytest.mark.parametrize(
    ("code", "passing"),
    [("UNAVAILABLE", True), ("RESOURCE_EXHAUSTED", True), ("INTERNAL", False), ("NOT_FOUND", False)],
)
def test_a_refusal_is_passing_where_the_server_says_so(code: str, passing: bool) -> None:
    assert ApiError(code, "", reason="ANY").passing is passing
