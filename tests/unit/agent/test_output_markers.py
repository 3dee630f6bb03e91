"""Output parameters that payloads write among their other output."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.sis_agent.agent.recording.output_markers import OutputMarkers
from services.sis_agent.agent.recording.outputs import MAX_NAMES, Outputs

START, END = b"{{SISJobOutputParameterStart:", b"{{SISJobOutputParameterEnd}}"


def marked(name: bytes, value: bytes) -> bytes:
    return START + name + b"}}" + value + END


def found(pieces: Sequence[bytes]) -> Outputs:
    markers = OutputMarkers()
    for piece in pieces:
        markers.feed(piece)
    return markers.end()


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", {}),
        (b"nothing here, {{SISJob or there }}\n", {}),
        (marked(b"a", b"1"), {"a": "1"}),
        (b"text " + marked(b"a", b"1") + b" text " + marked(b"b", b"2") + b"\n", {"a": "1", "b": "2"}),
        (marked(b"a", b""), {"a": ""}),
        (marked(b"a", b" one\r\n\ntwo "), {"a": " one\r\n\ntwo "}),
        (marked(b"a", b"1") + marked(b"a", b"2"), {"a": "2"}),
        (marked(b"_x.y-z", "ü€😀".encode()), {"_x.y-z": "ü€😀"}),
        (marked(b"x" * 100, b"1"), {"x" * 100: "1"}),
        (marked(b"a", b'{"b":{}}'), {"a": '{"b":{}}'}),
        (marked(b"a", b"}{"), {"a": "}{"}),
        (b"{" + marked(b"a", START[:-1] + b" " + END[:-1]), {"a": (START[:-1] + b" " + END[:-1]).decode()}),
        (END + marked(b"a", b"1") + END, {"a": "1"}),
        (b"{{sisjoboutputparameterstart:a}}1{{sisjoboutputparameterend}}", {}),
        (marked(b"a", b"x" * (64 << 10)), {"a": "x" * (64 << 10)}),
        # A secret was masked that began, or ended, within a character.
        (marked(b"a", b"caf\xc3***\xa9"), {"a": "caf\ufffd***\ufffd"}),
    ],
)
def test_what_is_understood(content: bytes, values: dict[str, str]) -> None:
    assert found([content]) == Outputs(values)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (marked(b"", b"1"), "'' cannot be the name of an output"),
        (marked(b"a b", b"1"), "'a b' cannot be"),
        (marked(b"1a", b"1"), "'1a' cannot be"),
        (marked(b"$n\n", b"1"), "'$n\\n' cannot be"),
        (marked(b"\xff", b"1"), "'\ufffd' cannot be"),
        (marked(b"x" * 101, b"1"), f"'{'x' * 101}}}' cannot be"),
        (marked(b"a", b"\xff"), "the output a is not valid UTF-8"),
        (marked(b"a", b"x\0y"), "the output a has a NUL character"),
        (marked(b"a", b"x" * 65_537), "the output a is longer than 64 KiB"),
        (marked(b"a", b"x" * 5_000_000), "the output a is longer than 64 KiB"),
        (b"".join(marked(b"n%d" % i, b"1") for i in range(MAX_NAMES + 1)), "there are more than 200 outputs"),
        (b"".join(marked(b"n%d" % i, b"x" * 60_000) for i in range(18)), "the outputs are larger than 1 MiB together"),
    ],
)
def test_what_is_not(content: bytes, problem: str) -> None:
    (only,) = found([content]).problems
    assert only.startswith(f"standard output: {problem}")


def test_only_the_values_that_count_are_too_large_together() -> None:
    assert found([marked(b"a", b"x" * 60_000)] * 100 + [marked(b"a", b"1")]) == Outputs({"a": "1"})


@pytest.mark.parametrize(
    ("content", "values", "names"),
    [
        (START + b"a}}1", {}, "'a'"),
        (START + b"a}}" + b"x" * 1_000_000, {}, "'a'"),
        (START + b"a}}1" + END[:-1], {}, "'a'"),
        (START + b"a}}1 " + marked(b"b", b"2"), {"b": "2"}, "'a'"),
        (marked(b"a", b"1") + START + b"a}}2", {"a": "1"}, "'a'"),
        (START + b"a}}1" + START + b"b}}2", {}, "'a', 'b'"),
        (START + b"a}}1" + START + b"b\n", {}, "'a', 'b\\n'"),
        (b"".join(START + b"n%02d}}" % i for i in range(30)), {}, ", ".join(f"'n{i:02}'" for i in range(20))),
    ],
)
def test_a_value_that_is_not_ended_is_no_mistake(content: bytes, values: dict[str, str], names: str) -> None:
    remark = f"standard output begins, and does not end, the value of {names}; not kept"
    assert found([content]) == Outputs(values, (), (remark,))


def test_the_mistakes_named_are_bounded() -> None:
    outputs = found([marked(b"1", b"")] * 10_000 + [marked(b"a", b"1")])
    assert (len(outputs.problems), outputs.values) == (20, {})


PIECES = st.one_of(
    st.sampled_from(
        [START, END, START + b"a}}", START + b"b.c}}", START + b"1}}", b"}}", b"{", b"\n", b"\xc3", b"\xa9"]
    ),
    st.sampled_from([START, END]).flatmap(lambda mark: st.integers(1, len(mark)).map(lambda size: mark[:size])),
    st.binary(max_size=120),
)
TEXTS = st.lists(PIECES, max_size=19).map(b"".join)
CUTS = st.lists(st.integers(0, 600), max_size=30)
OUTPUT = re.compile(
    rb"{{SISJobOutputParameterStart:([A-Za-z_][A-Za-z0-9_.-]{0,99})}}"
    rb"((?:(?!{{SISJobOutputParameterStart:).)*?){{SISJobOutputParameterEnd}}",
    re.DOTALL,
)


@settings(max_examples=300, deadline=None)
@given(TEXTS, CUTS)
def test_a_stream_in_pieces_gives_what_it_gives_at_once(content: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    pieces = [content[start:end] for start, end in itertools.pairwise(places)]
    at_once = found([content])
    assert found(pieces) == at_once
    assert found([content[place : place + 1] for place in range(len(content))]) == at_once
    expected = {}
    for name, value in OUTPUT.findall(content):
        if b"\0" not in value and value.decode(errors="ignore").encode() == value:
            expected[name.decode()] = value.decode()
    assert at_once.values == expected


@pytest.mark.parametrize("unit", [b"x", b"{", START, START + b"a}}", START + b"a", END, marked(b"a", b"x" * 200)])
def test_memory_is_bounded_whatever_comes(unit: bytes) -> None:
    markers, piece = OutputMarkers(), (unit * (64 << 10))[: 64 << 10]
    markers.feed(START + b"open}}")
    tracemalloc.start()
    try:
        for _ in range(40):
            markers.feed(piece)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 128 << 10
    assert most < 512 << 10
