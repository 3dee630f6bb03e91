"""Processes and their identities, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.stack import processes
from sis.stack.errors import StackError
from sis.stack.processes import Child, Command, Identity


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


def _command(directory: Path, script: str, **changes: object) -> Command:
    arguments = ("/bin/sh", "-c", script)
    log = directory / "log"
    return Command("it", "agent", arguments, directory, log, **changes)  # type: ignore[arg-type]


def test_a_pid_that_was_given_to_somebody_else_is_never_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    former = Identity(identity.pid, identity.start_ticks - 1)
    assert not former.alive
    assert not former.signal(signal.SIGKILL)
    assert sleeper.poll() is None
    assert identity.alive
    assert identity.signal(signal.SIGTERM)


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    sleeper.send_signal(signal.SIGKILL)
    assert processes.wait_gone([identity], 20) == []
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert processes.identify(sleeper.pid) is None


def test_a_name_with_spaces_and_parentheses_is_no_obstacle(tmp_path: Path) -> None:
    program = tmp_path / "a ) 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{process.pid}/comm").read_text() != "a ) 1 (b\n":
            assert time.monotonic() < deadline
        assert processes.identify(process.pid) is not None
        process.kill()


def test_waiting_is_bounded_and_names_who_is_left(sleeper: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    started = time.monotonic()
    assert processes.wait_gone([identity], 0.1) == [identity]
    assert time.monotonic() - started < 2


def test_a_child_has_a_session_of_its_own_and_only_what_it_was_given(tmp_path: Path) -> None:
    child = Child(_command(tmp_path, "env; ls /proc/self/fd; exec sleep 60", environment={"A": "b"}))
    assert os.getsid(child.pid) == child.pid
    deadline = time.monotonic() + 20
    while (lines := child.command.log.read_text().split())[-1:] != ["3"]:
        assert time.monotonic() < deadline
    assert lines[-4:] == ["0", "1", "2", "3"]  # the standard descriptors and ls's own
    assert "A=b" in lines
    assert not [line for line in lines if line.startswith("HOME=")]
    assert child.command.log.stat().st_mode & 0o777 == 0o600
    assert child.stop(5) == -signal.SIGTERM
    child.close()


def test_a_child_reads_what_it_was_given_and_nothing_else_shows_it(tmp_path: Path) -> None:
    command = _command(tmp_path, "cat; echo the end", input=b"hush\n" * 50_000)
    assert "hush" not in repr(command)
    processes.run(command, 10)
    assert command.log.read_bytes() == command.input + b"the end\n"


def test_a_child_that_ignores_the_stop_is_killed(tmp_path: Path) -> None:
    child = Child(_command(tmp_path, "trap '' TERM; echo ready; while :; do sleep 1; done"))
    deadline = time.monotonic() + 20
    while not child.command.log.read_text():
        assert time.monotonic() < deadline
    assert child.stop(0.1) == -signal.SIGKILL
    child.close()


def test_a_child_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from sis.stack.processes import Child, Command\n"
        "here = Path(sys.argv[1])\n"
        "child = Child(Command('it', 'agent', ('/bin/sleep', '60'), here, here / 'log'))\n"
        "print(child.pid, child.identity.start_ticks, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, ticks = parent.stdout.readline().split()
        parent.kill()
    assert processes.wait_gone([Identity(int(pid), int(ticks))], 20) == []


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"it failed with exit code 3; see .*log: no such thing"):
        processes.run(_command(tmp_path, "echo first; echo no such thing >&2; exit 3"), 10)


def test_a_program_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="it did not end within 0 s"):
        processes.run(_command(tmp_path, "exec sleep 60"), 0.3)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = Command("it", "agent", (str(tmp_path / "absent"),), tmp_path, tmp_path / "log")
    with pytest.raises(StackError, match=r"exit code 127; .*cannot run .*absent: "):
        processes.run(absent, 10)


def test_a_log_that_has_grown_too_long_is_put_aside_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with processes.open_log(log) as writer:
        writer.truncate(processes.LOG_LIMIT)
        processes.rotate(log)
        assert log.stat().st_size == processes.LOG_LIMIT
        writer.write(b"the last line\n")
        writer.flush()
        processes.rotate(log)
        writer.write(b"and on\n")
    assert log.read_bytes() == b"and on\n"
    assert (tmp_path / "log.1").read_bytes().endswith(b"the last line\n")
    assert (tmp_path / "log.1").stat().st_mode & 0o777 == 0o600
