"""Making foreign text safe to show: what a payload wrote, or what somebody called a job.

A terminal obeys what it is sent, so nothing that a payload wrote is sent to it as it is: control characters
are shown as visible text (`\\x1b`), and so are characters that reorder a line. Only colours may pass.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field

LINE_CHARACTERS = 64 * 1024
"""A line that is longer than this is shown in pieces: the memory of a viewer is bounded."""

# Bold, dim, italic, underline, and colours. Not blinking and not "concealed", which hides text.
_HARMLESS = frozenset({"", "0", "1", "2", "3", "4", "7", "22", "23", "24", "27", "39", "49"}) | {
    str(code) for low in (30, 40, 90, 100) for code in range(low, low + 8)
}
_SGR = re.compile(r"\x1b\[([0-9;:]*)m")
_EXTENDED_COLOUR = re.compile(r"(?:38|48)[;:](?:5[;:]\d{1,3}|2[;:](?:\d{1,3}[;:]){2}\d{1,3})")
_UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f"  # control characters but the tabulator
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"  # separators, and what changes direction
    "\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` with each unsafe character, line breaks among them, as an escape such as `\\x1b`."""
    return _UNSAFE.sub(_escape, text)


def coloured(text: str) -> str:
    """Like `visible`, but harmless colours (SGR sequences) stay; those that are not harmless are dropped."""
    pieces: list[str] = []
    start = 0
    for match in _SGR.finditer(text):
        pieces.append(visible(text[start : match.start()]))
        if _is_harmless(match[1]):
            pieces.append(match[0])
        start = match.end()
    pieces.append(visible(text[start:]))
    return "".join(pieces)


def uncoloured(text: str) -> str:
    """Like `visible`, but SGR sequences are dropped: without a terminal they are noise."""
    return visible(_SGR.sub("", text))


def _is_harmless(codes: str) -> bool:
    return all(code in _HARMLESS for code in re.split("[;:]", _EXTENDED_COLOUR.sub("0", codes)))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


@dataclass
class LineJoiner:
    """Turns the chunks of one channel into lines: characters and lines may be cut anywhere between chunks.

    `\\n`, `\\r\\n` and a lone `\\r` (a progress bar that overwrites itself) end a line. Bytes that are not
    UTF-8 are shown as `\\xff`.
    """

    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("backslashreplace")
    )
    _rest: str = ""
    _carriage_return: bool = False

    @property
    def rest(self) -> str:
        """The begun line."""
        return self._rest

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without their ends."""
        text = self._decoder.decode(data)
        if self._carriage_return and text:
            # The line was ended by the \r; a \n that belongs to it may come with the next chunk.
            text, self._carriage_return = text.removeprefix("\n"), False
        if text.endswith("\r"):
            self._carriage_return = True
        pieces = re.split("\r\n|\n|\r", text)
        pieces[0] = self._rest + pieces[0]
        self._rest = pieces.pop()
        lines = [part for piece in pieces for part in _parts(piece)]
        while len(self._rest) > LINE_CHARACTERS:
            lines.append(self._rest[:LINE_CHARACTERS])
            self._rest = self._rest[LINE_CHARACTERS:]
        return lines

    def end(self) -> list[str]:
        """The last line, if it has no end. Afterwards the joiner is as new."""
        text = self._rest + self._decoder.decode(b"", True)
        self._decoder.reset()
        self._rest, self._carriage_return = "", False
        return _parts(text) if text else []


def _parts(line: str) -> list[str]:
    if len(line) <= LINE_CHARACTERS:
        return [line]
    return [line[start : start + LINE_CHARACTERS] for start in range(0, len(line), LINE_CHARACTERS)]
