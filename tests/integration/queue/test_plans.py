"""What is asked of a large table is found by its indexes: the statements that are really sent, as they are planned."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy

from services.queue import bulk, excerpts, exports, listing, watching
from services.queue.bulk import ApplyVerb, Verb
from services.queue.convert import excerpts as convert
from services.queue.excerpts import Place
from services.queue.exports import ExportJobs
from services.queue.listing import JobFilter, ListJobs
from services.queue.states import Status
from services.queue.tables import JobType
from services.queue.wakes import Wakes
from services.queue.watching import Position
from services.runtime.database import Database
from sis.queue.v1 import frame_pb2, job_pb2
from tests.integration.queue.rig import ALICE, Rig

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ENDED, BACKLOG, READ = 15_000, 5_000, 1_000
"""Jobs that have ended, jobs that wait for windows in a group; and as many rows as a statement may look at in vain."""

JOBS = """
INSERT INTO queue.jobs (
    display_name, type, status, operation, package_name, package_version, package_digest, parameters, site_kind,
    site_name, priority, claim_key, queued_at, heartbeat_timeout, labels, created_at, completed_at, creator, platforms,
    changed_xid)
SELECT 'job ' || n, 'PACKAGE', CASE WHEN waits THEN 'WAITING' ELSE 'SUCCEEDED' END, 'run', 'p', '1', 'd', '{}', 'group',
    'large', 3, at, at, '2 minutes', '{}', at, CASE WHEN NOT waits THEN at END, 'alice',
    CASE WHEN waits THEN CAST('["windows"]' AS jsonb) ELSE '["linux"]' END, CAST(CAST(n / 5000 AS text) AS xid8)
FROM (
    SELECT n, n > :ended AS waits, CAST(:start AS timestamptz) + n * interval '1 s' AS at
    FROM generate_series(1, :jobs) n
) AS numbered
"""


@pytest.fixture(scope="module")
def filled() -> set[int]:
    """The databases of this module that have their jobs."""
    return set()


@pytest.fixture
async def large(shared_database: Database, shared_url: str, filled: set[int]) -> Rig:
    rig = Rig(shared_database, "large")
    if not filled:
        await rig.execute(JOBS, ended=ENDED, jobs=ENDED + BACKLOG, start=LONG_AGO)
        await rig.execute("ANALYZE queue.jobs")
        filled.add(1)
    return rig


class Statements:
    """What is asked of a table of a database."""

    def __init__(self, database: Database, table: str) -> None:
        self._database = database
        self._table = table
        self._asked: list[tuple[str, Any]] = []
        engine = database._engine.sync_engine
        sqlalchemy.event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if f"queue.{self._table}" in statement and not re.search("INSERT|UPDATE queue|EXPLAIN", statement):
            self._asked.append((statement, parameters))

    async def plans(self) -> list[str]:
        """How each of them is done, and what it comes across."""
        asked, found = list(self._asked), []
        async with self._database._engine.connect() as connection:
            for statement, parameters in asked:
                plan = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE) {statement}", parameters)
                found.append("\n".join(plan.scalars()))
            await connection.rollback()
        assert found
        return found


async def check(rig: Rig, act: Callable[[], Awaitable[object]], table: str = "jobs", most: int = READ) -> None:
    """No statement of the act reads the table, or much of it for little."""
    statements = Statements(rig.database, table)
    await act()
    for plan in await statements.plans():
        assert f"Seq Scan on {table}" not in plan, plan
        read = re.findall(r"actual time=\S+ rows=(\d+)|Rows Removed by Filter: (\d+)", plan)
        assert max(int(rows or removed) for rows, removed in read) <= most, plan


FEW = [
    JobFilter(statuses=[Status.FAILED]),
    JobFilter(statuses=[Status.FAILED, Status.AWOL, Status.CANCELED]),
    JobFilter(types=[JobType.DISCOVERY]),
    JobFilter(complete_time_before=LONG_AGO + timedelta(seconds=5)),
    JobFilter(statuses=[Status.SUCCEEDED], complete_time_before=LONG_AGO + timedelta(seconds=5)),
    JobFilter(types=[JobType.PACKAGE], complete_time_before=LONG_AGO - timedelta(days=1)),
]


@pytest.mark.parametrize("wanted", FEW, ids=lambda wanted: repr(wanted)[10:80])
async def test_a_filter_that_selects_few_jobs_reads_few(large: Rig, wanted: JobFilter) -> None:
    async def look() -> None:
        async with large.database.begin() as connection:
            await listing.list_page(connection, ListJobs(wanted, 50, "", "job_id", True, b""))
        command = ApplyVerb(Verb.DELETE, filter=wanted, validate_only=True)
        async with aclosing(bulk.apply(large.database, Wakes(), command, ALICE)) as items:
            assert len([item async for item in items]) < 20
        export = ExportJobs((), wanted, include_logs=False, start=None)
        async with aclosing(exports.export(large.database, Wakes(), export)) as parts:
            assert len([part async for part in parts]) < 20

    await check(large, look)


@pytest.mark.parametrize("xid", [0, 1, 3, 2**40])
async def test_a_watch_reads_a_batch_whatever_its_token_says(large: Rig, xid: int) -> None:
    """Also a token that was made up, where a transaction has changed many jobs."""

    async def look() -> None:
        async with large.database.begin() as connection:
            here = await watching.here(connection)
        start = Position(min(xid, here.xid), 7, here.at)
        async with aclosing(watching.watch(large.database, Wakes(), FEW[0], start)) as changes:
            await anext(changes)

    await check(large, look)


@pytest.mark.parametrize("platform", ["linux", "darwin", "windows", ""])
async def test_a_claim_does_not_read_what_waits_for_another_platform(large: Rig, platform: str) -> None:
    name = f"agent-{platform}"
    await large.hello(name, platform=platform)
    mine = await large.create(agent=name) if platform in ("linux", "") else 0

    async def look() -> None:
        claimed = await large.claim(name, slots=4)
        assert len(claimed) == {"darwin": 0, "linux": 1}.get(platform, 4)
        assert not mine or platform == "" or claimed[0].job_id == mine

    await check(large, look)


async def test_an_explanation_does_not_read_what_waits_for_another_platform(large: Rig) -> None:
    job_id = await large.create()

    async def look() -> None:
        (*_, cause) = (await large.explain(job_id)).causes
        assert cause.jobs_ahead == 0

    await check(large, look)


FRAMES = 100_000
"""Of one log, which is not the only one."""

LOG = """
INSERT INTO queue.log (job_id, attempt, sequence, channel, severity, at, body, output_offset)
SELECT :job_id, 1, n, 2, 0, CAST(:start AS timestamptz) + n * interval '1 s', :body, 6 * (n - 1)
FROM generate_series(1, :frames) n
"""


@pytest.fixture(scope="module")
def long_logs() -> list[int]:
    """The jobs of this module that have a long log."""
    return []


@pytest.fixture
async def logged(shared_database: Database, long_logs: list[int]) -> tuple[Rig, int]:
    """A job with a long log, beside others."""
    rig = Rig(shared_database, "logged")
    frame = frame_pb2.Frame(chunk=frame_pb2.Chunk(channel=job_pb2.CHANNEL_STDOUT, data=b"hello\n"))
    if not long_logs:
        for frames in (FRAMES // 10, FRAMES, FRAMES // 10):
            key, _ = await rig.started()
            await rig.execute("DELETE FROM queue.log WHERE job_id = :job_id", job_id=key.job_id)
            await rig.execute(LOG, job_id=key.job_id, start=LONG_AGO, body=frame.SerializeToString(), frames=frames)
            await rig.execute(
                "UPDATE queue.attempts SET sequence = :frames WHERE job_id = :job_id", job_id=key.job_id, frames=frames
            )
            long_logs.append(key.job_id)
        await rig.execute("ANALYZE queue.log")
    return rig, long_logs[1]


PLACES = [
    Place(),
    Place(first=FRAMES // 2),
    Place(first=FRAMES),
    Place(first=2**63 - 1),
    Place(before=2),
    Place(before=FRAMES // 2),
    Place(before=2**63 - 1),
    Place(time=LONG_AGO),
    Place(time=LONG_AGO + timedelta(seconds=FRAMES // 3)),
    Place(time=LONG_AGO + timedelta(days=30)),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: repr(place)[5:60])
async def test_a_part_of_a_long_log_is_read_alone(logged: tuple[Rig, int], place: Place) -> None:
    rig, job_id = logged

    async def look() -> None:
        async with rig.database.begin() as connection:
            excerpt = await excerpts.read(connection, job_id, place, 1 << 20)
        assert excerpt.total == FRAMES and len(excerpt.rows) <= excerpts.ROWS
        if place.time == PLACES[-2].time:
            assert excerpt.rows[0].sequence == FRAMES // 3

    await check(rig, look, "log", excerpts.ROWS)


@pytest.mark.parametrize("first", [1, FRAMES // 2, FRAMES + 1])
async def test_a_search_reads_what_it_searches(
    logged: tuple[Rig, int], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpts, "READS", 2)
    rig, job_id = logged

    async def look() -> None:
        found = await excerpts.search(rig.database, job_id, "no such text", first, convert.feed)
        assert found.next == (0 if first > FRAMES else first + 2 * excerpts.ROWS)

    await check(rig, look, "log", excerpts.ROWS)
