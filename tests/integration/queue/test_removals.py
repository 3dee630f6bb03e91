"""Whoever asks for a job that was deleted is told by whom, when and why, however he asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from services.queue import bulk, exports, jobs, logs, removals
from services.queue.bulk import ApplyVerb, Result, Verb
from services.queue.errors import JobNotFound
from services.queue.exports import ExportJobs
from services.queue.listing import JobFilter
from services.queue.logs import DebugLogView, Position
from services.queue.model import Actor
from services.queue.wakes import Wakes
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig

REASON = "it was a mistake"


async def first(items: Any) -> object:
    async with aclosing(items) as found:
        return await anext(found)


async def history(rig: Rig, job_id: int) -> object:
    async with rig.database.begin() as connection:
        return await jobs.history_page(connection, job_id, 0, 10)


ASKED: dict[str, Callable[[Rig, int], Awaitable[object]]] = {
    "get": lambda rig, job_id: rig.whole(job_id),
    "explain": lambda rig, job_id: rig.explain(job_id),
    "history": history,
    "activate": lambda rig, job_id: rig.activate(job_id),
    "cancel": lambda rig, job_id: rig.cancel(job_id),
    "abort": lambda rig, job_id: rig.abort(job_id),
    "force": lambda rig, job_id: rig.abort(job_id, force=True),
    "delete": lambda rig, job_id: rig.delete(job_id),
    "rerun": lambda rig, job_id: rig.rerun(job_id),
    "monitor": lambda rig, job_id: first(logs.monitor(rig.database, Wakes(), job_id, Position())),
    "debug log": lambda rig, job_id: first(logs.debug_log(rig.database, job_id, DebugLogView.FULL)),
    "export": lambda rig, job_id: first(
        exports.export(rig.database, Wakes(), ExportJobs([job_id], JobFilter(), include_logs=False, start=None))
    ),
}


@pytest.fixture
async def deleted(rig: Rig) -> int:
    job_id = await rig.create(display_name="nightly backup")
    await rig.delete(job_id, REASON)
    return job_id


@pytest.mark.parametrize("purged", [False, True], ids=["hidden", "purged"])
async def test_it_says_what_it_was_and_who_when_and_why(rig: Rig, clock: Clock, deleted: int, purged: bool) -> None:
    at = f"{clock.now:%Y-%m-%dT%H:%M:%SZ}"
    if purged:
        await rig.execute("DELETE FROM queue.jobs WHERE job_id = :job_id", job_id=deleted)
    told = rf"job {deleted} \(nightly backup, canceled\) was deleted by alice at {at}: {REASON};"
    for name, ask in ASKED.items():
        with pytest.raises(JobNotFound, match=told) as caught:
            await ask(rig, deleted)
        assert caught.value.metadata == {
            "job_id": str(deleted), "deleted_by": "alice", "delete_time": at, "reason": REASON,
        }, name  # fmt: skip


@pytest.mark.parametrize("validate_only", [False, True])
async def test_it_says_so_among_many_as_well(rig: Rig, deleted: int, validate_only: bool) -> None:
    command = ApplyVerb(Verb.CANCEL, [deleted, 2**40], validate_only=validate_only)
    items = [item async for item in bulk.apply(rig.database, Wakes(), command, ALICE)]
    found = {i.job_id: i.error for i in items if isinstance(i, Result)}
    assert isinstance(error := found[deleted], JobNotFound) and error.metadata["reason"] == REASON
    assert isinstance(error := found[2**40], JobNotFound) and error.metadata == {"job_id": str(2**40)}


async def test_a_removal_tells_what_the_job_was(rig: Rig, clock: Clock) -> None:
    ended = await rig.create(display_name="the last one", deferred=True)
    await rig.delete(ended)
    async with rig.database.begin() as connection:
        found = await removals.find(connection, ended)
        # As another removes what is removed already: the first one is remembered.
        await removals.note(connection, [ended], Actor("sweeper", "here"), "old", "/exports/1")
        assert await removals.find(connection, ended) == found
    assert found is not None
    assert (found.display_name, found.status, found.removed_at) == ("the last one", "CANCELED", clock.now)
    assert (found.by, found.reason, found.export) == (ALICE, "", "")


async def test_a_refused_deletion_is_not_remembered(rig: Rig) -> None:
    key, _ = await rig.started()
    with pytest.raises(Exception, match="cancel or abort it first"):
        await rig.delete(key.job_id, REASON)
    async with rig.database.begin() as connection:
        assert await removals.find(connection, key.job_id) is None


async def test_a_long_reason_and_a_long_name_leave_room_in_the_answer(rig: Rig) -> None:
    job_id = await rig.create(display_name="x" * 200)
    await rig.delete(job_id, "y" * 500)
    with pytest.raises(JobNotFound) as caught:
        await rig.whole(job_id)
    assert len(caught.value.message) < 400 and caught.value.metadata["reason"] == "y" * 500
