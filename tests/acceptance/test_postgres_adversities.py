"""The whole suite with a PostgreSQL in trouble: each process lives on, says what it waits for, goes on by itself, and
nothing that was acknowledged is lost or done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from sis.client import ApiError
from sis.queue.v1 import job_pb2
from tests.support import promises
from tests.support.numbered_job import NumberedJob, shell_job, until
from tests.support.own_suite import MODULES, OwnSuite
from tests.support.postgres_servers import Server
from tests.support.stack import Stack

WAITS = "waits for PostgreSQL: "
AWAY = f"{WAITS}nothing listens at its address"
THROUGH_THE_QUEUE = "waits for the queue: it waits for PostgreSQL: nothing listens at its address"
DISK_BYTES = 160 << 20
LITTLE_WAL = {"wal_keep_size": "0", "min_wal_size": "32MB", "max_wal_size": "48MB"}


@pytest.mark.long
@pytest.mark.timeout(240)
def test_everybody_waits_from_the_start_and_says_for_what(stack: Stack, tmp_path: Path) -> None:
    """Processes that are started before PostgreSQL, and before its schema is there, are not started again."""
    with (
        Server(tmp_path / "postgres") as server,
        OwnSuite(stack, tmp_path / "suite", server.url) as suite,
    ):
        suite.start_servers()
        for name in ("credentials", "queue"):
            suite.wait_health(name, AWAY)
        until(lambda: THROUGH_THE_QUEUE in suite.health("hub"), "the hub to say that it waits for the queue")
        with suite.client() as client, pytest.raises(ApiError) as caught:
            client.jobs.create(shell_job("true"))
        assert caught.value.message == "waiting for PostgreSQL: nothing listens at its address; try again"
        assert caught.value.metadata == {"dependency": "postgresql", "cause": "CONNECTION_REFUSED"}
        server.make()
        for name in ("credentials", "queue"):
            suite.wait_health(name, f"{WAITS}its schema is older than this service; run the service's migrate command")
        suite.migrate()
        suite.wait_healthy()
        suite.check_processes()
        for name in MODULES:
            _check_log(suite, name)


def _check_log(suite: OwnSuite, name: str) -> None:
    """Whatever was waited for was told once by each part that waited, not once a second."""
    lines = suite.log(name).splitlines(keepends=True)
    told = [json.loads(line)["message"] for line in lines if line.endswith("}\n")]  # the last may be half written
    for line in set(told) - {"call"}:  # a line for each call of a person
        assert told.count(line) <= 2, f"{name} has said {told.count(line)} times: {line}"


@pytest.mark.long
@pytest.mark.timeout(240)
def test_migrate_waits_for_postgresql(stack: Stack, tmp_path: Path) -> None:
    with Server(tmp_path / "postgres") as server, OwnSuite(stack, tmp_path / "suite", server.url) as suite:
        migration = suite.spawn("queue", "migrate")
        until(lambda: "schema queue is not migrated yet" in suite.log("queue-migrate"), "migrate to say so")
        server.make()
        assert migration.wait(60) == 0, suite.logs()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("postgres")) as server:
        server.make()
        server.sql("CREATE ROLE service LOGIN")
        server.sql("ALTER DATABASE sis OWNER TO service")
        yield server


@pytest.fixture(scope="module")
def suite(stack: Stack, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnSuite]:
    url = server.url.replace("://sis@", "://service@")
    with OwnSuite(stack, tmp_path_factory.mktemp("adverse") / "suite", url) as suite:
        yield suite.start()


@contextmanager
def going_on(suite: OwnSuite, server: Server, directory: Path) -> Iterator[NumberedJob]:
    """A job that prints all the while, and is whole in the end; then every promise is kept."""
    with NumberedJob(suite.client, directory, site=f"group:{suite.group}") as job:
        job.wait_lines()
        yield job
        job.wait_lines()
        suite.wait_healthy()
        job.check()
    suite.check_processes()
    with psycopg.connect(host=str(server.sockets), user="sis", dbname="sis") as connection:
        promises.check(promises.read(connection))


@pytest.mark.long
@pytest.mark.timeout(240)
def test_no_more_connections(suite: OwnSuite, server: Server, tmp_path: Path) -> None:
    with going_on(suite, server, tmp_path):
        server.sql("ALTER ROLE service CONNECTION LIMIT 0")
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'")
        suite.wait_health("queue", f"{WAITS}it takes no more connections")
        until(lambda: "takes no more connections" in suite.health("hub"), "the hub to say so")
        server.sql("ALTER ROLE service CONNECTION LIMIT -1")


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_restarts(suite: OwnSuite, server: Server, tmp_path: Path, number: int) -> None:
    with going_on(suite, server, tmp_path):
        server.stop(number)
        suite.wait_health("queue", AWAY)
        suite.wait_health("credentials", AWAY)
        server.start()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_server_that_hangs(suite: OwnSuite, server: Server, tmp_path: Path) -> None:
    """Longer than any statement may take, and shorter than anybody counts as lost."""
    with going_on(suite, server, tmp_path):
        server.signal_all(signal.SIGSTOP)
        try:
            suite.wait_health("queue", f"{WAITS}it does not answer")
            until(lambda: suite.health("hub") != "healthy", "the hub to say so")
        finally:
            server.signal_all(signal.SIGCONT)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_terminated_connections(suite: OwnSuite, server: Server, tmp_path: Path) -> None:
    with going_on(suite, server, tmp_path) as job:
        for _ in range(20):
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'")
            job.wait_lines(2)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_reader_that_pins_the_oldest_snapshot(suite: OwnSuite, server: Server, tmp_path: Path) -> None:
    with going_on(suite, server, tmp_path), suite.client() as client:
        with psycopg.connect(host=str(server.sockets), user="sis", dbname="sis") as reader:
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            before = reader.execute("SELECT count(*) FROM queue.jobs").fetchone()
            made = [client.jobs.create(shell_job("true", site=f"group:{suite.group}")).job_id for _ in range(50)]
            until(lambda: all(client.jobs.get(n).attempt for n in made), "all to be claimed")
            assert reader.execute("SELECT count(*) FROM queue.jobs").fetchone() == before
        until(lambda: all(client.jobs.get(n).status == job_pb2.JOB_STATUS_SUCCEEDED for n in made), "all to succeed")
        assert {client.jobs.get(n).log.verdict for n in made} == {job_pb2.LOG_VERDICT_COMPLETE}


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["tables", "wal"])
def test_a_full_disk(stack: Stack, tmp_path: Path, what: str) -> None:
    """Of the tables, or of the WAL: then PostgreSQL dies, and cannot start before there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0777", "sis-test", str(disk)], check=True)
    try:
        with _on_disk(tmp_path, disk, what) as server, OwnSuite(stack, tmp_path / "suite", server.url) as suite:
            suite.start()
            ballast = disk / "ballast"
            with going_on(suite, server, tmp_path) as job:
                _fill(ballast)
                if what == "wal":
                    # Its segment is full soon, and there is no room for another.
                    until(lambda: _switch(server), "PostgreSQL to die", seconds=90)
                    suite.wait_health("queue", AWAY)
                    ballast.unlink()
                    server.start()
                else:
                    filler = _filler(server)
                    until(lambda: "its disk is full" in suite.health("queue"), "the queue to say so", seconds=90)
                    before = job.lines()
                    ballast.unlink()
                    server.sql(f"DROP TABLE IF EXISTS {filler}", "sis")
                    until(lambda: job.lines() > before, "the job to go on")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def _on_disk(directory: Path, disk: Path, what: str) -> Iterator[Server]:
    if what == "tables":
        with Server(disk / "postgres", LITTLE_WAL) as server:
            yield server.make()
        return
    with Server(directory / "postgres", LITTLE_WAL) as server:
        server.make()
        server.stop()
        wal = server.postgres.cluster / "pg_wal"
        wal.rename(disk / "pg_wal") if os.stat(wal).st_dev == os.stat(disk).st_dev else _move(wal, disk / "pg_wal")
        wal.symlink_to(disk / "pg_wal")
        server.postgres._own(disk / "pg_wal")
        server.start()
        yield server


def _move(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    subprocess.run(["rm", "-r", str(source)], check=True)


def _fill(ballast: Path) -> None:
    """Leave no room."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def _switch(server: Server) -> bool:
    """Use up a segment of the WAL; whether the server is dead."""
    try:
        server.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 4000000))", "sis")
        server.sql("SELECT pg_switch_wal()")
    except psycopg.Error:
        pass
    assert server.child is not None
    return server.child.exit_code is not None


def _filler(server: Server) -> str:
    """A table that has what the ballast left."""
    with suppress(psycopg.errors.DiskFull):
        server.sql("CREATE TABLE filler AS SELECT repeat('x', 4000) FROM generate_series(1, 100000)", "sis")
    return "filler"
