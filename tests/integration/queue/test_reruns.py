"""Jobs that repeat others: what they take over, and what cannot be repeated."""

from __future__ import annotations

import asyncio
import hmac
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from services.queue import creation
from services.queue.convert import jobs as convert
from services.queue.convert.repeats import to_request
from services.queue.creation import Limits, Priority
from services.queue.errors import IllegalTransition, JobNotFound, RequestIdReused
from services.queue.tables import jobs as job_table
from services.queue.tables import request_ids
from services.runtime.errors import InvalidArgument
from sis.packages.values import File
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig, check

MOVABLE = """
name: test.movable
version: 1.0.0
platforms: [linux, windows]
operations:
  use:
    command: ["true"]
    run_timeout: 40d
    inputs:
      words: {type: list}
      text: {type: string, default: nothing}
      document: {type: file}
      phrase: {type: string, sensitive: true}
    credentials:
      database: {}
"""

REPEATED = (
    "display_name", "type", "operation", "package_name", "package_version", "package_digest", "platforms", "parameters",
    "credentials", "site_kind", "site_name", "priority", "run_timeout", "heartbeat_timeout", "labels",
)  # fmt: skip


async def full(rig: Rig, directory: Path, **changes: Any) -> int:
    """A job that has everything that a job can have."""
    await rig.push(directory, MOVABLE)
    values: dict[str, Any] = {
        "display_name": "as it was", "package_name": "test.movable", "operation": "use", "priority": Priority.HIGH,
        "parameters": {"words": ["a b", ""], "document": File("notes.txt", b"\x00\xff")},
        "parameter_credentials": {"phrase": "mine"}, "credentials": {"database": "main"}, "admin": "root",
        "run_as": "web", "labels": {"team": "öps"}, "heartbeat_timeout": timedelta(seconds=90),
    }  # fmt: skip
    return await rig.create(**(values | changes))


def repeated(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in REPEATED}


async def test_a_rerun_repeats_what_was_asked_for_but_not_when(rig: Rig, clock: Clock, tmp_path: Path) -> None:
    times = {"not_before": clock.now + timedelta(hours=1), "latest_start": clock.now + timedelta(hours=2)}
    old = await full(rig, tmp_path, run_timeout=timedelta(seconds=77), **times)
    await rig.cancel(old)
    await clock.advance(60)
    made = (await rig.rerun(old)).job
    row, before = await rig.job(made.job_id), await rig.job(old)
    assert row.job_id > old and repeated(row) == repeated(before)
    assert (row.status, row.not_before, row.latest_start, row.queued_at) == ("WAITING", None, None, clock.now)
    assert (row.rerun_of, before.rerun_of, before.status) == (old, 0, "CANCELED")
    (first,) = await rig.history(row.job_id)
    assert (first.event, first.actor, first.message) == ("CREATE", "alice", f"rerun of job {old}")
    last = (await rig.history(old))[-1]
    assert (last.event, last.to_status, last.message) == ("RERUN", "CANCELED", f"as job {row.job_id}")
    again = (await rig.rerun(old)).job.job_id
    assert again not in (old, row.job_id)
    await check(rig.database, [old, row.job_id, again])


async def test_a_rerun_is_claimed_as_any_other_job(rig: Rig) -> None:
    old = await rig.create(agent="a") if await rig.hello() else 0
    await rig.abort(old)
    made = (await rig.rerun(old)).job
    assert made.target == "host of a"
    assert [key.job_id for key in await rig.claim()] == [made.job_id]


async def test_what_has_not_ended_is_not_repeated_and_nothing_is_left_of_the_try(rig: Rig) -> None:
    key, _ = await rig.started()
    before = await rig.job(key.job_id)
    with pytest.raises(IllegalTransition, match=r"is running, .*copied"):
        await rig.rerun(key.job_id, f"id of {rig.group}")
    assert await rig.job(key.job_id) == before
    async with rig.database.begin() as connection:
        made = select(func.count()).select_from(job_table).where(job_table.c.rerun_of == key.job_id)
        kept = select(func.count()).select_from(request_ids).where(request_ids.c.request_id == f"id of {rig.group}")
        assert [(await connection.execute(query)).scalar_one() for query in (made, kept)] == [0, 0]


async def test_a_deleted_job_is_not_repeated(rig: Rig) -> None:
    job_id = await rig.create()
    await rig.delete(job_id)
    for unknown in (job_id, 10**15):
        with pytest.raises(JobNotFound):
            await rig.rerun(unknown)


async def test_a_request_id_makes_one_rerun_whatever_becomes_of_the_old_job(rig: Rig) -> None:
    old, other = await rig.create_many(2)
    for job_id in (old, other):
        await rig.cancel(job_id)
    made = (await rig.rerun(old, rig.group)).job.job_id
    await rig.delete(old)
    assert (await rig.rerun(old, rig.group)).job.job_id == made
    with pytest.raises(RequestIdReused):
        await rig.rerun(other, rig.group)
    with pytest.raises(RequestIdReused):
        await rig.create(request_id=rig.group, fingerprint=b"%d" % old)
    await rig.create(request_id=f"{rig.group}-2")
    with pytest.raises(RequestIdReused):
        await rig.rerun(other, f"{rig.group}-2")


async def test_a_request_id_tells_a_reason_from_the_number_of_a_job(rig: Rig, clock: Clock) -> None:
    """Job 1 because of "23" is not job 12 because of "3"."""
    old = await rig.create()
    await rig.execute("SELECT setval(pg_get_serial_sequence('queue.jobs', 'job_id'), :last)", last=old * 10 + 1)
    other = await rig.create()
    assert str(other) == f"{old}2"
    for job_id in (old, other):
        await rig.cancel(job_id)
    made = (await rig.rerun(old, rig.group, "23")).job.job_id
    assert (await rig.rerun(old, rig.group, "23")).job.job_id == made
    with pytest.raises(RequestIdReused):
        await rig.rerun(other, rig.group, "3")


async def test_a_request_id_of_a_rerun_without_a_reason_is_known_after_an_upgrade(rig: Rig) -> None:
    old = await rig.create()
    await rig.cancel(old)
    made = (await rig.rerun(old, rig.group)).job.job_id
    fingerprint = hmac.digest(ALICE.name.encode(), b"rerun of job %d" % old, "sha256")
    async with rig.database.begin() as connection:
        kept = select(request_ids.c.fingerprint).where(request_ids.c.job_id == made)
        assert bytes((await connection.execute(kept)).scalar_one()) == fingerprint


async def test_reruns_at_once_with_one_request_id_are_one(rig: Rig) -> None:
    old = await rig.create()
    await rig.cancel(old)
    made = await asyncio.gather(*(rig.rerun(old, rig.group) for _ in range(5)))
    assert len({view.job.job_id for view in made}) == 1
    assert (await rig.events(old)).count("RERUN") == 1


async def test_a_rerun_for_an_agent_that_is_of_another_platform_now_is_refused(rig: Rig) -> None:
    await rig.hello()
    old = await rig.create(agent="a")
    await rig.cancel(old)
    await rig.hello(platform="windows")
    with pytest.raises(InvalidArgument) as caught:
        await rig.rerun(old)
    assert [violation.field for violation in caught.value.violations] == ["site_target.agent"]


async def test_a_copy_makes_the_same_job_again(rig: Rig, clock: Clock, tmp_path: Path) -> None:
    old = await full(rig, tmp_path, latest_start=clock.now + timedelta(hours=2), request_id=rig.group)
    request = to_request(await rig.whole(old))
    assert not any(request.HasField(name) for name in ("not_before", "latest_start", "run_timeout"))
    assert (request.request_id, request.deferred, request.package.digest) == ("", False, "")
    assert (request.package.name, request.package.version) == ("test.movable", "1.0.0")
    assert request.parameters["document"].file.content == b"\x00\xff"
    assert (request.admin, request.run_as, dict(request.credentials)) == ("root", "web", {"database": "main"})
    sent = pb.CreateJobRequest.FromString(request.SerializeToString())
    async with rig.database.begin() as connection:
        made = (await creation.create(connection, convert.create_job(sent, Limits()), ALICE)).job
    assert made.job_id != old and repeated(made) == repeated(await rig.job(old))
    assert (made.rerun_of, made.latest_start) == (0, None)


async def test_a_copy_asks_for_the_run_timeout_that_was_asked_for(rig: Rig, tmp_path: Path) -> None:
    job_id = await full(rig, tmp_path, run_timeout=timedelta(days=30))
    assert to_request(await rig.whole(job_id)).run_timeout.seconds == 30 * 86_400
