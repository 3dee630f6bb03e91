"""The span of a delivery, from the assignment to its acceptance."""

from __future__ import annotations

from services.sis_agent.hub import deliveries
from services.sis_agent.hub.deliveries import Deliveries
from services.sis_agent.hub.slots import AttemptKey
from sis.queue.v1 import dispatch_service_pb2 as queue
from sis.trace_context import TraceContext
from tests.support.recorded_spans import recorded_spans

JOB = TraceContext(0xABC, 0xDEF)


def _assignment(job_id: int, traceparent: str = str(JOB)) -> queue.Assignment:
    return queue.Assignment(attempt=queue.Attempt(job_id=job_id, number=1), traceparent=traceparent)


def test_it_lasts_until_the_acceptance() -> None:
    with recorded_spans() as recorded:
        found = Deliveries()
        found.begin(_assignment(1))
        found.begin(_assignment(1))
        assert not recorded.all()
        found.end(AttemptKey(1, 1))
        found.end(AttemptKey(1, 1))
        span = recorded.one("job deliver")
        assert span.parent is not None and span.parent.span_id == JOB.span_id
        assert span.attributes == {"sis.job.id": 1, "sis.job.attempt": 1, "sis.job.leases": 0}


def test_one_that_was_not_accepted_says_why() -> None:
    with recorded_spans() as recorded:
        found = Deliveries()
        found.begin(_assignment(1))
        found.end(AttemptKey(1, 1), "DECLINED")
        span = recorded.one("job deliver")
        assert not span.status.is_ok and span.attributes is not None
        assert span.attributes["error.type"] == "DECLINED"


def test_one_that_its_agent_had_already_is_forgotten() -> None:
    with recorded_spans() as recorded:
        found = Deliveries()
        found.begin(_assignment(1))
        found.forget(AttemptKey(1, 1))
        found.forget(AttemptKey(1, 1))
        found.end(AttemptKey(1, 1))
        assert not recorded.all()


def test_what_nobody_traces_is_not_followed() -> None:
    with recorded_spans() as recorded:
        found = Deliveries()
        found.begin(_assignment(1, traceparent=""))
        found.end(AttemptKey(1, 1))
        assert not recorded.all()


def test_no_more_are_followed_than_an_agent_can_have() -> None:
    with recorded_spans() as recorded:
        found = Deliveries()
        for job_id in range(deliveries.LIMIT + 1):
            found.begin(_assignment(job_id))
        found.end(AttemptKey(deliveries.LIMIT, 1))
        assert not recorded.all()
        found.end(AttemptKey(0, 1))
        assert len(recorded.all()) == 1
