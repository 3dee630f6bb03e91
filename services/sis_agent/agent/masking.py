"""Masks the secrets of an attempt in everything that it says, before a byte of it is kept or leaves the site."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.sis_agent.agent.form_index import FormIndex
from services.sis_agent.agent.secret_forms import MIN_FORM_BYTES, forms

MASK: Final = b"***"


class Masker:
    """Replaces every form of some secrets: each byte that belongs to one is masked, and each run of such bytes becomes
    one `***`. Other bytes are never changed. False without secrets; it costs nothing then.
    """

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        found = frozenset[bytes]().union(*map(forms, secrets))
        self._index = FormIndex(found) if found else None

    def __bool__(self) -> bool:
        return self._index is not None

    def __repr__(self) -> str:
        return f"Masker({'on' if self else 'off'})"

    def data(self, data: bytes) -> bytes:
        """These bytes, masked, as a whole of their own."""
        stream = self.stream()
        return stream.feed(data) + stream.flush()

    def text(self, text: str, *, cut: bool = False) -> str:
        """A text, masked. Where it was `cut` off, a secret of which it ends with the first 6 bytes or more is, too."""
        if self._index is None:
            return text
        data = text.encode("utf-8", "surrogatepass")
        stream = self.stream()
        masked = stream.feed(data) + (stream.cut() if cut else stream.flush())
        return text if masked == data else masked.decode("utf-8", "replace")

    def stream(self) -> MaskStream:
        """For bytes that come in pieces."""
        return MaskStream(self._index)


class MaskStream:
    """Masks what comes in pieces as if it came at once.

    Held back are only the last bytes, and only while they are the beginning of a form: less than the longest form.
    """

    def __init__(self, index: FormIndex | None) -> None:
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

    def _release(self, data: bytes, spans: list[tuple[int, int]], end: int) -> bytes:
        """The bytes before `end`, masked; the others are held."""
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
