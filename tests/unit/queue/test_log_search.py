"""A search of a log finds what somebody finds who has the whole of each channel."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.queue import log_search
from services.queue.frames import Channel
from services.queue.log_search import LogSearch, Match

OUT, ERR = Channel.STDOUT, Channel.STDERR
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Frame:
    channel: Channel
    data: bytes


def at(sequence: int) -> datetime:
    return START + timedelta(seconds=sequence)


def found(wanted: str, frames: Sequence[Frame]) -> list[Match]:
    """What a search of these frames, numbered from 1 on, gives, in the order of the log."""
    search = LogSearch(wanted)
    matches = [
        match
        for sequence, frame in enumerate(frames, 1)
        for match in search.output(sequence, at(sequence), frame.channel, frame.data)
    ]
    return sorted([*matches, *search.close()], key=lambda match: (match.sequence, match.channel))


def lines(wanted: str, data: bytes, *more: bytes) -> list[str]:
    return [match.line for match in found(wanted, [Frame(OUT, each) for each in (data, *more)])]


@dataclass(frozen=True)
class Character:
    """One of a channel, and the frame that has its last byte."""

    text: str
    sequence: int


def characters(frames: Sequence[Frame], channel: Channel) -> list[Character]:
    """Those of a channel, byte by byte; what is begun at the end is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [
        Character(text, sequence)
        for sequence, frame in enumerate(frames, 1)
        if frame.channel is channel
        for byte in frame.data
        for text in decoder.decode(bytes([byte]))
    ]


def reference(wanted: str, frames: Sequence[Frame]) -> list[Match]:
    """The whole of each channel without colours, cut into lines; each in which the text occurs, once."""
    matches = []
    for channel in (OUT, ERR):
        whole = characters(frames, channel)
        text = "".join(each.text for each in whole)
        # At the end, what may become a colour is begun as well.
        colours = re.finditer(r"\x1b\[[0-9;:]*m|\x1b(\[[0-9;:]*)?\Z", text)
        coloured = {place for match in colours for place in range(match.start(), match.end())}
        shown = [each for place, each in enumerate(whole) if place not in coloured]
        for ended, group in itertools.groupby(shown, lambda each: each.text in "\r\n"):
            line = list(group)
            text = "".join(each.text for each in line)
            place = text.lower().find(wanted.lower())
            if not ended and place >= 0:
                sequence = line[place + len(wanted) - 1].sequence
                matches.append(Match(sequence, at(sequence), channel, excerpt(text, place)))
    return sorted(matches, key=lambda match: (match.sequence, match.channel))


def excerpt(line: str, place: int) -> str:
    """The 400 characters of a line that begin 100 before a place, or nearer to the ends of the line."""
    start = min(place - 100, len(line) - 400)
    return line[max(start, 0) :][:400]


PIECES = [
    b"a", b"b", b"A", b"ab", b"aab", "é".encode(), "É".encode(), "漢🎉".encode(), b"\n", b"\r\n", b"\r", b"\xff",
    b"\xc3", b"\xf0\x9f", b"\x1b[1m", b"\x1b[38;5;20m", b"\x1b", b"\x1b[", b"\x1b[3", b"\t", b"x" * 150, b"\0",
]  # fmt: skip
WANTED = st.text("abAéÉ漢🎉x", min_size=1, max_size=4)


@st.composite
def logs(draw: st.DrawFn) -> list[Frame]:
    """The output of two channels, cut anywhere and mixed."""
    frames: dict[Channel, list[Frame]] = {}
    for channel in (OUT, ERR):
        data = b"".join(draw(st.lists(st.sampled_from(PIECES), max_size=30)))
        cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
        frames[channel] = [Frame(channel, data[a:b]) for a, b in itertools.pairwise([0, *cuts, len(data)])]
    order = draw(st.permutations([channel for channel, own in frames.items() for _ in own]))
    return [frames[channel].pop(0) for channel in order]


@given(WANTED, logs())
@example("é", [Frame(OUT, b"caf\xc3"), Frame(ERR, b"\xff"), Frame(OUT, b"\xa9")])
def test_it_finds_what_is_found_in_the_whole(wanted: str, frames: list[Frame]) -> None:
    assert found(wanted, frames) == reference(wanted, frames)


@given(WANTED, logs())
def test_where_the_cuts_are_changes_only_the_frame_that_is_named(wanted: str, frames: list[Frame]) -> None:
    whole = [Frame(channel, b"".join(f.data for f in frames if f.channel is channel)) for channel in (OUT, ERR)]
    cut, uncut = (
        [[m.line for m in found(wanted, each) if m.channel is channel] for channel in (OUT, ERR)]
        for each in (frames, whole)
    )
    assert cut == uncut


def test_a_character_that_is_cut_between_two_frames_is_whole() -> None:
    data = "Größe: 漢字 🎉".encode()
    for wanted in ("größe", "漢字", "🎉"):
        for cut in range(len(data) + 1):
            assert lines(wanted, data[:cut], data[cut:]) == [data.decode()], (wanted, cut)


def test_the_frame_is_the_one_in_which_the_text_ends_not_the_line() -> None:
    frames = [Frame(OUT, b"no sp"), Frame(ERR, b"no "), Frame(OUT, b"ace left"), Frame(ERR, b"one"), Frame(OUT, b"!\n")]
    assert found("No Space", frames) == [Match(3, at(3), OUT, "no space left!")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_a_line_ends_it(end: str) -> None:
    assert lines("o", f"one{end}two{end}six{end}o".encode()) == ["one", "two", "o"]


def test_a_line_is_given_once_however_often_it_has_the_text() -> None:
    assert lines("a", b"aaaa a\nb\n", b"a", b"a", b"a", b"\na") == ["aaaa a", "aaa", "a"]


def test_what_is_between_lines_is_no_match() -> None:
    assert lines("ab", b"a\nb", b"a", b"\r", b"b") == []


def test_colours_do_not_count() -> None:
    data = b"\x1b[31mdis\x1b[0;1mk\x1b[0m full"
    for cut in range(len(data) + 1):
        assert lines("disk full", data[:cut], data[cut:]) == ["disk full"], cut
    # What only looks like one is text.
    assert lines("1k", b"\x1b[31k") == ["\x1b[31k"]
    assert lines("9m", b"\x1b[" + b"9" * 100 + b"m") == ["\x1b[" + "9" * 100 + "m"]


@pytest.mark.parametrize("wanted", [".*", "a+", "[", "\\d", "$", "(?i)"])
def test_the_text_is_no_pattern(wanted: str) -> None:
    assert lines(wanted, b"aaa 1\n" + f"so {wanted} is\n".encode()) == [f"so {wanted} is"]


@pytest.mark.parametrize("size", [1, 1000, 65_536])
def test_a_long_line_is_shown_in_part(size: int) -> None:
    data = b"x" * 300_000 + b"needle" + b"y" * 300_000 + b"\n"
    frames = [Frame(OUT, data[start : start + size]) for start in range(290_000 if size == 1 else 0, len(data), size)]
    (match,) = found("NEEDLE", frames)
    assert match.line == "x" * 100 + "needle" + "y" * 294


@pytest.mark.parametrize("behind", [0, 1, 293, 294, 295, 500])
@pytest.mark.parametrize("before", [0, 1, 99, 100, 101, 399, 400, 401, 5000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_excerpt_is_that_of_the_whole_line(before: int, behind: int, end: bytes) -> None:
    data = b"<" * before + b"needle" + b">" * behind
    expected = excerpt(data.decode(), before)
    for size in (1, 7, 100, 10_000):
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        assert lines("needle", *parts, end) == [expected], size


@pytest.mark.parametrize("size", [1000, 4096, 65_536, 10**7])
def test_a_line_without_an_end_is_given_again_now_and_then(size: int) -> None:
    line = bytearray(b"." * 400_000)
    places = [10, 100, 65_545, 65_546, 65_547, 131_082, 390_000]
    for place in places:
        line[place : place + 1] = b"x"
    data = bytes(line) + b"\nx\n"
    found_lines = lines("x", *(data[start : start + size] for start in range(0, len(data), size)))
    # From 10 on, 65,536 characters are passed over; from 65,546 on, as many again.
    assert [each.index("x") for each in found_lines] == [10, 99, 100, 100, 0]
    assert len(found_lines[0]) == 400 and found_lines[-1] == "x"


def test_many_matches_in_one_frame() -> None:
    assert lines("a", b"a\n" * 32_768) == ["a"] * 32_768


def test_it_remembers_little_of_a_line_without_an_end() -> None:
    search = LogSearch("never there")
    for sequence in range(100):
        assert search.output(sequence, at(sequence), OUT, b"n" * 65_536) == []
    (reader,) = search._readers.values()
    assert len(reader._line) <= log_search.EXCERPT_CHARACTERS + len("never there")
    for sequence in range(100):
        search.output(sequence, at(sequence), OUT, b"\x1b[" + b"1" * 30)
    assert len(reader._begun_colour) < 70


def test_a_notice_is_one_line() -> None:
    search = LogSearch("stop")
    notices: Iterable[tuple[Channel, str]] = [
        (Channel.SYSTEM, "Stopping\nstop"),
        (Channel.DEBUG, "nothing"),
        (Channel.DEBUG, "\x1b[1mSTO\x1b[0mP"),
        (Channel.SYSTEM, "y" * 1000 + "stop"),
    ]
    matches = [
        match for n, (channel, text) in enumerate(notices, 1) for match in search.notice(n, at(n), channel, text)
    ]
    assert [(m.sequence, m.channel, m.line) for m in matches] == [
        (1, Channel.SYSTEM, "Stopping\nstop"), (3, Channel.DEBUG, "STOP"), (4, Channel.SYSTEM, "y" * 396 + "stop"),
    ]  # fmt: skip
    assert search.close() == []
