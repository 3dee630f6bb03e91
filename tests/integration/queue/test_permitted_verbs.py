"""What a job says can be done to it is what a server then does: each verb is tried, in every status, on a job alike."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from sqlalchemy import Row

from services.queue.states import TERMINAL, Status, StopState
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import Api
from tests.integration.queue.rig import Rig
from tests.integration.queue.test_table import CLAIMED, put

VERBS = {
    job_pb2.JOB_VERB_ACTIVATE: ("ActivateJob", pb.ActivateJobRequest),
    job_pb2.JOB_VERB_CANCEL: ("CancelJob", pb.CancelJobRequest),
    job_pb2.JOB_VERB_ABORT: ("AbortJob", pb.AbortJobRequest),
    job_pb2.JOB_VERB_DELETE: ("DeleteJob", pb.DeleteJobRequest),
    job_pb2.JOB_VERB_RERUN: ("RerunJob", pb.RerunJobRequest),
}
NOTED = {"history_sequence", "revision", "changed_xid", "claim_key"}
"""Columns that a repeated verb changes too; the last one because `put` leaves it out."""


async def shown(api: Api, job_id: int) -> job_pb2.Job:
    job: job_pb2.Job = (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=job_id))).job
    return job


async def attempts_of(rig: Rig, job_id: int) -> list[Row[Any]]:
    async with rig.database.begin() as connection:
        query = "SELECT * FROM queue.attempts WHERE job_id = %(job_id)s"
        return list((await connection.exec_driver_sql(query, {"job_id": job_id})).all())


async def state(rig: Rig, job_id: int) -> tuple[Mapping[str, Any], list[Row[Any]]]:
    """All that a verb can change, but for the notes of it."""
    row = (await rig.job(job_id))._mapping
    return {name: value for name, value in row.items() if name not in NOTED}, await attempts_of(rig, job_id)


async def does(api: Api, rig: Rig, job_id: int, verb: int, *, force: bool = False) -> bool:
    """Whether a verb is accepted and does something."""
    name, request = VERBS[job_pb2.JobVerb.ValueType(verb)]
    before = await state(rig, job_id)
    try:
        asked = request(job_id=job_id, **({"force": True} if force else {}))
        answer = await api(getattr(api.jobs, name), asked)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await state(rig, job_id) == before
        return False
    made = verb == job_pb2.JOB_VERB_RERUN and answer.job.rerun_of_job_id == job_id
    return made or await state(rig, job_id) != before


@pytest.mark.parametrize("status", Status)
async def test_the_permitted_verbs_are_those_that_do_something(api: Api, served: Rig, status: Status) -> None:
    facts = list(itertools.product(VERBS, (False, True)))
    ids = await put(served, status, len(facts), [True] * len(facts), [canceled for _, canceled in facts])
    # A cancel is recorded with the wish to stop, which `put` leaves out.
    await served.execute(
        "UPDATE queue.attempts SET stop_wish = 'CANCEL', stop_wished_at = queue.now() FROM queue.jobs"
        " WHERE jobs.job_id = attempts.job_id AND jobs.job_id = ANY(:ids) AND cancel_requested_at IS NOT NULL",
        ids=ids,
    )
    for job_id, (verb, canceled) in zip(ids, facts, strict=True):
        permitted = (await shown(api, job_id)).permitted_verbs
        assert len(permitted) == len(set(permitted))
        done = await does(api, served, job_id, verb)
        assert done == (verb in permitted), (job_pb2.JobVerb.Name(verb), canceled)


@pytest.mark.parametrize("status", Status)
async def test_force_is_permitted_where_it_lets_go_of_something(api: Api, served: Rig, status: Status) -> None:
    stops = list(StopState) if status in TERMINAL else [StopState.NONE]
    facts = list(itertools.product(stops, (False, True) if status in CLAIMED else (False,)))
    ids = await put(served, status, len(facts), [True] * len(facts), [False] * len(facts))
    for job_id, (stop, sealed) in zip(ids, facts, strict=True):
        await served.execute(
            "UPDATE queue.jobs SET stop_state = :stop WHERE job_id = :job_id", stop=stop, job_id=job_id
        )
        if sealed:
            await served.execute(
                "UPDATE queue.attempts SET sealed_at = queue.now(), verdict = 'COMPLETE' WHERE job_id = :job_id",
                job_id=job_id,
            )
        permitted = (await shown(api, job_id)).force_permitted
        assert await does(api, served, job_id, job_pb2.JOB_VERB_ABORT, force=True) == permitted, (stop, sealed)
        assert not (await shown(api, job_id)).force_permitted


async def test_a_list_and_a_monitor_say_the_same(api: Api, served: Rig) -> None:
    name = f"held in {served.group}, and nowhere else"
    held = await served.create(display_name=name, deferred=True)
    job = await shown(api, held)
    (listed,) = (await api(api.jobs.ListJobs, pb.ListJobsRequest(filter=pb.JobFilter(text=name)))).jobs
    stream = api.stream(api.jobs.MonitorJob, pb.MonitorJobRequest(job_id=held))
    monitored = (await stream.read()).job
    stream.cancel()
    assert list(job.permitted_verbs) == list(listed.permitted_verbs) == list(monitored.permitted_verbs)
    assert job_pb2.JOB_VERB_ACTIVATE in job.permitted_verbs


async def test_a_job_on_its_way(api: Api, served: Rig) -> None:
    """From its creation to its end, as people would see its buttons."""
    verbs: list[str] = []

    async def look(job_id: int) -> None:
        names = [
            job_pb2.JobVerb.Name(verb).removeprefix("JOB_VERB_") for verb in (await shown(api, job_id)).permitted_verbs
        ]
        verbs.append(" ".join(names))

    await served.hello()
    job_id = await served.create(agent="a", deferred=True)
    await look(job_id)
    await served.activate(job_id)
    await look(job_id)
    (key,) = await served.claim()
    await served.accept(key)
    await look(job_id)
    await served.cancel(job_id)
    await look(job_id)
    await served.abort(job_id)
    await look(job_id)
    assert verbs == [
        "ACTIVATE CANCEL ABORT DELETE", "CANCEL ABORT DELETE", "CANCEL ABORT", "ABORT DELETE", "DELETE RERUN",
    ]  # fmt: skip
    assert not (await shown(api, job_id)).force_permitted  # its agent may still confirm the stop
