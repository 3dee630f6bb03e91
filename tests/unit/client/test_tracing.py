"""The trace that a program is in goes on with its calls."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from sis.client import tracing
from sis.trace_context import TraceContext

GIVEN = TraceContext(0x1234, 0x5678)
OTHER = TraceContext(0xABC, 0xDEF, sampled=False)


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEPARENT", raising=False)


def test_a_program_in_no_trace_sends_none() -> None:
    assert tracing.metadata() == ()


def test_what_was_started_in_a_trace_goes_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", str(GIVEN))
    assert tracing.metadata() == (("traceparent", str(GIVEN)),)


@pytest.mark.parametrize("hostile", ["", "none", "00-1-2-3", str(GIVEN) + "\n", "ü" * 600])
def test_what_is_no_traceparent_is_not_sent(monkeypatch: pytest.MonkeyPatch, hostile: str) -> None:
    monkeypatch.setenv("TRACEPARENT", hostile)
    assert tracing.metadata() == ()


def test_the_span_that_a_program_has_opened_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", str(GIVEN))
    span = NonRecordingSpan(SpanContext(OTHER.trace_id, OTHER.span_id, False, TraceFlags(0)))
    with trace.use_span(span):
        assert tracing.metadata() == (("traceparent", str(OTHER)),)
    assert tracing.metadata() == (("traceparent", str(GIVEN)),)


def test_the_client_needs_no_opentelemetry() -> None:
    program = "import sys, sis.client, sis.cli.main; print([n for n in sys.modules if n.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
