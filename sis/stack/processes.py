"""Processes of the stack: who one is, starting one, signalling it, and ending it.

A process is known by its pid *and* its start time: a pid alone may have been given to somebody else.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from sis.stack import launch
from sis.stack.errors import StackError

Kind = Literal["postgres", "vault", "credentials", "queue", "hub", "gateway", "agent"]

LOG_LIMIT = 16 * 1024 * 1024
"""Bytes of a log file; a longer one becomes NAME.1, which replaces the one before."""

_LAUNCHER = (sys.executable, "-I", "-S", launch.__file__)


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for as long as this boot of the machine lasts."""

    pid: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """Whether the process runs; one that is dead and not yet reaped does not."""
        return start_ticks(self.pid) == self.start_ticks

    def signal(self, number: int) -> bool:
        """Send it a signal, never to a process that got its pid later. False: it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The descriptor holds on to whoever has the pid now; then the start time says who that is.
            if not self.alive:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


def boot_id() -> str:
    """Which boot of the machine this is: pids and start times mean nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks after the boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold spaces and parentheses
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def identify(pid: int) -> Identity | None:
    """The process that has this pid now, if any."""
    ticks = start_ticks(pid)
    return None if ticks is None else Identity(pid, ticks)


def wait_gone(identities: Iterable[Identity], timeout: float) -> list[Identity]:
    """Wait until all are gone, at most `timeout` seconds; returns those that are left."""
    left = [identity for identity in identities if identity.alive]
    deadline = time.monotonic() + timeout
    while left and (remaining := deadline - time.monotonic()) > 0:
        try:
            descriptor = os.pidfd_open(left[0].pid)
        except ProcessLookupError:
            pass
        else:
            try:
                if left[0].alive:  # a pidfd becomes readable when its process ends
                    poll = select.poll()
                    poll.register(descriptor, select.POLLIN)
                    poll.poll(remaining * 1000)
            finally:
                os.close(descriptor)
        left = [identity for identity in left if identity.alive]
    return left


@dataclass(frozen=True)
class Command:
    """A program to run as a part of the stack.

    `death_signal` is what it gets when the process that started it dies. `account` is explained in `launch`.
    """

    name: str
    kind: Kind
    arguments: tuple[str, ...]
    directory: Path
    log: Path
    environment: Mapping[str, str] = field(repr=False, default_factory=dict)
    death_signal: signal.Signals = signal.SIGTERM
    stop_signal: signal.Signals = signal.SIGTERM
    account: str = "same"
    endpoint: str = ""
    input: bytes = field(repr=False, default=b"")
    """What it reads from standard input."""


class Child:
    """A running command: started by the thread that made it, with which its death signal is tied."""

    def __init__(self, command: Command) -> None:
        self.command = command
        rotate(command.log)
        with open_log(command.log) as log, _in_memory(command.input) as standard_input:
            self._process = subprocess.Popen(
                [*launcher(command.death_signal, command.account), *command.arguments],
                stdin=standard_input,
                stdout=log,
                stderr=log,
                cwd=command.directory,
                env=dict(command.environment),
                start_new_session=True,
            )
        # A process that has ended already is a zombie until it is waited for; it has no start time worth
        # keeping.
        self.identity = identify(self._process.pid) or Identity(self._process.pid, 0)
        self.descriptor = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended (minus the number of a signal), or None while it runs. Reaps it."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def wait(self, timeout: float) -> int | None:
        """Wait for its end at most `timeout` seconds; None: it still runs."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace: float) -> int:
        """Ask it to stop, and kill it after `grace` seconds."""
        self.signal(self.command.stop_signal)
        if (code := self.wait(grace)) is None:
            self.signal(signal.SIGKILL)
            code = self._process.wait()
        return code

    def close(self) -> None:
        """Free what watches it. The process itself is left alone."""
        os.close(self.descriptor)


def _in_memory(content: bytes) -> IO[bytes]:
    """A file to read that is on no disk."""
    file = os.fdopen(os.memfd_create("input"), "w+b")
    file.write(content)
    file.seek(0)
    return file


def launcher(death_signal: int, account: str = "same") -> list[str]:
    """The words that go before a program's path and arguments, to start it from this process."""
    return [*_LAUNCHER, str(os.getpid()), str(int(death_signal)), account]


def run(command: Command, timeout: float) -> None:
    """Run a command that ends by itself, within `timeout` seconds.

    Raises:
        StackError: it failed, or took too long; names its log.
    """
    child = Child(command)
    try:
        succeeded(command, child.wait(timeout), timeout)
    finally:
        child.stop(grace=2)
        child.close()


def answer(command: Command, timeout: float) -> str:
    """Run a command that ends by itself, within `timeout` seconds; what it says.

    Raises:
        StackError: it failed, or took too long; has its last words.
    """
    try:
        done = subprocess.run(
            [*launcher(command.death_signal, command.account), *command.arguments],
            input=command.input,
            capture_output=True,
            cwd=command.directory,
            env=dict(command.environment),
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"{command.name} did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-1000:]
        raise StackError(f"{command.name} failed with exit code {done.returncode}: {words}")
    return done.stdout.decode(errors="replace").strip()


def succeeded(command: Command, code: int | None, timeout: float) -> None:
    """Refuse any end of a command but success; None means that it did not end in time.

    Raises:
        StackError: names the command, what happened, and its log.
    """
    if code is None:
        raise StackError(f"{command.name} did not end within {timeout:.0f} s; see {command.log}")
    if code != 0:
        words = last_words(command.log)
        raise StackError(f"{command.name} failed with exit code {code}; see {command.log}{words}")


def rotate(log: Path) -> None:
    """Put a log that has grown too long aside. A process that writes to it goes on at its new beginning."""
    try:
        if log.stat().st_size <= LOG_LIMIT:
            return
    except FileNotFoundError:
        return
    aside = log.with_name(log.name + ".1")
    with contextlib.suppress(OSError):  # better to lose an old log than to fill the disk
        shutil.copyfile(log, aside)
        aside.chmod(0o600)
    os.truncate(log, 0)  # its writers append, so they go on at the beginning


def last_words(log: Path, limit: int = 300) -> str:
    """The last line of a log, for a message about the process that wrote it; "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    if not lines:
        return ""
    line = "".join(character if character.isprintable() else " " for character in lines[-1])
    return f": {line[:limit]}"


def open_log(log: Path) -> IO[bytes]:
    """Open a log to append to it, readable by its owner alone."""
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
