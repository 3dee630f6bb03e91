"""A request over HTTP goes on with the trace of its client, and is a span of it."""

from __future__ import annotations

import time

import pytest

from services.runtime import metrics
from services.runtime.tracing import Attributes
from sis.queue.v1 import job_service_pb2
from sis.trace_context import TraceContext
from tests.fakes.upstream import Upstream
from tests.support.gateway_server import GatewayServer
from tests.support.recorded_spans import Spans, context_of, recorded_spans

GIVEN = TraceContext(0x1234, 0x5678)
GET = "GET /v1/jobs/{job_id}"


def _ended(recorded: Spans, *names: str) -> None:
    """A span ends a moment after its answer."""
    for _ in range(2_000):
        if {span.name for span in recorded.all()} >= set(names):
            return
        time.sleep(0.01)
    raise AssertionError(f"{names} have not ended: {[span.name for span in recorded.all()]}")


def test_the_service_is_called_within_the_request(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["GetJob"] = job_service_pb2.GetJobResponse()
    with recorded_spans() as recorded:
        answer = gateway.call("GET", "/v1/jobs/42", headers={"traceparent": str(GIVEN)})
        assert answer.status == 200
        _ended(recorded, GET, "sis.queue.v1.JobService/GetJob")
        served, called = recorded.one(GET), recorded.one("sis.queue.v1.JobService/GetJob")
    assert served.parent is not None and served.parent.span_id == GIVEN.span_id
    assert served.attributes == {
        "http.request.method": "GET",
        "http.route": "/v1/jobs/{job_id}",
        "http.response.status_code": 200,
    }
    assert called.parent is not None and called.parent.span_id == context_of(served).span_id
    assert upstream.metadata[0]["traceparent"] == str(context_of(called))


def test_where_nothing_is_recorded_the_trace_goes_on_all_the_same(gateway: GatewayServer, upstream: Upstream) -> None:
    upstream.answers["GetJob"] = job_service_pb2.GetJobResponse()
    gateway.call("GET", "/v1/jobs/42", headers={"traceparent": str(GIVEN)})
    gateway.call("GET", "/v1/jobs/42", headers={"traceparent": "00-hostile"})
    gateway.call("GET", "/v1/jobs/42")
    assert [each.get("traceparent") for each in upstream.metadata] == [str(GIVEN), None, None]


def test_what_is_no_path_of_the_api_is_one_route(
    gateway: GatewayServer, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever anybody asks for, the measurements stay few."""
    told: list[Attributes] = []
    monkeypatch.setattr(metrics.HTTP, "record", lambda _seconds, attributes: told.append(attributes))
    with recorded_spans() as recorded:
        for path in ("/secret-1", "/v1/secret-2", "/healthz"):
            gateway.call("GET", path)
        _ended(recorded, "GET other")
    assert {str(each["http.route"]) for each in map(_plain, told)} == {"other"}
    assert "secret" not in "".join(span.to_json() for span in recorded.all())


def _plain(attributes: Attributes) -> dict[str, str | int]:
    return {str(name): value for name, value in attributes.items()}
