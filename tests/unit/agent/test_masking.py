"""The masker against a slow and obvious one, in pieces of any size; what it holds back, and how much it works."""

from __future__ import annotations

import base64
import itertools
import random
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.sis_agent.agent.secrecy import form_index, masking, wrapped_index
from services.sis_agent.agent.secrecy.form_index import FormIndex
from services.sis_agent.agent.secrecy.masking import MASK, Masker, MaskStream
from services.sis_agent.agent.secrecy.secret_forms import MIN_FORM_BYTES, encoded_forms, forms, verbatim_forms
from services.sis_agent.agent.secrecy.wrapped_index import WrappedIndex

SECRET = b"correct horse"


def covered(data: bytes, wanted: Collection[bytes], wrapped: Collection[bytes] = ()) -> bytearray:
    """A 1 for each byte that belongs to an occurrence of a form, or of one that may be wrapped."""
    marks = bytearray(len(data))
    for form in wanted:
        place = data.find(form)
        while place >= 0:
            marks[place : place + len(form)] = b"\1" * len(form)
            place = data.find(form, place + 1)
    for form in wrapped:
        bytes_of_form = [re.escape(form[at : at + 1]) for at in range(len(form))]
        for match in re.finditer(b"(?=(" + rb"(?:\r?\n)?".join(bytes_of_form) + b"))", data):
            marks[match.start(1) : match.end(1)] = b"\1" * (match.end(1) - match.start(1))
    return marks


def rendered(data: bytes, marks: bytearray) -> bytes:
    out = bytearray()
    for place, byte in enumerate(data):
        if not marks[place]:
            out.append(byte)
        elif place == 0 or not marks[place - 1]:
            out += MASK
    return bytes(out)


def reference(data: bytes, wanted: Collection[bytes], wrapped: Collection[bytes] = ()) -> bytes:
    return rendered(data, covered(data, wanted, wrapped))


def masked_by_reference(data: bytes, secrets: Iterable[bytes]) -> bytes:
    given = list(secrets)
    verbatim = frozenset[bytes]().union(*map(verbatim_forms, given))
    return reference(data, verbatim, frozenset[bytes]().union(*map(encoded_forms, given)))


def first_open(data: bytes, wanted: Collection[bytes], wrapped: Collection[bytes] = ()) -> int:
    """Where the longest end of the data begins with which a form may go on."""
    for place in range(len(data)):
        tail = data[place:]
        if any(len(form) > len(tail) and form.startswith(tail) for form in wanted):
            return place
        if tail[0] not in b"\r\n" and re.fullmatch(rb"(?:[^\r\n](?:\r?\n|\r\Z)?)+", tail):
            said = tail.translate(None, b"\r\n")
            if any(len(form) > len(said) and form.startswith(said) for form in wrapped):
                return place
    return len(data)


def in_pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """The data in pieces of these sizes, again and again."""
    place = 0
    for size in itertools.cycle(sizes):
        if place >= len(data):
            return
        yield data[place : place + size]
        place += size


def streamed(stream: MaskStream, pieces: Iterable[bytes]) -> bytes:
    return b"".join(map(stream.feed, pieces)) + stream.flush()


@st.composite
def forms_and_text(draw: st.DrawFn) -> tuple[frozenset[bytes], bytes]:
    """Forms of few letters that overlap, nest and begin each other, and a text that is made of pieces of them."""
    letters = draw(st.sampled_from([b"a", b"ab", b"abc"]))
    some = st.binary(max_size=40).map(lambda raw: bytes(letters[byte % len(letters)] for byte in raw))
    bases = draw(st.lists(some.filter(bool), min_size=1, max_size=4))
    shortest = draw(st.sampled_from([1, 6, 8, 12]))
    slices = st.tuples(st.sampled_from(bases), st.integers(0, 40), st.integers(shortest, 40))
    wanted = {base[start : start + size] for base, start, size in draw(st.lists(slices, max_size=12))} | set(bases)
    wanted = {form for form in wanted if len(form) >= shortest} or {letters * shortest}
    pieces = st.one_of(
        some, st.sampled_from(sorted(wanted)), st.sampled_from(sorted(wanted)).map(lambda form: form[:-1])
    )
    return frozenset(wanted), b"".join(draw(st.lists(pieces, max_size=8)))


SIZES = st.one_of(st.just([1]), st.lists(st.integers(1, 30), min_size=1, max_size=10))


@settings(max_examples=400, deadline=None)
@given(forms_and_text(), SIZES)
def test_a_stream_masks_what_the_reference_masks(case: tuple[frozenset[bytes], bytes], sizes: list[int]) -> None:
    wanted, data = case
    assert streamed(MaskStream(FormIndex(wanted)), in_pieces(data, sizes)) == reference(data, wanted)


@settings(max_examples=200, deadline=None)
@given(forms_and_text(), SIZES)
def test_nothing_is_held_with_which_no_form_begins(case: tuple[frozenset[bytes], bytes], sizes: list[int]) -> None:
    wanted, data = case
    stream, so_far, out = MaskStream(FormIndex(wanted)), b"", b""
    for piece in in_pieces(data, sizes):
        so_far += piece
        out += stream.feed(piece)
        known = first_open(so_far, wanted)
        assert out == rendered(so_far[:known], covered(so_far, wanted))


@st.composite
def wrapped_forms_and_text(draw: st.DrawFn) -> tuple[frozenset[bytes], bytes]:
    """As `forms_and_text`, with line ends anywhere, and what is almost one."""
    wanted, text = draw(forms_and_text())
    ends = st.sampled_from([b"\n", b"\r\n", b"\n", b"\r\n", b"\n\n", b"\r", b"\n\r", b"\r\r\n"])
    places = draw(st.lists(st.tuples(st.integers(0, max(1, len(text))), ends), max_size=12))
    for place, end in sorted(places, reverse=True):
        text = text[:place] + end + text[place:]
    return wanted, text


@settings(max_examples=400, deadline=None)
@given(wrapped_forms_and_text(), SIZES)
def test_forms_that_are_wrapped_are_masked_as_the_reference_does_it(
    case: tuple[frozenset[bytes], bytes], sizes: list[int]
) -> None:
    wrapped, data = case
    assert streamed(MaskStream(WrappedIndex(wrapped)), in_pieces(data, sizes)) == reference(data, (), wrapped)


@settings(max_examples=400, deadline=None)
@given(wrapped_forms_and_text(), SIZES)
def test_nothing_is_held_with_which_no_wrapped_form_begins(
    case: tuple[frozenset[bytes], bytes], sizes: list[int]
) -> None:
    wrapped, data = case
    stream, so_far, out = MaskStream(WrappedIndex(wrapped)), b"", b""
    for piece in in_pieces(data, sizes):
        so_far += piece
        out += stream.feed(piece)
        known = first_open(so_far, (), wrapped)
        assert len(so_far) - known < WrappedIndex(wrapped).longest
        assert out == rendered(so_far[:known], covered(so_far, (), wrapped))


@st.composite
def secrets_and_text(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Secrets of any bytes, of few letters and of several lines, some beginning others, in any of their forms."""
    few = st.text("ab+/", min_size=8, max_size=40).map(str.encode)
    line = st.text(st.characters(codec="utf-8"), min_size=4, max_size=30).map(str.encode)
    several = st.lists(line, min_size=2, max_size=4).map(b"\r\n".join)
    secret = st.one_of(st.binary(min_size=8, max_size=40), few, line, several).filter(lambda one: len(one) >= 8)
    secrets = draw(st.lists(secret, min_size=1, max_size=4))
    if draw(st.booleans()):
        secrets.append(secrets[0] + draw(st.binary(min_size=1, max_size=8)))
    wanted = sorted(frozenset[bytes]().union(*map(forms, secrets)))
    form = st.sampled_from(wanted) if wanted else st.binary()
    cut = st.tuples(form, st.integers(0, 60), st.integers(0, 60)).map(lambda it: it[0][it[1] : it[1] + it[2]])
    text = b"".join(draw(st.lists(st.one_of(form, cut, st.binary(max_size=20)), max_size=8)))
    if width := draw(st.sampled_from([0, 0, 3, 64, 76])):
        end = draw(st.sampled_from([b"\n", b"\r\n"]))
        text = end.join(text[start : start + width] for start in range(0, len(text), width))
    return secrets, text


@settings(max_examples=100, deadline=None)
@given(secrets_and_text(), SIZES)
@example(([b"\r\n\r\n\r\n\r\n"], b"\r\n\r\n\r\n\r\n"), [1])
def test_secrets_are_masked_as_the_reference_does_it(case: tuple[list[bytes], bytes], sizes: list[int]) -> None:
    secrets, data = case
    masker = Masker(secrets)
    masked = streamed(masker.stream(), in_pieces(data, sizes))
    assert masked == masker.data(data) == masked_by_reference(data, secrets)
    view = data.translate(None, b"\r\n")
    if not any(form in data or form in view for secret in secrets for form in forms(secret)):
        assert masked == data


@settings(max_examples=100, deadline=None)
@given(secrets_and_text(), st.integers(0, 400))
def test_what_was_cut_off_is_masked_alike_at_once_and_in_pieces(case: tuple[list[bytes], bytes], size: int) -> None:
    secrets, data = case
    masker = Masker(secrets)
    stream = masker.stream()
    begun = data[:size]
    masked = b"".join(map(stream.feed, in_pieces(begun, [7]))) + stream.cut()
    assert masked == masker.data(begun, cut=True)
    if not masked.endswith(MASK) and any(
        begun.endswith(form[:MIN_FORM_BYTES]) for secret in secrets for form in forms(secret)
    ):
        raise AssertionError(f"the beginning of a form is left in {masked!r}")


@settings(max_examples=100, deadline=None)
@given(secrets_and_text(), st.lists(st.integers(0, 400), min_size=2, max_size=2))
def test_a_part_of_a_whole_is_masked_as_the_whole_is(case: tuple[list[bytes], bytes], places: list[int]) -> None:
    secrets, data = case
    start, end = sorted(min(place, len(data)) for place in places)
    verbatim = frozenset[bytes]().union(*map(verbatim_forms, secrets))
    marks = covered(data, verbatim, frozenset[bytes]().union(*map(encoded_forms, secrets)))
    assert Masker(secrets).whole(data).part(start, end) == rendered(data[start:end], marks[start:end])


def test_an_empty_part_within_a_secret_is_empty() -> None:
    whole = Masker([bytes(8)]).whole(bytes(8))
    assert [whole.part(place, place) for place in range(9)] == [b""] * 9
    assert [whole.part(place, place + 1) for place in range(8)] == [MASK] * 8


@pytest.mark.parametrize("count", [1, 100])
def test_many_secrets_in_much_text(count: int) -> None:
    """Beyond a thousand forms, what the automaton looks for is shorter."""
    chance = random.Random(count)
    secrets = [chance.randbytes(12).hex().encode() for _ in range(count)]
    wanted = sorted(frozenset[bytes]().union(*map(forms, secrets)))
    lines = [chance.choice([b"nothing here", chance.choice(wanted), chance.choice(wanted)[:9]]) for _ in range(300)]
    data = b"\n".join(lines)
    pieces = in_pieces(data, [chance.randrange(1, 500) for _ in range(1000)])
    assert streamed(Masker(secrets).stream(), pieces) == masked_by_reference(data, secrets)


def test_without_secrets_nothing_is_done() -> None:
    masker = Masker()
    stream = masker.stream()
    data = b"x" * 100
    assert not masker
    assert stream.feed(data) is data
    assert stream.flush() == b""
    assert masker.text("pl\udcffain") == "pl\udcffain"


def test_short_secrets_break_nothing() -> None:
    assert not Masker([b"", b"a"])
    assert Masker([b"abc"]).data(b"abc, and 616263") == b"abc, and ***"


def test_a_run_over_several_pieces_is_one_mask() -> None:
    stream = Masker([SECRET]).stream()
    assert stream.feed(b"a " + SECRET[:5]) == b"a "
    assert stream.feed(SECRET[5:] + SECRET) == MASK
    assert stream.feed(SECRET) == b""
    assert stream.feed(b".") == b"."
    assert stream.flush() == b""


def test_what_is_held_at_the_end_is_shown() -> None:
    stream = Masker([SECRET]).stream()
    assert stream.feed(b"a correct") == b"a "
    assert stream.flush() == b"correct"
    # Nothing goes on across a flush.
    assert stream.feed(b" horse") == b" horse"


def test_a_covered_byte_that_is_held_stays_covered() -> None:
    stream = Masker([b"12345678", b"5678abcdefgh"]).stream()
    assert stream.feed(b"12345678") == MASK
    assert stream.feed(b"ab") == b""
    assert stream.flush() == b"ab"


def test_texts_are_masked() -> None:
    masker = Masker([SECRET])
    assert masker.text(f"ü {SECRET.decode()}: \ud800") == "ü ***: \ufffd\ufffd\ufffd"
    assert masker.text("nothing \ud800 at all") == "nothing \ud800 at all"


def test_what_was_cut_off_shows_no_part_of_a_secret() -> None:
    masker = Masker([SECRET])
    assert masker.data(b"has correct h") == b"has correct h"
    assert masker.data(b"has correct h", cut=True) == b"has ***"
    assert masker.data(b"has corre", cut=True) == b"has corre"
    assert masker.data(b"correct horsecorrect", cut=True) == b"***"
    assert masker.data(b"636f72\n7265\r", cut=True) == b"***"


def test_a_line_end_that_is_held_is_released_when_nothing_goes_on() -> None:
    stream = Masker([SECRET]).stream()
    encoded = base64.b64encode(SECRET)
    assert stream.feed(encoded[:9] + b"\r") == b""
    assert stream.feed(b"\n") == b""
    assert stream.feed(encoded[9:12] + b"\n\n") == encoded[:9] + b"\r\n" + encoded[9:12] + b"\n\n"
    assert stream.feed(encoded[:9] + b"\n" + encoded[9:] + b"\n.") == b"***\n."


def test_a_masker_tells_nothing_of_its_secrets() -> None:
    masker = Masker([SECRET])
    stream = masker.stream()
    stream.feed(SECRET[:-1])
    for shown in (repr(masker), repr(stream), str(vars(masker)), repr(masker.whole(SECRET))):
        assert not any(form.decode("latin-1") in shown for form in forms(SECRET))


NESTED = b"\n".join(b"a" * size for size in range(8, 200))
NEVER_WHOLE = b"\n".join(b"b" * size + b"a" for size in range(8, 200))


@pytest.mark.parametrize(
    ("secret", "unit"),
    [
        (b"a" * 8, b"a"),
        (b"a" * 3000, b"a"),
        (b"ab" * 100, b"ab"),
        (b"        indented: value", b" "),
        (NESTED, b"a"),
        (NESTED, b"a" * 8 + b"c"),
        (NEVER_WHOLE, b"b"),
        (b"\n".join(bytes(range(65, 65 + size)) for size in range(8, 60)), b"ABCDEFGHx"),
        (b"a" * 300, b"YW\nFh\r\n"),
        (b"a" * 300, b"YWFh" * 90 + b"\n."),
    ],
    ids=[
        "short",
        "long",
        "two letters",
        "blanks",
        "nested",
        "nested and cut",
        "never whole",
        "beginnings",
        "wrapped",
        "wrapped and whole",
    ],
)
def test_the_worst_texts_take_work_in_proportion_to_their_length(secret: bytes, unit: bytes) -> None:
    """Forms that overlap themselves at each byte, that begin each other, or of which none is ever whole."""
    masker = Masker([secret])
    size = 6_000
    text = (unit * size)[:size]
    for data in (text, text * 2):
        assert lines_run(lambda data=data: masker.data(data)) <= 60 * len(data) + 2_000  # type: ignore[misc]


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of the masker are executed."""
    files = {form_index.__file__, masking.__file__, wrapped_index.__file__}
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count
