"""What happens because time has passed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta

import pytest
from sqlalchemy import literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle, listing, overdue, purge, removals, watching
from services.queue import sweeper as sweeping
from services.queue.creation import Priority
from services.queue.listing import JobFilter, ListJobs
from services.queue.reports import Accepted
from services.queue.sessions import AttemptKey
from services.queue.sweeper import Sweeper
from services.queue.tables import request_ids
from services.runtime.errors import DeadlineExceeded, Unavailable
from sis.queue.v1 import frame_pb2, job_pb2
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, check, of
from tests.support.frames import read_frames

SECOND = timedelta(seconds=1)
KEPT = removals.PURGE_AFTER.total_seconds()


@pytest.fixture
async def sweeper(rig: Rig, clock: Clock) -> Sweeper:
    """One that has watched for a minute, longer than most jobs here may be silent."""
    found = Sweeper(rig.database)
    await found.sweep()
    await clock.elapse(60, found.sweep)
    return found


async def test_a_deferred_job_is_released_when_its_time_comes_and_not_before(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    job_id = await rig.create(not_before=clock.now + timedelta(seconds=20))
    held = await rig.create(deferred=True)
    await clock.advance(19.9)
    await sweeper.sweep()
    assert await rig.status(job_id) == "DEFERRED"
    await clock.advance(0.1)
    await sweeper.sweep()
    job = await rig.job(job_id)
    assert (job.status, job.queued_at) == ("WAITING", clock.now)
    assert await rig.status(held) == "DEFERRED"  # until somebody activates it
    (entry,) = [e for e in await rig.history(job_id) if e.event == "RELEASE"]
    assert entry.actor == "sweeper"


async def test_what_nobody_started_by_its_latest_start_expires(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    latest = clock.now + timedelta(seconds=20)
    claimed = await rig.create(latest_start=latest, agent=await _agent(rig))
    await rig.claim()
    waiting = await rig.create(latest_start=latest)
    deferred = await rig.create(latest_start=latest, deferred=True)
    await clock.advance(19.9)
    await sweeper.sweep()
    assert await rig.status(waiting) == "WAITING"
    await clock.advance(0.1)
    await sweeper.sweep()
    for job_id in (waiting, deferred):
        job = await rig.job(job_id)
        assert (job.status, job.failure_reason) == ("EXPIRED", "LATEST_START")
    assert await rig.status(claimed) == "STARTING"
    assert [k.job_id for k in await rig.claim()] == []


async def _agent(rig: Rig) -> str:
    await rig.hello()
    return "a"


async def test_what_came_due_and_too_late_during_an_outage_expires_and_is_not_released(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    job_id = await rig.create(not_before=clock.now + 10 * SECOND, latest_start=clock.now + 20 * SECOND)
    await clock.advance(3_600)
    await sweeper.sweep()
    assert [(e.event, e.to_status) for e in await rig.history(job_id)] == [
        ("CREATE", "DEFERRED"), ("EXPIRE", "EXPIRED"),
    ]  # fmt: skip


# Silence.


async def test_a_job_is_awol_after_its_timeout_and_not_before(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, _ = await rig.started(heartbeat_timeout=timedelta(seconds=45))
    patient, _ = await rig.started("b", heartbeat_timeout=timedelta(seconds=300))
    await clock.elapse(45, sweeper.sweep)
    assert await rig.status(key.job_id) == "RUNNING"
    await clock.advance(0.001)
    await sweeper.sweep()
    assert await rig.status(key.job_id) == "AWOL"
    assert await rig.status(patient.job_id) == "RUNNING"
    job = await rig.job(key.job_id)
    assert job.completed_at is None and job.stop_state == "NONE"


async def test_whoever_is_heard_is_not_awol(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    by_beat, _ = await rig.started("a", heartbeat_timeout=timedelta(seconds=45))
    by_report, spool = await rig.started("b", heartbeat_timeout=timedelta(seconds=45))
    not_in_hand, _ = await rig.started("c", heartbeat_timeout=timedelta(seconds=45))
    for _ in range(4):
        await clock.advance(30)
        await rig.beat("a", by_beat)
        await rig.report(by_report, spool.output(b"x"), name="b")
        await rig.beat("c")  # the agent is heard, and says nothing of this attempt
        await sweeper.sweep()
    assert [await rig.status(k.job_id) for k in (by_beat, by_report, not_in_hand)] == ["RUNNING", "RUNNING", "AWOL"]


@pytest.mark.parametrize("by", ["acceptance", "repetition"])
async def test_whoever_comes_home_by_a_report_is_heard_by_it(rig: Rig, clock: Clock, sweeper: Sweeper, by: str) -> None:
    """Also where the report adds nothing to the log."""
    if by == "acceptance":
        await rig.hello()
        await rig.create(heartbeat_timeout=timedelta(seconds=45))
        (key,) = await rig.claim()
        content: object = Accepted()
    else:
        key, spool = await rig.started(heartbeat_timeout=timedelta(seconds=45))
        content = read_frames(spool.bodies)
    await clock.elapse(50, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"
    assert (await rig.report(key, content)).error is None
    await sweeper.sweep()
    assert await rig.status(key.job_id) == ("STARTING" if by == "acceptance" else "RUNNING")


async def test_an_acceptance_is_a_sign_of_life(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    await rig.hello()
    await rig.create(heartbeat_timeout=timedelta(seconds=45))
    (key,) = await rig.claim()
    await clock.elapse(40, sweeper.sweep)
    await rig.accept(key)
    await clock.elapse(40, sweeper.sweep)
    assert await rig.status(key.job_id) == "STARTING"


@pytest.mark.parametrize("status", ["STARTING", "RUNNING", "PROCESSING_OUTPUT", "CANCEL_REQUESTED"])
async def test_each_status_that_an_agent_holds_can_become_awol(
    rig: Rig, clock: Clock, sweeper: Sweeper, status: str
) -> None:
    key, spool = await rig.started(heartbeat_timeout=timedelta(seconds=15))
    match status:
        case "STARTING":
            await rig.create(agent="a", heartbeat_timeout=timedelta(seconds=15))
            (key,) = await rig.claim()
        case "PROCESSING_OUTPUT":
            await rig.report(key, spool.payload_ended(0))
        case "CANCEL_REQUESTED":
            await rig.cancel(key.job_id)
    assert await rig.status(key.job_id) == status
    await clock.elapse(16, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"
    await check(rig.database, [key.job_id])


async def test_nobody_is_judged_right_after_a_sweepers_start(rig: Rig, clock: Clock) -> None:
    key, _ = await rig.started(heartbeat_timeout=timedelta(seconds=45))
    await clock.advance(3_600)
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await clock.elapse(44, sweeper.sweep)
    assert await rig.status(key.job_id) == "RUNNING"
    await clock.elapse(1, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"


async def test_nobody_is_judged_right_after_a_gap(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, _ = await rig.started(heartbeat_timeout=timedelta(seconds=45))
    await clock.advance(3_600)  # the database was away, for sweeper and hubs alike
    await sweeper.sweep()
    await clock.elapse(30, sweeper.sweep)
    assert await rig.status(key.job_id) == "RUNNING"
    await rig.beat("a", key)
    await clock.elapse(45, sweeper.sweep)
    assert await rig.status(key.job_id) == "RUNNING"


async def test_a_sweeper_that_has_just_begun_need_not_watch_for_a_day(rig: Rig, clock: Clock) -> None:
    """Queues that are restarted daily would never judge a job whose timeout is a day."""
    key, _ = await rig.started(heartbeat_timeout=timedelta(days=1))
    await clock.advance(2 * 86_400)
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await clock.elapse(overdue.HEARD_WITHIN.total_seconds() - 1, sweeper.sweep)
    assert await rig.status(key.job_id) == "RUNNING"
    await clock.elapse(1, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"


async def test_a_clock_that_jumps_back_begins_the_watch_anew(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, _ = await rig.started(heartbeat_timeout=timedelta(seconds=15))
    await clock.advance(25)
    await rig.beat("a", key)
    await sweeper.sweep()
    await clock.advance(-20)
    await rig.execute("UPDATE queue.attempts SET last_heard_at = last_heard_at - interval '1 day'")
    await sweeper.sweep()
    assert await rig.status(key.job_id) == "RUNNING"
    await clock.advance(20)


async def test_nobody_is_judged_by_what_was_seen_before_a_gap_within_a_sweep(rig: Rig, clock: Clock) -> None:
    """The database stands still between the look and what follows from it; hubs could not say what they heard."""

    stalled = False

    class Stalled(Sweeper):
        async def _apply(self, name: str, act: Callable[[], Awaitable[bool]]) -> bool:
            if stalled:
                await clock.advance(40)
            return await super()._apply(name, act)

    sweeper = Stalled(rig.database)
    await sweeper.sweep()
    due, _ = await rig.started("b", heartbeat_timeout=timedelta(seconds=45))
    await clock.elapse(30, sweeper.sweep)
    key, _ = await rig.started(heartbeat_timeout=timedelta(seconds=45))
    await clock.advance(16)
    stalled = True
    await sweeper.sweep()
    assert await rig.statuses([due.job_id, key.job_id]) == {due.job_id: "RUNNING", key.job_id: "RUNNING"}
    stalled = False
    for _ in range(3):
        await clock.elapse(16, lambda: rig.beat("a", key), sweeper.sweep)
    assert await rig.statuses([due.job_id, key.job_id]) == {due.job_id: "AWOL", key.job_id: "RUNNING"}


async def test_an_aborted_job_whose_agent_is_not_heard_has_an_unconfirmed_stop(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    key, spool = await rig.started(heartbeat_timeout=timedelta(seconds=15))
    await rig.abort(key.job_id)
    await sweeper.sweep()
    assert (await rig.job(key.job_id)).stop_state == "PENDING"
    await clock.elapse(16, sweeper.sweep)
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
    # The evidence may still come.
    await rig.report(key, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    assert (await rig.job(key.job_id)).stop_state == "CONFIRMED"


# Limits that an agent which is heard does not keep.


async def _heard(rig: Rig, clock: Clock, sweeper: Sweeper, key: AttemptKey, seconds: float) -> None:
    await clock.elapse(seconds, lambda: rig.beat("a", key), sweeper.sweep)


async def test_the_run_timeout_half_a_minute_late(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, spool = await rig.started(run_timeout=timedelta(seconds=60))
    await _heard(rig, clock, sweeper, key, 90)
    assert await rig.status(key.job_id) == "RUNNING"
    await _heard(rig, clock, sweeper, key, 1)
    job = await rig.job(key.job_id)
    assert (job.status, job.failure_reason, job.stop_state) == ("TIMED_OUT", "RUN_TIMEOUT", "PENDING")
    assert await rig.stops() == {key: "ABORT"}
    await rig.report(key, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    assert (await rig.job(key.job_id)).stop_state == "CONFIRMED"
    await check(rig.database, [key.job_id])


@pytest.mark.parametrize("accepted", [False, True])
async def test_the_start_limit_half_a_minute_late(rig: Rig, clock: Clock, sweeper: Sweeper, accepted: bool) -> None:
    await rig.create(agent=await _agent(rig))
    (key,) = await rig.claim()
    if accepted:
        await rig.accept(key)
    await _heard(rig, clock, sweeper, key, 330)
    assert await rig.status(key.job_id) == "STARTING"
    await _heard(rig, clock, sweeper, key, 1)
    job = await rig.job(key.job_id)
    assert (job.status, job.failure_reason, job.stop_state) == ("FAILED", "START_TIMEOUT", "PENDING")
    if not accepted:
        await rig.decline(key)
        assert (await rig.job(key.job_id)).stop_state == "CONFIRMED"


async def test_the_output_limit_half_a_minute_late(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, spool = await rig.started()
    await rig.report(key, spool.payload_ended(0))
    await _heard(rig, clock, sweeper, key, 90)
    assert await rig.status(key.job_id) == "PROCESSING_OUTPUT"
    await _heard(rig, clock, sweeper, key, 1)
    job = await rig.job(key.job_id)
    assert (job.status, job.failure_reason, job.stop_state) == ("FAILED", "OUTPUT_TIMEOUT", "PENDING")


async def test_the_stop_limit_half_a_minute_late(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, spool = await rig.started()
    await rig.cancel(key.job_id)
    await rig.report(key, spool.stop_begun("CANCEL"))
    await _heard(rig, clock, sweeper, key, 70)
    assert await rig.status(key.job_id) == "CANCEL_REQUESTED"
    await _heard(rig, clock, sweeper, key, 1)
    job = await rig.job(key.job_id)
    assert (job.status, job.failure_reason, job.stop_state) == ("FAILED", "STOP_UNCONFIRMED", "PENDING")
    assert await rig.stops() == {key: "ABORT"}


async def test_a_stop_that_has_begun_and_does_not_end_is_asked_for_again_by_force(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    """A payload can stop the supervisor that has begun to end it, and nobody else would ever ask."""
    key, spool = await rig.started(cancel_grace=timedelta(seconds=10))
    await rig.report(key, spool.stop_begun("TIME_OUT"))
    assert (await rig.job(key.job_id)).stop_state == "PENDING"
    assert await rig.stops() == {}
    await _heard(rig, clock, sweeper, key, 70)
    assert await rig.stops() == {}
    await _heard(rig, clock, sweeper, key, 1)
    assert await rig.stops() == {key: "ABORT"}
    await rig.report(key, spool.stop_begun("ABORT"))
    assert await rig.stops() == {}
    await _heard(rig, clock, sweeper, key, 70)
    assert await rig.stops() == {}
    await _heard(rig, clock, sweeper, key, 1)
    assert await rig.stops() == {key: "ABORT"}, "it hangs for good, so it is asked as often as that takes"
    await rig.report(key, spool.finished("TIMED_OUT"))
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state, await rig.stops()) == ("TIMED_OUT", "CONFIRMED", {})
    await check(rig.database, [key.job_id])


async def test_no_stop_is_repeated_while_its_agent_hands_in_what_it_has(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    key, spool = await rig.started(cancel_grace=timedelta(seconds=10))
    old = clock.now
    await rig.report(key, spool.stop_begun("TIME_OUT"))
    for _ in range(3):
        await _heard(rig, clock, sweeper, key, 60)
        late = frame_pb2.Frame(chunk=frame_pb2.Chunk(channel=job_pb2.CHANNEL_STDOUT, data=b"late"))
        late.time.FromDatetime(old)
        await rig.report(key, spool.cut(late))
    assert await rig.stops() == {}


async def _found_by(rig: Rig, clock: Clock, sweeper: Sweeper, name: str) -> set[int]:
    """The jobs that a rule is about, before it looks at any of them."""
    (rule,) = (rule for rule in overdue.RULES if rule.name == name)
    due = rule.selection(literal(clock.now), literal(sweeper._watching_since))
    async with rig.database.begin() as connection:
        return {row.job_id for row in await connection.execute(due)}


async def test_what_a_sweeper_is_not_to_end_yet_is_not_in_the_way_of_what_it_is(rig: Rig, clock: Clock) -> None:
    """What a rule finds, it acts on: otherwise the same jobs would be looked at again and again before all others."""
    silent, _ = await rig.started("a", run_timeout=timedelta(seconds=10))
    back, _ = await rig.started("b", heartbeat_timeout=timedelta(days=1))
    unseen, _ = await rig.started("c", heartbeat_timeout=timedelta(days=1))
    for key in (back, unseen):
        await rig.cancel(key.job_id)
    await clock.advance(600)
    await rig.hello("b", in_hand=[back])
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    keys = {key.job_id for key in (silent, back, unseen)}
    ended: list[int] = []
    for _ in range(24):
        await clock.advance(5)
        before = {job_id for job_id, status in (await rig.statuses(sorted(keys))).items() if status == "FAILED"}
        found = (await _found_by(rig, clock, sweeper, "overrun")) & keys
        await sweeper.sweep()
        after = {job_id for job_id, status in (await rig.statuses(sorted(keys))).items() if status == "FAILED"}
        assert after - before == found
        ended += found
    assert set(ended) == {back.job_id, unseen.job_id}


async def test_no_limit_ends_the_job_of_an_agent_that_is_not_heard(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, _ = await rig.started(run_timeout=timedelta(seconds=30), heartbeat_timeout=timedelta(seconds=45))
    await clock.elapse(180, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"


# What is kept, and what is not.


async def test_request_ids_are_forgotten_after_seven_days(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    first = await rig.create(request_id=rig.group)
    await clock.advance(7 * 86_400)
    await sweeper.sweep()
    assert await rig.create(request_id=rig.group) == first
    await clock.advance(1)
    await sweeper.sweep()
    assert await rig.create(request_id=rig.group) != first


async def gone(rig: Rig, job_id: int) -> bool:
    async with rig.database.begin() as connection:
        found = await connection.exec_driver_sql(
            "SELECT (SELECT count(*) FROM queue.jobs WHERE job_id = %(i)s),"
            " (SELECT count(*) FROM queue.attempts WHERE job_id = %(i)s)"
            " + (SELECT count(*) FROM queue.history WHERE job_id = %(i)s)"
            " + (SELECT count(*) FROM queue.log WHERE job_id = %(i)s)",
            {"i": job_id},
        )
        jobs, rest = found.one()
    assert jobs or not rest, "something of a purged job was left"
    return not jobs


async def test_a_deleted_job_is_kept_until_no_watch_needs_it(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    assert removals.PURGE_AFTER > watching.TOKEN_LIFE
    job_id = await rig.create()
    await rig.delete(job_id)
    await clock.advance(KEPT - 1)
    await sweeper.sweep()
    assert not await gone(rig, job_id)
    await clock.advance(2)
    await sweeper.sweep()
    assert await gone(rig, job_id)


async def test_a_deleted_job_is_purged_once_its_stop_is_settled(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    waiting = await rig.create()
    await rig.delete(waiting)
    key, spool = await rig.started()
    await rig.report(key, spool.output(b"x"))
    await rig.cancel(key.job_id)
    await rig.delete(key.job_id)
    aborted, aborted_spool = await rig.started("b")
    await rig.abort(aborted.job_id)
    await rig.delete(aborted.job_id)
    await clock.advance(KEPT + 1)
    await sweeper.sweep()
    assert [await gone(rig, j) for j in (waiting, key.job_id, aborted.job_id)] == [True, False, False]
    await rig.report(key, of(spool.stop_begun("CANCEL"), spool.finished("STOPPED")))
    stop = of(aborted_spool.stop_begun("ABORT"), aborted_spool.finished("STOPPED"))
    await rig.report(aborted, stop, name="b")
    await sweeper.sweep()
    assert [await gone(rig, j) for j in (key.job_id, aborted.job_id)] == [True, True]


async def test_a_deleted_job_is_purged_too_when_nobody_can_settle_its_stop(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    key, _ = await rig.started(heartbeat_timeout=timedelta(seconds=15))
    await rig.cancel(key.job_id)
    await rig.delete(key.job_id)
    await clock.elapse(KEPT + 1, sweeper.sweep)
    await sweeper.sweep()
    assert await gone(rig, key.job_id)
    # Should its agent return: there is no such job.
    assert [v.value for _, v, _ in (await rig.hello(in_hand=[key])).verdicts] == ["FORGET"]


async def test_a_deleted_job_whose_agent_is_back_is_purged_once_its_stop_is_settled(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    key, spool = await rig.started(heartbeat_timeout=timedelta(seconds=15))
    await clock.elapse(16, sweeper.sweep)
    await rig.delete(key.job_id)
    assert (await rig.job(key.job_id)).stop_state == "UNCONFIRMED"
    await clock.advance(KEPT + 1)
    await rig.hello(in_hand=[key])
    await sweeper.sweep()
    assert not await gone(rig, key.job_id)
    await rig.report(key, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    await sweeper.sweep()
    assert await gone(rig, key.job_id)


async def test_a_long_log_is_purged_in_parts(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    """One statement for gigabytes would run into its limit every time, and nothing would ever be purged."""
    key, spool = await rig.started()
    end = of(spool.payload_ended(0), spool.finished("SUCCEEDED"))
    await rig.report(key, end)
    await rig.execute(
        "INSERT INTO queue.log SELECT job_id, attempt, n, channel, severity, at, body FROM queue.log,"
        " generate_series(10, :last) n WHERE job_id = :job_id AND sequence = 1",
        job_id=key.job_id, last=10 + 2 * purge.FRAMES,
    )  # fmt: skip
    other = await rig.create()
    await rig.delete(key.job_id)
    await rig.delete(other)
    await clock.advance(KEPT + 1)
    assert await sweeper.sweep()  # there is more to do at once
    assert not await gone(rig, key.job_id)
    for _ in range(3):
        await sweeper.sweep()
    assert await gone(rig, key.job_id) and await gone(rig, other)


@pytest.mark.parametrize("count", [5, 6, 7])
async def test_a_purge_comes_back_to_what_another_had_in_hand(
    rig: Rig, clock: Clock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(purge, "JOBS", 2)
    job_ids = await rig.create_many(count)
    for job_id in job_ids:
        await rig.delete(job_id)
        await clock.advance(1)
    await clock.advance(KEPT + 1)
    sweeper = Sweeper(rig.database)
    async with rig.database.begin() as connection:
        await connection.execute(text("SELECT FROM queue.jobs WHERE job_id = :i FOR UPDATE"), {"i": job_ids[0]})
        while list(await rig.statuses(job_ids)) != job_ids[:1]:
            await sweeper.sweep()
    await sweeper.sweep()
    await sweeper.sweep()
    assert await rig.statuses(job_ids) == {}


async def test_a_log_whose_end_never_comes_is_sealed_with_a_gap(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    key, spool = await rig.started()
    await rig.abort(key.job_id)
    await clock.advance(86_270)
    await sweeper.sweep()
    await clock.elapse(130, sweeper.sweep)
    assert (await rig.attempt(key)).verdict == "OPEN"
    await clock.advance(1)
    await sweeper.sweep()
    attempt, job = await rig.attempt(key), await rig.job(key.job_id)
    assert (attempt.verdict, attempt.sealed_at) == ("GAPPED", clock.now)
    # Whatever comes now is refused, so the stop can be confirmed no more.
    assert (await rig.report(key, spool.finished("STOPPED"))).error is not None
    assert job.stop_state == "UNCONFIRMED"


async def test_no_log_is_sealed_after_an_outage_before_its_agent_could_come_back(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    key, spool = await rig.started()
    await rig.abort(key.job_id)
    await clock.advance(3 * 86_400)  # nobody was heard, and nothing was swept
    for _ in range(4):
        await sweeper.sweep()
        await clock.advance(20)
    await rig.hello(in_hand=[key])
    await clock.elapse(180, sweeper.sweep)
    # Nor soon after the agent was heard, however long ago the job has ended.
    assert (await rig.attempt(key)).verdict == "OPEN"
    told = await rig.report(key, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    assert told.error is None and (await rig.attempt(key)).verdict == "COMPLETE"
    assert (await rig.job(key.job_id)).stop_state == "CONFIRMED"


# Many sweepers, many jobs.


async def test_sweepers_share_the_work_and_do_everything_once(rig: Rig, clock: Clock) -> None:
    due = clock.now + SECOND
    released = await rig.create_many(60, not_before=due)
    expired = await rig.create_many(60, latest_start=due, priority=Priority.LOW)
    await clock.advance(2)
    sweepers = [Sweeper(rig.database) for _ in range(4)]
    for _ in range(3):
        await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))
    assert {await rig.status(job_id) for job_id in released} == {"WAITING"}
    assert {await rig.status(job_id) for job_id in expired} == {"EXPIRED"}
    for job_id in (*released, *expired):
        assert len(await rig.history(job_id)) == 2
    await check(rig.database, [*released, *expired])


async def test_a_sweeper_goes_on_while_another_stands_still_with_its_batch(rig: Rig, clock: Clock) -> None:
    due = clock.now + SECOND
    released = await rig.create_many(6, not_before=due)
    purged = await rig.create_many(6)
    for job_id in purged:
        await rig.delete(job_id)
    await clock.advance(KEPT + 1)
    held = [*released[:3], *purged[:3]]
    async with rig.database.begin() as connection:
        lock = text("SELECT FROM queue.jobs WHERE job_id = ANY(:job_ids) FOR UPDATE")
        await connection.execute(lock, {"job_ids": held})
        await Sweeper(rig.database).sweep()
        assert await rig.statuses(released) == {
            job_id: "DEFERRED" if job_id in held else "WAITING" for job_id in released
        }
        assert set(await rig.statuses(purged)) == set(purged[:3])
    await Sweeper(rig.database).sweep()
    assert set((await rig.statuses(released)).values()) == {"WAITING"}
    assert await rig.statuses(purged) == {}


async def test_a_purge_is_in_nobodys_way(rig: Rig, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in that of those who claim, report, create, delete and list, whatever it has in hand."""
    gone = await rig.create_many(3)
    for job_id in gone:
        await rig.delete(job_id)
    await clock.advance(KEPT + 1)
    key, spool = await rig.started("a")
    standing, go_on = asyncio.Event(), asyncio.Event()
    remove = purge._remove_jobs

    async def stands_still(connection: AsyncConnection, job_ids: Collection[int]) -> bool:
        found = await remove(connection, job_ids)
        standing.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(purge, "_remove_jobs", stands_still)
    purging = asyncio.create_task(purge.Purge(rig.database).step())
    await standing.wait()
    async with asyncio.timeout(20):
        await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
        await rig.delete(key.job_id)
        again, _ = await rig.started("a")
        await rig.beat("a", again)
        async with rig.database.begin() as connection:
            page = await listing.list_page(connection, ListJobs(JobFilter(), 50, "", "job_id", True, b""))
        assert again.job_id in [row.job_id for row in page.jobs]
    assert not purging.done()
    go_on.set()
    await purging
    assert await rig.statuses(gone) == {}


async def test_a_rule_that_fails_keeps_none_of_the_others(
    rig: Rig, clock: Clock, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred = await rig.create(not_before=clock.now + SECOND)
    late = await rig.create(latest_start=clock.now + SECOND)
    deleted = await rig.create()
    await rig.delete(deleted)
    await clock.elapse(KEPT + 1)

    def fails(*_: object) -> None:
        raise Unavailable("not now")

    with monkeypatch.context() as broken:
        broken.setattr(lifecycle, "release", fails)
        await sweeper.sweep()
    assert [await rig.status(job_id) for job_id in (deferred, late)] == ["DEFERRED", "EXPIRED"]
    assert await gone(rig, deleted)
    await sweeper.sweep()
    assert await rig.status(deferred) == "WAITING"


def _impossible(*_: object) -> object:
    return text("SELECT 1 / 0")


def _too_slow(*_: object) -> object:
    raise DeadlineExceeded("the database did not answer in time; try again")


@pytest.mark.parametrize("looks", [_impossible, _too_slow], ids=["refused", "too slow"])
async def test_a_look_that_fails_keeps_nothing_from_being_swept(
    rig: Rig, clock: Clock, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    looks: Callable[..., object],
) -> None:  # fmt: skip
    deferred = await rig.create(not_before=clock.now + SECOND)
    silent, _ = await rig.started(heartbeat_timeout=timedelta(seconds=45))
    deleted = await rig.create()
    await rig.delete(deleted)
    await rig.create(request_id=rig.group)
    await clock.advance(8 * 86_400)
    caplog.set_level("INFO", "sweeper")
    with monkeypatch.context() as broken:
        broken.setattr(sweeping, "_what_is_due", looks)
        await sweeper.sweep()
        await clock.elapse(60, sweeper.sweep)
    assert await rig.statuses([deferred, silent.job_id]) == {deferred: "WAITING", silent.job_id: "AWOL"}
    assert await gone(rig, deleted)
    async with rig.database.begin() as connection:
        kept = await connection.execute(select(request_ids).where(request_ids.c.request_id == rig.group))
        assert kept.all() == []
    what = "what is due is not found at once, and is looked for by each rule"
    (line,) = _said(caplog)
    assert line.startswith(f"{what}: ")
    await sweeper.sweep()
    assert _said(caplog) == [line, f"over: {what}"]


async def _swept(sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let it run until it has swept so often."""
    monkeypatch.setattr(sweeping, "INTERVAL_SECONDS", 0.0)
    enough = asyncio.Event()
    sweep, left = sweeper.sweep, times

    async def counted() -> bool:
        nonlocal left
        try:
            return await sweep()
        finally:
            left -= 1
            if left <= 0:
                enough.set()

    with monkeypatch.context() as counting:
        counting.setattr(sweeper, "sweep", counted)
        running = asyncio.create_task(sweeper.run())
        await asyncio.wait([asyncio.create_task(enough.wait()), running], return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), running.exception()
        running.cancel()
        await asyncio.wait([running])


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sweeper"]


async def test_what_is_not_swept_is_said_once_and_when_it_is_over(
    rig: Rig, clock: Clock, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.create(not_before=clock.now + SECOND)
    await rig.create(latest_start=clock.now + SECOND)
    await clock.advance(1)
    caplog.set_level("INFO", "sweeper")

    def fails(*_: object) -> None:
        raise Unavailable("not now")

    async def refused(connection: AsyncConnection, *_: object, **__: object) -> None:
        await connection.execute(text("SELECT 1 / 0"))

    with monkeypatch.context() as broken:
        broken.setattr(lifecycle, "release", fails)
        broken.setattr(lifecycle, "expire", fails)
        await _swept(sweeper, monkeypatch, 4)
        assert _said(caplog) == ["not swept by the rule late: not now", "not swept by the rule release: not now"]
        caplog.clear()
        broken.setattr(overdue.store, "lock_selected", refused)
        await _swept(sweeper, monkeypatch, 4)
        told = "DivisionByZero: division by zero"
        assert _said(caplog) == [f"not swept by the rule late: {told}", f"not swept by the rule release: {told}"]
    caplog.clear()
    await _swept(sweeper, monkeypatch, 3)
    assert _said(caplog) == ["over: not swept by the rule late", "over: not swept by the rule release"]


async def test_a_database_that_cannot_even_tell_the_time_ends_no_sweeper(
    rig: Rig, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT 1 / 0"))

    caplog.set_level("INFO", "sweeper")
    with monkeypatch.context() as broken:
        broken.setattr(sweeping, "_what_is_due", _impossible)
        broken.setattr(overdue.store, "now", refused)
        await _swept(sweeper, monkeypatch, 3)
    told = ["nothing is swept: DivisionByZero: division by zero"]
    assert _said(caplog) == told
    await _swept(sweeper, monkeypatch, 2)
    assert _said(caplog) == [*told, "over: nothing is swept"]


async def test_a_batch_that_was_full_says_that_there_is_more(
    rig: Rig, clock: Clock, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "BATCH", 5)
    job_ids = await rig.create_many(12, not_before=clock.now + SECOND)
    await clock.advance(1)
    assert [await sweeper.sweep() for _ in range(3)] == [True, True, False]
    assert {await rig.status(job_id) for job_id in job_ids} == {"WAITING"}


async def test_a_job_that_was_given_up_stays_so_whatever_its_agent_says_in_the_end(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    key, spool = await rig.started(run_timeout=timedelta(seconds=10))
    await _heard(rig, clock, sweeper, key, 60)
    told = await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED", outputs={"a": "1"})))
    assert told.sealed
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state, job.outputs) == ("TIMED_OUT", "CONFIRMED", {})
    await check(rig.database, [key.job_id])


async def test_an_attempt_is_heard_from_its_claim_on(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    await rig.create(agent=await _agent(rig), heartbeat_timeout=timedelta(seconds=15))
    await clock.advance(29)
    (key,) = await rig.claim()
    await sweeper.sweep()
    assert await rig.status(key.job_id) == "STARTING"
    assert (await rig.attempt(key)).last_heard_at == clock.now
