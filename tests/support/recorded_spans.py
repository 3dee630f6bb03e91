"""Spans that the code under test records in this process, kept in memory by OpenTelemetry's own SDK."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.runtime import exporting, tracing
from sis.trace_context import TraceContext


class Spans:
    """Those that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (found,) = self.named(name)
        return found


@contextmanager
def recorded_spans(*others: str) -> Iterator[Spans]:
    """For the block, with those that are recorded for others."""
    exporter = InMemorySpanExporter()
    resource = Resource({"service.name": "sis-test"})
    tracing.record_with(exporting.recording(SimpleSpanProcessor(exporter), resource, others))
    try:
        yield Spans(exporter)
    finally:
        tracing.record_with(None)


def context_of(span: ReadableSpan) -> TraceContext:
    found = span.get_span_context()
    assert found is not None
    return TraceContext(found.trace_id, found.span_id)
