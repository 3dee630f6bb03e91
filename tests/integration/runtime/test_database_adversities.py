"""PostgreSQL in trouble: each cause is told by its name, nothing is acknowledged that is not safe, and all is well by
itself as soon as it is over."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from services.runtime import database as runtime_database
from services.runtime import postgres_connection
from services.runtime.database import Database
from services.runtime.dependencies import Trouble
from services.runtime.errors import Unavailable
from services.runtime.migrations import migrate
from services.runtime.postgres_connection import Connection
from services.runtime.postgres_failures import WORDS, Cause, trouble
from services.runtime.schema import Revision
from tests.integration.runtime.test_database import Listener, notify, scalar, scripts
from tests.support.postgres_servers import RESERVED, Pair, Server, held_connections, replicated

PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of this module may do anything to, if they put it right again."""
    with Server(tmp_path_factory.mktemp("adversities"), {"max_connections": "8"}) as server:
        server.make()
        server.sql("CREATE ROLE service LOGIN")
        server.sql("GRANT CREATE, USAGE ON SCHEMA public TO service", "sis")
        server.sql("CREATE TABLE thing (n int)", "sis")
        server.sql("GRANT ALL ON thing TO service", "sis")
        yield server


@asynccontextmanager
async def pool(url: str, **options: object) -> AsyncIterator[Database]:
    database = Database(url, application_name="test", **options)  # type: ignore[arg-type]
    try:
        yield database
    finally:
        await database.dispose()


def as_service(server: Server) -> str:
    return server.url.replace("://sis@", "://service@")


async def cause(database: Database, statement: str = "SELECT 1") -> str:
    with pytest.raises(Unavailable) as caught:
        await scalar(database, statement)
    assert caught.value.metadata["dependency"] == "postgresql"
    return caught.value.metadata["cause"]


async def until_well(database: Database) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await database.trouble() is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await scalar(database, "SELECT 1") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
async def test_a_restart(server: Server, number: int) -> None:
    async with pool(server.url) as database:
        assert await scalar(database, "SELECT 1") == 1
        server.stop(number)
        assert await cause(database) in (Cause.CONNECTION_REFUSED, Cause.CONNECTION_LOST)
        assert await database.trouble() == trouble(Cause.CONNECTION_REFUSED)
        server.start()
        await until_well(database)


async def test_one_line_for_each_change(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="database")
    async with pool(server.url) as database:
        server.stop()
        for _ in range(5):
            await cause(database)
        server.start()
        await until_well(database)
        await until_well(database)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "waiting for PostgreSQL: nothing listens at its address; try again",
        "PostgreSQL serves again",
    ]


async def test_the_limit_of_the_server(server: Server) -> None:
    async with pool(as_service(server)) as database:
        free = 8 - RESERVED
        with held_connections(server, free):
            assert await cause(database) == Cause.CONNECTION_LIMIT
            found = await database.trouble()
            assert found == trouble(Cause.CONNECTION_LIMIT)
            assert found is not None
            assert not found.stops
        await scalar(database, "SELECT 1")


async def test_the_limit_of_the_account(server: Server) -> None:
    server.sql("ALTER ROLE service CONNECTION LIMIT 1")
    try:
        async with pool(as_service(server)) as database, database.begin():
            assert await cause(database) == Cause.CONNECTION_LIMIT
    finally:
        server.sql("ALTER ROLE service CONNECTION LIMIT -1")


async def test_an_account_that_may_not_log_in_and_one_that_is_not_there(server: Server) -> None:
    server.sql("ALTER ROLE service NOLOGIN")
    try:
        async with pool(as_service(server)) as database:
            assert await cause(database) == Cause.LOGIN_REFUSED
    finally:
        server.sql("ALTER ROLE service LOGIN")
    async with pool(server.url.replace("://sis@", "://nobody@")) as database:
        assert await cause(database) == Cause.LOGIN_REFUSED
    async with pool(server.url.replace("/sis?", "/nothing?")) as database:
        assert await cause(database) == Cause.NO_DATABASE
    async with pool(as_service(server)) as database:
        server.sql("CREATE TABLE IF NOT EXISTS secret (n int)", "sis")
        assert await cause(database, "SELECT count(*) FROM secret") == Cause.PERMISSION_DENIED


async def test_a_server_that_says_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and statements, and answers neither: a machine whose disk hangs."""
    async with pool(server.url) as database:
        assert await scalar(database, "SELECT 1") == 1
        monkeypatch.setattr("services.runtime.postgres_connection.ANSWER_SECONDS", 0.3)
        server.signal_all(signal.SIGSTOP)
        try:
            assert await cause(database) == Cause.NO_ANSWER
            assert await database.trouble() == trouble(Cause.NO_ANSWER)
        finally:
            server.signal_all(signal.SIGCONT)
        monkeypatch.undo()
        await until_well(database)


async def test_a_server_that_vanished_under_load_is_not_called_busy(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits for it has all connections in hand: that is no news."""
    caplog.set_level(logging.INFO, logger="database")
    monkeypatch.setattr(runtime_database, "_POOL_SECONDS", 0.1)
    monkeypatch.setattr(runtime_database, "_LOOK_SECONDS", 0.1)
    async with pool(server.url, pool_size=1) as database:
        assert await scalar(database, "SELECT 1") == 1
        monkeypatch.setattr("services.runtime.postgres_connection.ANSWER_SECONDS", 0.3)
        server.signal_all(signal.SIGSTOP)
        try:
            assert await cause(database) == Cause.NO_ANSWER
            connecting = asyncio.create_task(cause(database))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while database._engine.pool.checkedout() == 0:  # type: ignore[attr-defined]  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert await cause(database) == Cause.BUSY
            assert await database.trouble() == trouble(Cause.NO_ANSWER)
            assert await connecting == Cause.NO_ANSWER
        finally:
            server.signal_all(signal.SIGCONT)
        monkeypatch.undo()
        await until_well(database)
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for PostgreSQL: it does not answer; try again",
        "PostgreSQL serves again",
    ]


async def test_a_pool_in_use_is_busy_where_nothing_else_is_known(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_database, "_LOOK_SECONDS", 0.1)
    async with pool(server.url, pool_size=1) as database, database.begin():
        assert await database.trouble() == trouble(Cause.BUSY)


@pytest.mark.parametrize(
    ("cause_of_it", "statement"),
    [
        (Cause.PERMISSION_DENIED, "SELECT count(*) FROM guarded"),
        (Cause.STORAGE_FAILED, "DO $$ BEGIN RAISE EXCEPTION 'cannot read' USING ERRCODE = '58030'; END $$"),
    ],
)
async def test_what_befalls_some_transactions_only_is_told_for_a_while(
    server: Server, caplog: pytest.LogCaptureFixture, cause_of_it: Cause, statement: str
) -> None:
    """A look that succeeds between them proves nothing."""
    caplog.set_level(logging.INFO, logger="database")
    server.sql("CREATE TABLE IF NOT EXISTS guarded (n int)", "sis")
    async with pool(as_service(server)) as database:
        for _ in range(3):
            assert await cause(database, statement) == cause_of_it
            assert await database.trouble() == Trouble(cause_of_it, WORDS[cause_of_it], stops=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for PostgreSQL: {WORDS[cause_of_it]}; try again"
    ]


async def test_a_look_that_is_denied_stops_everything(server: Server) -> None:
    server.sql("CREATE SCHEMA denied", "sis")
    async with pool(as_service(server), revision=Revision("denied", "1")) as database:
        assert await database.trouble() == trouble(Cause.PERMISSION_DENIED)
        assert trouble(Cause.PERMISSION_DENIED).stops


async def test_a_look_that_meets_damaged_data_says_so_and_one_that_meets_a_fault_fails(server: Server) -> None:
    """Neither has anything to do with what the user is permitted."""
    for schema, state in (("damaged", "XX001"), ("faulty", "22012")):
        server.sql(f"CREATE SCHEMA {schema} AUTHORIZATION service", "sis")
        body = f"BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = '{state}'; END"
        server.sql(f"CREATE FUNCTION {schema}.fail() RETURNS text LANGUAGE plpgsql AS $${body}$$", "sis")
        server.sql(f"CREATE VIEW {schema}.alembic_version AS SELECT {schema}.fail() AS version_num", "sis")
        server.sql(f"GRANT SELECT ON {schema}.alembic_version TO service", "sis")
    async with pool(as_service(server), revision=Revision("damaged", "1")) as database:
        assert await database.trouble() == trouble(Cause.STORAGE_FAILED)
    async with pool(as_service(server), revision=Revision("faulty", "1")) as database:
        with pytest.raises(DBAPIError):
            await database.trouble()


async def test_connections_terminated_all_the_time(server: Server) -> None:
    """Each transaction is there as a whole, or not at all, and nothing but the cause of a lost one is told."""
    server.sql("TRUNCATE thing", "sis")
    acknowledged: list[int] = []
    unknown: list[int] = []
    over = asyncio.Event()

    async def insert(database: Database, worker: int) -> None:
        for number in range(worker, worker + 1_000):
            if over.is_set():
                return
            try:
                async with database.begin() as connection:
                    await connection.execute(text("INSERT INTO thing VALUES (:n)"), {"n": number})
                    await connection.execute(text("INSERT INTO thing VALUES (:n)"), {"n": -number})
            except Unavailable as error:
                assert error.metadata["dependency"] == "postgresql"
                unknown.append(number)
            else:
                acknowledged.append(number)

    async with pool(server.url, pool_size=3) as database:
        workers = [asyncio.create_task(insert(database, n * 1_000 + 1)) for n in range(3)]
        for _ in range(15):
            await asyncio.to_thread(
                server.sql, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test'"
            )
            target = len(acknowledged) + 3
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(acknowledged) < target:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        over.set()
        await asyncio.gather(*workers)
        await until_well(database)
    there = {row[0] for row in server.sql("SELECT n FROM thing", "sis")}
    assert set(acknowledged) <= there <= {n for k in acknowledged + unknown for n in (k, -k)}
    assert all(-n in there for n in there)


async def test_a_copy_that_fails_tells_its_cause(server: Server) -> None:
    async def copy(connection: object, then: str) -> None:
        driver = (await connection.get_raw_connection()).driver_connection  # type: ignore[attr-defined]
        assert isinstance(driver, Connection)
        async with driver.cursor() as cursor, cursor.copy("COPY thing FROM STDIN") as rows:
            await rows.write_row((1,))
            if then:
                server.sql(f"SELECT pg_terminate_backend({driver.info.backend_pid})")
                await rows.write_row((2,))

    async with pool(server.url) as database:
        with pytest.raises(Unavailable) as caught:
            async with database.begin() as connection:
                await copy(connection, "terminate")
        assert caught.value.metadata["cause"] == Cause.CONNECTION_LOST
        async with database.begin() as connection:
            await copy(connection, "")


# --- the schema ---


async def test_a_schema_that_is_too_old_is_waited_for(server: Server, tmp_path: Path) -> None:
    async with pool(server.url, revision=Revision("waited", "2")) as database:
        assert await database.trouble() == trouble(Cause.SCHEMA_TOO_OLD)
        assert await cause(database, "SELECT m FROM waited.thing") == Cause.SCHEMA_TOO_OLD
        first = "CREATE TABLE waited.thing (n int)"
        migrate(server.url, scripts(tmp_path / "1", first), "waited")
        assert await database.trouble() == trouble(Cause.SCHEMA_TOO_OLD)
        assert await cause(database, "SELECT m FROM waited.thing") == Cause.SCHEMA_TOO_OLD
        newer = "ALTER TABLE waited.thing ADD m int"
        migrate(server.url, scripts(tmp_path / "2", first, newer), "waited")
        assert await database.trouble() is None
        assert await scalar(database, "SELECT count(m) FROM waited.thing") == 0
        migrate(server.url, scripts(tmp_path / "3", first, newer, "SELECT 1"), "waited")
        assert await database.trouble() is None, "older code runs on a newer schema"


async def test_a_statement_that_was_too_early_for_the_migration_is_no_fault(server: Server, tmp_path: Path) -> None:
    """Here it is over just between the statement and the question why it has failed."""
    location = scripts(tmp_path, "CREATE TABLE raced.thing (n int)")
    async with pool(server.url, revision=Revision("raced", "1")) as database:
        with pytest.raises(Unavailable) as caught:
            async with database.begin() as connection:
                try:
                    await connection.execute(text("SELECT n FROM raced.thing"))
                finally:
                    await asyncio.to_thread(migrate, server.url, location, "raced")
        assert caught.value.metadata["cause"] == Cause.SCHEMA_TOO_OLD
        assert await scalar(database, "SELECT count(*) FROM raced.thing") == 0
        with pytest.raises(ProgrammingError):
            await scalar(database, "SELECT nothing FROM raced.thing")


# --- several hosts ---


async def test_a_look_reaches_the_second_host_when_the_first_has_vanished(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: a look that was cut short would begin with the first one again."""
    monkeypatch.setitem(postgres_connection.CONNECTION, "connect_timeout", 2)  # the driver's least
    monkeypatch.setattr(runtime_database, "_LOOK_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"host=127.0.0.1:{silent.getsockname()[1]}&host={server.sockets}"
        async with pool(f"postgresql+psycopg://sis@/sis?{hosts}") as database:
            assert await database.trouble() is None


async def test_looks_give_up_connections_to_a_server_that_takes_no_more_writes(server: Server) -> None:
    """Nobody writes, and all the same none of them stays in the pool: the primary may be elsewhere by now."""

    async def connections() -> int:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test'"
        ((count,),) = await asyncio.to_thread(server.sql, statement)
        return int(count)

    async with pool(server.url) as database:
        async with database.begin(), database.begin():
            pass  # two connections are in the pool
        server.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        server.sql("SELECT pg_reload_conf()")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await connections() > 0:
                    assert await database.trouble() in (None, trouble(Cause.READ_ONLY))
            assert await database.trouble() == trouble(Cause.READ_ONLY)
        finally:
            server.sql("ALTER SYSTEM RESET default_transaction_read_only")
            server.sql("SELECT pg_reload_conf()")
        await until_well(database)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with replicated(tmp_path_factory.mktemp("pair")) as pair:
        pair.primary.sql("CREATE TABLE thing (n int PRIMARY KEY)", "sis")
        yield pair


async def test_a_commit_is_not_cancelled_while_it_waits_for_the_standby(pair: Pair) -> None:
    """PostgreSQL would show it to everybody then, with the standby knowing nothing of it."""
    async with pool(pair.url) as database:
        assert await scalar(database, "SELECT count(*) FROM thing") == 0
        pair.standby.signal_all(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), database.begin() as connection:
                    await connection.execute(text("INSERT INTO thing VALUES (1)"))
            assert await scalar(database, "SELECT count(*) FROM thing") == 0
        finally:
            pair.standby.signal_all(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await scalar(database, "SELECT count(*) FROM thing") != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_standby_is_not_taken_for_the_primary(pair: Pair) -> None:
    async with pool(f"postgresql+psycopg://sis@/sis?host={pair.standby.sockets}") as database:
        assert await cause(database) == Cause.READ_ONLY
        assert await database.trouble() == trouble(Cause.READ_ONLY)
    backwards = f"postgresql+psycopg://sis@/sis?host={pair.standby.sockets}&host={pair.primary.sockets}"
    async with pool(backwards) as database:
        assert await scalar(database, "SELECT pg_is_in_recovery()") is False


async def test_pool_listener_and_migrations_leave_a_server_that_was_demoted(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of the tests with this pair: it goes on running, and takes no more writes."""
    monkeypatch.setattr(runtime_database, "_LISTEN_TRIAL_SECONDS", 0.2)
    async with pool(pair.url) as database, pool(pair.url) as idle:
        listener = Listener(database)
        try:
            await listener.connected.get()
            for each in (database, idle):
                async with each.begin(), each.begin():
                    pass  # two connections are in the pool
            pair.primary.sql("ALTER SYSTEM SET default_transaction_read_only = on")
            pair.primary.sql("SELECT pg_reload_conf()")
            pair.promote()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    try:
                        await scalar(database, "INSERT INTO thing VALUES (2) RETURNING n")
                    except Unavailable as error:
                        assert error.metadata["cause"] == Cause.READ_ONLY
                    else:
                        break
            await until_well(idle)
            await scalar(idle, "INSERT INTO thing VALUES (3) RETURNING n")
            await listener.connected.get()
            await notify(database, "from the new primary")
            assert await listener.payloads.get() == "from the new primary"
        finally:
            await listener.stop()
    migrate(pair.url, scripts(tmp_path, "CREATE TABLE moved.thing (n int)"), "moved")
    with psycopg.connect(host=str(pair.standby.sockets), user="sis", dbname="sis") as connection:
        assert connection.execute("SELECT count(*) FROM moved.thing").fetchone() == (0,)
