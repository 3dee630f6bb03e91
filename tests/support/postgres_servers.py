"""PostgreSQL servers of a test's own: to be stopped, killed, limited, filled up, and failed over to a standby."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sis.stack import postgres as embedded
from sis.stack import processes
from sis.stack.postgres import DATABASE, SETTINGS, USER, Postgres, runtime_directory
from tests.support.stopping import stop

WAIT_SECONDS = 30.0
# No test cuts the power.
SMALL: Mapping[str, str] = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "40", "wal_keep_size": "64MB"}
RESERVED = 3
"""Connections that PostgreSQL keeps for superusers, which the embedded user is."""


class Server:
    """One server, whose cluster is in `directory`. It ends with the block."""

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.sockets = runtime_directory()
        values = {**SETTINGS, **SMALL, **(settings or {})}
        self.postgres = Postgres(directory / "cluster", self.sockets, directory / "postgres.log", values)
        self.child: processes.Child | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def make(self) -> Self:
        """A new cluster with the database of the suite, started."""
        self.postgres.initialise()
        self.start()
        self.postgres.create_database()
        return self

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        self.stop()
        self.postgres.settle()
        self.child = processes.Child(self.postgres.command())
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        assert self.child is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.postgres.ready():
            words = processes.last_words(self.postgres.log)
            assert self.child.wait(0.02) is None and time.monotonic() < deadline, f"no PostgreSQL: {words}"

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT is a fast shutdown, SIGQUIT an immediate one, SIGKILL none at all."""
        if self.child is not None:
            self.child.signal(number)
            if self.child.wait(WAIT_SECONDS) is None:
                self.child.stop(0)
            self.child.close()
            self.child = None
            self.postgres.settle()

    def signal_all(self, number: int) -> None:
        """Send a signal to each of its processes: SIGSTOP makes it one that takes connections and says nothing."""
        survivors = self.postgres.survivors()
        if number == signal.SIGSTOP:
            stop(*(identity.pid for identity in survivors))
            return
        for identity in survivors:
            identity.signal(number)

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Do it as the administrator; its rows, if it has any."""
        with self.postgres.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def url(self) -> str:
        return self.postgres.url()


class Pair:
    """A primary and its streaming standby, which has everything that is acknowledged; the one URL of both."""

    def __init__(self, primary: Server, standby: Server) -> None:
        self.primary = primary
        self.standby = standby

    @property
    def url(self) -> str:
        """In the order in which they were made, so that a failover must be noticed."""
        hosts = "&".join(f"host={server.sockets}" for server in (self.primary, self.standby))
        return f"postgresql+psycopg://{USER}@/{DATABASE}?{hosts}&target_session_attrs=read-write"

    def promote(self) -> None:
        """Make the standby the primary; it waits for no other standby then."""
        self.standby.sql("ALTER SYSTEM RESET synchronous_standby_names")
        assert self.standby.sql("SELECT pg_promote(true, 30)") == [(True,)]


@contextmanager
def replicated(directory: Path) -> Iterator[Pair]:
    """A pair, in synchronous replication."""
    with Server(directory / "a") as primary, Server(directory / "b") as standby:
        primary.make()
        copy(primary, standby)
        standby.start()
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.sql("SELECT pg_reload_conf()")
        deadline = time.monotonic() + WAIT_SECONDS
        while primary.sql("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            assert time.monotonic() < deadline, "the standby does not follow"
            time.sleep(0.02)
        yield Pair(primary, standby)


def copy(primary: Server, standby: Server) -> None:
    """Make `standby` one of `primary`, by pg_basebackup."""
    cluster = standby.postgres.cluster
    shutil.rmtree(cluster, ignore_errors=True)
    cluster.mkdir(mode=0o700)
    standby.postgres._own(cluster)
    program = str(embedded._binaries() / "pg_basebackup")
    options = ["-h", str(primary.sockets), "-U", USER, "-D", str(cluster), "-R", "-X", "stream", "-c", "fast"]
    processes.run(
        standby.postgres._command("pg_basebackup", [program, *options, "--no-sync"], death_signal=signal.SIGKILL), 60
    )


@contextmanager
def held_connections(server: Server, count: int) -> Iterator[None]:
    """So many connections of somebody else."""
    with ExitStack() as held:
        for _ in range(count):
            held.enter_context(server.postgres.connect())
        yield
