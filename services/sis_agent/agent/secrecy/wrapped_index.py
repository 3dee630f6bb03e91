"""Finds forms of secrets that may be wrapped: with one line end, LF or CRLF, between any two of their bytes.

They are looked for in a view of the bytes that has no such line ends, and what is found is traced back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from services.sis_agent.agent.secrecy.form_index import Findings, FormIndex


class WrappedIndex:
    """As `FormIndex`, for forms without line ends and NUL in them. The line ends within a form are covered with it."""

    def __init__(self, forms: Collection[bytes]) -> None:
        self._index = FormIndex(forms)

    @property
    def longest(self) -> int:
        """No form takes more bytes, with all its line ends."""
        return 3 * self._index.longest - 2

    def search(self, data: bytes, *, last: bool = False) -> Findings:
        """Look through bytes. When they are the `last`, nothing can be open."""
        given = text = data
        if b"\r" in data:
            if not last and data.endswith(b"\r") and not data.endswith(b"\n\r"):
                given = data[:-1]  # it may be half of a line end
            text = given.replace(b"\r\n", b"\n")
        # Two line ends in a row end a form, so that what is held back of one is bounded.
        single = text.replace(b"\n\n", b"\0\0")
        view = single.replace(b"\n", b"")
        found = self._index.search(view, last=last)

        def traced(places: Sequence[int]) -> list[int]:
            return _traced(given, b"\r\n", len(text), _traced(single, b"\n", len(view), places))

        spans = found.spans
        if spans:
            # By the first and the last byte of each: what follows it may be a line end.
            ends = traced([place for start, end in spans for place in (start, end - 1)])
            spans = [(start, end + 1) for start, end in zip(ends[::2], ends[1::2], strict=True)]
        return Findings(spans, traced([found.open])[0] if found.open < len(view) else len(data))


def _traced(text: bytes, token: bytes, size: int, places: Sequence[int]) -> list[int]:
    """Where bytes of a view are in the text of which it was made by taking one byte off each token. The view has this
    size, the places are in order and none of them is in a token."""
    if size == len(text):
        return list(places)
    found = []
    known, place_of_known = len(text), size
    for place in reversed(places):
        furthest = origin = known - (place_of_known - place)
        while origin != (nearer := furthest - text.count(token, origin, known)):
            origin = nearer
        found.append(origin)
        known, place_of_known = origin, place
    return found[::-1]
