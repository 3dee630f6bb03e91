"""What an export has of a job is all of it, or has no end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from services.queue import exports, logs
from services.queue.convert import exports as convert
from services.queue.convert import jobs as convert_jobs
from services.queue.creation import Limits
from services.queue.errors import JobNotFound
from services.queue.exports import ExportJobs, Part
from services.queue.jobs import JobView
from services.queue.listing import JobFilter
from services.queue.wakes import Wakes
from sis.packages.values import MAX_FILE_BYTES, File
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.rig import Rig, of

MANIFEST = """
name: test.exported
version: 1.0.0
operations:
  use:
    command: ["true"]
    inputs:
      document: {type: file}
      other: {type: file}
      words: {type: list}
"""
MESSAGE_BYTES = 16 << 20


def export(rig: Rig, *job_ids: int) -> AsyncGenerator[Part, None]:
    return exports.export(rig.database, Wakes(), ExportJobs(job_ids, JobFilter(), include_logs=True, start=None))


async def test_what_is_exported_can_be_created_again_with_its_files(rig: Rig, tmp_path: Path) -> None:
    await rig.push(tmp_path, MANIFEST)
    given = {
        "document": File("notes.txt", b"\x00\xff" * (MAX_FILE_BYTES // 2)),
        "other": File("large", bytes(MAX_FILE_BYTES)),
        "words": ["file", "content"],
    }
    job_id = await rig.create(package_name="test.exported", operation="use", parameters=given)
    async with aclosing(export(rig, job_id)) as parts:
        job, *rest = [convert.to_part(pb.ExportJobsRequest(), part) for part in [each async for each in parts]]
    assert not any(part.HasField("job") for part in rest)
    assert job.ByteSize() < MESSAGE_BYTES
    request = pb.CreateJobRequest(
        display_name=job.job.display_name, type=job.job.type, package=job.job.package, operation=job.job.operation,
        parameters=job.job.parameters, site_target=job.job.site_target,
    )  # fmt: skip
    sent = pb.CreateJobRequest.FromString(request.SerializeToString())
    assert convert_jobs.create_job(sent, Limits()).parameters == given


async def ended(rig: Rig) -> int:
    key, spool = await rig.started("a")
    chunks = [spool.output(b"%d" % n) for n in range(8)]
    await rig.report(key, of(*chunks, spool.payload_ended(0), spool.finished("SUCCEEDED")))
    return key.job_id


PURGES = {
    "all": ["log", "history", "jobs"],
    "the rest of its history": ["history WHERE sequence > 3"],
    "the middle of its history": ["history WHERE sequence = 4"],
    "its log": ["log"],
    "the first part of its log, as a purge goes": ["log WHERE sequence <= 6"],
}


@pytest.mark.parametrize("gone", PURGES.values(), ids=PURGES)
async def test_a_job_that_is_purged_while_it_is_exported_has_no_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, gone: list[str]
) -> None:
    monkeypatch.setattr(exports, "HISTORY_ROWS", 2)
    monkeypatch.setattr(logs, "READ_ROWS", 3)
    job_id, other = await ended(rig), await ended(rig)
    assert len(await rig.history(job_id)) == 6
    read: list[Part] = []
    with pytest.raises(JobNotFound, match=f"job {job_id} .* was deleted by alice"):
        async with aclosing(export(rig, job_id, other)) as parts:
            async for part in parts:
                read.append(part)
                if len(read) == 1:
                    await rig.delete(job_id)
                    for what in gone:
                        table, _, condition = what.partition(" WHERE ")
                        await rig.execute(
                            f"DELETE FROM queue.{table} WHERE job_id = :job_id AND {condition or 'true'}", job_id=job_id
                        )
    assert isinstance(read[0].content, JobView)
    assert [part.position for part in read] == [None] * len(read)


async def test_an_export_that_was_broken_so_goes_on_with_the_next_job(rig: Rig) -> None:
    job_id, other = await ended(rig), await ended(rig)
    wanted = [job_id, other]
    async with aclosing(export(rig, *wanted)) as parts:
        await anext(parts)
        await rig.delete(job_id)
        await rig.execute("DELETE FROM queue.log WHERE job_id = :job_id", job_id=job_id)
        with pytest.raises(JobNotFound):
            while True:
                await anext(parts)
    start = exports.Position(0, max(wanted))
    again = ExportJobs(wanted, JobFilter(), include_logs=True, start=start)
    async with aclosing(exports.export(rig.database, Wakes(), again)) as parts:
        assert {part.job_id async for part in parts} == {other}


async def test_a_job_that_was_claimed_and_wrote_nothing_yet_is_whole(rig: Rig) -> None:
    await rig.hello()
    job_id = await rig.create()
    await rig.claim()
    async with aclosing(export(rig, job_id)) as parts:
        read = [part async for part in parts]
    assert [part.position is not None for part in read] == [False, False, True]
