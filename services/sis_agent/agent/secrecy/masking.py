"""Masks the secrets of an attempt in everything that it says, before a byte of it is kept or leaves the site."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from services.sis_agent.agent.secrecy.form_index import Findings, FormIndex
from services.sis_agent.agent.secrecy.secret_forms import MIN_FORM_BYTES, encoded_forms, verbatim_forms
from services.sis_agent.agent.secrecy.wrapped_index import WrappedIndex

MASK: Final = b"***"


class Index(Protocol):
    """Finds forms; immutable."""

    @property
    def longest(self) -> int:
        """No form takes more bytes."""

    def search(self, data: bytes, *, last: bool = False) -> Findings:
        """Look through bytes. When they are the `last`, nothing can be open."""


class Masker:
    """Replaces every form of some secrets: each byte that belongs to one is masked, and each run of such bytes becomes
    one `***`. Other bytes are never changed. False without secrets; it costs nothing then.
    """

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        given = list(secrets)
        indexes: list[Index] = []
        if verbatim := frozenset[bytes]().union(*map(verbatim_forms, given)):
            indexes.append(FormIndex(verbatim))
        if encoded := frozenset[bytes]().union(*map(encoded_forms, given)):
            indexes.append(WrappedIndex(encoded))
        self._index = _Indexes(indexes) if indexes else None

    def __bool__(self) -> bool:
        return self._index is not None

    def __repr__(self) -> str:
        return f"Masker({'on' if self else 'off'})"

    @property
    def longest(self) -> int:
        """No form takes more bytes; 0 without secrets."""
        return self._index.longest if self._index else 0

    def data(self, data: bytes, *, cut: bool = False) -> bytes:
        """These bytes, masked, as a whole of their own; see `whole`."""
        return self.whole(data, cut=cut).part(0, len(data))

    def text(self, text: str) -> str:
        """A text, masked, as a whole of its own."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self.data(data)
        return text if masked == data else masked.decode("utf-8", "replace")

    def whole(self, data: bytes, *, cut: bool = False) -> Whole:
        """Bytes of which parts are to be shown. Where they were `cut` off, the first 6 bytes or more of a secret with
        which they end belong to one, too."""
        if self._index is None:
            return Whole(data, [])
        findings = self._index.search(data, last=not cut)
        if len(data) - findings.open >= MIN_FORM_BYTES:
            return Whole(data, [*findings.spans, (findings.open, len(data))])
        if cut:
            findings = self._index.search(data, last=True)
        return Whole(data, findings.spans)

    def stream(self) -> MaskStream:
        """For bytes that come in pieces."""
        return MaskStream(self._index)


class Whole:
    """Bytes that are all there. What belongs to a secret in the whole is masked in each part of it."""

    def __init__(self, data: bytes, spans: Iterable[tuple[int, int]]) -> None:
        """The spans are in order of their starts, and may overlap."""
        self._data = data
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in spans:
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._starts.append(start)
                self._ends.append(end)

    def part(self, start: int, end: int) -> bytes:
        """The bytes from start to end, masked."""
        if start >= end:
            return b""
        pieces: list[bytes] = []
        place = start
        for number in range(bisect_right(self._ends, start), len(self._ends)):
            if self._starts[number] >= end:
                break
            pieces += self._data[place : self._starts[number]], MASK
            place = self._ends[number]
        pieces.append(self._data[place:end])
        return b"".join(pieces)


class MaskStream:
    """Masks what comes in pieces as if it came at once.

    Held back are only the last bytes, and only while they are the beginning of a form: less than the longest form.
    """

    def __init__(self, index: Index | None) -> None:
        self._index = index
        self._held = b""
        # So many of the held bytes are part of a form already.
        self._covered = 0
        # The last byte that was released was masked: the next one that is belongs to the same run.
        self._masking = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes in; returns all of which is known by now what becomes of them, possibly none."""
        if self._index is None or not data:
            return data
        if self._held:
            data = self._held + data
        findings = self._index.search(data)
        if not findings.spans and findings.open == len(data) and not self._covered:
            self._held = b""
            self._masking = False
            return data
        return self._release(data, findings.spans, findings.open)

    def flush(self) -> bytes:
        """What was held back, since nothing follows it: a secret that is not whole is shown. What comes later is a new
        beginning."""
        if self._index is None:
            return b""
        rest = self._release(self._held, self._index.search(self._held, last=True).spans, len(self._held))
        self._masking = False
        return rest

    def cut(self) -> bytes:
        """As `flush`, where what follows was cut off: the first 6 bytes or more of a secret are masked."""
        if len(self._held) < MIN_FORM_BYTES:
            return self.flush()
        rest = self._release(self._held, [(0, len(self._held))], len(self._held))
        self._masking = False
        return rest

    def _release(self, data: bytes, spans: Sequence[tuple[int, int]], end: int) -> bytes:
        """The bytes before `end`, masked; the others are held. Spans are in order of their starts and may overlap."""
        pieces: list[bytes] = []
        place = 0
        for start, stop in ((0, self._covered), *spans):
            if start > place:
                pieces.append(data[place:start])
                self._masking = False
                place = start
            if stop > place:
                if not self._masking:
                    pieces.append(MASK)
                    self._masking = True
                place = stop
        if place < end:
            pieces.append(data[place:end])
            self._masking = False
            place = end
        self._covered = place - end
        self._held = data[end:]
        return b"".join(pieces)


class _Indexes:
    """Several as one. There must be one at least."""

    def __init__(self, indexes: Sequence[Index]) -> None:
        self._indexes = indexes

    @property
    def longest(self) -> int:
        return max(index.longest for index in self._indexes)

    def search(self, data: bytes, *, last: bool = False) -> Findings:
        found = [index.search(data, last=last) for index in self._indexes]
        first_open = min(findings.open for findings in found)
        spans = sorted(span for findings in found for span in findings.spans if span[0] < first_open)
        return Findings(spans, first_open)
