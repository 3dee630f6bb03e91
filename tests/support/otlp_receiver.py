"""A receiver of OTLP over HTTP that keeps what it gets: real requests of real exporters, for tests to look at."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from sis.trace_context import TraceContext

WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Received:
    """A span."""

    service: str
    name: str
    context: TraceContext
    parent: int
    """The id of its parent span; 0 for none."""
    attributes: Mapping[str, Any]
    links: frozenset[TraceContext]
    failed: bool
    began: int
    ended: int
    """In nanoseconds of the epoch."""


class OtlpReceiver:
    """At `endpoint`, until it is closed; `raw` is every byte of what came."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.metrics: dict[tuple[str, str], Any] = {}
        """The last of each, by service and name."""
        self.raw: list[bytes] = []
        receiver = self
        self._news = threading.Condition()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver._take(self.path, gzip.decompress(body) if self.headers["Content-Encoding"] else body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _take(self, path: str, body: bytes) -> bytes:
        with self._news:
            self.raw.append(body)
            answer = self._take_spans(body) if path == "/v1/traces" else self._take_metrics(path, body)
            self._news.notify_all()
        return answer

    def _take_spans(self, body: bytes) -> bytes:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    Received(
                        service=service,
                        name=span.name,
                        context=_context(span.trace_id, span.span_id),
                        parent=int.from_bytes(span.parent_span_id),
                        attributes=_attributes(span.attributes),
                        links=frozenset(_context(link.trace_id, link.span_id) for link in span.links),
                        failed=span.status.code == Status.STATUS_CODE_ERROR,
                        began=span.start_time_unix_nano,
                        ended=span.end_time_unix_nano,
                    )
                    for span in scope.spans
                ]
        return ExportTraceServiceResponse().SerializeToString()

    def _take_metrics(self, path: str, body: bytes) -> bytes:
        assert path == "/v1/metrics"
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_metrics:
                self.metrics |= {(service, metric.name): metric for metric in scope.metrics}
        return ExportMetricsServiceResponse().SerializeToString()

    def wait(self, found: Callable[[], Any], timeout: float = WAIT_SECONDS) -> Any:
        """What `found` returns, once that is true."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not (result := found()):
                left = deadline - time.monotonic()
                assert left > 0, f"not received in time; what came: {sorted({(s.service, s.name) for s in self.spans})}"
                self._news.wait(left)
        return result

    def trace(self, trace_id: int) -> list[Received]:
        """The spans of one trace that have come."""
        return [span for span in self.spans if span.context.trace_id == trace_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """One for the block."""
    receiver = OtlpReceiver()
    try:
        yield receiver
    finally:
        receiver.close()


def _context(trace_id: bytes, span_id: bytes) -> TraceContext:
    return TraceContext(int.from_bytes(trace_id), int.from_bytes(span_id))


def _attributes(found: Iterable[Any]) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in found}
