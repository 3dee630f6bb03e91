"""Output parameters on standard output, as packages written for Hornbill give them. Pure.

    {{SISJobOutputParameterStart:name}}value{{SISJobOutputParameterEnd}}

Names and values have the rules of the file named by SIS_OUTPUT. The value is any text, on any number of lines; the last
one given for a name counts. A value within which another one begins was not ended.

What is read is the output as it is recorded, so that a value shows nothing that the console does not show. A secret
that reaches into a marker hides it.
"""

from __future__ import annotations

from typing import Final

from services.sis_agent.agent.recording.outputs import (
    MAX_FILE_BYTES,
    MAX_NAME_BYTES,
    MAX_PROBLEMS,
    MAX_VALUE_BYTES,
    Outputs,
    is_name,
    is_text,
    take,
)
from services.sis_agent.agent.secrecy.masking import MASK

_MARKER: Final = b"{{SISJobOutputParameter"
_START: Final = _MARKER + b"Start:"
_CLOSE: Final = b"}}"
_END: Final = _MARKER + b"End}}"


class OutputMarkers:
    """Finds the markers in a stream that comes in pieces, as if it came at once.

    It keeps the values, bounded as the file is; the value that has begun; and the last bytes while they may be the
    beginning of a marker. Without markers it costs one search for each piece.
    """

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._problems: list[str] = []
        self._open: dict[str, None] = {}
        # The output whose value has begun, and the value so far, up to a byte more than it may have.
        self._name: str | None = None
        self._value = bytearray()
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Take a piece in. After 20 mistakes nothing more is looked at."""
        if self._held:
            data, self._held = self._held + data, b""
        place = 0
        while len(self._problems) < MAX_PROBLEMS:
            marker = data.find(_MARKER, place)
            end = marker if marker >= 0 else _beginning(data, place)
            self._add(data, place, end)
            if marker < 0 or (after := self._pass(data, marker)) < 0:
                self._held = data[end:]
                return
            place = after

    def end(self) -> Outputs:
        """What was given, with the problems and the remarks to make, since nothing follows."""
        self._leave_open()
        if self._held.startswith(_START):
            self._name = self._held.removeprefix(_START).decode(errors="replace")
            self._leave_open()
        names = ", ".join(map(repr, self._open))
        remarks = (f"standard output begins, and does not end, the value of {names}; not kept",) if names else ()
        return Outputs(self._values, tuple(self._problems), remarks)

    def _pass(self, data: bytes, marker: int) -> int:
        """Go by the marker at this place, or what has only begun like one. Returns where the text goes on; -1 when that
        cannot be told before more has come."""
        if data.startswith(_END, marker):
            self._take()
            return marker + len(_END)
        if not data.startswith(_START, marker):
            rest = data[marker : marker + len(_START)]
            if _START.startswith(rest) or _END.startswith(rest):
                return -1
            after = marker + len(_MARKER)
            self._add(data, marker, after)
            return after
        first = marker + len(_START)
        most = first + MAX_NAME_BYTES + len(_CLOSE)
        close = data.find(_CLOSE, first, most)
        if close < 0 and len(data) < most:
            return -1
        self._leave_open()
        name = data[first : close if close >= 0 else most]
        if close < 0 or not is_name(name):
            self._problems.append(f"standard output: {name.decode(errors='replace')!r} cannot be the name of an output")
            return first
        self._name = name.decode()
        return close + len(_CLOSE)

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._value += data[start : min(end, start + MAX_VALUE_BYTES + 1 - len(self._value))]

    def _take(self) -> None:
        """End the value; without one, the marker is a text like any other."""
        if self._name is None:
            return
        name, value = self._name, bytes(self._value)
        self._name = None
        self._value.clear()
        # What a mask has left of a character is no mistake of the payload.
        problem = take(self._values, name, value, valid=is_text(value) or MASK in value)
        if not problem:
            self._sizes[name] = len(self._values[name].encode())
            if sum(self._sizes.values()) > MAX_FILE_BYTES:
                problem = f"the outputs are larger than {MAX_FILE_BYTES >> 20} MiB together"
                del self._values[name], self._sizes[name]
        if problem:
            self._problems.append(f"standard output: {problem}")

    def _leave_open(self) -> None:
        """Note that the value, if one has begun, is not ended; the first 20 names are noted."""
        if self._name is not None and len(self._open) < MAX_PROBLEMS:
            self._open[self._name] = None
        self._name = None
        self._value.clear()


def _beginning(data: bytes, start: int) -> int:
    """Where the data, in which there is no marker, ends with the beginning of one; its length without one."""
    place = data.find(_MARKER[:1], max(start, len(data) - len(_MARKER) + 1))
    while place >= 0 and not _MARKER.startswith(data[place:]):
        place = data.find(_MARKER[:1], place + 1)
    return place if place >= 0 else len(data)
