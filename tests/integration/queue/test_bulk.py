"""One verb for many jobs: each has its own result, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import select

from services.queue import bulk, creation
from services.queue.bulk import ApplyVerb, Result, Verb
from services.queue.errors import IllegalTransition, JobChanged, JobCountChanged, JobNotFound, RequestIdReused
from services.queue.listing import JobFilter
from services.queue.states import Status
from services.queue.tables import jobs as job_table
from services.queue.wakes import Wakes
from services.runtime.errors import InvalidArgument, Unavailable
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig, check


async def apply(rig: Rig, verb: Verb, job_ids: Sequence[int] = (), **more: Any) -> list[Result]:
    """The results, once the total is seen to be how many they are."""
    async with aclosing(bulk.apply(rig.database, Wakes(), ApplyVerb(verb, job_ids, **more), ALICE)) as items:
        total, *results = [item async for item in items]
    assert total == len(results) and all(isinstance(result, Result) for result in results)
    assert [r.job_id for r in results] == sorted(r.job_id for r in results)  # type: ignore[union-attr]
    return results  # type: ignore[return-value]


def told(results: Sequence[Result]) -> dict[int, str]:
    """The class of each refusal, or the status afterwards."""
    found = {}
    for result in results:
        if result.error is not None:
            found[result.job_id] = type(result.error).__name__
        else:
            found[result.job_id] = "" if result.job is None else result.job.status
    return found


def own(rig: Rig, *statuses: Status) -> JobFilter:
    """The jobs of a rig, which are named after its group."""
    return JobFilter(statuses=statuses, text=f"of {rig.group}")


async def many(rig: Rig, count: int, **changes: Any) -> list[int]:
    return await rig.create_many(count, display_name=f"of {rig.group}", **changes)


async def test_mixed_ids_each_have_their_own_result(rig: Rig) -> None:
    key, _ = await rig.started()
    waiting, held, deleted, ended = await rig.create_many(4, deferred=True)
    await rig.activate(waiting)
    await rig.delete(deleted)
    await rig.abort(ended)
    ids = [10**15, ended, key.job_id, held, deleted, waiting]
    assert told(await apply(rig, Verb.CANCEL, ids, reason="enough")) == {
        waiting: "CANCELED",
        held: "CANCELED",
        deleted: "JobNotFound",
        ended: "IllegalTransition",
        key.job_id: "CANCEL_REQUESTED",
        10**15: "JobNotFound",
    }
    assert (await rig.history(held))[-1].message == "enough"
    assert (await rig.attempt(key)).stop_reason == "enough"
    await check(rig.database, [waiting, held, ended, key.job_id])


@pytest.mark.parametrize(
    ("verb", "waiting", "ended"),
    [
        (Verb.ACTIVATE, "WAITING", "IllegalTransition"),
        (Verb.CANCEL, "CANCELED", "CANCELED"),
        (Verb.ABORT, "ABORTED", "IllegalTransition"),
        (Verb.DELETE, "", ""),
        (Verb.RERUN, "IllegalTransition", "WAITING"),
    ],
)
async def test_every_verb_does_what_it_foretells(rig: Rig, verb: Verb, waiting: str, ended: str) -> None:
    first, second = await rig.create_many(2)
    await rig.cancel(second)
    before = [await rig.job(first), await rig.job(second)]
    foretold = await apply(rig, verb, [first, second], validate_only=True)
    assert [await rig.job(first), await rig.job(second)] == before
    done = await apply(rig, verb, [first, second])
    assert told(done) == {first: waiting, second: ended}
    assert all(result.job is None for result in foretold)
    assert [type(r.error) for r in foretold] == [type(r.error) for r in done]
    assert [str(r.error) for r in foretold] == [str(r.error) for r in done]


async def test_a_rerun_of_many_is_safe_to_repeat(rig: Rig) -> None:
    ended = await many(rig, 3)
    await apply(rig, Verb.CANCEL, ended)
    rerun = {"filter": own(rig, Status.CANCELED), "request_id": f"again-{rig.group}"}
    made = [result.job.job_id for result in await apply(rig, Verb.RERUN, **rerun) if result.job]
    assert len(made) == 3 and min(made) > max(ended)
    assert [(await rig.job(job_id)).rerun_of for job_id in made] == ended
    assert [result.job.job_id for result in await apply(rig, Verb.RERUN, **rerun) if result.job] == made
    assert [r.job.job_id for r in await apply(rig, Verb.RERUN, ended, request_id="") if r.job] != made
    await rig.create(request_id=f"other.{ended[0]}")
    (reused, *_) = await apply(rig, Verb.RERUN, ended, request_id="other")
    assert isinstance(reused.error, RequestIdReused)


async def test_a_filter_takes_those_that_match_in_as_many_pages_as_it_takes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PAGE", 2)
    monkeypatch.setattr(bulk, "LOOKED_AT", 3)
    held = await many(rig, 7, deferred=True)
    await many(rig, 2)
    await rig.delete(held.pop())
    wanted = own(rig, Status.DEFERRED)
    foretold = await apply(rig, Verb.ACTIVATE, filter=wanted, validate_only=True, expected_count=6)
    assert told(foretold) == dict.fromkeys(held, "")
    assert told(await apply(rig, Verb.ACTIVATE, filter=wanted, expected_count=6)) == dict.fromkeys(held, "WAITING")
    assert await apply(rig, Verb.ACTIVATE, filter=wanted, expected_count=0) == []


async def test_old_jobs_are_deleted_by_the_time_of_their_end(rig: Rig, clock: Clock) -> None:
    old, new, waiting = await many(rig, 3)
    await rig.cancel(old)
    await clock.advance(3_600)
    await rig.cancel(new)
    before = JobFilter(text=f"of {rig.group}", complete_time_before=clock.now)
    assert told(await apply(rig, Verb.DELETE, filter=before)) == {old: ""}
    found = [(await rig.job(job_id)).hidden_at for job_id in (old, new, waiting)]
    assert found == [clock.now, None, None]


@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_where_not_as_many_match_as_expected_nothing_is_done(rig: Rig, expected: int) -> None:
    job_ids = await many(rig, 2)
    for validate_only in (True, False):
        with pytest.raises(JobCountChanged, match="2 jobs match") as caught:
            await apply(rig, Verb.DELETE, filter=own(rig), expected_count=expected, validate_only=validate_only)
    assert caught.value.metadata == {"expected": str(expected), "found": "2"}
    assert [(await rig.job(job_id)).hidden_at for job_id in job_ids] == [None, None]


async def test_more_than_one_filter_can_take_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MATCHES", 2)
    await many(rig, 3)
    with pytest.raises(InvalidArgument) as caught:
        await apply(rig, Verb.DELETE, filter=own(rig))
    assert [violation.field for violation in caught.value.violations] == ["filter"]


async def test_what_has_changed_since_it_was_chosen_is_left_alone(rig: Rig) -> None:
    """Whoever cancels what waits does not want to stop what has begun meanwhile."""
    await rig.hello()
    started, deleted, waiting = await many(rig, 3)
    command = ApplyVerb(Verb.CANCEL, filter=own(rig, Status.WAITING))
    async with aclosing(bulk.apply(rig.database, Wakes(), command, ALICE)) as items:
        assert await anext(items) == 3
        await rig.delete(deleted)
        (key,) = await rig.claim(slots=1)
        late = await rig.create(display_name=f"of {rig.group}")
        results = [item async for item in items if isinstance(item, Result)]
    assert key.job_id == started
    assert told(results) == {started: "JobChanged", deleted: "JobNotFound", waiting: "CANCELED"}
    changed, gone, _ = (result.error for result in results)
    assert isinstance(changed, JobChanged) and "nothing was done" in changed.message
    assert isinstance(gone, JobNotFound)
    assert (await rig.status(started), await rig.status(late)) == ("STARTING", "WAITING")


async def test_it_waits_for_whoever_has_a_job_in_hand_and_judges_what_he_leaves(rig: Rig) -> None:
    """The claim is under way when the job is looked at: its row is locked, and still says WAITING."""
    (job_id,) = await many(rig, 1)
    locked, looked = asyncio.Event(), asyncio.Event()

    async def start() -> None:
        async with rig.database.begin() as connection:
            await connection.execute(select(job_table).where(job_table.c.job_id == job_id).with_for_update())
            locked.set()
            await looked.wait()
            await connection.execute(
                job_table.update().where(job_table.c.job_id == job_id).values(status=Status.STARTING)
            )

    async def blocked() -> None:
        while not await rig.blocked():
            pass
        looked.set()

    async def cancel() -> list[Result]:
        await locked.wait()
        return await apply(rig, Verb.CANCEL, filter=own(rig, Status.WAITING))

    async with asyncio.timeout(30):
        _, results, _ = await asyncio.gather(start(), cancel(), blocked())
    assert told(results) == {job_id: "JobChanged"}


async def test_two_at_once_share_the_work(rig: Rig) -> None:
    job_ids = await many(rig, 20)
    both = await asyncio.gather(*(apply(rig, Verb.ABORT, job_ids) for _ in range(2)))
    assert [told(results) for results in both] == [dict.fromkeys(job_ids, "ABORTED")] * 2
    for job_id in job_ids:
        assert (await rig.events(job_id)) == ["CREATE", "ABORT", "ABORT"]


async def test_a_database_that_is_away_ends_it_and_the_rest_is_not_tried(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = await rig.create_many(3)
    command = ApplyVerb(Verb.CANCEL, [first, second, third])
    tried = []
    begin = rig.database.begin

    def away(_: str) -> Any:
        tried.append(1)
        raise Unavailable("the database does not answer")

    async with aclosing(bulk.apply(rig.database, Wakes(), command, ALICE)) as items:
        assert [await anext(items), (await anext(items)).job_id] == [3, first]  # type: ignore[union-attr]
        monkeypatch.setattr(rig.database, "begin", away)
        with pytest.raises(Unavailable):
            await anext(items)
    monkeypatch.setattr(rig.database, "begin", begin)
    assert len(tried) == 1
    assert await rig.statuses([first, second, third]) == {first: "CANCELED", second: "WAITING", third: "WAITING"}


async def test_a_rerun_by_filter_and_one_by_hand_with_the_same_request_id_are_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the request id first, then the job: in another order they would wait for each other."""
    (old,) = await many(rig, 1)
    await rig.cancel(old)
    claim, claimed, go = creation._claim_request_id, asyncio.Event(), asyncio.Event()

    async def slow(*request: Any) -> int | None:
        found = await claim(*request)
        claimed.set()
        await go.wait()
        return found

    monkeypatch.setattr(creation, "_claim_request_id", slow)
    async with asyncio.timeout(30):
        by_hand = asyncio.create_task(rig.rerun(old, f"r.{old}"))
        await claimed.wait()
        by_filter = asyncio.create_task(apply(rig, Verb.RERUN, filter=own(rig, Status.CANCELED), request_id="r"))
        while not await rig.blocked():
            pass
        go.set()
        (result,) = await by_filter
        assert result.job is not None and result.job.job_id == (await by_hand).job.job_id


async def test_a_server_that_drains_ends_a_look_at_many_jobs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LOOKED_AT", 1)
    first, second = await rig.create_many(2)
    waker, command = Wakes(), ApplyVerb(Verb.CANCEL, [first, second], validate_only=True)
    async with aclosing(bulk.apply(rig.database, waker, command, ALICE)) as items:
        assert [await anext(items), (await anext(items)).job_id] == [2, first]  # type: ignore[union-attr]
        await waker.drain()
        with pytest.raises(Unavailable):
            await anext(items)


async def test_a_server_that_drains_ends_it_between_two_jobs(rig: Rig) -> None:
    first, second = await rig.create_many(2)
    waker = Wakes()
    async with aclosing(bulk.apply(rig.database, waker, ApplyVerb(Verb.CANCEL, [first, second]), ALICE)) as items:
        assert [await anext(items), (await anext(items)).job_id] == [2, first]  # type: ignore[union-attr]
        await waker.drain()
        with pytest.raises(Unavailable):
            await anext(items)
    assert await rig.statuses([first, second]) == {first: "CANCELED", second: "WAITING"}


async def test_a_refusal_is_the_one_of_the_verb_itself(rig: Rig) -> None:
    (job_id,) = await rig.create_many(1)
    (result,) = await apply(rig, Verb.RERUN, [job_id])
    with pytest.raises(IllegalTransition) as caught:
        await rig.rerun(job_id)
    assert result.error is not None and result.error.message == caught.value.message
