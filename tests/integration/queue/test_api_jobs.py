"""The verbs and the list, over gRPC and TLS."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from operator import attrgetter
from typing import Any

import pytest
from google.rpc import code_pb2

from services.queue.convert.jobs import ORDERS
from sis.packages import archive, manifest, shipped
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as package_pb
from tests.integration.queue.api import SECONDS, Api, fields, refusal
from tests.integration.queue.rig import Rig, of
from tests.support.frames import Spool


def create(rig: Rig, **changes: Any) -> pb.CreateJobRequest:
    found = pb.CreateJobRequest(display_name=f"hello {rig.group}", type="JOB_TYPE_PACKAGE", operation="run")
    found.package.name = "core.shell"
    found.site_target.group = rig.group
    found.parameters["script"].plain = "echo hello"
    found.MergeFrom(pb.CreateJobRequest(**changes))
    return found


async def test_a_job_is_shown_as_it_was_asked_for(api: Api, served: Rig) -> None:
    request = create(served, priority="PRIORITY_HIGH", labels={"team": "öps"})
    request.parameters["arguments"].list.items.extend(["a b", ""])
    request.run_timeout.seconds = 90
    request.not_before.FromJsonString("2100-01-01T00:00:00Z")
    made = (await api(api.jobs.CreateJob, request)).job
    found = (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=made.job_id))).job
    assert found == made
    assert (found.display_name, found.status) == (request.display_name, job_pb2.JOB_STATUS_DEFERRED)
    assert (found.priority, found.site_target, dict(found.labels)) == (4, request.site_target, {"team": "öps"})
    assert found.parameters["arguments"] == request.parameters["arguments"]
    assert found.parameters["interpreter"].plain == "/bin/sh"  # by default
    assert (found.run_timeout, found.not_before) == (request.run_timeout, request.not_before)
    assert (found.package.version, len(found.package.digest)) == (manifest.load(shipped() / "core.shell").version, 64)
    assert (found.creator, found.attempt, found.agent, found.target) == ("administrator", 0, "", "")
    assert (found.stop_state, found.log.verdict) == (job_pb2.STOP_STATE_NONE, job_pb2.LOG_VERDICT_OPEN)
    assert not found.HasField("start_time") and found.heartbeat_timeout.seconds == 120


async def test_creating_is_idempotent_by_its_request_id(api: Api, served: Rig) -> None:
    request = create(served, request_id=f"id of {served.group}")
    made = [(await api(api.jobs.CreateJob, request)).job.job_id for _ in range(3)]
    assert len(set(made)) == 1
    request.labels["another"] = "request"
    error = await refusal(api(api.jobs.CreateJob, request))
    assert (error.code, error.reason) == (code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert fields(error) == ["request_id"] and "new id" in error.message
    request.request_id = ""
    assert (await api(api.jobs.CreateJob, request)).job.job_id not in made


async def test_creating_at_once_with_one_request_id_makes_one_job(api: Api, served: Rig) -> None:
    request = create(served, request_id=f"race of {served.group}")
    made = await asyncio.gather(*(api(api.jobs.CreateJob, request) for _ in range(16)))
    assert len({answer.job.job_id for answer in made}) == 1
    page = await api(api.jobs.ListJobs, pb.ListJobsRequest(filter={"text": served.group}))
    assert page.total_size == 1


async def test_the_verbs_and_their_repetition(api: Api, served: Rig) -> None:
    job_id = (await api(api.jobs.CreateJob, create(served, deferred=True))).job.job_id
    for _ in range(2):
        job = (await api(api.jobs.ActivateJob, pb.ActivateJobRequest(job_id=job_id))).job
        assert job.status == job_pb2.JOB_STATUS_WAITING
    for _ in range(2):
        job = (await api(api.jobs.CancelJob, pb.CancelJobRequest(job_id=job_id, reason="no need"))).job
        assert job.status == job_pb2.JOB_STATUS_CANCELED and job.cancel_requested
    await api(api.jobs.DeleteJob, pb.DeleteJobRequest(job_id=job_id))
    error = await refusal(api(api.jobs.DeleteJob, pb.DeleteJobRequest(job_id=job_id)))
    assert error.reason == "JOB_NOT_FOUND"


async def test_an_illegal_transition_says_what_stands_in_the_way(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    for method, request in (
        (api.jobs.ActivateJob, pb.ActivateJobRequest(job_id=key.job_id)),
        (api.jobs.DeleteJob, pb.DeleteJobRequest(job_id=key.job_id)),
    ):
        error = await refusal(api(method, request))
        assert (error.code, error.reason) == (code_pb2.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")
        assert "running" in error.message and str(key.job_id) in error.message
        assert error.condition == "STATUS_RUNNING" and error.subject == f"jobs/{key.job_id}"  # type: ignore[attr-defined]
    await served.report(key, spool.payload_ended(0))
    error = await refusal(api(api.jobs.CancelJob, pb.CancelJobRequest(job_id=key.job_id)))
    assert "abort" in error.message
    await served.report(key, spool.finished("SUCCEEDED"))
    error = await refusal(api(api.jobs.AbortJob, pb.AbortJobRequest(job_id=key.job_id)))
    assert error.metadata["status"] == "SUCCEEDED"


async def test_a_job_that_ended_shows_everything_that_is_known_of_it(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    await served.cancel(key.job_id)
    await served.report(
        key,
        of(
            spool.process_started(101, job_pb2.PROCESS_ROLE_DESCENDANT),
            spool.stop_begun("CANCEL"),
            spool.process_signalled(101, "KILL"),
            spool.process_exited(101, signal="KILL"),
            spool.finished("STOPPED", outputs={"b": "2", "a": "1\n"}),
        ),
    )
    job = (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=key.job_id))).job
    assert (job.status, job.stop_state) == (job_pb2.JOB_STATUS_CANCELED, job_pb2.STOP_STATE_CONFIRMED)
    assert job.stop_evidence.tree_empty and job.stop_evidence.method == "subreaper"
    assert [(p.pid, list(p.signals), p.ended) for p in job.processes] == [(100, [], False), (101, ["KILL"], True)]
    assert [len(p.signal_times) for p in job.processes] == [0, 1]
    assert [(o.name, o.value) for o in job.outputs] == [("a", "1\n"), ("b", "2")]
    assert (job.log.verdict, job.log.frames, job.log.digest) == (
        job_pb2.LOG_VERDICT_COMPLETE,
        6,
        spool.digest.hex(),
    )
    assert (job.agent, job.target, job.attempt) == (served.agent("a"), "host of a", 1)


# The list.


@pytest.fixture
async def population(served: Rig) -> list[int]:
    """Jobs of all sorts, some of them with equal names, with and without times."""
    names = ["alpha", "Beta", "beta", "über", "100%", "a_b", "axb", "ab"]
    job_ids = [
        await served.create(display_name=f"{served.group} {name}", agent=None or await _known(served)) for name in names
    ]
    job_ids += [await served.create(display_name=f"{served.group} alpha", deferred=True) for _ in range(3)]
    keys = await served.claim(slots=4)
    for n, key in enumerate(keys):
        spool = Spool()
        await served.accept(key)
        await served.report(key, spool.process_started(1))
        if n < 2:
            await served.report(key, of(spool.payload_ended(0), spool.finished("FAILED" if n else "SUCCEEDED")))
    await served.cancel(job_ids[-1])
    await served.delete(await served.create(display_name=f"{served.group} deleted"))
    return job_ids


async def _known(rig: Rig) -> str:
    if "a" not in rig.epochs:
        await rig.hello()
    return "a"


async def everything(api: Api, **request: Any) -> tuple[list[job_pb2.Job], int]:
    """All pages, joined, and the total that each of them says."""
    found: list[job_pb2.Job] = []
    token, totals = "", set()
    while True:
        page = await api(api.jobs.ListJobs, pb.ListJobsRequest(page_token=token, **request))
        assert len(page.jobs) <= request.get("page_size", 50)
        found += page.jobs
        totals.add(page.total_size)
        token = page.next_page_token
        if not token:
            (total,) = totals
            return found, total


INFINITE = (2**63, 0)


def _time(name: str) -> Any:
    def key(job: job_pb2.Job) -> tuple[int, int]:
        return (getattr(job, name).seconds, getattr(job, name).nanos) if job.HasField(name) else INFINITE

    return key


KEYS: dict[str, Any] = {
    "job_id": attrgetter("job_id"),
    "display_name": attrgetter("display_name"),
    "type": lambda job: job_pb2.JobType.Name(job.type),
    "status": lambda job: job_pb2.JobStatus.Name(job.status),
    "target": attrgetter("target"),
    "create_time": _time("create_time"),
    "start_time": _time("start_time"),
    "complete_time": _time("complete_time"),
}


async def test_pages_in_every_order_are_the_sorted_whole(api: Api, served: Rig, population: list[int]) -> None:
    assert set(KEYS) == set(ORDERS)
    for order, key in KEYS.items():
        for direction in ("", " desc"):
            found, total = await everything(api, filter={"text": served.group}, page_size=3, order_by=order + direction)
            expected = sorted(found, key=lambda job: (key(job), job.job_id), reverse=bool(direction))
            assert [job.job_id for job in found] == [job.job_id for job in expected], order + direction
            assert sorted(job.job_id for job in found) == sorted(population) and total == len(population)


async def test_without_an_order_the_newest_comes_first(api: Api, served: Rig, population: list[int]) -> None:
    found, _ = await everything(api, filter={"text": served.group})
    assert [job.job_id for job in found] == sorted(population, reverse=True)
    assert not found[0].parameters and not found[0].outputs


async def test_a_page_token_is_good_for_its_own_request_alone(api: Api, served: Rig, population: list[int]) -> None:
    request = pb.ListJobsRequest(filter={"text": served.group}, page_size=2, order_by="status")
    page = await api(api.jobs.ListJobs, request)
    request.page_token = page.next_page_token
    request.page_size = 5  # may change
    assert len((await api(api.jobs.ListJobs, request)).jobs) == 5
    request.order_by = "type"
    error = await refusal(api(api.jobs.ListJobs, request))
    assert (error.reason, fields(error)) == ("INVALID_TOKEN", ["page_token"])


async def test_a_token_stays_good_while_jobs_come_and_go(api: Api, served: Rig, population: list[int]) -> None:
    request = pb.ListJobsRequest(filter={"text": served.group}, page_size=4)
    page = await api(api.jobs.ListJobs, request)
    newer = await served.create(display_name=f"{served.group} newer")
    request.page_token = page.next_page_token
    rest = await api(api.jobs.ListJobs, request)
    seen = [job.job_id for job in (*page.jobs, *rest.jobs)]
    assert newer not in seen and len(seen) == len(set(seen)) == 8


TEXTS: dict[str, list[str]] = {
    "beta": ["Beta", "beta"],
    "BETA": ["Beta", "beta"],
    "ÜBER": ["über"],
    "%": ["100%"],
    "0%": ["100%"],
    "a_": ["a_b"],
    "_": ["a_b"],
    "xb": ["axb"],
    "/": [],
    "\\": [],
    "'": [],
    "alpha run": [],  # no text reaches from one column into the next
    "run host": [],
}


async def test_free_text_is_a_substring_and_nothing_else(api: Api, served: Rig, population: list[int]) -> None:
    for text, names in TEXTS.items():
        found, total = await everything(api, filter={"text": text})
        own = [job for job in found if job.display_name.startswith(f"{served.group} ")]
        assert sorted(job.display_name.removeprefix(f"{served.group} ") for job in own) == sorted(names), text
        assert total == len(found)


async def test_free_text_looks_at_operation_and_target_too(api: Api, served: Rig, population: list[int]) -> None:
    for text in ("RUN", "host of a"):
        found, _ = await everything(api, filter={"text": text}, page_size=1_000)
        assert set(population) & {job.job_id for job in found}


async def test_filters_are_joined_by_and_and_their_values_by_or(api: Api, served: Rig, population: list[int]) -> None:
    async def count(**filter_: Any) -> int:
        return (await everything(api, filter={"text": served.group, **filter_}))[1]

    assert await count(run_states=["RUN_STATE_READY"]) == 6
    assert await count(run_states=["RUN_STATE_ACTIVE"]) == 2
    assert await count(run_states=["RUN_STATE_SUCCEEDED", "RUN_STATE_FAILED"]) == 2
    assert await count(run_states=["RUN_STATE_CANCELING"]) == await count(run_states=["RUN_STATE_HALTED"]) == 1
    assert await count(statuses=["JOB_STATUS_WAITING", "JOB_STATUS_RUNNING"]) == 6
    assert await count(statuses=["JOB_STATUS_WAITING"], run_states=["RUN_STATE_ACTIVE"]) == 0
    assert await count(types=["JOB_TYPE_PACKAGE"]) == len(population)
    assert await count(types=["JOB_TYPE_DISCOVERY"]) == 0


# History.


async def test_the_history_page_by_page_is_the_whole(api: Api, served: Rig) -> None:
    key, spool = await served.started()
    await served.cancel(key.job_id)
    await served.report(key, of(spool.stop_begun("CANCEL"), spool.finished("STOPPED")))
    whole = (await api(api.jobs.ListJobHistory, pb.ListJobHistoryRequest(job_id=key.job_id))).entries
    assert [e.event for e in whole] == ["CREATE", "CLAIM", "ACCEPT", "FIRST_PROCESS", "CANCEL", "FINISH_STOPPED"]
    assert [e.actor for e in whole][:2] == ["alice", f"agent {served.agent('a')}"]
    paged, token = [], ""
    while True:
        page = await api(
            api.jobs.ListJobHistory, pb.ListJobHistoryRequest(job_id=key.job_id, page_size=2, page_token=token)
        )
        paged += page.entries
        token = page.next_page_token
        if not token:
            break
    assert paged == list(whole)
    other = await served.create()
    page = await api(api.jobs.ListJobHistory, pb.ListJobHistoryRequest(job_id=key.job_id, page_size=1))
    error = await refusal(
        api(api.jobs.ListJobHistory, pb.ListJobHistoryRequest(job_id=other, page_token=page.next_page_token))
    )
    assert error.reason == "INVALID_TOKEN"


async def test_the_history_says_from_which_machine(api: Api, served: Rig) -> None:
    job_id = (await api(api.jobs.CreateJob, create(served))).job.job_id
    entries = (await api(api.jobs.ListJobHistory, pb.ListJobHistoryRequest(job_id=job_id))).entries
    assert [(e.actor, e.origin) for e in entries] == [("administrator", "127.0.0.1")]


# The library.


async def test_packages_are_shown_with_their_operations(api: Api) -> None:
    names, token = [], ""
    while token or not names:
        page = await api(api.packages.ListPackages, package_pb.ListPackagesRequest(page_size=1, page_token=token))
        (package,) = page.packages
        assert not package.operations
        names.append(package.name)
        token = page.next_page_token
    assert names == ["core.shell", "linux.facts", "test.secretive"]
    package = (await api(api.packages.GetPackage, package_pb.GetPackageRequest(name="linux.facts"))).package
    (operation,) = package.operations
    assert (operation.name, operation.run_timeout.seconds) == ("gather", 60)
    assert any(output.required for output in operation.outputs)


async def test_an_archive_is_fetched_from_any_offset(api: Api, hub: Any) -> None:
    package = (await api(api.packages.GetPackage, package_pb.GetPackageRequest(name="core.shell"))).package
    whole = archive.pack(shipped() / "core.shell")
    assert archive.digest(whole) == package.digest
    for offset in (0, 1, len(whole) - 1, len(whole), len(whole) + 7, 2**40):
        request = dispatch_pb.GetPackageArchiveRequest(digest=package.digest, offset=offset)
        parts = [r async for r in hub.GetPackageArchive(request, timeout=SECONDS)]
        assert b"".join(part.chunk for part in parts) == whole[offset:]
        assert {part.size_bytes for part in parts} <= {len(whole)}


async def test_the_operations_own_run_timeout_is_the_default(api: Api, served: Rig) -> None:
    request = create(served, operation="gather")
    request.package.name = "linux.facts"
    request.parameters.clear()
    assert (await api(api.jobs.CreateJob, request)).job.run_timeout.ToTimedelta() == timedelta(minutes=1)
