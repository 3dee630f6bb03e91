"""Debian's PgBouncer in transaction mode before a PostgreSQL of a test's own."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from sis.stack import accounts, processes
from sis.stack.postgres import DATABASE, USER, runtime_directory
from sis.stack.processes import Child, Command
from tests.support.postgres_servers import Server

PORT = 6432
WAIT_SECONDS = 20.0


class PgBouncer:
    """It listens on a socket of its own, and ends with the block. `settings` go to its section [pgbouncer]."""

    def __init__(self, directory: Path, server: Server, settings: Mapping[str, str] | None = None) -> None:
        self.sockets = runtime_directory()
        self._directory = directory
        self._server = server
        self._settings = dict(settings or {})
        self._account = accounts.for_postgres()
        self._child: Child | None = None
        directory.mkdir(parents=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.sockets, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}@/{DATABASE}?host={self.sockets}&port={PORT}"

    def start(self) -> None:
        """Start it with the settings, and wait until it answers."""
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "there is no pgbouncer: apt-get install pgbouncer"
        settings = {
            "pool_mode": "transaction",
            "listen_port": str(PORT),
            "unix_socket_dir": str(self.sockets),
            "auth_type": "trust",
            "auth_file": str(self.sockets / "users"),
            "admin_users": USER,
            **self._settings,
        }
        (self.sockets / "users").write_text(f'"{USER}" ""\n')
        configuration = self.sockets / "pgbouncer.ini"
        lines = ["[databases]", f"{DATABASE} = host={self._server.sockets} dbname={DATABASE}", "[pgbouncer]"]
        configuration.write_text("\n".join([*lines, *(f"{k} = {v}" for k, v in settings.items()), ""]))
        kind, *ids = self._account.split(":")
        if kind == "account":
            for path in (self.sockets, *self.sockets.iterdir()):
                os.chown(path, int(ids[0]), int(ids[1]))
        self._child = Child(
            Command(
                name="pgbouncer",
                kind="postgres",
                arguments=(program, str(configuration)),
                directory=self.sockets,
                log=self._directory / "pgbouncer.log",
                environment={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                death_signal=signal.SIGKILL,
                stop_signal=signal.SIGINT,
                account=self._account,
                endpoint="",
            )
        )
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._answers():
            words = processes.last_words(self._child.command.log)
            assert self._child.wait(0.02) is None and time.monotonic() < deadline, f"no PgBouncer: {words}"

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it at once, with every connection over it."""
        if self._child is not None:
            self._child.signal(number)
            assert self._child.wait(WAIT_SECONDS) is not None
            self._child.close()
            self._child = None
            for left in self.sockets.glob(".s.PGSQL.*"):
                left.unlink()

    def restart(self, **settings: str) -> None:
        """Stop it, and start it with these settings besides."""
        self.stop()
        self._settings |= settings
        self.start()

    def tell(self, command: str) -> list[tuple[Any, ...]]:
        """A command of its own, such as SHOW POOLS."""
        with psycopg.connect(
            host=str(self.sockets), port=PORT, user=USER, dbname="pgbouncer", autocommit=True, connect_timeout=3
        ) as connection:
            cursor = psycopg.ClientCursor(connection).execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        try:
            self.tell("SHOW VERSION")
        except psycopg.Error:
            return False
        return True
