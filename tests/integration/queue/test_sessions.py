"""Sessions of agents: what becomes of every attempt when a stream opens, is heard, or is not."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from services.queue import sessions
from services.queue.errors import StaleAttempt, StaleEpoch
from services.queue.reports import Accepted
from services.queue.sessions import AttemptKey, Session, Verdict
from services.queue.sweeper import Sweeper
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, check, of
from tests.support.frames import Spool


def verdicts(welcome) -> dict[AttemptKey, tuple[Verdict, int]]:  # type: ignore[no-untyped-def]
    return {key: (verdict, sequence) for key, verdict, sequence in welcome.verdicts}


def again(welcome) -> list[AttemptKey]:  # type: ignore[no-untyped-def]
    return [AttemptKey(a.job_id, a.attempt) for a in welcome.redelivered]


async def claimed(rig: Rig, name: str = "a", **changes: object) -> AttemptKey:
    """An attempt that was claimed and not accepted."""
    if name not in rig.epochs:
        await rig.hello(name)
    await rig.create(agent=name, **changes)
    (key,) = await rig.claim(name)
    return key


async def lose(rig: Rig, clock: Clock, key: AttemptKey) -> None:
    """Let its agent be silent until the job is AWOL."""
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await clock.elapse(180, sweeper.sweep)
    assert await rig.status(key.job_id) == "AWOL"


# Epochs.


async def test_the_first_hello_begins_with_epoch_one_and_each_later_one_is_newer(rig: Rig) -> None:
    assert (await rig.hello()).epoch == 1
    second = await rig.hello(hub="hub-2")
    assert (second.epoch, second.verdicts, second.redelivered, second.stops) == (2, [], [], [])


async def test_a_stale_session_claims_beats_and_reports_nothing(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.hello(in_hand=[key])
    await rig.create()
    assert await rig.claim(epoch=1) == []
    assert isinstance((await rig.report(key, spool.output(b"x"), epoch=1)).error, StaleEpoch)
    rig.epochs["a"] = 1
    assert await rig.beat("a", key) == ([Session(rig.agent("a"), 1)], [])


async def test_an_agent_that_nobody_knows_is_stale(rig: Rig) -> None:
    rig.epochs["ghost"] = 1
    assert await rig.claim("ghost") == []
    stale, _ = await rig.beat("ghost")
    assert stale == [rig.session("ghost")]


async def test_closing_a_session_leaves_the_newer_one_open(rig: Rig) -> None:
    key, _ = await rig.started()
    await rig.cancel(key.job_id)
    await rig.hello(in_hand=[key])
    async with rig.database.begin() as connection:
        await sessions.close_session(connection, Session(rig.agent("a"), 1))
    assert await rig.stops() == {key: "CANCEL"}
    async with rig.database.begin() as connection:
        await sessions.close_session(connection, Session(rig.agent("a"), 2))
    assert await rig.stops() == {}


# Never accepted.


async def test_what_was_never_accepted_is_delivered_again_under_the_same_attempt(rig: Rig) -> None:
    key = await claimed(rig)
    welcome = await rig.hello()
    assert again(welcome) == [key] and not welcome.verdicts
    assert welcome.redelivered[0].parameters == {"script": "echo hello", "interpreter": "/bin/sh"}
    assert (await rig.accept(key)).error is None
    await check(rig.database, [key.job_id])


async def test_what_was_never_accepted_is_given_back_where_there_is_no_slot(rig: Rig) -> None:
    key = await claimed(rig)
    other = AttemptKey(2**40, 1)
    welcome = await rig.hello(slots=1, in_hand=[other])
    assert again(welcome) == [] and verdicts(welcome) == {other: (Verdict.FORGET, 0)}
    assert await rig.status(key.job_id) == "WAITING"
    assert await rig.claim() == [AttemptKey(key.job_id, 2)]
    late = await rig.accept(key)
    assert isinstance(late.error, StaleAttempt)
    await check(rig.database, [key.job_id])


async def test_what_was_never_accepted_is_given_back_by_a_draining_agent(rig: Rig) -> None:
    key = await claimed(rig)
    assert again(await rig.hello(draining=True)) == []
    assert (await rig.events(key.job_id))[-1] == "GIVE_BACK"
    assert await rig.status(key.job_id) == "WAITING"


async def test_no_more_is_delivered_again_than_there_are_slots(rig: Rig) -> None:
    await rig.hello()
    await rig.create_many(5, agent="a")
    keys = await rig.claim()
    welcome = await rig.hello(slots=3, in_hand=[AttemptKey(2**40, 1)])
    assert again(welcome) == keys[:2]
    assert [await rig.status(key.job_id) for key in keys] == ["STARTING"] * 2 + ["WAITING"] * 3


async def test_a_job_whose_start_limit_has_passed_is_given_back_instead(rig: Rig, clock: Clock) -> None:
    """Delivered again, it would fail at once for its first claim's age."""
    key = await claimed(rig)
    await clock.advance(3_600)
    assert again(await rig.hello()) == []
    assert await rig.status(key.job_id) == "WAITING"


async def test_a_decline_gives_back_and_a_second_one_is_acknowledged(rig: Rig) -> None:
    key = await claimed(rig)
    assert (await rig.decline(key)).error is None
    assert await rig.status(key.job_id) == "WAITING"
    assert (await rig.decline(key)).error is None
    assert await rig.events(key.job_id) == ["CREATE", "CLAIM", "GIVE_BACK"]


async def test_a_decline_of_what_was_accepted_is_refused(rig: Rig) -> None:
    key = await claimed(rig)
    await rig.accept(key)
    assert isinstance((await rig.decline(key)).error, StaleAttempt)
    assert await rig.status(key.job_id) == "STARTING"


@pytest.mark.parametrize("how", ["decline", "hello"])
async def test_a_cancel_of_what_never_started_is_settled_by_its_give_back(rig: Rig, how: str) -> None:
    key = await claimed(rig)
    await rig.cancel(key.job_id)
    await (rig.decline(key) if how == "decline" else rig.hello())
    assert await rig.status(key.job_id) == "CANCELED"


@pytest.mark.parametrize(
    "changes",
    [{"journal_id": "a new one"}, {"record_number": 0}],
    ids=["another journal", "a lower record number"],
)
async def test_another_journal_proves_nothing_about_what_was_never_accepted(rig: Rig, changes: dict) -> None:
    """It might have been accepted into the journal that is gone: it must not run twice."""
    key = await claimed(rig)
    assert again(await rig.hello(**changes)) == []
    assert await rig.status(key.job_id) == "AWOL"


# Accepted.


async def test_what_runs_goes_on_from_what_is_committed(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(key, spool.output(b"1"))
    assert verdicts(await rig.hello(in_hand=[key])) == {key: (Verdict.GO_ON, 2)}
    assert await rig.status(key.job_id) == "RUNNING"


@pytest.mark.parametrize(
    "changes",
    [{}, {"journal_id": "a new one", "held": True}, {"record_number": 0, "held": True}, {"journal_id": "a new one"}],
    ids=["without it", "with another journal", "with a lower record number", "with nothing"],
)
async def test_an_agent_that_returns_without_its_journal_of_a_job_has_lost_it(rig: Rig, changes: dict) -> None:
    key, spool = await rig.started()
    held = [key] if changes.pop("held", False) else []
    welcome = await rig.hello(**changes, in_hand=held)
    job = await rig.job(key.job_id)
    assert job.status == "AWOL" and (await rig.events(key.job_id))[-1] == "JOURNAL_LOST"
    assert verdicts(welcome) == ({key: (Verdict.FORGET, 1)} if held else {})
    # For good: neither a report, nor a beat, nor a later hello brings it back.
    assert isinstance((await rig.report(key, spool.output(b"x"))).error, StaleAttempt)
    await rig.beat("a", key)
    assert verdicts(await rig.hello(in_hand=[key])) == {key: (Verdict.FORGET, 1)}
    assert await rig.status(key.job_id) == "AWOL"
    await rig.abort(key.job_id)
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state) == ("ABORTED", "UNCONFIRMED")
    await check(rig.database, [key.job_id])


async def test_a_lost_journal_leaves_a_pending_stop_unconfirmed(rig: Rig) -> None:
    key, _ = await rig.started()
    await rig.abort(key.job_id)
    await rig.hello()
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state) == ("ABORTED", "UNCONFIRMED")


# Verdicts.


async def test_an_ended_and_sealed_attempt_is_forgotten(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    assert verdicts(await rig.hello(in_hand=[key])) == {key: (Verdict.FORGET, 3)}


async def test_an_attempt_of_no_job_and_one_of_another_agent_are_forgotten(rig: Rig) -> None:
    foreign, _ = await rig.started("b")
    unknown = AttemptKey(2**50, 1)
    assert verdicts(await rig.hello("a", in_hand=[foreign, unknown])) == {
        foreign: (Verdict.FORGET, 0),
        unknown: (Verdict.FORGET, 0),
    }
    assert await rig.status(foreign.job_id) == "RUNNING"


async def test_an_older_attempt_of_the_same_job_is_forgotten(rig: Rig) -> None:
    key = await claimed(rig)
    await rig.decline(key)
    (second,) = await rig.claim()
    welcome = await rig.hello(in_hand=[key, second])
    assert verdicts(welcome) == {key: (Verdict.FORGET, 0), second: (Verdict.GO_ON, 0)}


async def test_an_aborted_jobs_agent_is_told_to_kill_and_its_evidence_settles_the_stop(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.abort(key.job_id)
    welcome = await rig.hello(in_hand=[key])
    assert verdicts(welcome) == {key: (Verdict.KILL, 1)}
    assert [(stop.attempt, stop.kind) for stop in welcome.stops] == [(key, "ABORT")]
    told = await rig.report(key, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    assert told.sealed and told.error is None
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state) == ("ABORTED", "CONFIRMED")
    assert verdicts(await rig.hello(in_hand=[key])) == {key: (Verdict.FORGET, 3)}
    await check(rig.database, [key.job_id])


async def test_a_cancel_that_was_not_begun_is_told_again_with_the_welcome(rig: Rig) -> None:
    key, _ = await rig.started()
    await rig.cancel(key.job_id)
    welcome = await rig.hello(in_hand=[key])
    assert verdicts(welcome) == {key: (Verdict.GO_ON, 1)}
    assert [(stop.session.epoch, stop.kind) for stop in welcome.stops] == [(2, "CANCEL")]


# Stop commands.


async def test_a_command_is_repeated_until_it_is_begun_and_an_abort_overtakes(rig: Rig) -> None:
    key, spool = await rig.started()
    assert await rig.stops() == {}
    await rig.cancel(key.job_id)
    assert await rig.stops() == await rig.stops() == {key: "CANCEL"}
    assert await rig.stops("hub-2") == {}
    await rig.report(key, spool.stop_begun("CANCEL"))
    assert await rig.stops() == {}
    await rig.abort(key.job_id)
    assert await rig.stops() == {key: "ABORT"}
    await rig.report(key, spool.stop_begun("ABORT"))
    assert await rig.stops() == {}


async def test_commands_for_agents_that_are_gone_keep_back_none_for_those_that_are_there(
    rig: Rig, clock: Clock
) -> None:
    """As many as are told at a time, of agents that went away with their hub and left their sessions open."""
    lost, _ = await rig.started("lost")
    await rig.cancel(lost.job_id)
    async with rig.database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO queue.attempts (job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at,"
                " active_at, accepted_at, digest, stop_wish, stop_wished_at) SELECT job_id, number + n, agent, epoch,"
                " journal_id, claimed_at, last_heard_at, active_at, accepted_at, digest, 'ABORT', stop_wished_at"
                " FROM queue.attempts, generate_series(1, 1000) AS n WHERE job_id = :job"
            ),
            {"job": lost.job_id},
        )
    await clock.advance(61)
    key, _ = await rig.started("there")
    await rig.cancel(key.job_id)
    assert (await rig.stops())[key] == "CANCEL"


async def test_commands_follow_the_agent_to_its_new_hub(rig: Rig) -> None:
    key, _ = await rig.started()
    await rig.cancel(key.job_id)
    await rig.hello(hub="hub-2", in_hand=[key])
    assert await rig.stops("hub-1") == {}
    assert await rig.stops("hub-2") == {key: "CANCEL"}


# Absent without leave, and home again.


async def test_home_by_hello(rig: Rig, clock: Clock) -> None:
    key, _ = await rig.started()
    await lose(rig, clock, key)
    assert verdicts(await rig.hello(in_hand=[key])) == {key: (Verdict.GO_ON, 1)}
    assert await rig.status(key.job_id) == "RUNNING"
    assert (await rig.events(key.job_id))[-2:] == ["SILENCE", "RETURN_RUNNING"]
    await check(rig.database, [key.job_id])


async def test_a_beat_is_heard_while_the_session_reports_and_claims(rig: Rig, clock: Clock) -> None:
    """Those of a busy agent hold its row nearly all the time, which is no reason to take it for gone."""
    await rig.hello()
    await clock.advance(90)
    async with rig.database.begin() as busy:
        await sessions.share(busy, [rig.session("a")])
        await rig.beat("a", draining=True)
    query = text(
        "SELECT last_heard_at > queue.now() - interval '30 s', draining FROM queue.agent_sessions WHERE agent = :a"
    )
    async with rig.database.begin() as connection:
        assert tuple((await connection.execute(query, {"a": rig.agent("a")})).one()) == (True, True)


async def test_home_by_heartbeat(rig: Rig, clock: Clock) -> None:
    key, _ = await rig.started()
    await lose(rig, clock, key)
    await rig.beat("a", key)
    assert await rig.status(key.job_id) == "RUNNING"
    await check(rig.database, [key.job_id])


async def test_home_by_report_to_what_it_proves(rig: Rig, clock: Clock) -> None:
    key, spool = await rig.started()
    await lose(rig, clock, key)
    told = await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    assert told.sealed and await rig.status(key.job_id) == "SUCCEEDED"
    assert (await rig.events(key.job_id))[-4:] == ["SILENCE", "RETURN_RUNNING", "PAYLOAD_ENDED", "FINISH_SUCCEEDED"]
    await check(rig.database, [key.job_id])


async def test_home_with_an_acceptance_that_was_on_its_way(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    await lose(rig, clock, key)
    assert (await rig.accept(key)).error is None
    assert await rig.status(key.job_id) == "STARTING"
    assert (await rig.attempt(key)).accepted_at is not None


async def test_home_without_having_accepted_it_waits_again(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    await lose(rig, clock, key)
    await rig.hello()
    assert await rig.status(key.job_id) == "WAITING"
    assert await rig.claim() == [AttemptKey(key.job_id, 2)]


@pytest.mark.parametrize("how", ["hello", "decline"])
async def test_home_without_having_accepted_it_after_a_cancel(rig: Rig, clock: Clock, how: str) -> None:
    key = await claimed(rig)
    await lose(rig, clock, key)
    await rig.cancel(key.job_id)
    assert await rig.status(key.job_id) == "AWOL"
    await (rig.hello() if how == "hello" else rig.decline(key))
    assert await rig.status(key.job_id) == "CANCELED"


async def test_home_after_a_cancel_goes_on_to_be_canceled(rig: Rig, clock: Clock) -> None:
    key, spool = await rig.started()
    await lose(rig, clock, key)
    await rig.cancel(key.job_id)
    welcome = await rig.hello(in_hand=[key])
    assert await rig.status(key.job_id) == "CANCEL_REQUESTED"
    assert [(stop.attempt, stop.kind) for stop in welcome.stops] == [(key, "CANCEL")]
    await rig.report(key, of(spool.stop_begun("CANCEL"), spool.finished("STOPPED")))
    assert await rig.status(key.job_id) == "CANCELED"


async def test_home_after_an_abort_is_to_kill_and_to_confirm(rig: Rig, clock: Clock) -> None:
    key, spool = await rig.started()
    await lose(rig, clock, key)
    await rig.abort(key.job_id)
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state) == ("ABORTED", "UNCONFIRMED")
    assert verdicts(await rig.hello(in_hand=[key])) == {key: (Verdict.KILL, 1)}
    await rig.report(key, of(spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state) == ("ABORTED", "CONFIRMED")


# Heartbeats.


async def test_a_delivery_that_was_lost_comes_again_with_a_beat_after_a_while(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    assert (await rig.beat())[1] == []
    await clock.advance(6)
    assert (await rig.beat())[1] == [key]
    assert (await rig.beat("a", key))[1] == []  # it has it in hand
    await rig.accept(key)
    assert (await rig.beat())[1] == []


async def test_a_beat_is_heard_for_its_own_agents_attempts_alone(rig: Rig, clock: Clock) -> None:
    key, _ = await rig.started("a")
    foreign, _ = await rig.started("b")
    before = await rig.attempt(foreign)
    await clock.advance(20)
    await rig.beat("a", key, foreign, AttemptKey(2**40, 1))
    assert (await rig.attempt(key)).last_heard_at == clock.now
    assert (await rig.attempt(foreign)).last_heard_at == before.last_heard_at


async def test_the_same_agent_with_another_group_takes_that_groups_jobs(rig: Rig) -> None:
    await rig.hello()
    elsewhere = await rig.create(site_name=f"{rig.group}x")
    assert await rig.claim() == []
    await rig.hello(group=f"{rig.group}x")
    assert await rig.claim() == [AttemptKey(elsewhere, 1)]


async def test_an_acceptance_repeated_and_an_acceptance_with_frames_in_one_batch(rig: Rig) -> None:
    key = await claimed(rig)
    spool = Spool()
    told = await rig.report(key, Accepted(), Accepted(), spool.process_started(1), Accepted())
    assert (told.error, told.acknowledged_sequence) == (None, 1)
    assert await rig.status(key.job_id) == "RUNNING"
    await check(rig.database, [key.job_id])


async def test_a_job_that_was_stopped_before_its_delivery_arrived_is_delivered_to_be_settled(
    rig: Rig, clock: Clock
) -> None:
    canceled, aborted = await claimed(rig), await claimed(rig)
    await rig.cancel(canceled.job_id)
    await rig.abort(aborted.job_id)
    await clock.advance(6)
    assert set((await rig.beat())[1]) == {canceled, aborted}
    for key in (canceled, aborted):
        assert isinstance((await rig.accept(key)).error, StaleAttempt)
    assert await rig.status(canceled.job_id) == "CANCELED"
    job = await rig.job(aborted.job_id)
    assert (job.status, job.stop_state) == ("ABORTED", "CONFIRMED")


async def test_an_undelivered_job_that_became_awol_is_delivered_to_a_living_agent(rig: Rig, clock: Clock) -> None:
    key = await claimed(rig)
    await lose(rig, clock, key)
    assert (await rig.beat())[1] == [key]
    assert (await rig.accept(key)).error is None
    assert await rig.status(key.job_id) == "STARTING"


async def test_an_abort_between_journal_and_acceptance_is_settled_by_the_next_hello(rig: Rig) -> None:
    key = await claimed(rig)
    await rig.abort(key.job_id)
    assert verdicts(await rig.hello(in_hand=[key])) == {key: (Verdict.FORGET, 0)}
    job = await rig.job(key.job_id)
    assert (job.status, job.stop_state) == ("ABORTED", "CONFIRMED")


async def test_a_cancel_during_an_outage_still_has_its_grace_when_the_agent_returns(rig: Rig, clock: Clock) -> None:
    key, _ = await rig.started()
    await lose(rig, clock, key)
    await rig.cancel(key.job_id)
    sweeper = Sweeper(rig.database)
    await clock.elapse(600, sweeper.sweep)
    await rig.hello(in_hand=[key])
    await clock.elapse(60, sweeper.sweep, lambda: rig.beat("a", key))
    assert await rig.status(key.job_id) == "CANCEL_REQUESTED"
    await clock.elapse(30, sweeper.sweep, lambda: rig.beat("a", key))
    assert await rig.status(key.job_id) == "FAILED"


async def test_an_orphaned_payload_can_still_be_aborted(rig: Rig) -> None:
    key, _ = await rig.started()
    await rig.hello(journal_id="another one", in_hand=[])
    assert await rig.status(key.job_id) == "AWOL"
    await rig.abort(key.job_id)
    assert await rig.stops() == {key: "ABORT"}
