"""Ranges of bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.queue.convert.output import to_chunks
from services.queue.logs import LogRow
from services.queue.ranges import Window, requested
from services.runtime.errors import InvalidArgument


@pytest.mark.parametrize(
    ("offset", "length", "count"), [(0, 0, 10), (0, 10, 10), (0, 11, 10), (3, 4, 4), (9, 2, 1), (10, 0, 0), (10, 5, 0)]
)
def test_a_range_has_what_there_is_of_it(offset: int, length: int, count: int) -> None:
    assert requested(offset, length).count(10) == count


@pytest.mark.parametrize(
    ("offset", "length", "fields"), [(-1, 0, ["offset"]), (0, -1, ["length"]), (-1, -(2**63), ["offset", "length"])]
)
def test_negative_numbers_are_refused(offset: int, length: int, fields: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        requested(offset, length)
    assert [violation.field for violation in caught.value.violations] == fields


def test_an_offset_behind_the_end_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        requested(11, 1).count(10)
    assert [violation.field for violation in caught.value.violations] == ["offset"]


def test_a_window_cuts_pieces_wherever_they_end() -> None:
    whole = b"0123456789"
    for pieces in ([whole], [whole[:3], b"", whole[3:4], whole[4:]], [bytes([byte]) for byte in whole]):
        for skip in range(11):
            for count in range(11 - skip):
                window = Window(skip, count)
                assert b"".join(window.cut(piece) for piece in pieces) == whole[skip : skip + count]
                assert window.done()


async def test_of_an_empty_range_nothing_is_read() -> None:
    async def parts() -> AsyncIterator[list[LogRow]]:
        raise AssertionError("the log was read")
        yield []

    assert [chunk async for chunk in to_chunks(parts(), Window(0, 0))] == []
