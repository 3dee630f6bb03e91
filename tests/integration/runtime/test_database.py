"""Transactions, notifications and migrations on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from services.runtime import database as runtime_database
from services.runtime import postgres_connection
from services.runtime.database import Database, after_commit
from services.runtime.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from services.runtime.migrations import migrate
from services.runtime.postgres_failures import Cause, trouble
from services.runtime.schema import newest_revision
from sis.stack.postgres import Postgres

ENV = "from services.runtime.migrations import run_migrations\n\nrun_migrations()\n"
REVISION = """
from alembic import op

revision = "{number}"
down_revision = {down}


def upgrade():
    op.execute({statement!r})
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, pool_size=2, application_name="test")
    try:
        yield database
    finally:
        await database.dispose()


async def scalar(database: Database, statement: str) -> object:
    async with database.begin() as connection:
        return (await connection.execute(text(statement))).scalar()


async def prepare(database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(text("CREATE TABLE thing (id int PRIMARY KEY, n int)"))
        await connection.execute(text("INSERT INTO thing VALUES (1, 0), (2, 0)"))


@pytest.mark.parametrize("pooled", [False, True])
async def test_times_come_in_utc_whatever_the_server_would_choose(database_url: str, pooled: bool) -> None:
    """In the night on which clocks are set back, an hour is not nothing."""
    name = make_url(database_url).database
    first = Database(database_url, pool_size=1, application_name="test")
    async with first.begin() as connection:
        await connection.execute(text(f"ALTER DATABASE {name} SET timezone = 'Europe/Berlin'"))
    await first.dispose()
    direct = database_url if pooled else None
    database = Database(database_url, direct_url=direct, pool_size=1, application_name="test")
    query = "SELECT timestamptz '2026-10-25 00:58:00+00', timestamptz '2026-10-25 01:05:00+00'"
    async with database.begin() as connection:
        before, after = (await connection.execute(text(query))).one()
    await database.dispose()
    assert after - before == timedelta(minutes=7)


async def test_what_fails_after_a_commit_does_not_undo_what_was_answered(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await prepare(database)
    acted: list[str] = []
    async with database.begin() as connection:
        await connection.execute(text("UPDATE thing SET n = 1"))
        after_commit(connection, lambda: 1 / 0)
        after_commit(connection, lambda: acted.append("told"))
    assert acted == ["told"]
    assert await scalar(database, "SELECT min(n) FROM thing") == 1
    assert "after a commit has failed" in caplog.text


async def test_a_block_is_one_transaction(database: Database) -> None:
    await prepare(database)
    with pytest.raises(ZeroDivisionError):
        async with database.begin() as connection:
            await connection.execute(text("UPDATE thing SET n = 1"))
            raise ZeroDivisionError
    assert await scalar(database, "SELECT sum(n) FROM thing") == 0
    async with database.begin() as connection:
        await connection.execute(text("UPDATE thing SET n = 1"))
    assert await scalar(database, "SELECT sum(n) FROM thing") == 2


async def test_bounds_hold_within_the_transaction_only(database: Database) -> None:
    assert await scalar(database, "SELECT current_setting('statement_timeout')") == "10s"
    assert await scalar(database, "SELECT current_setting('idle_in_transaction_session_timeout')") == "30s"


async def test_a_slow_statement_is_a_passed_deadline(database: Database) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        async with database.begin() as connection:
            await connection.execute(text("SET LOCAL statement_timeout = 50"))
            await connection.execute(text("SELECT pg_sleep(10)"))
    assert "pg_sleep" not in caught.value.message
    assert await scalar(database, "SELECT 1") == 1


async def test_a_violated_constraint_is_the_callers_business(database: Database) -> None:
    await prepare(database)
    with pytest.raises(IntegrityError):
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO thing VALUES (1, 0)"))


async def test_a_wrong_statement_is_a_fault(database: Database) -> None:
    with pytest.raises(ProgrammingError):
        await scalar(database, "SELECT nothing FROM nowhere")


async def test_a_deadlock_is_worth_a_quick_retry(database: Database) -> None:
    await prepare(database)
    both = asyncio.Barrier(2)

    async def update(first: int, second: int) -> None:
        async with database.begin() as connection:
            await connection.execute(text("SET LOCAL deadlock_timeout = 50"))
            await connection.execute(text(f"UPDATE thing SET n = n + 1 WHERE id = {first}"))
            await both.wait()
            await connection.execute(text(f"UPDATE thing SET n = n + 1 WHERE id = {second}"))

    results = await asyncio.gather(update(1, 2), update(2, 1), return_exceptions=True)
    (lost,) = [result for result in results if result is not None]
    assert isinstance(lost, Unavailable)
    assert lost.retry_after == 0.1


async def test_a_serialisation_failure_is_worth_a_quick_retry(database: Database) -> None:
    await prepare(database)
    with pytest.raises(Unavailable) as caught:
        async with database.begin() as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
            await connection.execute(text("SELECT sum(n) FROM thing"))
            await scalar(database, "UPDATE thing SET n = 1 RETURNING n")
            await connection.execute(text("UPDATE thing SET n = 2"))
    assert caught.value.retry_after == 0.1


async def test_a_terminated_connection_is_unavailable_and_the_next_one_works(database: Database) -> None:
    with pytest.raises(Unavailable) as caught:
        await scalar(database, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert caught.value.retry_after == 1
    assert await scalar(database, "SELECT 1") == 1


async def test_a_connection_that_died_in_the_pool_is_not_handed_out(database: Database) -> None:
    async with database.begin(), database.begin():
        pass  # two connections are in the pool now
    async with database.begin() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    async with database.begin(), database.begin() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1


async def test_an_exhausted_pool_is_unavailable(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_database, "_POOL_SECONDS", 0.1)
    database = Database(database_url, pool_size=1, application_name="test")
    async with database.begin():
        with pytest.raises(Unavailable):
            await scalar(database, "SELECT 1")
    assert await scalar(database, "SELECT 1") == 1
    await database.dispose()


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    for url in (
        "postgresql+psycopg://nobody@127.0.0.1:1/nothing",
        f"postgresql+psycopg://nobody@/nothing?host={tmp_path}",
    ):
        database = Database(url, application_name="test")
        with pytest.raises(Unavailable) as caught:
            await scalar(database, "SELECT 1")
        assert "SELECT" not in caught.value.message
        assert caught.value.metadata == {"dependency": "postgresql", "cause": "CONNECTION_REFUSED"}
        assert await database.trouble() == trouble(Cause.CONNECTION_REFUSED)
        await database.dispose()


async def test_nothing_is_waited_for_when_all_is_well(database: Database) -> None:
    assert await database.trouble() is None


async def test_a_cancelled_statement_gives_its_connection_back(database: Database) -> None:
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(100)' AND state = 'active'"
        " AND pid <> pg_backend_pid()"
    )
    for _ in range(5):
        statement = asyncio.create_task(scalar(database, "SELECT pg_sleep(100)"))
        async with asyncio.timeout(20):
            while await scalar(database, sleeping) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            statement.cancel()
            with pytest.raises(asyncio.CancelledError):
                await statement
            while await scalar(database, sleeping) != 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


# --- LISTEN ---


class Listener:
    """`listen` in a task, and what it heard."""

    def __init__(self, database: Database) -> None:
        self.payloads: asyncio.Queue[str] = asyncio.Queue()
        self.connected: asyncio.Queue[None] = asyncio.Queue()
        self.task = asyncio.create_task(
            database.listen("A channel", self.payloads.put_nowait, lambda: self.connected.put_nowait(None))
        )

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def notify(database: Database, payload: str) -> None:
    async with database.begin() as connection:
        await connection.execute(text("SELECT pg_notify('A channel', :payload)"), {"payload": payload})


async def test_notifications_arrive_in_order(database: Database) -> None:
    listener = Listener(database)
    try:
        await listener.connected.get()
        for number in range(20):
            await notify(database, str(number))
        assert [await listener.payloads.get() for _ in range(20)] == [str(number) for number in range(20)]
    finally:
        await listener.stop()


async def test_a_listener_comes_back_and_says_so(database: Database) -> None:
    listener = Listener(database)
    try:
        for number in range(3):
            await listener.connected.get()
            await notify(database, str(number))
            assert await listener.payloads.get() == str(number)
            await scalar(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'test listener' AND datname = current_database()",
            )
    finally:
        await listener.stop()


async def test_a_listener_waits_for_a_database_that_is_not_there_yet(database_url: str, tmp_path: Path) -> None:
    socket_directory = tmp_path / "s"
    moved = make_url(database_url).update_query_dict({"host": str(socket_directory)})
    listening = Database(moved.render_as_string(hide_password=False), application_name="test")
    database = Database(database_url, application_name="test")
    listener = Listener(listening)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await listener.connected.get()
        socket_directory.symlink_to(make_url(database_url).query["host"])  # the server appears
        await listener.connected.get()
        await notify(database, "hello")
        assert await listener.payloads.get() == "hello"
    finally:
        await listener.stop()
        await listening.dispose()
        await database.dispose()


async def test_a_listener_gives_up_a_server_that_does_not_answer_its_first_statement(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.database.CONNECT_SECONDS", 1.0)
    execute = psycopg.AsyncConnection.execute
    unanswered: list[object] = []

    async def answer_late(self: Any, *arguments: Any, **options: Any) -> Any:
        if not unanswered:
            unanswered.append(arguments[0])
            await asyncio.Event().wait()
        return await execute(self, *arguments, **options)

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", answer_late)
    listener = Listener(database)
    try:
        async with asyncio.timeout(20):
            await listener.connected.get()
    finally:
        await listener.stop()
    assert "LISTEN" in repr(unanswered)


async def test_a_fault_in_the_callback_ends_the_listener(database: Database) -> None:
    def broken(payload: str) -> None:
        raise KeyError(payload)

    connected = asyncio.Event()
    task = asyncio.create_task(database.listen("A channel", broken, connected.set))
    await connected.wait()
    await notify(database, "x")
    with pytest.raises(KeyError):
        await task


async def test_a_server_that_accepts_and_says_nothing_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(postgres_connection.CONNECTION, "connect_timeout", 2)  # the driver's least
    connected = asyncio.Event()
    release = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await release.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        database = Database(f"postgresql+psycopg://x@127.0.0.1:{port}/x", application_name="test")
        with pytest.raises(Unavailable) as caught:
            await scalar(database, "SELECT 1")
        assert caught.value.metadata["cause"] == "NO_ANSWER"
        assert connected.is_set()
        release.set()
        await database.dispose()


# --- migrations ---


def scripts(folder: Path, *statements: str) -> Path:
    (folder / "versions").mkdir(parents=True, exist_ok=True)
    (folder / "env.py").write_text(ENV)
    for number, statement in enumerate(statements, start=1):
        down = repr(str(number - 1)) if number > 1 else "None"
        (folder / "versions" / f"{number}.py").write_text(
            REVISION.format(number=number, down=down, statement=statement)
        )
    return folder


async def test_migrations_of_two_services_share_a_database(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    for schema in ("queue", "agents"):
        location = scripts(tmp_path / schema, f"CREATE TABLE {schema}.thing (n int)")
        migrate(database_url, location, schema)
        migrate(database_url, location, schema)  # again: nothing to do
    location = scripts(tmp_path / "queue", "CREATE TABLE queue.thing (n int)", "ALTER TABLE queue.thing ADD m int")
    migrate(database_url, location, "queue")
    assert await scalar(database, "SELECT count(m) FROM queue.thing") == 0
    assert await scalar(database, "SELECT version_num FROM queue.alembic_version") == "2"
    assert await scalar(database, "SELECT version_num FROM agents.alembic_version") == "1"


async def test_a_failed_migration_leaves_nothing(database: Database, database_url: str, tmp_path: Path) -> None:
    location = scripts(tmp_path, "CREATE TABLE queue.thing (n int)", "SELECT 1 / 0")
    with pytest.raises(Exception, match="division by zero"):
        migrate(database_url, location, "queue")
    assert await scalar(database, "SELECT to_regclass('queue.thing')") is None
    assert await scalar(database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'queue'") == 0


def test_migrations_that_race_run_once(database_url: str, tmp_path: Path) -> None:
    location = scripts(tmp_path, "CREATE TABLE queue.thing (n int)", "SELECT pg_sleep(0.2)")
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate, database_url, location, "queue") for _ in range(4)]:
            done.result(timeout=30)


def test_a_migration_without_a_database_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        migrate(f"postgresql+psycopg://nobody@/nothing?host={tmp_path}", scripts(tmp_path, "SELECT 1"), "queue")


async def test_what_older_code_cannot_bear_is_migrated_after_it(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    location = scripts(tmp_path, "CREATE TABLE queue.thing (old int, new int)", "ALTER TABLE queue.thing DROP old")
    versions = location / "versions"
    (versions / "1.py").rename(versions / "v0001_first.py")
    (versions / "2.py").rename(versions / "v0002_post_no_old.py")
    assert newest_revision("queue", location).number == "0001"
    for _ in range(2):
        migrate(database_url, location, "queue")
        assert await scalar(database, "SELECT count(old) FROM queue.thing") == 0
    for _ in range(2):
        migrate(database_url, location, "queue", post=True)
        assert await scalar(database, "SELECT version_num FROM queue.alembic_version") == "2"
    migrate(database_url, location, "queue")  # there is no way back, and nothing to do
    assert await scalar(database, "SELECT version_num FROM queue.alembic_version") == "2"
    # The next release begins with what the last one has left for later.
    scripts(tmp_path / "next", "CREATE TABLE agents.thing (old int)", "ALTER TABLE agents.thing DROP old", "SELECT 1")
    versions = tmp_path / "next" / "versions"
    (versions / "2.py").rename(versions / "v0002_post_no_old.py")
    migrate(database_url, tmp_path / "next", "agents")
    assert await scalar(database, "SELECT version_num FROM agents.alembic_version") == "3"


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_refused_in_words(
    postgres: Postgres, tmp_path: Path, encoding: str
) -> None:
    name = f"in_{encoding.lower()}"
    with postgres.connect("postgres") as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    try:
        with pytest.raises(FailedPrecondition, match=f"{name} is in {encoding}.*ENCODING 'UTF8'"):
            migrate(postgres.url(name), scripts(tmp_path, "CREATE TABLE queue.thing (n int)"), "queue")
    finally:
        postgres.drop_database(name)


async def test_a_release_that_is_rolled_back_leaves_a_newer_schema_alone(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    newer = scripts(tmp_path / "newer", "CREATE TABLE queue.thing (n int)", "ALTER TABLE queue.thing ADD m int")
    migrate(database_url, newer, "queue")
    older = scripts(tmp_path / "older", "CREATE TABLE queue.thing (n int)")
    for post in (False, True):
        migrate(database_url, older, "queue", post=post)
    assert await scalar(database, "SELECT version_num FROM queue.alembic_version") == "2"
    assert await scalar(database, "SELECT count(m) FROM queue.thing") == 0
