"""Rerun, copy, explain, and one verb for many jobs, over gRPC and TLS."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import code_pb2, error_details_pb2

from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import SECONDS, Api, fields, refusal
from tests.integration.queue.rig import Rig
from tests.integration.queue.test_api_jobs import create


async def made(api: Api, rig: Rig, **changes: Any) -> job_pb2.Job:
    return (await api(api.jobs.CreateJob, create(rig, **changes))).job


async def test_a_rerun_points_back_and_is_safe_to_repeat(api: Api, served: Rig) -> None:
    old = await made(api, served)
    request = pb.RerunJobRequest(job_id=old.job_id, request_id=f"id of {served.group}")
    error = await refusal(api(api.jobs.RerunJob, request))
    assert (error.code, error.reason) == (code_pb2.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")
    assert "copied" in error.message
    await api(api.jobs.CancelJob, pb.CancelJobRequest(job_id=old.job_id))
    again = (await api(api.jobs.RerunJob, request)).job
    assert (again.rerun_of_job_id, again.status) == (old.job_id, job_pb2.JOB_STATUS_WAITING)
    assert (again.parameters, again.package) == (old.parameters, old.package)
    assert (await api(api.jobs.RerunJob, request)).job == again
    found = (await api(api.jobs.ListJobs, pb.ListJobsRequest(filter=pb.JobFilter(text=served.group)))).jobs
    assert [job.rerun_of_job_id for job in found] == [old.job_id, 0]


async def test_a_copy_is_a_request_that_can_be_sent(api: Api, served: Rig) -> None:
    old = await made(api, served, deferred=True, labels={"team": "öps"}, request_id=f"id of {served.group}")
    request = (await api(api.jobs.CopyJob, pb.CopyJobRequest(job_id=old.job_id))).request
    assert (request.request_id, request.deferred, request.package.digest) == ("", False, "")
    again = (await api(api.jobs.CreateJob, request)).job
    assert again.status == job_pb2.JOB_STATUS_WAITING
    for job in (old, again):
        for field in ("job_id", "status", "create_time", "deferral_expire_time", "permitted_verbs"):
            job.ClearField(field)
    assert again == old


async def test_a_job_explains_itself(api: Api, served: Rig, hub: Any) -> None:
    job = await made(api, served)
    request = pb.ExplainJobRequest(job_id=job.job_id)

    async def reasons() -> list[str]:
        found = await api(api.jobs.ExplainJob, request)
        assert (found.status, bool(found.summary)) == (job_pb2.JOB_STATUS_WAITING, True)
        return [job_pb2.WaitReason.Name(cause.reason) for cause in found.causes]

    assert await reasons() == ["WAIT_REASON_NO_AGENT_KNOWN"]
    opened = dispatch_pb.OpenSessionRequest(hub="hub-1")
    opened.agent.name, opened.agent.group = f"{served.group}-a", served.group
    opened.hello.journal_id, opened.hello.slots, opened.hello.platform = "journal", 1, "win32"
    await hub.OpenSession(opened, timeout=SECONDS)
    assert await reasons() == ["WAIT_REASON_NO_AGENT_FITS"]
    opened.hello.platform = "linux"
    session = dispatch_pb.Session(agent=opened.agent.name)
    session.epoch = (await hub.OpenSession(opened, timeout=SECONDS)).epoch
    assert await reasons() == ["WAIT_REASON_NOTHING"]
    beat = dispatch_pb.SessionHeartbeat(session=session, draining=True)
    await hub.Heartbeat(dispatch_pb.HeartbeatRequest(hub="hub-1", heartbeats=[beat]), timeout=SECONDS)
    assert await reasons() == ["WAIT_REASON_AGENTS_DRAINING"]


async def test_one_verb_for_many_gives_the_total_and_a_result_for_each(api: Api, served: Rig) -> None:
    first, second = [(await made(api, served)).job_id for _ in range(2)]
    request = pb.ApplyVerbRequest(verb=job_pb2.JOB_VERB_CANCEL, job_ids=[10**15, second, first], reason="enough")
    total, *results = await api(api.jobs.ApplyVerb, request)
    assert total.total == 3
    assert [item.result.job_id for item in results] == [first, second, 10**15]
    one, two, unknown = (item.result for item in results)
    assert one.job.status == two.job.status == job_pb2.JOB_STATUS_CANCELED and not one.job.parameters
    assert unknown.error.code == code_pb2.NOT_FOUND and not unknown.HasField("job")
    info = error_details_pb2.ErrorInfo()
    assert unknown.error.details[0].Unpack(info) and info.reason == "JOB_NOT_FOUND"
    history = (await api(api.jobs.ListJobHistory, pb.ListJobHistoryRequest(job_id=first))).entries
    assert (history[-1].actor, history[-1].message) == ("administrator", "enough")


async def test_one_verb_for_a_filter_minds_the_count(api: Api, served: Rig) -> None:
    job_ids = [(await made(api, served)).job_id for _ in range(2)]
    these = pb.JobFilter(text=served.group)
    request = pb.ApplyVerbRequest(verb=job_pb2.JOB_VERB_DELETE, filter=these, expected_count=3)
    error = await refusal(api(api.jobs.ApplyVerb, request))
    assert (error.code, error.reason) == (code_pb2.FAILED_PRECONDITION, "JOB_COUNT_CHANGED")
    assert error.metadata == {"expected": "3", "found": "2"}
    request.expected_count = 2
    total, *results = await api(api.jobs.ApplyVerb, request)
    assert (total.total, [item.result.job_id for item in results]) == (2, job_ids)
    assert not any(item.result.HasField("job") or item.result.HasField("error") for item in results)
    listed = await api(api.jobs.ListJobs, pb.ListJobsRequest(filter=request.filter))
    assert listed.total_size == 0


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("RerunJob", pb.RerunJobRequest(), "job_id"),
        ("RerunJob", pb.RerunJobRequest(job_id=1, request_id="x" * 65), "request_id"),
        ("CopyJob", pb.CopyJobRequest(job_id=-1), "job_id"),
        ("ExplainJob", pb.ExplainJobRequest(), "job_id"),
        ("ApplyVerb", pb.ApplyVerbRequest(verb=job_pb2.JOB_VERB_DELETE, filter=pb.JobFilter()), "filter"),
    ],
)
async def test_what_is_wrong_is_refused_by_its_name(api: Api, method: str, request_: Any, field: str) -> None:
    error = await refusal(api(getattr(api.jobs, method), request_))
    assert (error.code, fields(error)) == (code_pb2.INVALID_ARGUMENT, [field])


@pytest.mark.parametrize("method", ["Rerun", "Copy", "Explain"])
async def test_what_is_not_there_is_not_found(api: Api, served: Rig, method: str) -> None:
    deleted = (await made(api, served)).job_id
    await served.delete(deleted)
    for job_id in (deleted, 10**15):
        error = await refusal(api(getattr(api.jobs, f"{method}Job"), getattr(pb, f"{method}JobRequest")(job_id=job_id)))
        assert (error.code, error.reason) == (code_pb2.NOT_FOUND, "JOB_NOT_FOUND")
