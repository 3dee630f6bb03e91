"""What a job holds whose agent is gone is let go by force, and by nothing less."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from services.queue import bulk, logs
from services.queue.bulk import ApplyVerb, Result, Verb
from services.queue.errors import ForceRefused, StaleAttempt
from services.queue.logs import Position
from services.queue.reports import Accepted
from services.queue.sessions import AttemptKey, Heartbeat, Verdict, heartbeat
from services.queue.sweeper import Sweeper
from services.queue.wakes import Wakes
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig, check, check_lease_ends, of
from tests.support.frames import Spool, read_frames

HOLDER = {"admin": "root"}


@pytest.fixture
async def sweeper(rig: Rig, clock: Clock) -> Sweeper:
    """One that has watched for longer than jobs may be silent here."""
    found = Sweeper(rig.database)
    await found.sweep()
    await clock.elapse(130, found.sweep)
    return found


Unheard = Callable[[], Awaitable[tuple[AttemptKey, Spool]]]


@pytest.fixture
def unheard(rig: Rig, clock: Clock, sweeper: Sweeper) -> Unheard:
    """A job with leases that is AWOL, since its agent is silent."""

    async def make() -> tuple[AttemptKey, Spool]:
        key, spool = await rig.started(heartbeat_timeout=timedelta(seconds=60), **HOLDER)
        await clock.elapse(61, sweeper.sweep)
        assert await rig.status(key.job_id) == "AWOL"
        return key, spool

    return make


async def test_a_forced_job_holds_nothing_any_more(rig: Rig, unheard: Unheard) -> None:
    key, _ = await unheard()
    assert await rig.lease_ends(key.job_id) == []
    await rig.abort(key.job_id, "the machine was scrapped", force=True)
    job, attempt = await rig.job(key.job_id), await rig.attempt(key)
    assert (job.status, job.stop_state, job.status_message) == ("ABORTED", "UNCONFIRMED", "the machine was scrapped")
    assert (attempt.lost, attempt.verdict, attempt.sealed_at is not None) == (True, "GAPPED", True)
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    entry = (await rig.history(key.job_id))[-1]
    assert (entry.event, entry.actor, entry.origin, entry.message) == (
        "FORCE", ALICE.name, ALICE.origin, "the machine was scrapped",
    )  # fmt: skip
    # Again, it changes nothing.
    await rig.abort(key.job_id, "again", force=True)
    assert await rig.job(key.job_id) == job and len(await rig.history(key.job_id)) == entry.sequence
    await check(rig.database, [key.job_id])
    await check_lease_ends(rig.database, [key.job_id])


async def test_a_stop_that_nobody_can_confirm_is_let_go(rig: Rig, unheard: Unheard) -> None:
    key, _ = await unheard()
    await rig.abort(key.job_id)
    assert await rig.lease_ends(key.job_id) == []
    await rig.abort(key.job_id, "enough", force=True)
    assert (await rig.events(key.job_id))[-2:] == ["ABORT", "FORCE"]
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    assert not await rig.stops()
    await check(rig.database, [key.job_id])


async def test_what_its_agent_may_still_settle_is_not_let_go(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, _ = await rig.started(heartbeat_timeout=timedelta(seconds=60))
    waiting = await rig.create()
    with pytest.raises(ForceRefused, match="no agent has it: abort it without force"):
        await rig.abort(waiting, force=True)
    with pytest.raises(ForceRefused, match="abort it without force, or wait until its agent has been silent for 60 s"):
        await rig.abort(key.job_id, force=True)
    await rig.abort(key.job_id)
    with pytest.raises(ForceRefused, match="is aborted, and its agent may still confirm its stop") as caught:
        await rig.abort(key.job_id, force=True)
    assert (caught.value.reason, caught.value.metadata["status"]) == ("FORCE_REFUSED", "ABORTED")
    # Once it is silent for as long, nobody can confirm it.
    await clock.elapse(61, sweeper.sweep)
    await rig.abort(key.job_id, force=True)
    assert (await rig.attempt(key)).verdict == "GAPPED"
    await check(rig.database, [waiting, key.job_id])


async def test_an_agent_that_returns_with_it_is_told_to_forget_it(rig: Rig, unheard: Unheard) -> None:
    key, spool = await unheard()
    await rig.abort(key.job_id, force=True)
    welcome = await rig.hello(in_hand=[key])
    assert [(found, verdict) for found, verdict, _ in welcome.verdicts] == [(key, Verdict.FORGET)]
    late = await rig.report(key, spool.output(b"still here"))
    assert isinstance(late.error, StaleAttempt) and "end what is left of it" in late.error.message
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
    await check(rig.database, [key.job_id])


async def test_an_agent_whose_stream_never_broke_is_told_to_end_it_with_its_next_beat(
    rig: Rig, unheard: Unheard
) -> None:
    """Only its hub could not reach the queue: there is no hello, and a payload that writes nothing makes no report."""
    key, _ = await unheard()
    await rig.abort(key.job_id, force=True)
    other = await rig.create(agent="a")
    (at_work,) = await rig.claim()
    await rig.accept(at_work)
    unknown = AttemptKey(2**40, 1)
    async with rig.database.begin() as connection:
        beat = Heartbeat(rig.session("a"), frozenset({key, at_work, unknown}))
        answer = await heartbeat(connection, [beat])
    assert {(stop.session, stop.attempt, stop.kind) for stop in answer.stops} == {
        (rig.session("a"), key, "ABORT"), (rig.session("a"), unknown, "ABORT"),
    }  # fmt: skip
    assert await rig.statuses([key.job_id, other]) == {key.job_id: "ABORTED", other: "STARTING"}


async def test_it_takes_no_slot_and_its_monitor_ends(rig: Rig, unheard: Unheard) -> None:
    key, _ = await unheard()

    async def monitored() -> list[str]:
        seen = logs.monitor(rig.database, Wakes(), key.job_id, Position())
        return [str(item.content) async for item in seen]

    watcher = asyncio.create_task(monitored())
    await rig.abort(key.job_id, force=True)
    assert any("FORCE" in entry for entry in await asyncio.wait_for(watcher, 20))
    await rig.hello("a", slots=1)
    waiting = await rig.create(agent="a")
    assert [cause.reason for cause in (await rig.explain(waiting)).causes] == ["NOTHING"]


async def test_many_are_forced_and_each_refusal_is_its_own(rig: Rig, unheard: Unheard) -> None:
    gone, _ = await unheard()
    await rig.hello()
    running, _ = await rig.started()
    ended, own = await rig.started()
    await rig.report(ended, of(own.payload_ended(0), own.finished("SUCCEEDED")))
    waiting = await rig.create()
    missing = 2**40
    job_ids = [gone.job_id, running.job_id, ended.job_id, waiting, missing]
    expected = {
        gone.job_id: "", running.job_id: "FORCE_REFUSED", ended.job_id: "", waiting: "FORCE_REFUSED",
        missing: "JOB_NOT_FOUND",
    }  # fmt: skip

    async def results(**how: bool) -> dict[int, str]:
        command = ApplyVerb(Verb.ABORT, job_ids, reason="scrapped", force=True, **how)
        items = [item async for item in bulk.apply(rig.database, Wakes(), command, ALICE)]
        return {i.job_id: i.error.reason if i.error else "" for i in items if isinstance(i, Result)}

    assert await results(validate_only=True) == expected
    assert await rig.status(gone.job_id) == "AWOL"
    assert await results() == expected
    assert await rig.status(gone.job_id) == "ABORTED"
    await check(rig.database, job_ids[:-1])


async def test_a_forced_job_can_be_deleted_and_rerun(rig: Rig, unheard: Unheard) -> None:
    key, _ = await unheard()
    await rig.abort(key.job_id, force=True)
    made = (await rig.rerun(key.job_id)).job
    await rig.delete(key.job_id)
    assert (made.status, made.rerun_of) == ("WAITING", key.job_id)
    assert isinstance((await rig.report(key, Accepted())).error, StaleAttempt)


@pytest.mark.parametrize("by", ["hello", "beat", "report", "repetition"])
async def test_nothing_is_let_go_while_an_agent_that_is_back_may_confirm_the_stop(
    rig: Rig, clock: Clock, sweeper: Sweeper, unheard: Unheard, by: str
) -> None:
    key, spool = await unheard()
    await rig.abort(key.job_id)
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
    before = (await rig.job(key.job_id)).revision
    match by:
        case "hello":
            welcome = await rig.hello(in_hand=[key])
            assert [verdict for _, verdict, _ in welcome.verdicts] == [Verdict.KILL]
        case "beat":
            await rig.beat("a", key)
            await rig.beat("a", key)
        case "report":
            await rig.report(key, spool.output(b"still here"))
        case "repetition":
            await rig.report(key, read_frames(spool.bodies))
    await sweeper.sweep()
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state, job.revision) == ("ABORTED", "PENDING", before + 1)
    with pytest.raises(ForceRefused, match="its agent may still confirm its stop"):
        await rig.abort(key.job_id, force=True)
    # Once it is silent again, nobody waits for it.
    await clock.elapse(61, sweeper.sweep)
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
    await rig.abort(key.job_id, force=True)
    assert await rig.lease_ends(key.job_id) == [(1, True)]
    await check(rig.database, [key.job_id])


async def test_an_agent_that_has_lost_its_journal_of_it_confirms_nothing_any_more(rig: Rig, unheard: Unheard) -> None:
    key, spool = await unheard()
    await rig.abort(key.job_id)
    await rig.hello(journal_id="another one", in_hand=[key])
    await rig.beat("a", key)
    await rig.report(key, spool.output(b"still here"))
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
    await rig.abort(key.job_id, force=True)
    assert (await rig.attempt(key)).sealed_at is not None


async def test_what_a_beat_of_another_agent_names_is_not_heard(rig: Rig, unheard: Unheard) -> None:
    key, _ = await unheard()
    await rig.abort(key.job_id)
    await rig.hello("b")
    await rig.beat("b", key)
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
