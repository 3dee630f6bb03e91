"""A queue goes back in time: its database is copied as a backup would, goes on, and the copy takes its place."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from sqlalchemy import make_url, text

from services.queue import creation, recovery
from services.queue.errors import StaleAttempt, StaleEpoch
from services.queue.frames import Outcome
from services.queue.reports import Accepted
from services.queue.sessions import AttemptKey, Verdict
from services.queue.sweeper import Sweeper
from services.runtime.database import Database
from sis.stack import postgres as embedded
from tests.integration.queue.rig import ALICE, Rig, check, of
from tests.support.frames import Spool

Backup = Callable[[], Awaitable[Callable[[], Awaitable[Rig]]]]
"""Copies the database as it is; what that gives restores the copy, and recovers it."""


@pytest.fixture
async def backup(own_rig: Rig, own_url: str, postgres: embedded.Postgres) -> AsyncIterator[Backup]:
    """The agents of `own_rig` go over to what is restored, with all that they know."""
    name = str(make_url(own_url).database)
    async with AsyncExitStack() as stack:

        async def take() -> Callable[[], Awaitable[Rig]]:
            await own_rig.database.dispose()  # a template may have no connections
            postgres.create_database(f"{name}_backup", template=name)
            stack.callback(postgres.drop_database, f"{name}_backup")

            async def restore() -> Rig:
                database = Database(postgres.url(f"{name}_backup"), application_name="test", pool_size=10)
                stack.push_async_callback(database.dispose)
                await recovery.recover(database)
                restored = Rig(database, own_rig.group)
                restored.epochs = dict(own_rig.epochs)
                return restored

            return restore

        yield take


async def test_what_has_run_since_is_not_started_again(own_rig: Rig, backup: Backup) -> None:
    await own_rig.hello()
    job_id = await own_rig.create()
    restore = await backup()
    (key,) = await own_rig.claim()
    spool = Spool()
    run = of(spool.process_started(1), spool.payload_ended(0), spool.finished(Outcome.SUCCEEDED))
    assert (await own_rig.report(key, Accepted(), run)).sealed

    restored = await restore()
    await restored.hello()
    assert await restored.claim() == []
    job = await restored.job(job_id)
    assert (job.status, job.wait_reason) == ("DEFERRED", "HELD")
    assert "it may have run since" in (await restored.explain(job_id)).summary
    assert (await restored.history(job_id))[-1].event == "RESTORE"
    # A person has looked, and wants it run again.
    await restored.activate(job_id, "it had not run")
    assert await restored.claim() == [AttemptKey(job_id, 1 + recovery.ATTEMPTS)]
    await check(restored.database, [job_id])


async def test_what_runs_since_comes_home_with_all_of_its_log(own_rig: Rig, backup: Backup) -> None:
    await own_rig.hello()
    job_id = await own_rig.create()
    restore = await backup()
    (first,) = await own_rig.claim()
    await own_rig.decline(first)
    await own_rig.execute("UPDATE queue.jobs SET retry_at = NULL")
    (key,) = await own_rig.claim()
    spool = Spool()
    before = of(spool.process_started(1), spool.output(b"before\n"))
    await own_rig.report(key, Accepted(), before)

    restored = await restore()
    welcome = await restored.hello(in_hand=[key])
    assert welcome.verdicts == [(key, Verdict.GO_ON, 0)]
    job = await restored.job(job_id)
    assert (job.status, job.agent, job.target, job.attempt) == ("STARTING", restored.agent("a"), "host of a", 2)
    after = of(spool.output(b"after\n"), spool.payload_ended(0), spool.finished(Outcome.SUCCEEDED))
    assert (await restored.report(key, before, after)).sealed
    assert (await restored.events(job_id))[-5:] == [
        "RESTORE", "ADOPT", "FIRST_PROCESS", "PAYLOAD_ENDED", "FINISH_SUCCEEDED",
    ]  # fmt: skip
    assert (await restored.job(job_id)).status == "SUCCEEDED"
    await check(restored.database, [job_id])


async def test_what_a_person_has_decided_on_is_not_taken_from_an_agent(own_rig: Rig, backup: Backup) -> None:
    await own_rig.hello()
    job_id = await own_rig.create()
    restore = await backup()
    (key,) = await own_rig.claim()
    await own_rig.accept(key)

    restored = await restore()
    await restored.cancel(job_id)
    welcome = await restored.hello(in_hand=[key])
    assert welcome.verdicts == [(key, Verdict.FORGET, 0)]
    assert isinstance((await restored.accept(key)).error, StaleAttempt)
    assert await restored.status(job_id) == "CANCELED"


async def test_an_agent_cannot_bring_home_what_it_cannot_have_had(own_rig: Rig, backup: Backup) -> None:
    await own_rig.hello("b")
    job_id = await own_rig.create(agent="b")
    restore = await backup()

    restored = await restore()
    for agent, number in (("a", 1), ("b", 2**31 - 1)):
        key = AttemptKey(job_id, number)
        assert (await restored.hello(agent, in_hand=[key])).verdicts == [(key, Verdict.FORGET, 0)]
        assert await restored.status(job_id) == "DEFERRED"
    key = AttemptKey(job_id, 1 + recovery.ATTEMPTS + 2)
    assert (await restored.hello("b", in_hand=[key])).verdicts == [(key, Verdict.GO_ON, 0)]
    await check(restored.database, [job_id])


async def test_that_an_attempt_was_not_accepted_proves_nothing_any_more(own_rig: Rig, backup: Backup) -> None:
    """It ran and was forgotten since: on any other day its absence would prove that it never started."""
    await own_rig.hello()
    gone, held = await own_rig.create_many(2)
    await own_rig.claim()
    restore = await backup()
    spool = Spool()
    run = of(spool.process_started(1), spool.payload_ended(0), spool.finished(Outcome.SUCCEEDED))
    assert (await own_rig.report(AttemptKey(gone, 1), Accepted(), run)).sealed
    running = Spool().process_started(1)
    await own_rig.report(AttemptKey(held, 1), Accepted(), running)

    restored = await restore()
    welcome = await restored.hello(in_hand=[AttemptKey(held, 1)])
    assert welcome.verdicts == [(AttemptKey(held, 1), Verdict.GO_ON, 0)]
    assert await restored.statuses([gone, held]) == {gone: "AWOL", held: "STARTING"}
    assert welcome.redelivered == []
    await restored.report(AttemptKey(held, 1), running)
    assert await restored.status(held) == "RUNNING"
    await check(restored.database, [gone, held])


async def test_what_ran_before_goes_on_behind_what_the_backup_has(own_rig: Rig, backup: Backup) -> None:
    key, spool = await own_rig.started()
    restore = await backup()
    lost = spool.output(b"committed since\n")
    await own_rig.report(key, lost)

    restored = await restore()
    welcome = await restored.hello(in_hand=[key])
    assert welcome.verdicts == [(key, Verdict.GO_ON, 1)]
    last = of(lost, spool.payload_ended(0), spool.finished(Outcome.SUCCEEDED))
    assert (await restored.report(key, last)).sealed
    assert await restored.status(key.job_id) == "SUCCEEDED"
    await check(restored.database, [key.job_id])


async def test_what_ended_since_is_for_people_to_judge(own_rig: Rig, backup: Backup) -> None:
    key, spool = await own_rig.started()
    restore = await backup()
    run = of(spool.payload_ended(0), spool.finished(Outcome.SUCCEEDED))
    assert (await own_rig.report(key, run)).sealed

    restored = await restore()
    await restored.hello()
    assert await restored.status(key.job_id) == "AWOL"
    await restored.abort(key.job_id, force=True)
    await check(restored.database, [key.job_id])


async def test_no_job_gets_the_id_of_one_that_is_forgotten(own_rig: Rig, backup: Backup) -> None:
    await own_rig.hello()
    await own_rig.create()
    restore = await backup()
    await own_rig.create_many(3)
    keys = await own_rig.claim()
    for key in keys:
        await own_rig.accept(key)

    restored = await restore()
    new = await restored.create_many(3)
    assert min(new) > max(key.job_id for key in keys) + recovery.ID_GAP
    welcome = await restored.hello(in_hand=keys)
    verdicts = {key: verdict for key, verdict, _ in welcome.verdicts}
    assert list(verdicts.values()).count(Verdict.FORGET) == 3
    # That of the job that was there already.
    assert verdicts[min(keys, key=lambda key: key.job_id)] is Verdict.GO_ON


async def test_a_stream_from_before_is_not_taken_for_a_new_one(own_rig: Rig, backup: Backup) -> None:
    await own_rig.hello()
    job_id = await own_rig.create()
    restore = await backup()
    stale = (await own_rig.hello()).epoch

    restored = await restore()
    assert (await restored.hello()).epoch > stale + 1
    await restored.activate(job_id)
    (key,) = await restored.claim()
    assert isinstance((await restored.accept(key, epoch=stale)).error, StaleEpoch)


async def test_a_deferred_job_waits_for_people_too(own_rig: Rig, backup: Backup) -> None:
    """Its earliest start may have come since the backup."""
    async with own_rig.database.begin() as connection:
        command = own_rig.command()
        now = (await connection.execute(text("SELECT queue.now()"))).scalar_one()
        timed = dataclasses.replace(command, not_before=now + timedelta(seconds=5))
        job_id = (await creation.create(connection, timed, ALICE)).job.job_id
    held = await own_rig.create(deferred=True)
    until = (await own_rig.job(held)).deferral_ends_at
    restore = await backup()

    restored = await restore()
    await restored.execute("CREATE OR REPLACE FUNCTION queue.now() RETURNS timestamptz LANGUAGE sql AS"
                           " $$ SELECT clock_timestamp() + interval '1 hour' $$")  # fmt: skip
    await Sweeper(restored.database).sweep()
    assert await restored.statuses([job_id, held]) == {job_id: "DEFERRED", held: "DEFERRED"}
    assert "its earliest start was" in (await restored.explain(job_id)).summary
    assert (await restored.job(held)).deferral_ends_at == until
    await restored.activate(job_id)
    assert await restored.status(job_id) == "WAITING"


async def test_recovering_again_changes_nothing_but_the_numbers(own_rig: Rig, backup: Backup) -> None:
    key, spool = await own_rig.started()
    waiting = await own_rig.create()
    restore = await backup()
    restored = await restore()
    await recovery.recover(restored.database)
    assert await restored.statuses([key.job_id, waiting]) == {key.job_id: "RUNNING", waiting: "DEFERRED"}
    assert (await restored.events(waiting))[1:] == ["RESTORE", "RESTORE"]
    assert (await restored.hello(in_hand=[key])).verdicts == [(key, Verdict.GO_ON, 1)]
    await restored.report(key, spool.output(b"x"))
    await check(restored.database, [key.job_id, waiting])


async def test_what_another_cluster_has_written_is_seen_by_watchers(own_rig: Rig, backup: Backup) -> None:
    """A dump has the numbers of that cluster's transactions, which this one may not reach for years."""
    job_id = await own_rig.create()
    await own_rig.execute("ALTER TABLE queue.jobs DISABLE TRIGGER jobs_note_change")
    await own_rig.execute("UPDATE queue.jobs SET changed_xid = '900000000000'")
    await own_rig.execute("ALTER TABLE queue.jobs ENABLE TRIGGER jobs_note_change")
    restore = await backup()

    restored = await restore()
    async with restored.database.begin() as connection:
        ahead = await connection.execute(
            text("SELECT job_id FROM queue.jobs WHERE changed_xid >= pg_snapshot_xmax(pg_current_snapshot())")
        )
        assert ahead.scalars().all() == []
    assert await restored.status(job_id) == "DEFERRED"
