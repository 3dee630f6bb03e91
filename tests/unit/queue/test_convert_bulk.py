"""Requests for many jobs: every wrong field is named, and nothing gets through that is for all jobs by mistake."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.rpc import code_pb2

from services.queue.bulk import Result, Verb
from services.queue.convert import bulk as convert
from services.queue.errors import JobNotFound
from services.queue.listing import JobFilter
from services.queue.states import Status
from services.runtime.errors import InvalidArgument
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

FAILED = pb.JobFilter(statuses=[job_pb2.JOB_STATUS_FAILED])


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ({}, {"verb", "job_ids"}),
        ({"verb": 9, "job_ids": [1]}, {"verb"}),
        ({"verb": 4}, {"job_ids"}),
        ({"verb": 4, "job_ids": [1], "filter": FAILED}, {"job_ids"}),
        ({"verb": 4, "filter": pb.JobFilter()}, {"filter"}),
        ({"verb": 4, "filter": pb.JobFilter(text="")}, {"filter"}),
        ({"verb": 4, "filter": pb.JobFilter.FromString(b"\xfa\x01\x01x")}, {"filter"}),  # of a later contract alone
        ({"verb": 4, "filter": pb.JobFilter(statuses=[99], text="x")}, {"filter.statuses[0]"}),
        ({"verb": 4, "filter": pb.JobFilter(complete_time_before={"seconds": -1})}, {"filter.complete_time_before"}),
        ({"verb": 4, "job_ids": [3, 0, 3, -1]}, {"job_ids[1]", "job_ids[2]", "job_ids[3]"}),
        ({"verb": 4, "job_ids": range(1, 1_002)}, {"job_ids"}),
        ({"verb": 4, "job_ids": [1], "expected_count": 1}, {"expected_count"}),
        ({"verb": 4, "filter": FAILED, "expected_count": -1}, {"expected_count"}),
        ({"verb": 2, "job_ids": [1], "reason": "a\nb"}, {"reason"}),
        ({"verb": 1, "job_ids": [1], "reason": "x" * 501}, {"reason"}),
        ({"verb": 2, "job_ids": [1], "force": True}, {"force"}),
        ({"verb": 5, "job_ids": [1], "request_id": "x" * 37}, {"request_id"}),
        ({"verb": 3, "job_ids": [1], "request_id": "x"}, {"request_id"}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(request_: dict[str, Any], fields: set[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.apply_verb(pb.ApplyVerbRequest(**request_))
    assert {violation.field for violation in caught.value.violations} == fields


def test_what_is_right_is_taken() -> None:
    by_ids = convert.apply_verb(pb.ApplyVerbRequest(verb=5, job_ids=range(1, 1_001), request_id="x" * 36))
    assert (by_ids.verb, len(by_ids.job_ids), by_ids.filter, by_ids.request_id) == (Verb.RERUN, 1_000, None, "x" * 36)
    assert not by_ids.force and convert.apply_verb(pb.ApplyVerbRequest(verb=3, job_ids=[1], force=True)).force
    assert all(convert.apply_verb(pb.ApplyVerbRequest(verb=v, job_ids=[1], reason="why")).reason for v in range(1, 6))
    request = pb.ApplyVerbRequest(verb=2, filter=FAILED, expected_count=0, reason="why", validate_only=True)
    request.filter.complete_time_before.FromJsonString("2026-01-01T00:00:00Z")
    by_filter = convert.apply_verb(request)
    assert by_filter.filter == JobFilter(
        statuses=(Status.FAILED,), complete_time_before=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert (by_filter.expected_count, by_filter.reason, by_filter.validate_only) == (0, "why", True)


@pytest.mark.parametrize(
    "condition", [{"types": [2]}, {"run_states": [1]}, {"text": " "}, {"complete_time_before": {}}]
)
def test_any_condition_makes_a_filter(condition: dict[str, Any]) -> None:
    command = convert.apply_verb(pb.ApplyVerbRequest(verb=4, filter=pb.JobFilter(**condition)))
    assert command.filter is not None and command.filter != JobFilter()


def test_the_total_and_a_refusal_as_messages() -> None:
    assert convert.to_response(0).WhichOneof("content") == "total"
    result = convert.to_response(Result(7, JobNotFound(7))).result
    assert (result.job_id, result.error.code, result.HasField("job")) == (7, code_pb2.NOT_FOUND, False)
    assert "job 7" in result.error.message and result.error.details
    assert not convert.to_response(Result(7)).result.HasField("error")
