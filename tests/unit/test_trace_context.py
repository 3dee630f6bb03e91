"""traceparent, as the W3C has it; what anybody can send is read as nothing unless it is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis.trace_context import TraceContext

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@given(st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1), st.booleans())
def test_what_is_written_is_read_again(trace: int, span: int, sampled: bool) -> None:
    context = TraceContext(trace, span, sampled)
    assert TraceContext.parse(str(context)) == context


def test_the_example_of_the_standard() -> None:
    found = TraceContext.parse(f"00-{TRACE}-{SPAN}-01")
    assert found == TraceContext(int(TRACE, 16), int(SPAN, 16), True)
    assert TraceContext.parse(f"00-{TRACE}-{SPAN}-00") == TraceContext(int(TRACE, 16), int(SPAN, 16), False)


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert TraceContext.parse(f"01-{TRACE}-{SPAN}-09-more") == TraceContext(int(TRACE, 16), int(SPAN, 16), True)


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\x00",
        f"01-{TRACE}-{SPAN}-01-{'x' * 100_000}",
        "0٣-" + TRACE + "-" + SPAN + "-01",
    ],
)
def test_anything_else_is_none(hostile: str) -> None:
    assert TraceContext.parse(hostile) is None


@given(st.text())
def test_no_text_is_an_error(text: str) -> None:
    TraceContext.parse(text)


def test_a_span_within_is_the_same_for_whoever_asks() -> None:
    context = TraceContext(int(TRACE, 16), int(SPAN, 16), False)
    found = context.within("attempt 1.1")
    assert found == context.within("attempt 1.1")
    assert (found.trace_id, found.sampled) == (context.trace_id, False)
    assert len({context.span_id, found.span_id, context.within("attempt 1.2").span_id, found.within("x").span_id}) == 4
