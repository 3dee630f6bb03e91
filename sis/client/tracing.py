"""The trace that a program is in goes on with its calls.

A program that uses OpenTelemetry is in the span that it has opened, any other in the one that its environment names
(TRACEPARENT), as payloads are in theirs. Nothing is recorded here, and OpenTelemetry need not be installed.
"""

from __future__ import annotations

import os
import sys

from sis.trace_context import TraceContext

Metadata = tuple[tuple[str, str], ...]


def metadata() -> Metadata:
    """What goes with a call that is made now."""
    context = _of_program() or TraceContext.parse(os.environ.get("TRACEPARENT", ""))
    return () if context is None else (("traceparent", str(context)),)


def _of_program() -> TraceContext | None:
    # Who has not imported it has opened no span.
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    span = api.get_current_span().get_span_context()
    return TraceContext(span.trace_id, span.span_id, bool(span.trace_flags.sampled)) if span.is_valid else None
