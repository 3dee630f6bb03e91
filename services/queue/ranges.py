"""Ranges of bytes: what is asked for, and what of each piece that is read belongs to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.errors import InvalidArgument
from services.runtime.fields import Violations


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes from `offset` on: `length` of them, all for 0."""

    offset: int
    length: int

    def count(self, size: int) -> int:
        """How many there are of them among `size` bytes.

        Raises:
            InvalidArgument: it begins behind the end.
        """
        if self.offset > size:
            raise InvalidArgument.field("offset", f"is beyond the end: there are {size:,} bytes")
        rest = size - self.offset
        return min(self.length, rest) if self.length else rest


def requested(offset: int, length: int) -> Range:
    """The range that the fields of a request ask for. Raises InvalidArgument."""
    wrong = Violations()
    for field, value in (("offset", offset), ("length", length)):
        if value < 0:
            wrong.add(field, "must not be negative")
    wrong.refuse()
    return Range(offset, length)


class Window:
    """Takes `count` bytes from pieces that come one after the other, once `skip` of them have passed."""

    def __init__(self, skip: int, count: int) -> None:
        self._skip = skip
        self._left = count

    def done(self) -> bool:
        """Whether all of them were taken."""
        return self._left == 0

    def cut(self, piece: bytes) -> bytes:
        """What of the next piece is taken."""
        taken = piece[self._skip : self._skip + self._left]
        self._skip = max(0, self._skip - len(piece))
        self._left -= len(taken)
        return taken
