"""A database of the first release goes on with all that is in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy
from sqlalchemy import make_url, text

from services.queue import main
from services.queue.reports import Accepted
from services.queue.sessions import AttemptKey
from services.queue.sweeper import Sweeper
from services.queue.tables import SCHEMA
from services.runtime.database import Database
from services.runtime.migrations import migrate
from tests.integration.queue.rig import Rig, of
from tests.support.frames import Spool

# As the first release wrote them: one of each kind of job, by the id that it gets.
ROWS = """
INSERT INTO queue.agent_sessions VALUES ('g-a', 'g', 1, 'hub-1', 'journal of a', 1, 'host of a', true, now());
INSERT INTO queue.jobs (
    display_name, type, status, operation, package_name, package_version, package_digest, parameters, site_kind,
    site_name, priority, claim_key, queued_at, heartbeat_timeout, labels, created_at, creator, history_sequence,
    attempt, agent, stop_state, retry_at, completed_at)
SELECT 'old', 'PACKAGE', status, 'run', 'core.shell', '1.0.0', repeat('0', 64), '{"script": "true"}', 'agent', 'g-a', 3,
    now(), now(), interval '2 minutes', '{"team": "a"}', now(), 'alice', 1,
    attempt, CASE attempt WHEN 1 THEN 'g-a' ELSE '' END, 'NONE',
    CASE status WHEN 'WAITING' THEN now() - interval '1 s' END, CASE status WHEN 'FAILED' THEN now() END
FROM (VALUES (1, 'WAITING', 0), (2, 'RUNNING', 1), (3, 'FAILED', 1), (4, 'DEFERRED', 0), (5, 'AWOL', 1))
    AS j(n, status, attempt) ORDER BY n;
INSERT INTO queue.attempts (
    job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at, active_at, accepted_at, first_process_at,
    digest, sealed_at)
SELECT job_id, 1, 'g-a', 1, 'journal of a', now(), now(), now(), now(), now(), decode(repeat('00', 32), 'hex'),
    CASE status WHEN 'FAILED' THEN now() END
FROM queue.jobs WHERE attempt = 1;
INSERT INTO queue.history SELECT job_id, 1, now(), NULL, status, 'CREATE', 'alice', '', '', 0 FROM queue.jobs;
INSERT INTO queue.packages VALUES
    (repeat('0', 64), 'core.shell', '1.0.0', '1.0.0', '{"name": "core.shell", "version": "1.0.0"}', 1, now(), 'alice');
INSERT INTO queue.request_ids VALUES ('alice', 'r', '\\x00', 1, now());
"""


def _first_release(url: str) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(main.MIGRATIONS))
    engine = sqlalchemy.create_engine(make_url(url), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.schema.CreateSchema(SCHEMA))
        config.attributes.update(connection=connection, schema=SCHEMA)
        alembic.command.upgrade(config, "0001")
        connection.exec_driver_sql(ROWS)
    engine.dispose()


@pytest.fixture
async def upgraded(database_url: str) -> AsyncIterator[Rig]:
    _first_release(database_url)
    migrate(database_url, main.MIGRATIONS, SCHEMA)
    database = Database(database_url, application_name="test")
    yield Rig(database, "g")
    await database.dispose()


async def test_every_row_is_kept_and_names_no_credentials(upgraded: Rig) -> None:
    async with upgraded.database.begin() as connection:
        rows = (await connection.execute(text("SELECT * FROM queue.jobs ORDER BY job_id"))).all()
        assert (await connection.execute(text("SELECT count(*) FROM queue.history"))).scalar_one() == 5
        assert (await connection.execute(text("SELECT count(*) FROM queue.lease_ends"))).scalar_one() == 0
        version = (await connection.execute(text("SELECT version_num FROM queue.alembic_version"))).scalar_one()
    assert version == "0007"
    assert [row.status for row in rows] == ["WAITING", "RUNNING", "FAILED", "DEFERRED", "AWOL"]
    for row in rows:
        assert (row.credentials, row.wait_reason, row.wait_message) == ([], None, "")
        assert (row.platforms, row.rerun_of) == (["linux", "darwin", "windows"], 0)
        assert (row.labels, row.heartbeat_timeout, row.creator) == ({"team": "a"}, timedelta(seconds=120), "alice")
        # What the releases before meant by their constants; what they hold expires by no limit.
        assert (row.start_timeout, row.output_timeout) == (timedelta(minutes=5), timedelta(seconds=60))
        assert (row.cancel_grace, row.deferral_ends_at) == (timedelta(seconds=10), None)


async def test_what_was_there_is_explained_and_repeated(upgraded: Rig) -> None:
    (cause,) = (await upgraded.explain(1)).causes
    assert cause.reason == "NOTHING" and list(cause.agents) == ["g-a"]
    assert (await upgraded.rerun(3)).job.target == "host of a"
    upgraded.epochs["a"] = 1
    assert [key.job_id for key in await upgraded.claim()] == [1, 6]


async def test_what_was_under_way_goes_on_to_its_end(upgraded: Rig) -> None:
    upgraded.epochs["a"] = 1
    (waiting,) = await upgraded.claim()
    assert waiting == AttemptKey(1, 1)
    spool = Spool()
    end = of(spool.process_started(1), spool.payload_ended(0), spool.finished("SUCCEEDED"))
    assert (await upgraded.report(waiting, Accepted(), end)).sealed
    for job_id in (2, 5):
        spool = Spool()
        told = await upgraded.report(AttemptKey(job_id, 1), of(spool.payload_ended(0), spool.finished("SUCCEEDED")))
        assert told.sealed and told.error is None
    await upgraded.cancel(4)
    statuses = await upgraded.statuses(range(1, 6))
    assert statuses == {1: "SUCCEEDED", 2: "SUCCEEDED", 3: "FAILED", 4: "CANCELED", 5: "SUCCEEDED"}
    assert await upgraded.lease_ends(*statuses) == []


async def test_a_replica_of_the_release_before_goes_on_beside_this_one(upgraded: Rig) -> None:
    """It writes rows without the columns that it does not know, and activates without ending the deferral."""
    await upgraded.execute(ROWS.split(";")[1])
    held, activated = 9, 4
    await upgraded.execute(
        "UPDATE queue.jobs SET deferral_ends_at = now() - interval '1 s', status = 'WAITING' WHERE job_id = :job_id",
        job_id=activated,
    )
    await Sweeper(upgraded.database).sweep()
    assert await upgraded.statuses([held, activated]) == {held: "DEFERRED", activated: "WAITING"}
    released = (await upgraded.activate(held)).job
    assert (released.status, released.start_timeout) == ("WAITING", timedelta(minutes=5))


async def test_what_is_stored_of_a_plain_package_is_what_the_release_before_can_read(
    upgraded: Rig, tmp_path: Path
) -> None:
    await upgraded.push(tmp_path, "{name: test.plain, version: 1.0.0, operations: {use: {command: ['true']}}}")
    async with upgraded.database.begin() as connection:
        query = "SELECT manifest FROM queue.packages WHERE name = 'test.plain'"
        stored = json.loads((await connection.execute(text(query))).scalar_one())
    # Its models take no field that they do not know.
    assert stored == {"name": "test.plain", "version": "1.0.0", "operations": {"use": {"command": ["true"]}}}
