"""The embedded server: its databases, kill -9, the death of its parent, a stale lock, and whom it runs as."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from sis.stack import accounts, processes
from sis.stack import postgres as embedded
from sis.stack.errors import StackError
from sis.stack.health import HEALTHY, Probe
from sis.stack.patience import Patience
from sis.stack.postgres import Postgres
from sis.stack.processes import Child

UNSYNCED = {**embedded.SETTINGS, "fsync": "off"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Postgres]:
    """A server that is not started."""
    sockets = embedded.runtime_directory()
    server = Postgres(tmp_path / "postgres", sockets, tmp_path / "postgres.log", UNSYNCED)
    server.initialise()
    yield server
    server.settle()
    shutil.rmtree(sockets)


def _started(server: Postgres) -> Child:
    server.settle()
    child = Child(server.command())
    deadline = time.monotonic() + 20
    while not server.ready():
        assert child.wait(0.02) is None, processes.last_words(server.log)
        assert time.monotonic() < deadline
    return child


def test_a_database_of_ones_own(database_url: str) -> None:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT current_database() LIKE 'test%'").fetchone() == (True,)
        assert connection.execute("SELECT lower('ÄÖ')").fetchone() == ("äö",)


def test_it_listens_on_no_port(postgres: Postgres) -> None:
    with postgres.connect("postgres") as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    assert postgres.sockets.stat().st_mode & 0o077 == 0


def test_committed_data_survives_kill_9_of_the_postmaster(server: Postgres) -> None:
    child = _started(server)
    with server.connect("postgres") as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
        child.signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
    child.close()
    child = _started(server)
    with server.connect("postgres") as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
    assert child.stop(10) == 0
    child.close()
    assert server.survivors() == []


def test_it_stops_with_clients_connected(server: Postgres) -> None:
    child = _started(server)
    with server.connect("postgres") as connection:
        assert child.stop(10) == 0
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    child.close()


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from sis.stack import postgres\n"
        "with postgres.running(Path(sys.argv[1]), {'fsync': 'off'}) as server:\n"
        "    print(server.sockets, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        sockets = Path(parent.stdout.readline().strip())
        server = Postgres(tmp_path / "postgres", sockets, tmp_path / "postgres.log")
        left = server.survivors()
        assert left
        parent.kill()
    assert processes.wait_gone(left, 10) == []
    assert "database system is shut down" in server.log.read_text()
    shutil.rmtree(sockets)


def test_a_server_that_lost_its_parent_is_ended_before_another_starts(server: Postgres) -> None:
    first = _started(server)
    second = _started(server)  # as the next `sis up` would, which knows the first only by its cluster
    assert first.wait(20) == 0
    assert second.stop(10) == 0
    first.close()
    second.close()


def test_a_lock_file_whose_pid_was_given_to_somebody_else_is_no_obstacle(server: Postgres) -> None:
    # PostgreSQL itself would refuse to start: the pid lives.
    lines = [str(os.getppid()), str(server.cluster), "0", "5432", str(server.sockets), ""]
    (server.cluster / "postmaster.pid").write_text("\n".join(lines))
    child = _started(server)
    assert child.stop(10) == 0
    child.close()


def test_what_an_interrupted_initdb_left_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "postgres.new" / "base").mkdir(parents=True)
    with embedded.running(tmp_path, {"fsync": "off"}) as server:
        assert server.ready()
    assert not (tmp_path / "postgres.new").exists()


def test_a_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StackError, match="was made by PostgreSQL 9"), embedded.running(tmp_path):
        pass


def test_to_end_what_is_left_takes_no_directory_for_sockets(server: Postgres) -> None:
    child = _started(server)
    replace(server, sockets=Path("/proc/no such/sockets")).settle()  # XDG_RUNTIME_DIR goes with the session
    assert child.wait(20) == 0
    child.close()


def test_a_directory_for_sockets_that_is_gone_is_made_for_the_next_start(server: Postgres) -> None:
    server.sockets.rmdir()
    server.prepare()
    assert stat.S_IMODE(server.sockets.stat().st_mode) == 0o700


def test_a_server_that_recovers_is_waited_for(server: Postgres) -> None:
    enough = server.cluster / "enough"
    (server.cluster / "recovery.signal").touch()
    fetch = f"until [ -e {enough} ]; do sleep 0.02; done; false"
    server = replace(server, settings={**server.settings, "restore_command": fetch})
    server.prepare()
    child = Child(server.command())
    probe, patience = Probe(b"", "", Path()), Patience(0.0)
    deadline = time.monotonic() + 20
    while not patience.recovers(health := probe.postgres(server.command().endpoint)):
        assert time.monotonic() < deadline, health
        time.sleep(0.02)
    enough.touch()
    while (health := probe.postgres(server.command().endpoint)) != HEALTHY:
        assert time.monotonic() < deadline, health
        time.sleep(0.02)
    assert not patience.recovers(health)
    assert child.stop(10) == 0
    child.close()


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(StackError, match=r"PostgreSQL does not start: see .*postgres\.log: .*shared_buffers"),
        embedded.running(tmp_path, {"fsync": "off", "shared_buffers": "lots"}),
    ):
        pass


@pytest.mark.root
def test_as_root_it_runs_in_a_user_namespace_and_its_files_stay_roots(server: Postgres) -> None:
    child = _started(server)
    assert child.command.account.startswith("namespace:")
    assert Path(f"/proc/{child.pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
    assert (server.cluster / "PG_VERSION").stat().st_uid == 0
    assert child.stop(10) == 0
    child.close()


@pytest.mark.root
def test_as_root_without_user_namespaces_it_runs_as_another_account(
    server: Postgres,
) -> None:
    # The cluster was made in a namespace, so this is a machine that has come to forbid them.
    other = accounts.other()
    server = replace(server, account=f"account:{other.pw_uid}:{other.pw_gid}")
    server.initialise()
    child = _started(server)
    assert Path(f"/proc/{child.pid}").stat().st_uid == other.pw_uid
    assert (server.cluster / "PG_VERSION").stat().st_uid == other.pw_uid
    assert child.stop(10) == 0
    child.close()
