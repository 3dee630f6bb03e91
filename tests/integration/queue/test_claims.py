"""Which waiting job goes to whom, and in which order."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.queue import creation, dispatch, jobs
from services.queue.creation import Priority
from services.queue.dispatch import Capacity
from services.queue.errors import (
    AgentNotFound,
    InvalidParameters,
    JobNotFound,
    OperationNotFound,
    PackageNotFound,
    RequestIdReused,
)
from services.queue.model import Actor
from services.runtime.errors import InvalidArgument, SisError
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig


async def order(rig: Rig) -> list[int]:
    """The jobs as a single agent would take them, one after the other."""
    if not rig.epochs:
        await rig.hello()
    found = []
    while keys := await rig.claim(slots=1):
        found += [key.job_id for key in keys]
    return found


async def test_the_oldest_goes_first(rig: Rig) -> None:
    job_ids = [await rig.create() for _ in range(4)]
    assert await order(rig) == job_ids


async def test_a_priority_is_worth_ten_minutes_so_that_nothing_starves(rig: Rig, clock: Clock) -> None:
    low = await rig.create(priority=Priority.LOW)
    await clock.advance(5 * 60)
    normal = await rig.create()
    high = await rig.create(priority=Priority.HIGH)
    await clock.advance(6 * 60)
    later = await rig.create()
    assert await order(rig) == [high, normal, low, later]
    low = await rig.create(priority=Priority.LOW)
    await clock.advance(21 * 60)
    high = await rig.create(priority=Priority.HIGH)
    assert await order(rig) == [low, high]


async def test_idle_jobs_run_only_when_nothing_else_waits(rig: Rig, clock: Clock) -> None:
    idle = await rig.create(priority=Priority.IDLE)
    await clock.advance(30 * 86_400)
    low = await rig.create(priority=Priority.LOW)
    assert await order(rig) == [low, idle]


async def test_an_agents_own_jobs_and_its_groups_are_of_one_rank(rig: Rig) -> None:
    await rig.hello()
    job_ids = [await rig.create(**({"agent": "a"} if n % 2 else {})) for n in range(4)]
    assert await order(rig) == job_ids


async def test_a_groups_jobs_go_to_the_members_with_the_most_room(rig: Rig) -> None:
    for name in ("a", "b"):
        await rig.hello(name)
    await rig.create_many(4)
    async with rig.database.begin() as connection:
        found, _ = await dispatch.claim(connection, [Capacity(rig.agent("a"), 1, 1), Capacity(rig.agent("b"), 1, 3)])
    assert sorted(agent for agent, _ in found) == [rig.agent("a"), *[rig.agent("b")] * 3]


async def test_nobody_takes_what_is_another_agents_or_another_groups(rig: Rig) -> None:
    await rig.hello("a")
    await rig.hello("b")
    await rig.create(agent="b")
    await rig.create(site_name=f"{rig.group}-elsewhere")
    assert await rig.claim("a") == []


@pytest.mark.parametrize("slots", [0, -5])
async def test_no_room_no_claim(rig: Rig, slots: int) -> None:
    await rig.hello()
    await rig.create()
    assert await rig.claim(slots=slots) == []


async def test_an_absurd_number_of_slots_is_bounded(rig: Rig) -> None:
    await rig.hello()
    await rig.create()
    assert len(await rig.claim(slots=2**31 - 1)) == 1


async def test_what_is_deferred_held_back_or_over_is_not_claimed(rig: Rig, clock: Clock) -> None:
    await rig.create(deferred=True)
    await rig.create(not_before=clock.now + timedelta(hours=1))
    await rig.cancel(await rig.create())
    await rig.hello()
    assert await rig.claim() == []


async def test_what_is_past_its_latest_start_is_not_claimed_though_nobody_has_swept(rig: Rig, clock: Clock) -> None:
    await rig.hello()
    in_time = await rig.create(latest_start=clock.now + timedelta(seconds=21))
    await rig.create(latest_start=clock.now + timedelta(seconds=20))
    await clock.advance(20)
    assert [key.job_id for key in await rig.claim()] == [in_time]


async def test_a_job_that_is_declined_again_and_again_waits_in_between(rig: Rig, clock: Clock) -> None:
    job_id = await rig.create()
    await rig.hello()
    for pause in (0, 2, 4):
        (key,) = await rig.claim()
        await rig.decline(key)
        if pause:
            assert await rig.claim() == []
            await clock.advance(pause)
    assert [key.number for key in await rig.claim()] == [4]
    assert (await rig.job(job_id)).retry_at is None


# Creation.


async def test_an_earliest_start_that_has_passed_is_none(rig: Rig, clock: Clock) -> None:
    job_id = await rig.create(not_before=clock.now - timedelta(seconds=1))
    assert await rig.status(job_id) == "WAITING"


@pytest.mark.parametrize(
    ("changes", "kind", "field"),
    [
        ({"package_name": "no.such"}, PackageNotFound, "package"),
        ({"package_version": "9.9.9"}, PackageNotFound, "package"),
        ({"operation": "walk"}, OperationNotFound, "operation"),
        ({"agent": "nobody"}, AgentNotFound, "site_target.agent"),
        ({"parameters": {}}, InvalidParameters, "parameters.script"),
        ({"parameters": {"script": "x", "surplus": "y"}}, InvalidParameters, "parameters.surplus"),
        ({"parameters": {"script": ["a", "b"]}}, InvalidParameters, "parameters.script"),
        ({"parameters": {"script": "x", "environment": ["HOME"]}}, InvalidParameters, "parameters.environment"),
        ({"latest_start": timedelta(seconds=-1)}, InvalidArgument, "latest_start"),
        ({"not_before": timedelta(hours=2), "latest_start": timedelta(hours=1)}, InvalidArgument, "latest_start"),
    ],
)  # fmt: skip
async def test_what_cannot_run_is_refused_and_nothing_is_stored(
    rig: Rig, clock: Clock, changes: dict, kind: type[SisError], field: str
) -> None:
    changes = {n: clock.now + v if isinstance(v, timedelta) else v for n, v in changes.items()}
    with pytest.raises(kind) as caught:
        await rig.create(display_name=f"refused {rig.group}", request_id=f"refused-{rig.group}", **changes)
    assert field in [v.field for v in caught.value.violations]
    async with rig.database.begin() as connection:
        found = await connection.exec_driver_sql(
            "SELECT (SELECT count(*) FROM queue.jobs WHERE display_name LIKE %(n)s)"
            " + (SELECT count(*) FROM queue.request_ids WHERE request_id LIKE %(n)s)",
            {"n": f"%{rig.group}"},
        )
        assert found.scalar_one() == 0


async def test_a_retry_gives_the_same_job_even_when_it_would_be_refused_now(rig: Rig, clock: Clock) -> None:
    command = {"request_id": rig.group, "fingerprint": b"1", "latest_start": clock.now + timedelta(seconds=10)}
    job_id = await rig.create(**command)
    await clock.advance(60)
    assert await rig.create(**command) == job_id
    with pytest.raises(RequestIdReused, match="request_id"):
        await rig.create(**(command | {"fingerprint": b"2"}))


async def test_request_ids_are_each_callers_own(rig: Rig) -> None:
    command = rig.command(request_id=rig.group)
    made = set()
    for by in (ALICE, Actor("bob"), ALICE):
        async with rig.database.begin() as connection:
            made.add((await creation.create(connection, command, by)).job.job_id)
    assert len(made) == 2


async def test_a_deleted_job_is_gone_for_every_verb(rig: Rig) -> None:
    job_id = await rig.create()
    await rig.delete(job_id)
    for verb in (rig.cancel, rig.abort, rig.activate, rig.delete):
        with pytest.raises(JobNotFound, match=str(job_id)):
            await verb(job_id)
    async with rig.database.begin() as connection:
        with pytest.raises(JobNotFound):
            await jobs.history_page(connection, job_id, 0, 10)


async def test_activating_twice_is_once(rig: Rig) -> None:
    job_id = await rig.create(deferred=True)
    first = await rig.activate(job_id)
    second = await rig.activate(job_id)
    assert first.job.status == second.job.status == "WAITING"
    assert first.job.queued_at == second.job.queued_at
