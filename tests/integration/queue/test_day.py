"""A day of claims, heartbeats, deadlines and sweeps, through `queue.now()`."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from sqlalchemy import select

from services.queue import dispatch, sessions
from services.queue.creation import Priority
from services.queue.dispatch import Capacity
from services.queue.model import LeaseRefusal, RefusalReason
from services.queue.reports import Accepted, Declined, Report, commit
from services.queue.sessions import AttemptKey, Heartbeat, Verdict
from services.queue.states import TERMINAL
from services.queue.sweeper import Sweeper
from services.queue.tables import attempts, jobs
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, check, check_lease_ends, of
from tests.support.frames import Spool

FINE_STEPS = 8
"""Steps of half a minute at the beginning of each hour, in which something happens; the rest of it nobody watches,
as if the database had been away, and the sweeper must not take that for silence."""
SILENT = range(6, 9)
"""The hours in which one agent is not heard."""
NAMES = ("a", "b", "c")


@dataclass
class Site:
    """An agent with a journal: what it has in hand, and how each attempt will end."""

    name: str
    in_hand: dict[AttemptKey, Spool] = field(default_factory=dict)
    begun: dict[AttemptKey, int] = field(default_factory=dict)
    starts: Counter[AttemptKey] = field(default_factory=Counter)
    records: int = 1
    heard: bool = True


class Day:
    def __init__(self, rig: Rig, clock: Clock) -> None:
        self.rig, self.clock = rig, clock
        self.sweepers = [Sweeper(rig.database), Sweeper(rig.database)]
        self.sites = {name: Site(name) for name in NAMES}
        self.random = random.Random(4)
        self.job_ids: list[int] = []
        self.endless: set[int] = set()
        self.secretive: set[int] = set()
        self.step = 0

    async def hello(self, site: Site) -> None:
        site.records += 1
        welcome = await self.rig.hello(site.name, in_hand=site.in_hand, record_number=site.records, slots=6)
        for key, verdict, _ in welcome.verdicts:
            if verdict is Verdict.FORGET:
                del site.in_hand[key]
        agent = self.rig.agent(site.name)
        await self.take([(agent, AttemptKey(a.job_id, a.attempt)) for a in welcome.redelivered])

    async def take(self, delivered: list[tuple[str, AttemptKey]]) -> None:
        """Accept most of what was delivered, decline some, lose a few deliveries, get no leases for others."""
        reports = []
        for agent, key in delivered:
            site = self.sites[agent.rpartition("-")[2]]
            fate = self.random.random()
            if key in site.in_hand or fate < 0.1:
                continue
            site.records += 1
            content: Accepted | Declined | LeaseRefusal = Declined("it is full") if fate < 0.2 else Accepted()
            if fate > 0.8 and key.job_id in self.secretive:
                content = LeaseRefusal(RefusalReason.VAULT_SEALED, "it is sealed", retry_after=timedelta(seconds=10))
            reports.append(Report(self.rig.session(site.name), key, content))
        for report, result in zip(reports, await commit(self.rig.database, reports), strict=True):
            if isinstance(report.content, Accepted) and result.error is None:
                site = self.sites[report.session.agent.rpartition("-")[2]]
                site.in_hand[report.attempt] = Spool(lambda: self.clock.now)
                site.starts[report.attempt] += 1

    async def work(self, heard: list[Site]) -> None:
        """One step of each attempt: start, write, end; stop what is to be stopped."""
        rig, reports = self.rig, []
        stops = await rig.stops()
        for site, key, spool in [(one, *attempt) for one in heard for attempt in one.in_hand.items()]:
            age = self.step - site.begun.setdefault(key, self.step)
            if key in stops:
                frames = of(spool.stop_begun(stops[key]), spool.payload_ended(143), spool.finished("STOPPED"))
            elif age == 0:
                frames = spool.process_started(100)
            elif key.job_id in self.endless:
                frames = spool.output(b"for ever\n")
            elif age < 3:
                frames = spool.output(b"working\n")
            else:
                outcome = "FAILED" if key.job_id % 5 == 0 else "SUCCEEDED"
                frames = of(spool.payload_ended(0), spool.finished(outcome))
            reports.append(Report(rig.session(site.name), key, frames))
        for report, result in zip(reports, await commit(rig.database, reports), strict=True):
            assert result.error is None, result.error
            if result.sealed:
                del self.sites[report.session.agent.rpartition("-")[2]].in_hand[report.attempt]

    async def tick(self) -> None:
        """What a hub does for all its agents in half a minute; then a sweep."""
        self.step += 1
        rig = self.rig
        heard = [site for site in self.sites.values() if site.heard]
        async with rig.database.begin() as connection:
            answer = await sessions.heartbeat(
                connection, [Heartbeat(rig.session(site.name), frozenset(site.in_hand)) for site in heard]
            )
        async with rig.database.begin() as connection:
            room = [Capacity(rig.agent(s.name), rig.epochs[s.name], 6 - len(s.in_hand)) for s in heard]
            claimed, _ = await dispatch.claim(connection, room)
        await self.take([(agent, AttemptKey(a.job_id, a.attempt)) for agent, a in (*answer.undelivered, *claimed)])
        await self.work(heard)
        await self.sweepers[self.step % 2].sweep()
        if self.step % 5 == 0:
            await self.sweepers[(self.step + 1) % 2].sweep()

    async def hour(self, hour: int) -> None:
        rig, now = self.rig, self.clock.now
        soon = now + timedelta(seconds=70)
        self.job_ids += [
            await rig.create(run_timeout=timedelta(seconds=40)),
            await rig.create(priority=Priority.HIGH, admin="root"),
            await rig.create(priority=Priority.IDLE),
            await rig.create(not_before=soon),
            await rig.create(not_before=soon, latest_start=soon + timedelta(seconds=1)),
            await rig.create(
                agent="c",
                heartbeat_timeout=timedelta(seconds=60),
                latest_start=now + timedelta(hours=2),
                run_as="web",
            ),
        ]
        canceled = await rig.create(agent="a", admin="root")
        self.endless |= {self.job_ids[-6], canceled}
        self.secretive |= {self.job_ids[-5], self.job_ids[-1], canceled}
        self.job_ids.append(canceled)
        silent = self.sites["c"]
        if hour == SILENT.stop:
            silent.heard = True
            await self.hello(silent)
        if hour % 6 == 5:  # its hub was restarted
            await self.hello(self.sites["b"])
        for step in range(FINE_STEPS):
            if hour == SILENT.start and step == 2:
                silent.heard = False
            await self.clock.advance(30)
            await self.tick()
            if step == 4 and await rig.status(canceled) in ("WAITING", "STARTING", "RUNNING"):
                await rig.cancel(canceled)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("hours", [10, pytest.param(24, marks=pytest.mark.long)])
async def test_hours_go_by_and_every_job_ends_as_it_should(rig: Rig, clock: Clock, hours: int) -> None:
    day = Day(rig, clock)
    for site in day.sites.values():
        await day.hello(site)
    for hour in range(hours):
        await day.hour(hour)
        statuses = Counter((await rig.statuses(day.job_ids)).values())
        if hour not in SILENT:
            assert statuses["AWOL"] == 0, f"hour {hour}: nobody was silent"
        else:
            assert statuses["AWOL"] >= len(day.sites["c"].in_hand) > 0
        assert statuses["DEFERRED"] == 0
        await clock.advance(3_600 - FINE_STEPS * 30)
    for _ in range(16):  # the rest of the work, until nothing is left
        await clock.advance(30)
        await day.tick()

    ended = Counter((await rig.statuses(day.job_ids)).values())
    assert set(ended) <= TERMINAL, ended
    assert {"SUCCEEDED", "FAILED", "CANCELED", "TIMED_OUT", "EXPIRED"} <= set(ended)
    await check(rig.database, day.job_ids)
    await check_lease_ends(rig.database, day.job_ids)
    starts = sum((site.starts for site in day.sites.values()), Counter[AttemptKey]())
    assert set(starts.values()) == {1}, "an attempt was started twice"
    assert not any(site.in_hand for site in day.sites.values())
    async with rig.database.begin() as connection:
        rows = (
            await connection.execute(
                select(jobs, attempts.c.accepted_at, attempts.c.sealed_at)
                .outerjoin(attempts, (attempts.c.job_id == jobs.c.job_id) & (attempts.c.number == jobs.c.attempt))
                .where(jobs.c.job_id.in_(day.job_ids))
            )
        ).all()
    for row in rows:
        assert row.attempt == 0 or row.sealed_at is not None
        assert row.accepted_at is None or row.stop_state == "CONFIRMED"
        if row.status == "TIMED_OUT":
            assert row.completed_at - row.started_at >= timedelta(seconds=70)
