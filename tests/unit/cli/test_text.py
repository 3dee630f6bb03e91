from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis.cli.text import LINE_CHARACTERS, LineJoiner, coloured, uncoloured, visible


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
        ("a\rb", r"a\x0db"),
        ("a\nb", r"a\x0ab"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),
        ("tab\tstays, so does é 漢 🎉", "tab\tstays, so does é 漢 🎉"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    ],
)
def test_controls_become_visible(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


@pytest.mark.parametrize(
    "harmless",
    ["\x1b[31mred\x1b[0m", "\x1b[1;4;97mx\x1b[m", "\x1b[38;5;208mx\x1b[39m", "\x1b[48;2;1;2;3mx\x1b[49m"],
)
def test_colours_pass_on_a_terminal_and_vanish_elsewhere(harmless: str) -> None:
    assert coloured(harmless) == harmless
    assert "\x1b" not in uncoloured(harmless)
    assert "\\x1b" not in uncoloured(harmless)


@pytest.mark.parametrize("sequence", ["\x1b[8m", "\x1b[5m", "\x1b[31;8m", "\x1b[38;5;1;8m"])
def test_hidden_and_blinking_text_is_not_hidden(sequence: str) -> None:
    assert coloured(f"{sequence}text") == "text"


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    for shown in (visible(text), uncoloured(text)):
        assert not any(ord(each) < 32 and each != "\t" for each in shown)
        assert not any(0x7F <= ord(each) <= 0x9F for each in shown)


@given(st.text())
def test_only_colours_are_left_with_colours(text: str) -> None:
    assert "\x1b" not in uncoloured(coloured(text))


@given(st.binary(), st.lists(st.integers(1, 7)))
def test_cuts_change_nothing(data: bytes, cuts: list[int]) -> None:
    whole = LineJoiner()
    expected = whole.feed(data) + whole.end()
    joiner, found, rest = LineJoiner(), list[str](), data
    for cut in cuts:
        found += joiner.feed(rest[:cut])
        rest = rest[cut:]
    assert found + joiner.feed(rest) + joiner.end() == expected


def test_a_character_split_over_chunks() -> None:
    joiner = LineJoiner()
    assert joiner.feed(b"caf\xc3") == []
    assert joiner.rest == "caf"
    assert joiner.feed(b"\xa9\n") == ["café"]


def test_bytes_that_are_not_utf8_are_shown() -> None:
    assert LineJoiner().feed(b"a\xffb\n") == [r"a\xffb"]


def test_line_ends() -> None:
    joiner = LineJoiner()
    assert joiner.feed(b"one\r") == ["one"]
    assert joiner.feed(b"\ntwo\r\n\r\n10%\r20%\r") == ["two", "", "10%", "20%"]
    assert joiner.feed(b"three") == []
    assert joiner.end() == ["three"]
    assert joiner.end() == []


def test_an_endless_line_is_bounded() -> None:
    joiner = LineJoiner()
    lines = [line for _ in range(40) for line in joiner.feed(b"x" * 10_000)]
    assert len(joiner.rest) <= LINE_CHARACTERS
    assert sum(map(len, lines)) + len(joiner.rest) == 400_000
