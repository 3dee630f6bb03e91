"""The loop that keeps processes running, with small real ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sis.stack import processes
from sis.stack.errors import StackError
from sis.stack.processes import Command
from sis.stack.supervision import LONGEST_DELAY, Stopped, Supervision
from tests.support.stopping import stop


def _command(directory: Path, script: str, name: str = "it") -> Command:
    return Command(name, "agent", ("/bin/sh", "-c", script), directory, directory / f"{name}.log")


def _until(supervision: Supervision, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        supervision.step(0.05)


def test_what_is_killed_is_started_again(tmp_path: Path) -> None:
    notes: list[str] = []
    changes: list[int] = []
    with Supervision(notes.append) as supervision:
        supervision.on_change = lambda: changes.append(1)
        supervision.add(_command(tmp_path, "exec sleep 60"))
        part = supervision.parts["it"]
        first = part.last
        first.signal(signal.SIGKILL)
        _until(supervision, lambda: part.restarts == 1)
        second = part.last
        assert second != first
        assert second.alive
        assert len(changes) == 2
    assert processes.wait_gone([first, second], 0) == []
    assert notes[1] == "it was ended by SIGKILL; starting it again in 0.2 s"


def test_the_delay_grows_and_has_a_limit(tmp_path: Path) -> None:
    notes: list[str] = []
    with Supervision(notes.append) as supervision:
        supervision.add(_command(tmp_path, "echo no good >&2; exit 2"))
        part = supervision.parts["it"]
        for _ in range(6):
            part.due = 0.0  # as if the time had passed
            _until(supervision, lambda: part.child is not None)
            _until(supervision, lambda: part.child is None)
        assert part.delay == LONGEST_DELAY
    ends = [note for note in notes if "exit code" in note]
    assert ends[:3] == [
        f"it ended with exit code 2: no good; starting it again in {delay} s" for delay in (0.2, 0.4, 0.8)
    ]


def test_what_must_be_done_before_a_start_is_tried_again_when_it_fails(tmp_path: Path) -> None:
    failures = [StackError("the old one still runs")]

    def prepare() -> None:
        if failures:
            raise failures.pop()

    notes: list[str] = []
    with Supervision(notes.append) as supervision:
        supervision.add(_command(tmp_path, "exec sleep 60"), prepare)
        assert notes == ["it cannot be started: the old one still runs; trying again in 0.2 s"]
        _until(supervision, lambda: supervision.parts["it"].child is not None)


def test_a_signal_ends_the_wait_at_once(tmp_path: Path) -> None:
    with Supervision(lambda _: None) as supervision:
        supervision.add(_command(tmp_path, "sleep 0.2; kill -TERM $PPID; exec sleep 60"))
        started = time.monotonic()
        with pytest.raises(Stopped):
            supervision.step(60)
        assert time.monotonic() - started < 10


def test_a_signal_that_came_before_the_wait_is_not_lost(tmp_path: Path) -> None:
    with Supervision(lambda _: None) as supervision, pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGHUP)
        supervision.step(60)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_stopping_kills_what_does_not_stop_and_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    with Supervision(notes.append) as supervision:
        supervision.add(_command(tmp_path, "trap '' TERM; echo ready; while :; do sleep 1; done", "stubborn"))
        supervision.add(_command(tmp_path, "exec sleep 60", "willing"))
        _until(supervision, lambda: (tmp_path / "stubborn.log").read_text() == "ready\n")
        supervision.stop(["stubborn", "willing"], grace=0.3)
        assert supervision.parts == {}
    assert notes[2:] == ["stubborn did not stop within 0 s and was killed"]


def test_commands_that_end_run_side_by_side_while_others_are_kept(tmp_path: Path) -> None:
    with Supervision(lambda _: None) as supervision:
        supervision.add(_command(tmp_path, "exec sleep 60"))
        part = supervision.parts["it"]
        part.last.signal(signal.SIGKILL)
        meeting = f"touch {tmp_path}/$0; until [ -e {tmp_path}/a ] && [ -e {tmp_path}/b ]; do sleep 0.02; done"
        commands = [
            Command(name, "agent", ("/bin/sh", "-c", meeting, name), tmp_path, tmp_path / "log") for name in ("a", "b")
        ]
        supervision.finish(commands, 10)
        _until(supervision, lambda: part.restarts == 1)


def test_a_command_that_fails_leaves_the_others_their_time(tmp_path: Path) -> None:
    with Supervision(lambda _: None) as supervision:
        commands = [
            _command(tmp_path, "exit 4", "first"),
            _command(tmp_path, "sleep 0.5; echo done", "next"),
        ]
        with pytest.raises(StackError, match="first failed with exit code 4"):
            supervision.finish(commands, 10)
    assert (tmp_path / "next.log").read_text() == "done\n"


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with Supervision(lambda _: None) as supervision, pytest.raises(StackError, match="failed with exit code 4"):
        supervision.finish([_command(tmp_path, "exit 4")], 10)


def test_a_change_that_cannot_be_written_down_is_written_later(tmp_path: Path) -> None:
    refusals = [OSError(28, "No space left on device")]
    written: list[int] = []

    def write() -> None:
        if refusals:
            raise refusals.pop()
        written.append(1)

    notes: list[str] = []
    with Supervision(notes.append) as supervision:
        supervision.on_change = write
        supervision.add(_command(tmp_path, "exec sleep 60"))
        assert written == []
        _until(supervision, lambda: bool(written))
    assert notes[1] == "the change cannot be written down: [Errno 28] No space left on device"


def test_what_hangs_is_killed_started_again_and_counted(tmp_path: Path) -> None:
    notes: list[str] = []
    with Supervision(notes.append) as supervision:
        supervision.add(_command(tmp_path, "exec sleep 60"))
        part = supervision.parts["it"]
        first = part.last
        assert stop(first.pid)
        teller = threading.Thread(target=supervision.hangs, args=("it", first, 31.2))
        teller.start()
        started = time.monotonic()
        while part.restarts == 0:
            supervision.step(60)  # woken by the thread, by the death, and by the delay
        teller.join()
        assert time.monotonic() - started < 30
        assert (part.hangs, part.last.alive, first.alive) == (1, True, False)
        assert notes[1:3] == [
            "it has given no answer for 31 s: it hangs, and is killed",
            "it was ended by SIGKILL; starting it again in 0.2 s",
        ]


def test_a_hang_that_is_told_of_too_late_harms_nobody(tmp_path: Path) -> None:
    with Supervision(lambda _: None) as supervision:
        supervision.add(_command(tmp_path, "exec sleep 60"))
        part = supervision.parts["it"]
        first = part.last
        first.signal(signal.SIGKILL)
        _until(supervision, lambda: part.restarts == 1)
        second = part.last
        supervision.hangs("it", first, 31.2)
        supervision.hangs("nobody", first, 31.2)
        supervision.step(0)
        assert second.alive
        assert part.hangs == 0
