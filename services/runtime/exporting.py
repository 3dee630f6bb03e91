"""What a process has recorded, on its way out: spans and measurements by OTLP, measurements to Prometheus.

It is configured by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and its kin), and by a listener for
Prometheus. Without either, nothing of the SDK is even imported. Exporting is done by threads of the SDK, with bounded
queues and deadlines: a receiver that hangs or is away costs what does not fit, and holds nothing up.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from services.runtime import metrics, tracing
from services.runtime.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

FLUSH_SECONDS: Final = 1.5
"""At the end of a process, for what has not been sent yet; the rest is lost."""

COMPLAINT_SECONDS: Final = 60.0
"""Between two lines in the log that a receiver is away."""
LAST_EXPORT: Final = "last export"
"""What the threads are called that send it."""

_log = logging.getLogger("telemetry")


def _checked_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give the URL of an OTLP receiver, such as http://127.0.0.1:4318")
    return value


Url = Annotated[str, AfterValidator(_checked_url)]


def _checked_protocol(value: str | None) -> str | None:
    if value not in (None, "http/protobuf"):
        raise ValueError("only http/protobuf is spoken here, at port 4318 of most receivers; leave it unset")
    return value


Protocol = Annotated[str | None, AfterValidator(_checked_protocol)]


class ExportSettings(Settings):
    """Of OpenTelemetry's variables those that decide whether and where to something is sent. What else the SDK knows
    (samplers, headers, certificates, batches) it reads itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", env_ignore_empty=True)

    sdk_disabled: bool = False
    service_name: str | None = None
    # Of each its own, or that of both.
    exporter_otlp_endpoint: Url | None = None
    exporter_otlp_traces_endpoint: Url | None = None
    exporter_otlp_metrics_endpoint: Url | None = None
    exporter_otlp_protocol: Protocol = None
    exporter_otlp_traces_protocol: Protocol = None
    exporter_otlp_metrics_protocol: Protocol = None
    traces_exporter: Literal["otlp", "none"] = "otlp"
    metrics_exporter: Literal["otlp", "none"] = "otlp"
    metric_export_interval: Annotated[int, Field(ge=100, le=3_600_000)] = 60_000

    @property
    def traces(self) -> bool:
        """Whether spans are sent."""
        found = self.exporter_otlp_endpoint or self.exporter_otlp_traces_endpoint
        return bool(found) and self.traces_exporter == "otlp" and not self.sdk_disabled

    @property
    def metrics(self) -> bool:
        """Whether measurements are sent."""
        found = self.exporter_otlp_endpoint or self.exporter_otlp_metrics_endpoint
        return bool(found) and self.metrics_exporter == "otlp" and not self.sdk_disabled


@contextmanager
def exported(name: str, listen: str | None, others: Sequence[str] = ()) -> Iterator[None]:
    """For the life of a process, `sis-` and its name: send what it records and answer Prometheus at `host:port`, as far
    as that is configured. `others` are processes that have it record their spans.

    Exits with status 2 for a variable that cannot be right, with 1 where the address cannot be had.
    """
    settings = ExportSettings.load()
    with ExitStack() as stack:
        if settings.traces or settings.metrics or listen:
            try:
                _start(stack, settings, name, listen, others)
            except ValueError as error:  # what the SDK reads itself
                sys.exit(f"error: a variable that begins with OTEL_ cannot be right: {error}")
        yield


class _Sparing(logging.Filter):
    """Lets a minute pass between two complaints of an exporter, which makes several for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self._silent_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._silent_until:
            return False
        self._silent_until = now + COMPLAINT_SECONDS
        return True


def _start(stack: ExitStack, settings: ExportSettings, name: str, listen: str | None, others: Sequence[str]) -> None:
    resource = _resource(settings.service_name or f"sis-{name}")
    for each in ("trace_exporter", "metric_exporter"):
        log = logging.getLogger(f"opentelemetry.exporter.otlp.proto.http.{each}")
        sparing = _Sparing()
        log.addFilter(sparing)
        stack.callback(log.removeFilter, sparing)
    stops: list[Callable[[], object]] = []
    readers: list[MetricReader] = []
    if settings.traces:
        stops.append(_trace(resource, others))
        stack.callback(tracing.record_with, None)
    if settings.metrics:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        exporter = OTLPMetricExporter()
        readers.append(PeriodicExportingMetricReader(exporter, settings.metric_export_interval))
    if listen:
        readers.append(_prometheus(stack, listen))
    if readers:
        stops.append(_measure(resource, readers))
    stack.callback(_stop, stops)


def _resource(name: str) -> Resource:
    from opentelemetry.sdk.resources import Resource

    host = socket.gethostname()
    about = {
        "service.name": name,
        "service.version": version("sis"),
        "service.instance.id": f"{host}:{os.getpid()}",
        "host.name": host,
    }
    return Resource.create(about)


def _trace(resource: Resource, others: Sequence[str]) -> Callable[[], object]:
    """Have spans recorded and sent; returns what ends it."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    processor = BatchSpanProcessor(OTLPSpanExporter())
    tracing.record_with(recording(processor, resource, others))
    return processor.shutdown


def recording(processor: SpanProcessor, resource: Resource, others: Sequence[str]) -> tracing.Recording:
    """What makes spans for a processor: those of this process, and those of others."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        chosen = 0

        def generate_span_id(self) -> int:
            chosen, self.chosen = self.chosen, 0
            return chosen or super().generate_span_id()

    ids = Ids()

    def tracer(of: Resource) -> Tracer:
        provider = TracerProvider(resource=of, id_generator=ids, shutdown_on_exit=False)
        provider.add_span_processor(processor)
        return provider.get_tracer("sis")

    named = {each: tracer(resource.merge(Resource({"service.name": f"sis-{each}"}))) for each in others}
    return tracing.Recording(tracer(resource), named, ids)


def _measure(resource: Resource, readers: Sequence[MetricReader]) -> Callable[[], object]:
    """Have measurements kept for the readers; returns what ends it."""
    from opentelemetry.metrics import set_meter_provider
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider

    # An exemplar would be kept for each measurement, and nobody here asks for them.
    provider = MeterProvider(readers, resource, exemplar_filter=AlwaysOffExemplarFilter(), shutdown_on_exit=False)
    set_meter_provider(provider)
    metrics.keep()
    return provider.shutdown


def _prometheus(stack: ExitStack, listen: str) -> MetricReader:
    """What Prometheus reads at an address."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader

    from services.runtime.scrapes import Scrapes

    reader = PrometheusMetricReader(scope_info_enabled=False)
    try:
        scrapes = Scrapes(listen)
    except OSError as error:
        sys.exit(f"error: the listener for Prometheus, {listen}, cannot be had: {error.strerror or error}")
    stack.callback(scrapes.close)
    _log.info("measurements are to be read at http://%s/metrics", scrapes.address)
    return reader


def _stop(stops: Sequence[Callable[[], object]]) -> None:
    """Send what there is, for as long as that may take."""
    threads = [threading.Thread(target=stop, name=LAST_EXPORT, daemon=True) for stop in stops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FLUSH_SECONDS)
    if any(thread.is_alive() for thread in threads):
        _log.warning("not all spans and measurements were sent: their receiver did not take them in time")
