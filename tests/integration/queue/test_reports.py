"""What agents report: committed once, acknowledged as often as it is sent, and each report answered alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.queue import reports
from services.queue.errors import (
    ConflictingFrame,
    LogSealed,
    MalformedFrame,
    SequenceGap,
    StaleAttempt,
    StaleEpoch,
)
from services.queue.frames import Finished
from services.queue.reports import Accepted, Report
from services.queue.sessions import AttemptKey, Session
from services.runtime.errors import Unavailable
from sis.queue.v1 import job_pb2
from tests.integration.queue.rig import Rig, check, of
from tests.support.frames import Spool


async def test_the_same_bytes_twice_are_acknowledged_and_stored_once(rig: Rig) -> None:
    key, spool = await rig.started()
    frames = of(spool.output(b"1"), spool.output(b"2"))
    for _ in range(3):
        told = await rig.report(key, frames)
        assert (told.acknowledged_sequence, told.error) == (3, None)
    assert (await rig.attempt(key)).output_bytes == 2
    await check(rig.database, [key.job_id])


async def test_an_overlap_adds_what_is_new(rig: Rig) -> None:
    key, spool = await rig.started()
    frames = of(*(spool.output(b"%d" % n) for n in range(5)))
    assert (await rig.report(key, frames[:3])).acknowledged_sequence == 4
    assert (await rig.report(key, frames[1:])).acknowledged_sequence == 6
    await check(rig.database, [key.job_id])


async def test_the_same_frames_twice_in_one_batch_are_taken_once(rig: Rig) -> None:
    key, spool = await rig.started()
    frames = of(spool.output(b"1"), spool.output(b"2"))
    told = await rig.report(key, frames, frames)
    assert (told.acknowledged_sequence, told.error) == (3, None)
    await check(rig.database, [key.job_id])


async def test_other_bytes_at_the_same_sequence_are_refused(rig: Rig) -> None:
    key, spool = await rig.started()
    other = Spool()
    other.process_started(100)
    await rig.report(key, spool.output(b"mine"))
    told = await rig.report(key, other.output(b"forged"))
    assert isinstance(told.error, ConflictingFrame) and told.acknowledged_sequence == 2
    assert "frame 2" in told.error.message
    await check(rig.database, [key.job_id])


async def test_other_bytes_are_refused_within_one_batch_too(rig: Rig) -> None:
    key, spool = await rig.started()
    other = Spool()
    other.process_started(100)
    told = await rig.report(key, spool.output(b"mine"), other.output(b"forged"))
    assert isinstance(told.error, ConflictingFrame) and told.acknowledged_sequence == 2
    await check(rig.database, [key.job_id])


async def test_an_attempt_outlives_a_fault_of_the_database(rig: Rig) -> None:
    """A damaged page says nothing of the frames that cannot be stored there: they are sent again."""
    key, spool = await rig.started()
    frame = spool.output(b"kept")
    await rig.execute(
        "CREATE FUNCTION queue.damaged() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE 'invalid page in block 7' USING ERRCODE = 'XX001'; END $$"
    )
    await rig.execute("CREATE TRIGGER damaged BEFORE INSERT ON queue.log EXECUTE FUNCTION queue.damaged()")
    told = await rig.report(key, frame)
    assert isinstance(told.error, Unavailable) and told.error.retry_after
    assert (await rig.job(key.job_id)).status == "RUNNING"
    await rig.execute("DROP TRIGGER damaged ON queue.log")
    assert (await rig.report(key, frame)).error is None
    await check(rig.database, [key.job_id])


async def test_a_gap_is_refused_and_says_what_comes_next(rig: Rig) -> None:
    key, spool = await rig.started()
    spool.output(b"lost")
    told = await rig.report(key, spool.output(b"next"))
    assert isinstance(told.error, SequenceGap)
    assert (told.acknowledged_sequence, told.error.metadata["expected"]) == (1, "2")


async def test_nothing_comes_behind_the_last_frame_but_its_repetition(rig: Rig) -> None:
    key, spool = await rig.started()
    end = of(spool.payload_ended(0), spool.finished("SUCCEEDED"))
    assert (await rig.report(key, end)).sealed
    again = await rig.report(key, end)
    assert again.sealed and again.error is None
    told = await rig.report(key, spool.output(b"more"))
    assert isinstance(told.error, LogSealed) and told.sealed


async def test_the_tail_after_an_abort_still_counts(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.abort(key.job_id)
    told = await rig.report(key, of(spool.output(b"tail"), spool.stop_begun("ABORT"), spool.finished("STOPPED")))
    assert told.sealed and told.error is None
    attempt = await rig.attempt(key)
    assert (attempt.output_bytes, attempt.verdict) == (4, "COMPLETE")


async def test_nothing_is_taken_for_what_was_not_accepted(rig: Rig) -> None:
    await rig.hello()
    await rig.create()
    (key,) = await rig.claim()
    told = await rig.report(key, Spool().process_started(1))
    assert isinstance(told.error, StaleAttempt)
    assert await rig.status(key.job_id) == "STARTING"


@pytest.mark.parametrize("content", [Accepted(), reports.Declined("x"), Spool().output(b"x")])
async def test_a_stale_attempt_another_agents_job_and_no_job_are_refused(rig: Rig, content: object) -> None:
    await rig.hello("a")
    await rig.hello("b")
    await rig.create(agent="a")
    (first,) = await rig.claim("a")
    await rig.decline(first)
    (second,) = await rig.claim("a")
    for key, name in (
        (first, "a"),
        (second, "b"),
        (AttemptKey(first.job_id, 3), "a"),
        (AttemptKey(first.job_id, 0), "a"),
        (AttemptKey(2**62, 1), "a"),
        (AttemptKey(-1, -1), "a"),
    ):
        told = await rig.report(key, content, name=name)
        assert isinstance(told.error, StaleAttempt), (key, name)
        assert told.acknowledged_sequence == 0
    assert (await rig.attempt(second)).accepted_at is None
    await check(rig.database, [first.job_id])


async def test_a_purged_job_is_to_be_forgotten(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
    await rig.delete(key.job_id)
    await rig.execute("DELETE FROM queue.jobs WHERE job_id = :job_id", job_id=key.job_id)
    told = await rig.report(key, spool.output(b"x"))
    assert isinstance(told.error, StaleAttempt) and "forget it" in told.error.message


async def test_a_bad_report_never_fails_its_neighbours(rig: Rig) -> None:
    started = [await rig.started(str(n)) for n in range(6)]
    (good, good_spool), (gap, gap_spool), (other, _), (stale, stale_spool), (foreign, foreign_spool), last = started
    gap_spool.output(b"lost")
    forged = Spool()
    forged.process_started(4242)
    batch = [
        Report(rig.session("0"), good, good_spool.output(b"good")),
        Report(rig.session("1"), gap, gap_spool.output(b"gap")),
        Report(rig.session("2"), other, (replace(forged.output(b"x")[0], sequence=1),)),
        Report(Session(rig.agent("3"), 99), stale, stale_spool.output(b"stale")),
        Report(rig.session("0"), foreign, foreign_spool.output(b"foreign")),
        Report(rig.session("5"), last[0], last[1].output(b"good too")),
        Report(rig.session("0"), good, good_spool.output(b"and again")),
    ]
    told = await reports.commit(rig.database, batch)
    assert [type(result.error) for result in told] == [
        type(None), SequenceGap, ConflictingFrame, StaleEpoch, StaleAttempt, type(None), type(None),
    ]  # fmt: skip
    assert [told[n].acknowledged_sequence for n in (0, 5, 6)] == [2, 2, 3]
    await check(rig.database, [key.job_id for key, _ in started])


async def test_the_database_refusing_one_report_costs_no_other_one(rig: Rig) -> None:
    """Something that was not foreseen: the batch is halved until it stands alone."""
    started = [await rig.started(str(n)) for n in range(9)]
    batch = []
    for n, (key, spool) in enumerate(started):
        frames = of(spool.payload_ended(0), spool.finished("SUCCEEDED"))
        if n == 5:
            fact = frames[-1].fact
            assert isinstance(fact, Finished)
            frames = (frames[0], replace(frames[1], fact=replace(fact, outputs={"no": "\0"})))
        batch.append(Report(rig.session(str(n)), key, frames))
    told = await reports.commit(rig.database, batch)
    assert [result.sealed for result in told] == [n != 5 for n in range(9)]
    assert isinstance(told[5].error, MalformedFrame) and "\0" not in told[5].error.message
    assert [await rig.status(key.job_id) for key, _ in started] == [
        "RUNNING" if n == 5 else "SUCCEEDED" for n in range(9)
    ]
    await check(rig.database, [key.job_id for key, _ in started])


async def test_everything_that_a_site_can_say_is_kept(rig: Rig) -> None:
    key, spool = await rig.started()
    await rig.report(
        key,
        of(
            spool.process_started(101, job_pb2.PROCESS_ROLE_DESCENDANT, parent_pid=100),
            spool.process_signalled(101, "KILL"),
            spool.process_exited(101, signal="KILL"),
            spool.progress(50, "half \U0001f600 \0"),
            spool.output(bytes(range(256)) * 256),
            spool.payload_ended(-9),
            spool.finished("FAILED", reason="SIGNAL", outputs={"größe": "1\n2"}, tree_empty=False, result_code=-9),
        ),
    )
    job, attempt = await rig.job(key.job_id), await rig.attempt(key)
    assert (job.status, job.failure_reason, job.result_code) == ("FAILED", "SIGNAL", -9)
    assert (job.progress_percent, job.progress_text) == (50, "half \U0001f600 \ufffd")
    assert job.outputs == {"größe": "1\n2"} and job.stop_state == "UNCONFIRMED"
    assert [process["pid"] for process in attempt.processes] == ["100", "101"]
    assert attempt.output_bytes == 65_536 and attempt.evidence == {"method": "subreaper"}
    await check(rig.database, [key.job_id])


async def test_thousands_of_reports_of_many_agents_in_one_call(rig: Rig) -> None:
    names = [str(n) for n in range(4)]
    for name in names:
        await rig.hello(name, slots=100)
        await rig.create_many(50, agent=name)
    keys = {name: await rig.claim(name, slots=100) for name in names}
    spools = {key: Spool() for found in keys.values() for key in found}
    batch = []
    for name, found in keys.items():
        for key in found:
            session, spool = rig.session(name), spools[key]
            batch.append(Report(session, key, Accepted()))
            batch.append(Report(session, key, spool.process_started(1)))
            batch += [Report(session, key, spool.output(b"x")) for _ in range(3)]
            batch.append(Report(session, key, of(spool.payload_ended(0), spool.finished("SUCCEEDED"))))
    told = await reports.commit(rig.database, batch)
    assert {result.error for result in told} == {None}
    assert {result.acknowledged_sequence for result in told[5::6]} == {6}
    await check(rig.database, [key.job_id for key in spools])
