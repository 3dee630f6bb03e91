"""The checks that fields share. A `Violations` collects every wrong field of a request, to refuse them at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from google.protobuf import duration_pb2, timestamp_pb2

from services.runtime.errors import FieldViolation, InvalidArgument

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LATEST_SECONDS = int(datetime(9000, 1, 1, tzinfo=UTC).timestamp())

E = TypeVar("E", bound=Enum)


class Violations:
    """The wrong fields of one request."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Note a wrong field."""
        self._found.append(FieldViolation(field, description))

    def refuse(self) -> None:
        """Raise InvalidArgument if anything was noted."""
        if self._found:
            raise InvalidArgument.fields(self._found)

    def line(self, field: str, value: str, longest: int, *, required: bool = False) -> str:
        """A single line of text of at most `longest` characters."""
        if required and not value.strip():
            self.add(field, "is required: give a text that is not blank")
        elif len(value) > longest:
            self.add(field, f"has {len(value):,} characters; at most {longest} are taken")
        elif _CONTROL.search(value):
            self.add(field, "has control characters; remove them")
        return value

    def member(self, field: str, number: int, members: Mapping[int, E], default: E | None = None) -> E | None:
        """A member of an enum by its number in the proto; 0 gives the default, or is refused without one."""
        found = members.get(number, default if number == 0 else None)
        if found is None:
            known = ", ".join(m.name for m in members.values())
            if number == 0:
                self.add(field, f"is required: give one of {known}")
            else:
                self.add(field, f"{number} is not known; give one of {known}")
        return found

    def time(self, field: str, message: timestamp_pb2.Timestamp) -> datetime | None:
        """A time from 1970 to 9000."""
        if not (0 <= message.seconds < _LATEST_SECONDS and 0 <= message.nanos < 1_000_000_000):
            self.add(field, "is not a time between the years 1970 and 9000")
            return None
        return datetime.fromtimestamp(message.seconds, UTC) + timedelta(microseconds=message.nanos // 1000)

    def duration(
        self, field: str, message: duration_pb2.Duration, shortest: timedelta, longest: timedelta
    ) -> timedelta | None:
        """A duration within bounds."""
        found = None
        if abs(message.seconds) <= longest.total_seconds() + 1 and abs(message.nanos) < 1_000_000_000:
            found = timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
        if found is None or not shortest <= found <= longest:
            self.add(field, f"must be between {_seconds(shortest)} and {_seconds(longest)}")
            return None
        return found

    def labels(self, field: str, found: Mapping[str, str]) -> None:
        """At most 32 labels; keys of 1 to 63 characters, values of at most 200."""
        if len(found) > 32:
            self.add(field, f"has {len(found)} labels; at most 32 are taken")
        for key, value in sorted(found.items())[:32]:
            self.line(field, key, 63, required=True)
            self.line(f"{field}.{key[:63]}", value, 200)

    def page_size(self, size: int, default: int = 50) -> int:
        """The size of a page: 1 to 1,000, the default for 0; larger ones are cut (AIP-158)."""
        if size < 0:
            self.add("page_size", "must not be negative")
        return min(size, 1_000) or default


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():,.0f} s"


def members(wrapper: object, prefix: str, kind: type[E]) -> dict[int, E]:
    """The domain enum's members by the numbers of the proto enum; both have the same names."""
    values: Mapping[str, int] = dict(wrapper.items())  # type: ignore[attr-defined]
    found = {
        number: kind[name.removeprefix(prefix)] for name, number in values.items() if not name.endswith("_UNSPECIFIED")
    }
    if set(found.values()) != set(kind):
        raise TypeError(f"{kind.__name__} and the proto enum {prefix} differ")
    return found


def to_timestamp(at: datetime | None) -> timestamp_pb2.Timestamp | None:
    """None stays None: the field is left unset."""
    if at is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(at)
    return message


def to_duration(duration: timedelta | None) -> duration_pb2.Duration | None:
    """None stays None: the field is left unset."""
    if duration is None:
        return None
    message = duration_pb2.Duration()
    message.FromTimedelta(duration)
    return message


def numbers(members: Mapping[int, E]) -> dict[E, Any]:
    """The way back: the proto's number of each member. (Typed stubs give every proto enum a number type of its own.)"""
    return {member: number for number, member in members.items()}
