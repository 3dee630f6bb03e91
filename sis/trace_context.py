"""Where in a trace something happens: the `traceparent` of the W3C's Trace Context, version 00.

The standard library alone: supervisors and the client have it too.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Final, Self

_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST: Final = 512
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A trace, one span of it, and whether it is recorded."""

    trace_id: int
    span_id: int
    sampled: bool = True

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What a traceparent says; None for anything that is none. Later versions may say more than is read here."""
        found = _FORM.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None:
            return None
        version, trace, span, flags, more = found.groups()
        if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
            return None
        return cls(int(trace, 16), int(span, 16), bool(int(flags, 16) & _SAMPLED))

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    def within(self, name: str) -> Self:
        """The context of the span below this one that has the name: the same for whoever asks, at any time. So what is
        started can be told its span before anybody has recorded that, and whoever records it needs no word of it."""
        digest = hashlib.sha256(f"{self} {name}".encode()).digest()
        # No id is 0.
        return replace(self, span_id=int.from_bytes(digest[:8]) or 1)
