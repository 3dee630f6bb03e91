"""What a sweep and retention cost does not grow with the jobs that have ended: each statement that is really sent,
explained at the moment at which it is sent, touches few pages of a large database."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from services.queue import overdue, purge, removals, retention
from services.queue.convert import exports as convert
from services.queue.retention import Retention, Rules
from services.queue.sweeper import Sweeper
from services.runtime.database import Database
from sis.stack import postgres as embedded
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, of

DUE = 20
"""Of each kind."""
IDLE_PAGES, PAGES = 200, 5_000
"""What a look that finds nothing, and what a statement of a batch, may touch at the most, each page as often as it is
asked for. Of 200,000 jobs the rows alone are 7,700 pages."""

DROP = "DROP INDEX queue.jobs_text"
FILL = """
INSERT INTO queue.jobs (
    display_name, type, status, operation, package_name, package_version, package_digest, parameters, site_kind,
    site_name, priority, claim_key, queued_at, heartbeat_timeout, labels, created_at, completed_at, creator, attempt,
    agent, history_sequence, changed_xid)
SELECT 'job', 'PACKAGE', (ARRAY['SUCCEEDED', 'FAILED', 'CANCELED'])[1 + n % 3], 'run', 'p', '1', 'd', '{}', 'group',
    'g', 3, at, at, '2 minutes', '{}', at, at, 'alice', 1, 'a', 1, CAST(CAST(n AS text) AS xid8)
FROM (SELECT n, queue.now() - (:jobs - n) * interval '1 min' AS at FROM generate_series(1, :jobs) n) AS numbered;
INSERT INTO queue.attempts (
    job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at, active_at, digest, sealed_at, verdict)
SELECT job_id, 1, 'a', 1, 'j', created_at, created_at, created_at, decode(repeat('00', 32), 'hex'), created_at,
    'COMPLETE' FROM queue.jobs;
INSERT INTO queue.history
SELECT job_id, 1, created_at, NULL, status, 'CREATE', 'alice', '', '', 0 FROM queue.jobs;
INSERT INTO queue.log SELECT job_id, 1, 1, 1, 1, created_at, '', 0 FROM queue.jobs;
INSERT INTO queue.request_ids SELECT 'alice', n, '', n, queue.now() FROM generate_series(1, :jobs) n;
INSERT INTO queue.removals
SELECT -n, 'job', 'SUCCEEDED', queue.now(), 'alice', '', '', '' FROM generate_series(1, :jobs) n;
VACUUM ANALYZE
"""


@pytest.fixture(scope="module", params=[20_000, pytest.param(200_000, marks=pytest.mark.long)])
def ended(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def filled() -> set[str]:
    """The databases of this module that have their jobs."""
    return set()


@pytest.fixture(scope="module")
def large_url(postgres: embedded.Postgres, stocked_template: str, ended: int) -> Iterator[str]:
    name = f"queue_with_{ended}"
    postgres.create_database(name, template=stocked_template)
    try:
        yield postgres.url(name)
    finally:
        postgres.drop_database(name)


@pytest.fixture
async def rig(large_url: str, filled: set[str], ended: int) -> AsyncIterator[Rig]:
    database = Database(large_url, application_name="test", pool_size=2)
    if large_url not in filled:
        await Clock.install(database)
        async with database._engine.connect() as connection:
            outside = await connection.execution_options(isolation_level="AUTOCOMMIT")
            # An index that no sweep asks, and the checks of keys that are right, make the filling slow.
            for statement in (
                "SET statement_timeout = 0",
                "SET session_replication_role = replica",
                DROP,
                *FILL.split(";\n"),
            ):
                await outside.execute(text(statement), {"jobs": ended} if ":jobs" in statement else {})
            for setting in ("statement_timeout", "session_replication_role"):
                await outside.execute(text(f"RESET {setting}"))
        filled.add(large_url)
    yield Rig(database, "large")
    await database.dispose()


@pytest.fixture
async def clock(rig: Rig) -> Clock:
    return await Clock.install(rig.database)


class Explained:
    """The statements that were sent, and how many pages each of them touched."""

    def __init__(self) -> None:
        self.plans: list[tuple[int, str, str]] = []
        self._busy = False

    def note(self, connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        """Explain it before it is done, without leaving anything of that behind."""
        if self._busy or "queue." not in statement:
            return
        self._busy = True
        connection.exec_driver_sql("SAVEPOINT explained")
        rows = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters).scalars().all()
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT explained")
        plan = "\n".join(rows)
        self.plans.append((_pages(plan), statement, plan))
        self._busy = False

    def check(self, pages: int) -> None:
        """None of them touched more, nor read a whole table with the jobs that have ended."""
        assert self.plans
        for touched, statement, plan in self.plans:
            assert touched <= pages, f"{touched} pages\n{statement}\n{plan}"
            assert not re.search("Seq Scan on (jobs|attempts|history|log|request_ids|removals)", plan), plan


def _pages(plan: str) -> int:
    """Of a plan, as its first node says, which counts all the others; of its foreign keys nothing is said."""
    found = re.search(r"Buffers: (.*)", plan.partition("Planning:")[0])
    return sum(map(int, re.findall(r"(?:hit|read)=(\d+)", found[1]))) if found else 0


@contextmanager
def explained(database: Database) -> Iterator[Explained]:
    found = Explained()
    engine = database._engine.sync_engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", found.note)
    try:
        yield found
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", found.note)


async def _live(rig: Rig, count: int, **changes: Any) -> None:
    await rig.hello("a", slots=500)
    await rig.create_many(count, agent="a", **changes)
    await rig.claim("a", slots=count)


async def test_an_idle_sweep_is_one_cheap_statement(rig: Rig, clock: Clock) -> None:
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await _live(rig, DUE)
    await clock.advance(1)
    with explained(rig.database) as statements:
        assert not await sweeper.sweep()
    assert len(statements.plans) == 1
    statements.check(IDLE_PAGES)


async def test_what_a_sweep_does_costs_as_much_as_is_due(rig: Rig, clock: Clock) -> None:
    """Every rule at once."""
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await _live(rig, DUE, heartbeat_timeout=timedelta(seconds=280))
    at = clock.now + timedelta(seconds=300)
    await rig.create_many(DUE, agent="a", not_before=at)
    await rig.create_many(DUE, agent="a", latest_start=at)
    await rig.create_many(DUE, agent="a", deferral_limit=timedelta(seconds=300))
    for _ in range(DUE):
        key, spool = await rig.started("b")
        await rig.report(key, of(spool.output(b"x"), spool.payload_ended(0), spool.finished("SUCCEEDED")), name="b")
        await rig.delete(key.job_id)
    aborted, _ = await rig.started("c", heartbeat_timeout=timedelta(days=1))
    await rig.abort(aborted.job_id)
    await sweeper.sweep()
    await clock.elapse(270, sweeper.sweep)
    await clock.advance(30)
    await rig.execute("UPDATE queue.request_ids SET created_at = queue.now() - interval '8 days' WHERE job_id <= 20")
    await rig.execute("UPDATE queue.removals SET removed_at = queue.now() - interval '2 years' WHERE job_id >= -20")
    await rig.execute("UPDATE queue.jobs SET hidden_at = queue.now() - interval '1 h' WHERE hidden_at IS NOT NULL")
    with explained(rig.database) as statements:
        await sweeper.sweep()
    statements.check(PAGES)
    told = "\n".join(statement for _, statement, _ in statements.plans)
    for table in ("log", "history", "jobs", "request_ids", "removals"):
        assert f"DELETE FROM queue.{table}" in told, table
    assert told.count("INSERT INTO queue.history") == 4  # released, late, held too long, silent


@pytest.mark.parametrize("rules", [Rules(age=timedelta(days=3)), Rules(count=10_000)], ids=["age", "count"])
async def test_what_retention_does_costs_as_much_as_a_batch(
    rig: Rig, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: Rules
) -> None:
    monkeypatch.setattr(retention, "BATCH", DUE)
    worker = Retention(rig.database, rules, tmp_path, convert.to_line)
    with explained(rig.database) as statements:
        assert await worker.step()
        await worker.step()
    statements.check(PAGES)
    assert len(list(tmp_path.iterdir())) == 2


async def test_a_batch_of_a_rule_is_found_by_its_index_also_when_much_is_due(
    rig: Rig, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the sake of a limit, PostgreSQL would rather walk the ids, past all that have ended."""
    monkeypatch.setattr(overdue, "BATCH", DUE)
    sweeper = Sweeper(rig.database)
    await rig.hello("a")
    await rig.create_many(5 * DUE, agent="a", not_before=clock.now + timedelta(seconds=1))
    await rig.execute("ANALYZE queue.jobs")
    await clock.advance(1)
    with explained(rig.database) as statements:
        assert await sweeper.sweep()
    statements.check(PAGES)


async def test_the_purge_of_a_long_log_does_not_come_across_what_it_has_removed(rig: Rig, clock: Clock) -> None:
    """Also while somebody's old snapshot keeps that from being cleaned up."""
    parts = 12
    await clock.advance(removals.PURGE_AFTER.total_seconds() + 1)
    worker = purge.Purge(rig.database)
    while await worker.step():  # what others have deleted
        pass
    key, spool = await rig.started("b")
    await rig.report(key, of(spool.payload_ended(0), spool.finished("SUCCEEDED")), name="b")
    await rig.execute(
        "INSERT INTO queue.log SELECT job_id, attempt, n, channel, severity, at, body FROM queue.log,"
        " generate_series(4, :last) n WHERE job_id = :job_id AND sequence = 1",
        job_id=key.job_id, last=parts * purge.FRAMES,
    )  # fmt: skip
    await rig.delete(key.job_id)
    await clock.advance(removals.PURGE_AFTER.total_seconds() + 1)
    async with rig.database._engine.connect() as reader:
        old = await reader.execution_options(isolation_level="REPEATABLE READ")
        await old.exec_driver_sql("SELECT count(*) FROM queue.packages")
        with explained(rig.database) as statements:
            while await worker.step():
                pass
    removed = [pages for pages, statement, _ in statements.plans if "DELETE FROM queue.log" in statement]
    assert len(removed) == parts + 2  # one that finds nothing more, and one that looks from the start
    assert max(removed[:-1]) < 2 * min(removed[:-2]), removed
    async with rig.database.begin() as connection:
        left = await connection.execute(text("SELECT FROM queue.log WHERE job_id = :i"), {"i": key.job_id})
        assert left.all() == []
    assert await rig.statuses([key.job_id]) == {}


async def test_a_purge_of_many_jobs_does_not_come_across_those_it_has_removed(
    rig: Rig, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the look before each of its steps, also while an old snapshot keeps them from being cleaned up."""
    steps = 12
    await clock.advance(removals.PURGE_AFTER.total_seconds() + 1)
    sweeper = Sweeper(rig.database)
    while await sweeper.sweep():  # what others have left to do
        pass
    monkeypatch.setattr(purge, "JOBS", DUE)
    job_ids = await rig.create_many(steps * DUE)
    for job_id in job_ids:
        await rig.delete(job_id)
    await rig.execute(
        "UPDATE queue.jobs SET hidden_at = hidden_at + (job_id - :first) * interval '1 ms' WHERE job_id >= :first",
        first=job_ids[0],
    )
    await clock.advance(removals.PURGE_AFTER.total_seconds() + 1)
    async with rig.database._engine.connect() as reader:
        old = await reader.execution_options(isolation_level="REPEATABLE READ")
        await old.exec_driver_sql("SELECT count(*) FROM queue.packages")
        with explained(rig.database) as statements:
            while await sweeper.sweep():
                pass
    assert await rig.statuses(job_ids) == {}
    for sign in ("SKIP LOCKED", "AS removals"):
        pages = [pages for pages, statement, _ in statements.plans if sign in statement and "hidden_at <" in statement]
        assert len(pages) > steps
        assert max(pages[:steps]) < min(pages[1:steps]) + 3 * DUE, (sign, pages)
