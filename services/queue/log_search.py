"""Finding the lines of a log in which a text occurs. Pure.

Lines and characters may be cut anywhere between two frames of their channel, whatever other channels write in between:
where the cuts are changes nothing but the frame that is named. Colours (SGR sequences) do not count, nor does the case
of letters, and bytes that are no UTF-8 stand for a character of their own.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from datetime import datetime

from services.queue.frames import Channel

EXCERPT_CHARACTERS = 400
"""Of a long line, so much is shown: the text, and what is around it."""
SPACING_CHARACTERS = 64 * 1024
"""Of a line that is longer, what begins so far behind the last match is a match of its own."""

_SGR = re.compile(r"\x1b\[[0-9;:]{0,60}m")
_BEGUN_SGR = re.compile(r"\x1b(?:\[[0-9;:]{0,60})?\Z")


@dataclass(frozen=True, slots=True)
class Match:
    """A line in which the text occurs, and the frame in which the text ends."""

    sequence: int
    at: datetime
    channel: Channel
    line: str


class LogSearch:
    """Give it the frames in order. It gives a match once all is known that is shown of its line, and `close` the rest.

    It remembers some hundred characters of each channel.
    """

    def __init__(self, wanted: str) -> None:
        self._wanted = _Wanted(wanted)
        self._readers: dict[Channel, _Reader] = {}

    def output(self, sequence: int, at: datetime, channel: Channel, data: bytes) -> list[Match]:
        """The matches that this output completes."""
        if channel not in self._readers:
            self._readers[channel] = _Reader(self._wanted, channel)
        return self._readers[channel].feed(sequence, at, data)

    def notice(self, sequence: int, at: datetime, channel: Channel, text: str) -> list[Match]:
        """The match in what agent or supervisor say, which is a line whatever is in it."""
        line = _SGR.sub("", text)
        place = self._wanted.find(line, 0)
        return [] if place is None else [Match(sequence, at, channel, _excerpt(line, place))]

    def close(self) -> list[Match]:
        """The matches in lines that go on: what is shown of them ends here."""
        return [match for reader in self._readers.values() for match in reader.close()]


class _Wanted:
    """A text, in any case."""

    def __init__(self, text: str) -> None:
        self.length = len(text)
        self._pattern = re.compile(re.escape(text), re.IGNORECASE)

    def find(self, text: str, start: int) -> int | None:
        """Where it begins, from a place on."""
        match = self._pattern.search(text, start)
        return None if match is None else match.start()


@dataclass(slots=True)
class _Found:
    """The frame in which a match ends, and where in the begun line it begins."""

    sequence: int
    at: datetime
    place: int


class _Reader:
    """The output of one channel. Of the begun line it keeps what may be shown, and what a match may begin with."""

    def __init__(self, wanted: _Wanted, channel: Channel) -> None:
        self._wanted = wanted
        self._channel = channel
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun_colour = ""
        self._line = ""
        # From where in the line the text is looked for; behind its end, where what follows is passed over too.
        self._start = 0
        self._found: _Found | None = None

    def feed(self, sequence: int, at: datetime, data: bytes) -> list[Match]:
        """The matches that are complete."""
        text = self._begun_colour + self._decoder.decode(data)
        self._begun_colour = ""
        if "\x1b" in text:
            if (begun := _BEGUN_SGR.search(text)) is not None:
                text, self._begun_colour = text[: begun.start()], begun[0]
            text = _SGR.sub("", text)
        return self._read(text, sequence, at)

    def close(self) -> list[Match]:
        """The last one, if more could be shown of its line."""
        return [] if self._found is None else [self._match(self._found, self._line)]

    def _read(self, text: str, sequence: int, at: datetime) -> list[Match]:
        matches: list[Match] = []
        text = self._line + text.replace("\r", "\n")
        if self._start > len(self._line):
            self._start = _behind_the_line(text, len(self._line), self._start)
        while True:
            if self._found is None:
                place = self._wanted.find(text, self._start)
                if place is None:
                    break
                self._found = _Found(sequence, at, place)
            place, shown = self._found.place, self._found.place + EXCERPT_CHARACTERS
            if len(text) < shown and text.find("\n", place) < 0:
                break
            matches.append(self._match(self._found, text))
            self._found = None
            self._start = _behind_the_line(text, place, place + SPACING_CHARACTERS)
        self._keep(text)
        return matches

    def _match(self, found: _Found, text: str) -> Match:
        begin = text.rfind("\n", 0, found.place) + 1
        end = text.find("\n", found.place, found.place + EXCERPT_CHARACTERS)
        line = text[begin : found.place + EXCERPT_CHARACTERS if end < 0 else end]
        return Match(found.sequence, found.at, self._channel, _excerpt(line, found.place - begin))

    def _keep(self, text: str) -> None:
        """Forget what is not needed any more."""
        if self._found is None:
            # The end is looked at again, as a match may begin there.
            needed = max(0, len(text) - self._wanted.length + 1)
            self._start = max(self._start, needed)
            begin = text.rfind("\n") + 1
        else:
            needed = self._found.place
            begin = text.rfind("\n", 0, needed) + 1
        begin = max(begin, needed - EXCERPT_CHARACTERS)
        self._line = text[begin:]
        self._start = max(0, self._start - begin)
        if self._found is not None:
            self._found.place -= begin


def _behind_the_line(text: str, place: int, limit: int) -> int:
    """The beginning of the next line, or the limit, which may be behind the text, where that comes first."""
    end = text.find("\n", place, limit)
    return limit if end < 0 else end + 1


def _excerpt(line: str, place: int) -> str:
    """The line, or of a long one the part around a place."""
    start = max(0, min(place - EXCERPT_CHARACTERS // 4, len(line) - EXCERPT_CHARACTERS))
    return line[start : start + EXCERPT_CHARACTERS]
