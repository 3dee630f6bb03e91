"""The span of a command, sent by OTLP where OpenTelemetry's variables name a receiver and its SDK is installed.

It is named for the command alone: what people type beside that is theirs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

FLUSH_SECONDS: Final = 1.5
"""At the end, for what has not been sent; a receiver that is away delays a command by this."""
TRACED: Final = frozenset({"jobs", "packages", "credentials", "agents"})
"""Groups of commands that talk to the suite."""


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody receives spans."""
    receiver = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return not off and any(environment.get(each) for each in receiver)


@contextmanager
def traced(words: Sequence[str]) -> Iterator[list[int]]:
    """The span of a command, given by its words. The list is for its exit code."""
    codes: list[int] = []
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags
    except ModuleNotFoundError:
        yield codes
        return
    from sis.trace_context import TraceContext

    # That a receiver is away is no news for who types a command.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    about = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or "sis", "service.version": version("sis")}
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    processor = BatchSpanProcessor(OTLPSpanExporter(timeout=FLUSH_SECONDS))
    provider.add_span_processor(processor)
    parent = TraceContext.parse(os.environ.get("TRACEPARENT", ""))
    above = None
    if parent is not None:
        given = SpanContext(parent.trace_id, parent.span_id, True, TraceFlags(int(parent.sampled)))
        above = trace.set_span_in_context(NonRecordingSpan(given))
    span = provider.get_tracer("sis").start_span(" ".join(("sis", *words)), above)
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield codes
    finally:
        code = codes[0] if codes else 1
        span.set_attribute("process.exit.code", code)
        if code:
            span.set_attribute("error.type", str(code))
            span.set_status(StatusCode.ERROR)
        span.end()
        # It waits for the one export that there is, which has its bound.
        provider.shutdown()
