"""Two things at once, over and over, on connections of their own: whoever comes first, what is left is consistent."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import creation, jobs, reports, sessions, store
from services.queue.creation import CreateJob
from services.queue.errors import IllegalTransition, StaleAttempt, StaleEpoch
from services.queue.reports import Accepted, Declined, Report
from services.queue.sessions import AttemptKey, Heartbeat, Session
from services.queue.sweeper import Sweeper
from services.runtime.errors import SisError
from tests.integration.queue.rig import ALICE, Rig, check, of
from tests.support.frames import Spool

ROUNDS = 30


async def race(*contestants: Sequence[Callable[[], Awaitable[Any]]]) -> list[tuple[Any, ...]]:
    """Run the contestants of every round at once, in random order; refusals are results. One tuple a round."""
    results: list[list[Any]] = [[None] * len(round_) for round_ in contestants]

    async def run(number: int, place: int) -> None:
        try:
            results[number][place] = await contestants[number][place]()
        except SisError as error:
            results[number][place] = error

    starts = [(number, place) for number, round_ in enumerate(contestants) for place in range(len(round_))]
    # Neighbours stay near each other, so that each round is a race, and either may come first.
    random.shuffle(starts)
    starts.sort(key=lambda start: start[0])
    async with asyncio.TaskGroup() as group:
        for number, place in starts:
            group.create_task(run(number, place))
    return [tuple(each) for each in results]


async def running(rig: Rig) -> list[tuple[AttemptKey, Spool]]:
    """As many jobs as there are rounds, which run at one agent."""
    await rig.hello(slots=ROUNDS)
    await rig.create_many(ROUNDS, agent="a")
    found = [(key, Spool()) for key in await rig.claim(slots=ROUNDS)]
    session = rig.session("a")
    batch = [Report(session, key, what) for key, spool in found for what in (Accepted(), spool.process_started(1))]
    assert not [result for result in await reports.commit(rig.database, batch) if result.error]
    return found


async def test_claim_against_claim_each_job_goes_to_one(rig: Rig) -> None:
    names = [str(n) for n in range(6)]
    for name in names:
        await rig.hello(name, hub=f"hub-{int(name) % 2}")
    job_ids = await rig.create_many(90)
    claimed: list[AttemptKey] = []

    async def drain(*by: str) -> None:
        while found := await rig.claim(*by, slots=4):
            claimed.extend(found)

    async with asyncio.TaskGroup() as group:
        for name in [*names, *names]:  # each agent twice: a hub may ask again before it has its answer
            group.create_task(drain(name))
        group.create_task(drain(*names))
    assert Counter(key.job_id for key in claimed) == Counter(job_ids)
    assert {key.number for key in claimed} == {1}
    await check(rig.database, job_ids)


async def test_no_claim_takes_more_than_there_is_room_for(rig: Rig) -> None:
    await rig.hello()
    await rig.create_many(40)
    rounds = await race(*[[lambda: rig.claim("a", slots=3)]] * 8)
    assert all(len(keys) <= 3 for (keys,) in rounds)
    assert sum(len(keys) for (keys,) in rounds) <= 24


async def test_claim_against_new_hello_nothing_is_left_with_the_old_stream(rig: Rig) -> None:
    names = [str(n) for n in range(ROUNDS)]
    job_ids = []
    for name in names:
        await rig.hello(name)
        job_ids.append(await rig.create(agent=name))
    old = dict(rig.epochs)
    rounds = await race(*[[lambda n=name: rig.claim(n, epoch=old[n]), lambda n=name: rig.hello(n)] for name in names])
    first = Counter()
    for name, job_id, (claimed, welcome) in zip(names, job_ids, rounds, strict=True):
        assert welcome.epoch == 2
        job = await rig.job(job_id)
        if claimed:
            # Before the hello, which therefore knew of it.
            assert [(a.job_id, a.attempt) for a in welcome.redelivered] == [(job_id, 1)]
            assert job.status == "STARTING" and (await rig.attempt(claimed[0])).epoch == 2
        else:
            assert (job.status, job.attempt, welcome.redelivered) == ("WAITING", 0, [])
            assert await rig.claim(name, epoch=old[name]) == []
        first["claim" if claimed else "hello"] += 1
    await check(rig.database, job_ids)


async def test_cancel_against_complete_success_stays_success(rig: Rig) -> None:
    started = await running(rig)
    ends = [of(spool.payload_ended(0), spool.finished("SUCCEEDED")) for _, spool in started]
    rounds = await race(
        *[
            [lambda k=key: rig.cancel(k.job_id), lambda k=key, e=end: rig.report(k, e)]
            for (key, _), end in zip(started, ends, strict=True)
        ]
    )
    for (key, _), (canceled, told) in zip(started, rounds, strict=True):
        job = await rig.job(key.job_id)
        assert (job.status, job.stop_state) == ("SUCCEEDED", "CONFIRMED")
        assert told.sealed and told.error is None
        assert isinstance(canceled, IllegalTransition) == (job.cancel_requested_at is None)
    await check(rig.database, [key.job_id for key, _ in started])


async def test_abort_against_complete_one_of_them_is_final(rig: Rig) -> None:
    started = await running(rig)
    ends = [of(spool.payload_ended(0), spool.finished("SUCCEEDED")) for _, spool in started]
    rounds = await race(
        *[
            [lambda k=key: rig.abort(k.job_id), lambda k=key, e=end: rig.report(k, e)]
            for (key, _), end in zip(started, ends, strict=True)
        ]
    )
    for (key, _), (aborted, told) in zip(started, rounds, strict=True):
        job = await rig.job(key.job_id)
        refused = isinstance(aborted, IllegalTransition)
        assert job.status == ("SUCCEEDED" if refused else "ABORTED")
        assert (job.stop_state, told.sealed) == ("CONFIRMED", True)
    await check(rig.database, [key.job_id for key, _ in started])


@pytest.mark.parametrize("by", ["decline", "hello", "accept"])
async def test_abort_against_give_back_the_abort_wins_and_the_stop_is_settled(rig: Rig, by: str) -> None:
    names = [str(n) for n in range(ROUNDS)]
    keys = []
    for name in names:
        await rig.hello(name)
        await rig.create(agent=name)
        keys += await rig.claim(name)
    acts: dict[str, Callable[[str, AttemptKey], Awaitable[Any]]] = {
        "decline": lambda name, key: rig.decline(key, name=name),
        "hello": lambda name, key: rig.hello(name, draining=True),
        "accept": lambda name, key: rig.accept(key, name=name),
    }
    act = acts[by]
    rounds = await race(
        *[
            [lambda k=key: rig.abort(k.job_id), lambda n=name, k=key: act(n, k)]
            for name, key in zip(names, keys, strict=True)
        ]
    )
    for key, (aborted, other) in zip(keys, rounds, strict=True):
        job, attempt = await rig.job(key.job_id), await rig.attempt(key)
        assert not isinstance(aborted, SisError) and job.status == "ABORTED"
        if by != "accept":
            assert job.stop_state in ("NONE", "CONFIRMED") and attempt.sealed_at is not None
        elif other.error is None:  # accepted, then aborted: its agent has to tell how it ended
            assert (job.stop_state, attempt.stop_wish, attempt.sealed_at) == ("PENDING", "ABORT", None)
        else:
            assert isinstance(other.error, StaleAttempt)
            assert job.stop_state == "CONFIRMED" and attempt.sealed_at is not None
    await check(rig.database, [key.job_id for key in keys])


async def test_cancel_against_claim_nothing_runs_that_was_canceled(rig: Rig) -> None:
    names = [str(n) for n in range(ROUNDS)]
    job_ids = []
    for name in names:
        await rig.hello(name)
        job_ids.append(await rig.create(agent=name))
    rounds = await race(
        *[[lambda i=i: rig.cancel(i), lambda n=n: rig.claim(n)] for i, n in zip(job_ids, names, strict=True)]
    )
    for name, job_id, (_, claimed) in zip(names, job_ids, rounds, strict=True):
        job = await rig.job(job_id)
        assert job.cancel_requested_at is not None
        if claimed:
            assert job.status == "CANCEL_REQUESTED"
            assert (await rig.stops())[claimed[0]] == "CANCEL"
            assert isinstance((await rig.accept(claimed[0], name=name)).error, StaleAttempt)
        assert (await rig.job(job_id)).status == "CANCELED"
        assert (await rig.claim(name)) == []
    await check(rig.database, job_ids)


async def test_delete_against_claim_what_is_gone_is_not_claimed(rig: Rig) -> None:
    names = [str(n) for n in range(ROUNDS)]
    job_ids = []
    for name in names:
        await rig.hello(name)
        job_ids.append(await rig.create(agent=name))
    rounds = await race(
        *[[lambda i=i: rig.delete(i), lambda n=n: rig.claim(n)] for i, n in zip(job_ids, names, strict=True)]
    )
    for job_id, (deleted, claimed) in zip(job_ids, rounds, strict=True):
        job = await rig.job(job_id)
        if claimed:
            assert isinstance(deleted, IllegalTransition)
            assert (job.status, job.hidden_at) == ("STARTING", None)
        else:
            assert (job.status, job.attempt) == ("CANCELED", 0) and job.hidden_at is not None
    await check(rig.database, job_ids)


async def test_one_request_id_makes_one_job_however_often_it_is_sent_at_once(rig: Rig) -> None:
    async def create(command: CreateJob) -> int:
        async with rig.database.begin() as connection:
            return (await creation.create(connection, command, ALICE)).job.job_id

    commands = [rig.command(request_id=f"{rig.group}-{n}", fingerprint=b"same") for n in range(ROUNDS // 3)]
    rounds = await race(*[[lambda c=command: create(c)] * 5 for command in commands])
    made = []
    for answers in rounds:
        assert len(set(answers)) == 1
        made.append(answers[0])
    assert len(set(made)) == len(commands)
    await check(rig.database, made)


async def test_late_report_against_new_hello_nothing_of_the_old_stream_comes_after_it(rig: Rig) -> None:
    started = [await rig.started(str(n)) for n in range(ROUNDS)]
    frames = [spool.output(b"late") for _, spool in started]
    rounds = await race(
        *[
            [
                lambda n=n, k=key: rig.hello(str(n), in_hand=[k]),
                lambda n=n, k=key, f=frame: rig.report(k, f, name=str(n), epoch=1),
            ]
            for n, ((key, _), frame) in enumerate(zip(started, frames, strict=True))
        ]
    )
    for n, ((key, spool), (welcome, told)) in enumerate(zip(started, rounds, strict=True)):
        ((_, _, acknowledged),) = welcome.verdicts
        if told.error is None:
            assert (told.acknowledged_sequence, acknowledged) == (2, 2)
        else:
            assert isinstance(told.error, StaleEpoch) and acknowledged == 1
        late = await rig.report(key, spool.output(b"later"), name=str(n), epoch=1)
        assert isinstance(late.error, StaleEpoch)
        assert (await rig.attempt(key)).sequence == acknowledged
    await check(rig.database, [key.job_id for key, _ in started])


async def test_heartbeats_reports_verbs_and_sweeps_never_deadlock(rig: Rig) -> None:
    """Every one of them takes many locks. PostgreSQL would break a circle after a second, by failing somebody."""
    await rig.hello(slots=100)
    job_ids = await rig.create_many(40, agent="a")
    keys = await rig.claim(slots=100)
    session = rig.session("a")
    spools = {key: Spool() for key in keys}
    await reports.commit(rig.database, [Report(session, key, Accepted()) for key in keys])
    await reports.commit(rig.database, [Report(session, k, s.process_started(1)) for k, s in spools.items()])
    sweeper = Sweeper(rig.database)

    async def report(some: list[AttemptKey]) -> None:
        results = await reports.commit(
            rig.database, [Report(session, key, (*spools[key].output(b"x"),)) for key in some]
        )
        assert [result.error for result in results] == [None] * len(some)

    async def beat(some: list[AttemptKey]) -> None:
        async with rig.database.begin() as connection:
            await sessions.heartbeat(connection, [Heartbeat(session, frozenset(some))])

    for _ in range(6):
        # Half of them are AWOL and come home, by a beat and a report at once.
        lost = random.sample(keys, 20)
        await rig.execute(
            "UPDATE queue.jobs SET status = 'AWOL' WHERE job_id = ANY(:ids) AND status = 'RUNNING'",
            ids=[key.job_id for key in lost],
        )
        async with asyncio.TaskGroup() as group:
            shuffled = random.sample(keys, len(keys))
            for start in range(0, len(keys), 10):
                group.create_task(report(shuffled[start : start + 10]))
            for _ in range(3):
                group.create_task(beat(random.sample(keys, len(keys))))
            group.create_task(sweeper.sweep())
            group.create_task(rig.cancel(random.choice(job_ids)))
    rows = [await rig.job(job_id) for job_id in job_ids]
    assert {row.status for row in rows} <= {"RUNNING", "CANCEL_REQUESTED"}


async def test_two_hubs_report_for_each_others_jobs_without_a_deadlock(rig: Rig) -> None:
    """Batches that share jobs, in opposite order."""
    await rig.hello(slots=100)
    await rig.create_many(30, agent="a")
    keys = await rig.claim(slots=100)
    session = Session(rig.agent("a"), 1)
    contestants: list[Callable[[], Awaitable[Any]]] = [
        lambda: reports.commit(rig.database, [Report(session, k, Accepted()) for k in keys]),
        lambda: reports.commit(rig.database, [Report(session, k, Declined("x")) for k in reversed(keys)]),
        lambda: rig.beat("a", *keys),
    ]
    rounds = await race(*[contestants] * 10, [*contestants, lambda: rig.hello(in_hand=keys, record_number=99)])
    assert not [answer for round_ in rounds for answer in round_ if isinstance(answer, SisError)]
    await check(rig.database, [key.job_id for key in keys])


@pytest.mark.parametrize("waiting", ["report", "hello"])
async def test_what_had_to_wait_for_a_job_is_recorded_after_what_it_waited_for(rig: Rig, waiting: str) -> None:
    """Histories go on in the order of time, however long somebody else had the job in hand."""
    key, spool = await rig.started()
    end = of(spool.payload_ended(0), spool.finished("SUCCEEDED"))
    other = rig.report(key, end) if waiting == "report" else rig.hello(in_hand=[])  # which does not know of it any more
    async with asyncio.timeout(30), rig.database.begin() as connection:
        await store.lock(connection, [key.job_id])
        task = asyncio.create_task(other)
        while not await rig.blocked():
            pass
        await jobs.cancel(connection, key.job_id, ALICE, "")
    await task
    assert (await rig.events(key.job_id))[4:] == (
        ["CANCEL", "PAYLOAD_ENDED", "FINISH_SUCCEEDED"] if waiting == "report" else ["CANCEL", "JOURNAL_LOST"]
    )
    await check(rig.database, [key.job_id])


async def test_a_sweep_is_recorded_after_what_was_done_while_it_looked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await rig.create()
    await rig.execute("UPDATE queue.jobs SET latest_start = queue.now() WHERE job_id = :id", id=job_id)
    now = store.now

    async def interrupted(connection: AsyncConnection) -> datetime:
        found = await now(connection)
        monkeypatch.undo()
        await rig.activate(job_id)
        return found

    monkeypatch.setattr(store, "now", interrupted)
    await Sweeper(rig.database).sweep()
    assert await rig.events(job_id) == ["CREATE", "ACTIVATE", "EXPIRE"]
    await check(rig.database, [job_id])


async def test_a_job_is_shown_as_it_was_at_one_moment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent gives it back while it is read."""
    await rig.hello()
    job_id = await rig.create()
    (key,) = await rig.claim()
    execute = AsyncConnection.execute

    async def interrupted(self: AsyncConnection, *arguments: Any, **named: Any) -> Any:
        found = await execute(self, *arguments, **named)
        monkeypatch.undo()
        await rig.decline(key)
        return found

    async with rig.database.begin() as connection:
        monkeypatch.setattr(AsyncConnection, "execute", interrupted)
        view = await jobs.view(connection, job_id)
    assert view.attempt is not None
    assert (view.job.status, view.attempt.verdict) == ("STARTING", "OPEN")
    assert await rig.status(job_id) == "WAITING"
