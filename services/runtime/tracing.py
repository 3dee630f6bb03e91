"""Spans: what this process does, as parts of traces. OpenTelemetry's, behind a closed set of attributes.

Without an exporter (`exporting`) nothing is recorded, and what came in with a call goes on with the calls that follow
from it. An attribute is an id, a method, a code, a status or a type: nothing that people or payloads have written is
ever one, and no exception is recorded, since its message may quote that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from sis.trace_context import TraceContext

HEADER: Final = "traceparent"
"""Under which a context travels, in HTTP as in gRPC."""

LINKS: Final = 128
"""As many links are kept of one span."""


class Attribute(StrEnum):
    """Everything that can be said of a span or a measurement, by its name in OpenTelemetry's conventions where it has
    one."""

    RPC_SYSTEM = "rpc.system.name"
    RPC_METHOD = "rpc.method"
    RPC_STATUS = "rpc.response.status_code"
    HTTP_METHOD = "http.request.method"
    HTTP_ROUTE = "http.route"
    HTTP_STATUS = "http.response.status_code"
    ERROR_TYPE = "error.type"
    EXIT_CODE = "process.exit.code"
    JOB_ID = "sis.job.id"
    JOB_ATTEMPT = "sis.job.attempt"
    JOB_TYPE = "sis.job.type"
    JOB_STATUS = "sis.job.status"
    JOB_EVENT = "sis.job.event"
    JOB_OUTCOME = "sis.job.outcome"
    LEASES = "sis.job.leases"
    TRANSACTION = "sis.database.transaction"
    SLOT_STATE = "sis.slot.state"
    VAULT_OPERATION = "sis.vault.operation"


Attributes = Mapping[Attribute, str | int]


def plain(attributes: Attributes) -> Mapping[str, str | int]:
    """As OpenTelemetry takes them, whose mappings are of any text."""
    return cast("Mapping[str, str | int]", attributes)


@dataclass(frozen=True, slots=True)
class Recording:
    """Where spans go."""

    tracer: trace.Tracer
    # Of what other processes have done, which cannot record it themselves.
    others: Mapping[str, trace.Tracer]
    ids: ChosenIds


class ChosenIds(Protocol):
    """Gives ids to spans; the next one gets `chosen`, unless that is 0. For one thread."""

    chosen: int


class _Process:
    """What the process does with spans; None: nothing."""

    recording: Recording | None = None


def record_with(recording: Recording | None) -> None:
    """Record from now on; None: nothing any more."""
    _Process.recording = recording


def records() -> bool:
    """Whether anything is recorded, so that what only spans need can be left out."""
    return _Process.recording is not None


def current() -> TraceContext | None:
    """The span in which the caller is, whoever records it."""
    return _from_otel(trace.get_current_span().get_span_context())


@contextmanager
def served(name: str, parent: TraceContext | None, attributes: Attributes) -> Iterator[dict[Attribute, str | int]]:
    """The span of a call that this process serves. What the block puts into the dictionary is said of it; ERROR_TYPE
    makes it a failure."""
    more: dict[Attribute, str | int] = {}
    recording = _Process.recording
    if recording is None:
        with within(parent):
            yield more
        return
    span = recording.tracer.start_span(name, _below(parent), SpanKind.SERVER, plain(attributes))
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield more
    finally:
        if Attribute.HTTP_ROUTE in more:
            # Which is found only after the span was begun.
            span.update_name(f"{name} {more[Attribute.HTTP_ROUTE]}")
        _end(span, more)


@contextmanager
def inside(name: str, attributes: Attributes) -> Iterator[dict[Attribute, str | int]]:
    """The span of a call to something that knows nothing of traces; as `served`, below the current span, and none where
    there is no such."""
    more: dict[Attribute, str | int] = {}
    recording = _Process.recording
    if recording is None or current() is None:
        yield more
        return
    span = recording.tracer.start_span(name, kind=SpanKind.CLIENT, attributes=plain(attributes))
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield more
    finally:
        _end(span, more)


class Outgoing:
    """A call to another process: `context` goes with it, and `end` is called when it is over. As with `inside`, no span
    is there where there is no current one: the call begins a trace where it is served. None: nothing goes with it."""

    __slots__ = ("_span", "context")

    def __init__(self, method: str) -> None:
        self._span: trace.Span | None = None
        recording = _Process.recording
        self.context = current()
        if recording is None or self.context is None:
            return
        attributes = plain({Attribute.RPC_SYSTEM: "grpc", Attribute.RPC_METHOD: method})
        self._span = recording.tracer.start_span(method, kind=SpanKind.CLIENT, attributes=attributes)
        self.context = _from_otel(self._span.get_span_context())

    @property
    def recorded(self) -> bool:
        return self._span is not None

    def end(self, code: str) -> None:
        """It has ended with a status code of gRPC's."""
        if self._span is not None:
            failed = {} if code == "OK" else {Attribute.ERROR_TYPE: code}
            _end(self._span, {Attribute.RPC_STATUS: code, **failed})


@contextmanager
def within(context: TraceContext | None) -> Iterator[None]:
    """Have what the block does be below a span of another process."""
    if context is None:
        yield
    else:
        with trace.use_span(NonRecordingSpan(_to_otel(context)), record_exception=False, set_status_on_exception=False):
            yield


def link(contexts: Iterable[TraceContext | None]) -> None:
    """Have the current span name others that it is about; no more than LINKS of them."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    for count, context in enumerate(each for each in contexts if each is not None and each.sampled):
        if count == LINKS:
            break
        span.add_link(_to_otel(context))


def record(
    name: str,
    parent: TraceContext,
    began: float,
    ended: float,
    attributes: Attributes,
    *,
    own: TraceContext | None = None,
    of: str = "",
) -> None:
    """Record a span that is over: what happened from one second of the epoch to another. `own` is its context where
    that was decided before, `of` the process where it is another's."""
    recording = _Process.recording
    if recording is None:
        return
    here = trace.get_current_span().get_span_context()
    links = [trace.Link(here)] if here.is_valid and here.trace_id != parent.trace_id else None
    recording.ids.chosen = own.span_id if own is not None else 0
    tracer = recording.others[of] if of else recording.tracer
    span = tracer.start_span(
        name, _below(parent), SpanKind.INTERNAL, plain(attributes), links, start_time=int(began * 1e9)
    )
    if Attribute.ERROR_TYPE in attributes:
        span.set_status(StatusCode.ERROR)
    # Clocks can be set back in between.
    span.end(int(max(began, ended) * 1e9))


def _end(span: trace.Span, attributes: Attributes) -> None:
    if attributes and span.is_recording():
        span.set_attributes(plain(attributes))
        if Attribute.ERROR_TYPE in attributes:
            span.set_status(StatusCode.ERROR)
    span.end()


def _below(parent: TraceContext | None) -> Context | None:
    return None if parent is None else trace.set_span_in_context(NonRecordingSpan(_to_otel(parent)))


def _to_otel(context: TraceContext) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    return SpanContext(context.trace_id, context.span_id, True, flags)


def _from_otel(context: SpanContext) -> TraceContext | None:
    if not context.is_valid:
        return None
    return TraceContext(context.trace_id, context.span_id, context.trace_flags.sampled)
