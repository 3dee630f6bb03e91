"""Watching a list: nothing is skipped, whoever commits late, whoever reads slowly, wherever the watch is resumed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from services.queue import creation, wakes, watching
from services.queue.errors import ResumeExpired
from services.queue.listing import JobFilter
from services.queue.states import Status
from services.queue.wakes import CHANNEL, Wakes
from services.queue.watching import Changes, Position
from services.runtime.database import Database
from services.runtime.errors import Unavailable
from services.runtime.paging import InvalidToken
from tests.integration.queue.clock import START, Clock
from tests.integration.queue.rig import ALICE, Rig

SECONDS = 30.0
LIFE = watching.TOKEN_LIFE.total_seconds()
ALL = JobFilter()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PACE_SECONDS", 0.06)


@pytest.fixture
async def waker(shared_database: Database) -> AsyncIterator[Wakes]:
    """The wake-ups of the module's database."""
    async with listening(shared_database) as found:
        yield found


@asynccontextmanager
async def listening(database: Database) -> AsyncIterator[Wakes]:
    found = Wakes()
    heard = asyncio.create_task(database.listen(CHANNEL, found.heard, found.heard_all))
    try:
        yield found
    finally:
        heard.cancel()
        await asyncio.gather(heard, return_exceptions=True)


class Watcher:
    """Somebody who watches, and what he knows of the jobs that are his business."""

    def __init__(self, rig: Rig, waker: Wakes, wanted: JobFilter = ALL, start: Position | None = None) -> None:
        self.position = start
        self.told: list[Changes] = []
        self._changes = watching.watch(rig.database, waker, wanted, start)

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._changes.aclose()

    async def next(self) -> Changes:
        async with asyncio.timeout(SECONDS):
            found = await anext(self._changes)
        self.told.append(found)
        self.position = found.position
        return found

    async def until(self, *job_ids: int) -> None:
        """Read until something was told of each of these jobs."""
        while not set(job_ids) <= set(self.jobs + self.gone):
            await self.next()

    @property
    def jobs(self) -> list[int]:
        return [row.job_id for changes in self.told for row in changes.jobs]

    @property
    def gone(self) -> list[int]:
        return [job_id for changes in self.told for job_id in changes.gone]


async def test_the_first_response_comes_at_once_and_without_a_token_from_now_on(rig: Rig, waker: Wakes) -> None:
    before = await rig.create()
    async with Watcher(rig, waker) as watcher:
        first = await watcher.next()
        assert (first.jobs, first.gone) == ([], [])
        after = await rig.create()
        await watcher.until(after)
        assert before not in watcher.jobs


async def test_a_job_is_told_of_whenever_it_changes_as_it_is_then(rig: Rig, waker: Wakes) -> None:
    await rig.hello()
    async with Watcher(rig, waker) as watcher:
        await watcher.next()
        job_id = await rig.create(deferred=True)
        for status, act in (
            ("DEFERRED", None),
            ("WAITING", rig.activate(job_id)),
            ("STARTING", rig.claim()),
            ("CANCEL_REQUESTED", rig.cancel(job_id)),
        ):
            if act is not None:
                await act
            while not (jobs := (await watcher.next()).jobs):
                pass
            assert [(row.job_id, row.status) for row in jobs] == [(job_id, status)]


async def test_a_creation_wakes_a_watcher(rig: Rig, waker: Wakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 3_600.0)
    for deferred in (False, True):
        async with Watcher(rig, waker) as watcher:
            await watcher.next()
            await watcher.until(await rig.create(deferred=deferred))


async def test_what_is_committed_while_an_older_transaction_goes_on_is_told_after_it(rig: Rig, waker: Wakes) -> None:
    async with Watcher(rig, waker) as watcher:
        await watcher.next()
        async with rig.database.begin() as connection:
            older = (await creation.create(connection, rig.command(), ALICE)).job.job_id
            newer = await rig.create()
            # Whoever looks now sees neither, and is given no position behind either.
            async with Watcher(rig, waker, ALL, watcher.position) as second:
                first = await second.next()
                assert (first.jobs, first.gone) == ([], [])
        await watcher.until(older, newer)
        assert [j for j in watcher.jobs if j in (older, newer)] == [older, newer]
        async with Watcher(rig, waker, ALL, second.position) as third:
            await third.until(older, newer)


async def test_nothing_is_skipped_among_writers_that_commit_in_any_order(rig: Rig, waker: Wakes) -> None:
    dice = random.Random(7)
    made: list[int] = []

    async def write() -> None:
        for _ in range(12):
            async with rig.database.begin() as connection:
                made.append((await creation.create(connection, rig.command(), ALICE)).job.job_id)
                await asyncio.sleep(dice.uniform(0, 0.02))

    async def read(watcher: Watcher) -> None:
        while len(made) < 72 or not set(made) <= set(watcher.jobs):
            await watcher.next()

    async with Watcher(rig, waker) as one, Watcher(rig, waker) as other:
        await one.next()
        await other.next()
        await asyncio.gather(*(write() for _ in range(6)), read(one), read(other))
        for watcher in (one, other):
            mine = [job_id for job_id in watcher.jobs if job_id in made]
            assert sorted(mine) == sorted(made), "a job that did not change again is told of once"


async def test_one_transaction_may_change_more_than_a_batch(rig: Rig, waker: Wakes) -> None:
    async with Watcher(rig, waker) as watcher:
        await watcher.next()
        made = await rig.create_many(2 * watching.BATCH + 1)
        await watcher.until(*made)
    assert watcher.jobs == made
    assert max(len(changes.jobs) for changes in watcher.told) == watching.BATCH
    for at, changes in enumerate(watcher.told):
        rest = made[sum(len(told.jobs) for told in watcher.told[: at + 1]) :]
        async with Watcher(rig, waker, ALL, changes.position) as second:
            await second.until(*rest)
        assert second.jobs == rest


async def test_jobs_that_cease_to_match_or_never_did_are_gone(rig: Rig, waker: Wakes) -> None:
    waiting = JobFilter(statuses=[Status.WAITING], text=rig.group)
    await rig.hello()
    claimed, deleted, canceled = await rig.create_many(3, display_name=rig.group)
    async with Watcher(rig, waker, waiting) as watcher:
        await watcher.next()
        other, held = await rig.create(), await rig.create(display_name=rig.group, deferred=True)
        await rig.claim(slots=1)
        await rig.delete(deleted)
        await rig.cancel(canceled)
        await watcher.until(other, held, claimed, deleted, canceled)
        assert watcher.jobs == []
        await rig.activate(held)
        while held not in watcher.jobs:
            await watcher.next()
        await rig.delete(held)
        gone = watcher.gone.count(held)
        while watcher.gone.count(held) == gone:
            await watcher.next()


async def test_a_deleted_job_is_gone_whatever_is_watched(rig: Rig, waker: Wakes) -> None:
    job_id = await rig.create()
    async with Watcher(rig, waker) as watcher:
        await watcher.next()
        await rig.delete(job_id)
        await watcher.until(job_id)
        assert watcher.gone == [job_id]


async def test_whoever_reads_slowly_is_told_of_each_job_once_as_it_is(rig: Rig, waker: Wakes) -> None:
    key, spool = await rig.started()
    async with Watcher(rig, waker) as watcher:
        await watcher.next()
        for percent in range(1, 101):
            await rig.report(key, spool.progress(percent, "on its way"))
        changes = await watcher.next()
        assert [(row.job_id, row.progress_percent) for row in changes.jobs] == [(key.job_id, 100)]


async def test_what_a_list_does_not_have_comes_after_its_position(rig: Rig, waker: Wakes) -> None:
    made = await rig.create_many(2)
    async with rig.database.begin() as connection:
        late = (await creation.create(connection, rig.command(), ALICE)).job.job_id
        async with rig.database.begin() as lister:
            position = await watching.here(lister)
    await rig.cancel(made[0])
    async with Watcher(rig, waker, ALL, position) as watcher:
        await watcher.until(made[0], late)
        assert made[1] not in watcher.jobs


# How long a position is good.


async def test_a_position_is_good_for_ten_minutes(own_rig: Rig) -> None:
    clock = await Clock.install(own_rig.database)
    async with listening(own_rig.database) as waker:
        async with Watcher(own_rig, waker) as watcher:
            position = (await watcher.next()).position
        await clock.advance(LIFE)
        job_id = await own_rig.create()
        async with Watcher(own_rig, waker, ALL, position) as watcher:
            await watcher.until(job_id)
        await clock.advance(1)
        async with Watcher(own_rig, waker, ALL, position) as watcher:
            with pytest.raises(ResumeExpired):
                await watcher.next()


async def test_a_watch_that_goes_on_never_expires_and_renews_its_token(
    own_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watching, "TOKEN_SECONDS", 0.01)
    clock = await Clock.install(own_rig.database)
    async with listening(own_rig.database) as waker, Watcher(own_rig, waker) as watcher:
        for _ in range(3):
            await clock.advance(LIFE - 1)
            while (await watcher.next()).position.at != clock.now:
                pass


async def test_a_reader_that_stalls_for_too_long_has_to_list_again(own_rig: Rig) -> None:
    clock = await Clock.install(own_rig.database)
    async with listening(own_rig.database) as waker, Watcher(own_rig, waker) as watcher:
        await watcher.next()
        await clock.advance(LIFE + 1)
        with pytest.raises(ResumeExpired):
            await watcher.next()


async def test_a_watch_that_is_kept_behind_for_too_long_says_so(own_rig: Rig) -> None:
    """What was deleted behind a transaction that does not end could be purged before it can be told."""
    clock = await Clock.install(own_rig.database)
    async with listening(own_rig.database) as waker, own_rig.database.begin() as connection:
        await connection.execute(text("SELECT pg_current_xact_id()"))
        async with Watcher(own_rig, waker) as watcher:
            await watcher.next()
            deleted = await own_rig.create()
            await own_rig.delete(deleted)
            await clock.advance(LIFE + 1)
            with pytest.raises(ResumeExpired):
                await watcher.next()


def test_a_token_is_bound_to_the_filter_and_holds_its_position() -> None:
    position = Position(2**40, 17, START)
    token = watching.to_token(b"filter", position)
    assert watching.from_token(b"filter", token) == position
    assert watching.from_token(b"filter", "") is None
    for request, wrong in ((b"other", token), (b"filter", token[:-2]), (b"filter", "x")):
        with pytest.raises(InvalidToken):
            watching.from_token(request, wrong)


@pytest.mark.parametrize("forged", [[-1, 0, 0], [2**63, 0, 0], [1, 2**63, 0], [1, -1, 0], [1, 1, 2**60], [1, 1, -1]])
def test_a_position_that_was_made_up_is_refused(forged: list[int]) -> None:
    token = watching.paging.encode(list(forged), b"watch filter")
    with pytest.raises(InvalidToken):
        watching.from_token(b"filter", token)


async def test_a_position_ahead_of_the_database_is_not_believed(rig: Rig, waker: Wakes) -> None:
    """It was given before the database was restored from a backup."""
    async with rig.database.begin() as connection:
        here = await watching.here(connection)
    async with Watcher(rig, waker, ALL, Position(here.xid + 1_000_000, 0, here.at)) as watcher:
        with pytest.raises(ResumeExpired):
            await watcher.next()


async def test_a_watch_ends_when_the_server_drains(rig: Rig, waker: Wakes) -> None:
    async with Watcher(rig, waker) as watcher:
        await watcher.next()
        ending = asyncio.create_task(watcher.next())
        await asyncio.sleep(0)
        await waker.drain()
        with pytest.raises(Unavailable):
            await ending


async def test_a_change_by_the_release_before_which_notes_nothing_is_told(rig: Rig, waker: Wakes) -> None:
    """While the replicas are replaced, those of before go on to change jobs."""
    job_id = await rig.create()
    async with Watcher(rig, waker) as watcher:
        await watcher.next()
        await rig.execute("UPDATE queue.jobs SET status = 'CANCELED' WHERE job_id = :job_id", job_id=job_id)
        await rig.execute("SELECT pg_notify(:channel, :topic)", channel=CHANNEL, topic=wakes.job(job_id))
        await watcher.until(job_id)
        assert [row.status for changes in watcher.told for row in changes.jobs] == ["CANCELED"]
