"""WatchJobs and ExportJobs, over gRPC and TLS."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.queue import exports, watching
from services.queue.convert import exports as convert
from services.queue.exports import Part
from services.queue.wakes import Wakes
from services.runtime.channels import grpc_error
from services.runtime.errors import Aborted, Unavailable
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import SECONDS, Api, fields, refusal
from tests.integration.queue.rig import Rig, of
from tests.support.certificates import CertificateAuthority
from tests.support.frames import Spool
from tests.support.queue_server import QueueServer


async def until(stream: Any, job_id: int) -> pb.WatchJobsResponse:
    """The first response that tells of a job."""
    async with asyncio.timeout(SECONDS):
        async for response in stream:
            assert response.resume_token
            if job_id in [*(job.job_id for job in response.jobs), *response.gone_job_ids]:
                return response  # type: ignore[no-any-return]
    raise AssertionError(f"the watch ended before job {job_id}")


async def test_a_list_is_followed_from_its_token_on(api: Api, served: Rig) -> None:
    wanted = pb.JobFilter(text=served.group, statuses=[job_pb2.JOB_STATUS_WAITING])
    first, second = await served.create_many(2, display_name=served.group)
    page = await api(api.jobs.ListJobs, pb.ListJobsRequest(filter=wanted, page_size=1))
    assert page.total_size == 2 and page.watch_token
    await served.cancel(first)
    third = await served.create(display_name=served.group, labels={"rack": "7"})
    stream = api.stream(api.jobs.WatchJobs, pb.WatchJobsRequest(filter=wanted, resume_token=page.watch_token))
    found = await until(stream, third)
    (job,) = [job for job in found.jobs if job.job_id == third]
    assert (job.display_name, job.labels["rack"], job.status) == (served.group, "7", job_pb2.JOB_STATUS_WAITING)
    assert first in found.gone_job_ids
    assert not job.parameters, "as in a list"
    await served.delete(second)
    assert second in (await until(stream, second)).gone_job_ids
    stream.cancel()


@pytest.mark.parametrize("wanted", [pb.JobFilter(), pb.JobFilter(text="another")])
async def test_a_watch_token_is_good_for_its_own_filter_alone(api: Api, wanted: pb.JobFilter) -> None:
    page = await api(api.jobs.ListJobs, pb.ListJobsRequest(filter=pb.JobFilter(text="x")))
    request = pb.WatchJobsRequest(filter=wanted, resume_token=page.watch_token)
    error = await refusal(api(api.jobs.WatchJobs, request))
    assert (error.reason, fields(error)) == ("INVALID_TOKEN", ["resume_token"])


async def test_a_watch_token_that_is_too_old_says_to_list_again(api: Api) -> None:
    token = watching.to_token(b"", watching.Position(1, 0, datetime(2020, 1, 1, tzinfo=UTC)))
    error = await refusal(api(api.jobs.WatchJobs, pb.WatchJobsRequest(resume_token=token)))
    assert isinstance(error, Aborted)
    assert (error.reason, fields(error)) == ("RESUME_EXPIRED", ["resume_token"])


async def test_a_wrong_filter_of_a_watch_is_named(api: Api) -> None:
    request = pb.WatchJobsRequest(filter=pb.JobFilter(types=[99], text="a\nb"))
    assert fields(await refusal(api(api.jobs.WatchJobs, request))) == ["filter.types[0]", "filter.text"]


async def test_a_watch_ends_with_its_server_and_goes_on_with_the_next(
    served: Rig, served_url: str, authority: CertificateAuthority, tmp_path: Path
) -> None:
    with QueueServer(served_url, authority, tmp_path) as server:
        async with server.public() as channel:
            api = Api(channel)
            stream = aiter(api.stream(api.jobs.WatchJobs, pb.WatchJobsRequest()))
            told = await anext(stream)
            server.terminate()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while True:
                    told = await anext(stream)
            error = grpc_error(caught.value)
            assert isinstance(error, Unavailable) and error.retry_after is not None
        assert server.stop() == 0
    job_id = await served.create()
    with QueueServer(served_url, authority, tmp_path) as server:
        async with server.public() as channel:
            api = Api(channel)
            stream = api.stream(api.jobs.WatchJobs, pb.WatchJobsRequest(resume_token=told.resume_token))
            assert (await until(stream, job_id)).jobs
            stream.cancel()


# Exports.


async def ended(rig: Rig) -> tuple[int, Spool]:
    """A job that wrote more than is read at once."""
    key, spool = await rig.started(display_name=rig.group)
    for _ in range(3):
        await rig.report(key, of(*(spool.output(bytes(60_000)) for _ in range(10))))
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    return key.job_id, spool


async def exported(api: Api, **request: Any) -> list[pb.ExportJobsResponse]:
    found: list[pb.ExportJobsResponse] = await api(api.jobs.ExportJobs, pb.ExportJobsRequest(**request))
    return found


async def test_an_export_has_each_job_whole_with_its_history_and_its_log(api: Api, served: Rig) -> None:
    first = await served.create(display_name=served.group, deferred=True)
    second, spool = await ended(served)
    third, _ = await served.started("b", display_name=served.group)
    deleted = await served.create(display_name=served.group)
    await served.delete(deleted)
    found = await exported(api, filter=pb.JobFilter(text=served.group), include_logs=True)
    for job_id in (first, second, third.job_id):
        job, *rest = [part for part in found if part.job_id == job_id]
        assert job.job == (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=job_id))).job
        events = [part.history.event for part in rest if part.HasField("history")]
        assert events == await served.events(job_id)
        kinds = [part.WhichOneof("content") for part in rest]
        assert kinds == sorted(kinds, reverse=True), "the history goes before the frames"
        assert [bool(part.resume_token) for part in (job, *rest)] == [False] * len(rest) + [True]
    assert [part.job_id for part in found] == sorted(part.job_id for part in found)
    assert {part.job_id for part in found} == {first, second, third.job_id}
    frames = [f for part in found if part.job_id == second for f in part.frames.frames]
    assert [f.SerializeToString() for f in frames] == spool.bodies
    assert max(part.ByteSize() for part in found) < 3 << 20


async def test_a_broken_export_goes_on_behind_the_last_job_that_it_had(api: Api, served: Rig) -> None:
    made = await served.create_many(4, display_name=served.group)
    for request in ({"filter": pb.JobFilter(text=served.group)}, {"job_ids": [made[2], made[0], *made[3:]]}):
        whole = await exported(api, **request)
        tokens = {part.resume_token: at for at, part in enumerate(whole) if part.resume_token}
        assert len(tokens) == len({part.job_id for part in whole})
        await served.create(display_name=served.group)  # is newer than the export
        for token, at in tokens.items():
            assert await exported(api, resume_token=token, **request) == whole[at + 1 :]


async def test_an_export_without_a_condition_has_all_jobs_without_their_logs(api: Api, served: Rig) -> None:
    job_id, _ = await ended(served)
    found = await exported(api)
    assert found and job_id in {part.job_id for part in found}
    assert not [part for part in found if part.HasField("frames")]


async def test_an_export_of_ids_begins_only_when_all_are_there(api: Api, served: Rig) -> None:
    there, deleted = await served.create_many(2)
    await served.delete(deleted)
    for missing in (deleted, 2**62):
        error = await refusal(exported(api, job_ids=[there, missing]))
        assert error.reason == "JOB_NOT_FOUND" and error.metadata["job_id"] == str(missing)


@pytest.mark.parametrize(
    ("wrong", "request_fields"),
    [
        (["job_ids"], {"job_ids": range(1, 1_002)}),
        (["job_ids[1]"], {"job_ids": [1, 0]}),
        (["filter"], {"job_ids": [1], "filter": pb.JobFilter(text="x")}),
        (["filter.statuses[0]"], {"filter": pb.JobFilter(statuses=[99])}),
        (["resume_token"], {"resume_token": "x"}),
        (["resume_token"], {"resume_token": exports.to_token(b"other", exports.Position(1, 1))}),
        (["resume_token"], {"resume_token": exports.to_token(b"", exports.Position(2, 1))}),
        (["resume_token"], {"resume_token": exports.to_token(b"", exports.Position(1, 2**70))}),
    ],
)
async def test_a_wrong_field_of_an_export_is_named(api: Api, wrong: list[str], request_fields: dict[str, Any]) -> None:
    assert fields(await refusal(exported(api, **request_fields))) == wrong


async def test_what_happens_during_an_export(served: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is deleted is left out, one that is created is not among them, and what one has fits together."""
    monkeypatch.setattr(exports, "JOBS", 2)
    monkeypatch.setattr(exports, "HISTORY_ROWS", 1)
    first, deleted, last = await served.create_many(3, display_name=served.group, deferred=True)
    key, spool = await served.started("a", display_name=served.group)
    wanted = convert.export_jobs(pb.ExportJobsRequest(filter=pb.JobFilter(text=served.group), include_logs=True))
    parts: list[Part] = []
    async with aclosing(exports.export(served.database, Wakes(), wanted)) as export:
        parts.append(await anext(export))
        await served.delete(deleted)
        await served.create(display_name=served.group)
        async for part in export:
            parts.append(part)
            if part.job_id == key.job_id and len(spool.bodies) < 5:
                await served.report(key, spool.output(b"more"))
    assert sorted({part.job_id for part in parts}) == [first, last, key.job_id]
    shown = [convert.to_part(pb.ExportJobsRequest(), part) for part in parts if part.job_id == key.job_id]
    assert [part.history.event for part in shown if part.HasField("history")] == await served.events(key.job_id)
    frames = [f.sequence for part in shown for f in part.frames.frames]
    assert frames == list(range(1, shown[0].job.log.frames + 1))


async def test_an_export_ends_when_the_server_drains(served: Rig) -> None:
    made = await served.create_many(2)
    waker = Wakes()
    wanted = convert.export_jobs(pb.ExportJobsRequest(job_ids=made))
    async with aclosing(exports.export(served.database, waker, wanted)) as export:
        while (await anext(export)).position is None:
            pass
        await waker.drain()
        with pytest.raises(Unavailable):
            await anext(export)
