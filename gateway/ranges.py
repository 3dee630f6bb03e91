"""Which part of a file a request is for (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True)
class File:
    """What there is."""

    size: int
    etag: str = ""
    """Quoted; "" if its bytes have no name."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The headers that decide, as they came; "" for none."""

    range: str = ""
    if_range: str = ""
    if_none_match: str = ""

    def __bool__(self) -> bool:
        return bool(self.range or self.if_none_match)


@dataclass(frozen=True, slots=True)
class Part:
    """What to answer: 200 for all of it, 206 for bytes from `offset` on, 304 for nothing."""

    status: int
    offset: int
    length: int

    def extends(self, other: Part) -> bool:
        """Whether both are ranges of the same beginning, and this one is no shorter."""
        return self.status == other.status == 206 and self.offset == other.offset and self.length >= other.length


def part(conditions: Conditions, file: File) -> Part:
    """Of several ranges, or what is no range, the whole.

    Raises:
        RangeNotSatisfiable: the file ends before the range begins.
    """
    if file.etag and _matches(conditions.if_none_match, file.etag):
        return Part(304, 0, 0)
    whole = Part(200, 0, file.size)
    found = _RANGE.fullmatch(conditions.range)
    if found is None or found[1] == found[2] == "":
        return whole
    # Only a strong tag can say that the bytes are the same; dates are not known here.
    if conditions.if_range and (not file.etag or conditions.if_range != file.etag):
        return whole
    if not found[1]:
        length = min(int(found[2]), file.size)
        offset = file.size - length
    else:
        offset = int(found[1])
        last = min(int(found[2]), file.size - 1) if found[2] else file.size - 1
        if found[2] and int(found[2]) < offset:
            return whole
        length = last - offset + 1
    if length <= 0:
        raise RangeNotSatisfiable(file.size)
    return Part(206, offset, length)


def _matches(if_none_match: str, etag: str) -> bool:
    """By the weak comparison."""
    if if_none_match.strip() == "*":
        return True
    return any(each.removeprefix("W/") == etag for each in _TAG.findall(if_none_match))
