"""The end of each attempt's leases reaches a hub, exactly when nothing of the attempt can be at its site any more."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from services.queue.lease_ends import InHand
from services.queue.model import LeaseEnd, RefusalReason
from services.queue.removals import PURGE_AFTER
from services.queue.reports import Accepted
from services.queue.sessions import AttemptKey, Verdict
from services.queue.sweeper import Sweeper
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, check, check_lease_ends, of
from tests.support.frames import Spool

HOLDER = {"admin": "root"}
"""What makes a job name a credential."""
KEPT = PURGE_AFTER.total_seconds() + 1
"""So long after its deletion a job is purged."""


async def claimed(rig: Rig, **changes: object) -> AttemptKey:
    if not rig.epochs:
        await rig.hello()
    await rig.create(agent="a", **(HOLDER | changes))
    (key,) = await rig.claim()
    return key


@pytest.mark.parametrize("outcome", ["SUCCEEDED", "FAILED"])
async def test_an_end_of_the_payload_ends_the_leases(rig: Rig, outcome: str) -> None:
    key, spool = await rig.started(**HOLDER)
    assert await rig.lease_ends(key.job_id) == []
    await rig.report(key, spool.payload_ended(0))
    assert await rig.lease_ends(key.job_id) == []
    await rig.report(key, spool.finished(outcome))
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    await check_lease_ends(rig.database, [key.job_id])


async def test_a_job_without_credentials_has_no_leases_to_end(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    await rig.cancel(await rig.create())
    await check_lease_ends(rig.database, [key.job_id, key.job_id + 1])
    assert await rig.lease_ends(key.job_id, key.job_id + 1) == []


@pytest.mark.parametrize("verb", ["cancel", "abort", "delete"])
@pytest.mark.parametrize("deferred", [False, True])
async def test_a_job_that_was_never_claimed_is_over_all_the_same(rig: Rig, verb: str, deferred: bool) -> None:
    job_id = await rig.create(deferred=deferred, **HOLDER)
    await {"cancel": rig.cancel, "abort": rig.abort, "delete": rig.delete}[verb](job_id)
    assert await rig.lease_ends(job_id) == [(0, True)]
    await check_lease_ends(rig.database, [job_id])


async def test_a_job_that_expired_is_over(rig: Rig, clock: Clock) -> None:
    job_id = await rig.create(latest_start=clock.now + timedelta(seconds=1), **HOLDER)
    await clock.advance(2)
    await Sweeper(rig.database).sweep()
    assert await rig.lease_ends(job_id) == [(0, True)]


async def test_a_cancel_before_the_acceptance_ends_them_when_the_agent_has_forgotten_it(rig: Rig) -> None:
    key = await claimed(rig)
    await rig.cancel(key.job_id)
    assert await rig.lease_ends(key.job_id) == []
    await rig.accept(key)
    assert await rig.status(key.job_id) == "CANCELED"
    assert await rig.lease_ends(key.job_id) == [(1, True)]


async def test_a_cancel_of_a_running_job_ends_them_with_its_evidence(rig: Rig) -> None:
    key, spool = await rig.started(**HOLDER)
    await rig.cancel(key.job_id)
    await rig.report(key, spool.stop_begun("CANCEL"))
    assert await rig.lease_ends(key.job_id) == []
    await rig.report(key, of(spool.payload_ended(143), spool.finished("STOPPED")))
    assert await rig.lease_ends(key.job_id) == [(1, True)]


@pytest.mark.parametrize("by", ["decline", "hello", "refusal"])
async def test_what_is_given_back_ends_the_attempt_and_not_the_job(rig: Rig, clock: Clock, by: str) -> None:
    key = await claimed(rig)
    if by == "decline":
        await rig.decline(key)
    elif by == "hello":
        await rig.hello(draining=True)
    else:
        await rig.refuse(key)
    assert await rig.lease_ends(key.job_id) == [(1, False)]
    await clock.advance(60)
    await rig.hello()
    (second,) = await rig.claim()
    spool = Spool()
    end = of(spool.process_started(1), spool.payload_ended(0), spool.finished("SUCCEEDED"))
    await rig.report(second, Accepted(), end)
    assert await rig.lease_ends(key.job_id) == [(1, False), (2, True)]
    await check(rig.database, [key.job_id])
    await check_lease_ends(rig.database, [key.job_id])


async def test_the_end_of_the_job_is_told_though_the_attempts_end_was_told_before(rig: Rig) -> None:
    """Its job-scoped credentials die with it."""
    key = await claimed(rig)
    await rig.decline(key)
    end = LeaseEnd(key.job_id, 1, job_over=False)
    await rig.acknowledge(end)
    assert await rig.lease_ends(key.job_id) == []
    await rig.cancel(key.job_id)
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    await rig.acknowledge(end)  # of the first time, come late
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    await rig.acknowledge(LeaseEnd(key.job_id, 1, job_over=True))
    assert await rig.lease_ends(key.job_id) == []


async def test_a_confirmed_abort_ends_them_and_not_the_abort_itself(rig: Rig) -> None:
    key, spool = await rig.started(**HOLDER)
    await rig.abort(key.job_id)
    assert (await rig.job(key.job_id)).stop_state == "PENDING"
    assert await rig.lease_ends(key.job_id) == []
    await rig.report(key, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    assert (await rig.job(key.job_id)).stop_state == "CONFIRMED"
    assert await rig.lease_ends(key.job_id) == [(1, True)]


async def test_an_unconfirmed_abort_keeps_them_until_the_log_is_given_up(rig: Rig, clock: Clock) -> None:
    key, _ = await rig.started(**HOLDER)
    sweeper = Sweeper(rig.database)
    await rig.abort(key.job_id)
    await clock.elapse(300, sweeper.sweep)
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
    assert await rig.lease_ends(key.job_id) == []
    await clock.advance(86_400)
    await sweeper.sweep()
    assert await rig.lease_ends(key.job_id) == [], "nobody has watched meanwhile"
    await clock.elapse(120, sweeper.sweep)
    assert (await rig.attempt(key)).sealed_at is not None
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    await check_lease_ends(rig.database, [key.job_id])


async def test_a_silent_agents_leases_last_until_it_is_home_and_done(rig: Rig, clock: Clock) -> None:
    key, spool = await rig.started(**HOLDER)
    sweeper = Sweeper(rig.database)
    await clock.elapse(260, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"
    await clock.elapse(600, sweeper.sweep)
    await clock.advance(30 * 86_400)
    await sweeper.sweep()
    assert await rig.lease_ends(key.job_id) == [], "it may still run"
    await rig.hello(in_hand=[key])
    assert await rig.status(key.job_id) == "RUNNING"
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    await check(rig.database, [key.job_id])


@pytest.mark.parametrize("end", ["abort", "delete"])
async def test_the_leases_of_a_lost_attempt_last_until_a_person_ends_it(rig: Rig, clock: Clock, end: str) -> None:
    """Its journal is gone, so nobody can tell whether something of it is left."""
    key, _ = await rig.started(**HOLDER)
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await rig.hello(journal_id="another", record_number=0)
    assert await rig.status(key.job_id) == "AWOL"
    await clock.advance(30 * 86_400)
    await sweeper.sweep()
    assert await rig.lease_ends(key.job_id) == []
    if end == "abort":
        await rig.abort(key.job_id)
        assert await rig.lease_ends(key.job_id) == []
        await clock.elapse(120, sweeper.sweep)
        assert await rig.lease_ends(key.job_id) == []
        await clock.advance(86_400)
        await sweeper.sweep()
        await clock.elapse(120, sweeper.sweep)
    else:
        await rig.delete(key.job_id)
        await clock.advance(KEPT)
        await sweeper.sweep()
    assert await rig.lease_ends(key.job_id) == [(1, True)]


async def test_they_outlive_the_purge_of_their_job(rig: Rig, clock: Clock) -> None:
    key, spool = await rig.started(**HOLDER)
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    await rig.delete(key.job_id)
    await clock.advance(KEPT)
    await Sweeper(rig.database).sweep()
    assert await rig.statuses([key.job_id]) == {}
    assert await rig.lease_ends(key.job_id) == [(1, True)]


async def test_a_purge_ends_what_nobody_could_confirm(rig: Rig, clock: Clock) -> None:
    """Deleted while its agent is away: the row goes, and with it the last that knew of the leases."""
    keys = [(await rig.started(**changes))[0] for changes in (HOLDER, {})]
    sweeper = Sweeper(rig.database)
    await clock.elapse(300, sweeper.sweep)
    for key in keys:
        assert await rig.status(key.job_id) == "AWOL"
        await rig.delete(key.job_id)
    assert await rig.lease_ends(*(key.job_id for key in keys)) == []
    await clock.advance(KEPT)
    await sweeper.sweep()
    assert await rig.statuses([key.job_id for key in keys]) == {}
    assert await rig.lease_ends(keys[0].job_id) == [(1, True)]
    assert await rig.lease_ends(keys[1].job_id) == []
    welcome = await rig.hello(in_hand=keys)
    assert [verdict for _, verdict, _ in welcome.verdicts] == [Verdict.FORGET] * 2


async def test_a_purge_makes_the_end_of_an_attempt_the_end_of_its_job(rig: Rig, clock: Clock) -> None:
    """Whatever was in the outbox before."""
    key = await claimed(rig)
    sweeper = Sweeper(rig.database)
    await clock.elapse(300, sweeper.sweep)
    await rig.execute(
        "INSERT INTO queue.lease_ends VALUES (:job_id, 1, false, queue.now(), queue.now())", job_id=key.job_id
    )
    await rig.delete(key.job_id)
    await clock.advance(KEPT)
    await sweeper.sweep()
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    assert LeaseEnd(key.job_id, 1, True) in await rig.hand_out()


async def test_nothing_is_told_when_the_transaction_fails(rig: Rig) -> None:
    """The end is written with what ends the attempt, or not at all."""
    key, spool = await rig.started(**HOLDER)
    end = of(spool.payload_ended(0), spool.finished("SUCCEEDED"))
    await rig.hello(in_hand=[key])
    assert (await rig.report(key, end, epoch=1)).error is not None
    assert await rig.lease_ends(key.job_id) == []
    await rig.report(key, end)
    assert await rig.lease_ends(key.job_id) == [(1, True)]


# The hand-out, each in a database of its own.


async def over(rig: Rig, count: int) -> list[LeaseEnd]:
    """Jobs that are over, the oldest first."""
    found = []
    for _ in range(count):
        job_id = await rig.create(**HOLDER)
        await rig.cancel(job_id)
        found.append(LeaseEnd(job_id, 0, job_over=True))
    return found


@pytest.fixture
async def own_clock(own_rig: Rig) -> Clock:
    return await Clock.install(own_rig.database)


async def test_an_end_is_one_hubs_for_half_a_minute_and_then_anothers(own_rig: Rig, own_clock: Clock) -> None:
    ends = await over(own_rig, 3)
    assert await own_rig.hand_out() == ends
    assert await own_rig.hand_out() == []
    await own_clock.advance(29.9)
    assert await own_rig.hand_out() == []
    await own_clock.advance(0.1)  # the hub has died with them
    assert await own_rig.hand_out() == ends
    await own_rig.acknowledge(*ends[:2])
    await own_clock.advance(30)
    assert await own_rig.hand_out() == ends[2:]
    await own_rig.acknowledge(*ends)
    await own_rig.acknowledge(*ends)
    await own_clock.advance(3_600)
    assert await own_rig.hand_out() == []


async def test_what_a_stream_leaves_behind_is_handed_out_at_once(own_rig: Rig, own_clock: Clock) -> None:
    ends = await over(own_rig, 2)
    one, other = InHand(), InHand()
    async with own_rig.database.begin() as connection:
        assert await one.hand_out(connection) == ends
    await own_clock.advance(1)
    later = await over(own_rig, 1)
    async with own_rig.database.begin() as connection:
        assert await other.hand_out(connection) == later
    await own_rig.acknowledge(ends[0])
    async with own_rig.database.begin() as connection:
        await one.take_back(connection)
    assert await own_rig.hand_out() == ends[1:], "neither what is acknowledged nor what is another's"
    async with own_rig.database.begin() as connection:
        await one.take_back(connection)
    assert await own_rig.hand_out() == [], "it is that hub's since"


async def test_the_oldest_go_first_in_batches(own_rig: Rig, own_clock: Clock) -> None:
    await own_rig.execute(
        "INSERT INTO queue.lease_ends"
        " SELECT n, 1, true, queue.now() - n * interval '1 s', NULL FROM generate_series(1, 1200) AS n"
    )
    batches = [await own_rig.hand_out() for _ in range(4)]
    assert [len(batch) for batch in batches] == [500, 500, 200, 0]
    assert [end.job_id for batch in batches for end in batch] == list(range(1200, 0, -1))


async def test_hubs_that_ask_at_once_share_the_ends(own_rig: Rig, own_clock: Clock) -> None:
    await own_rig.execute(
        "INSERT INTO queue.lease_ends SELECT n, 1, true, queue.now(), NULL FROM generate_series(1, 2000) AS n"
    )
    taken: list[LeaseEnd] = []

    async def hub() -> None:
        while ends := await own_rig.hand_out():
            taken.extend(ends)
            await own_rig.acknowledge(*ends)

    await asyncio.gather(*(hub() for _ in range(4)))
    while rest := await own_rig.hand_out():  # passed over by all of them, as another one had them locked
        taken.extend(rest)
    assert sorted(end.job_id for end in taken) == list(range(1, 2001))


async def test_ends_acknowledgements_and_hand_outs_never_deadlock(own_rig: Rig) -> None:
    """All of them meet at the same rows: jobs whose attempts end, and which then end themselves."""
    await own_rig.hello(slots=1_000)
    job_ids = await own_rig.create_many(60, agent="a", **HOLDER)
    done: list[LeaseEnd] = []

    async def hub() -> None:
        ends = await own_rig.hand_out()
        await own_rig.acknowledge(*reversed(ends))
        done.extend(ends)

    for _ in range(4):
        keys = await own_rig.claim(slots=1_000)
        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(own_rig.refuse(key, RefusalReason.VAULT_SLOW))
                if key.job_id % 3 == 0:
                    group.create_task(own_rig.cancel(key.job_id))
            for _ in range(6):
                group.create_task(hub())
        await own_rig.execute("UPDATE queue.jobs SET retry_at = NULL")
        await own_rig.execute("UPDATE queue.lease_ends SET handed_at = NULL")
    for job_id in job_ids:
        await own_rig.cancel(job_id)
    await own_rig.execute("UPDATE queue.lease_ends SET handed_at = NULL")
    await hub()
    assert await own_rig.lease_ends(*job_ids) == []
    assert {end.job_id for end in done if end.job_over} == set(job_ids)
    await check(own_rig.database, job_ids)
