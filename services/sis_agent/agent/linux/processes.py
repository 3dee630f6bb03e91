"""The processes of this machine as /proc shows them, and signals that cannot hit a stranger.

A process id is reused; a process id with its start time is not. So a process is always named by both, and a signal
goes through a pidfd whose start time was verified after it was opened.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_MAX_ENVIRONMENT_BYTES: Final = 8 << 20
_ACCOUNTS: Final = "/etc/passwd"


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """What /proc said of a process at one moment."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since the machine's start."""
    parent_pid: int
    session: int
    state: str
    threads: int
    name: bytes
    """As the kernel has it: any bytes, and no more than 15 of them."""

    @property
    def key(self) -> tuple[int, int]:
        """What no other process ever has while the machine is up."""
        return self.pid, self.start_ticks

    @property
    def alive(self) -> bool:
        """False for a zombie. The first thread alone may be one while others still run."""
        return self.state not in "ZX" or self.threads > 1

    @property
    def stopped(self) -> bool:
        return self.state in "Tt"

    @property
    def start_time(self) -> float:
        """When it started, in seconds since the epoch by the wall clock of now."""
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / _TICKS_PER_SECOND
        return time.time() - age


def now_ticks() -> int:
    """This moment, as `ProcessInfo.start_ticks`."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_SECOND)


def read(pid: int) -> ProcessInfo | None:
    """The process that has this id now, a zombie too; None without one."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        line = os.read(descriptor, 4096)
    except OSError:  # it ended in between
        return None
    finally:
        os.close(descriptor)
    # The name is in parentheses and may itself hold any of them.
    before, _, after = line.rpartition(b")")
    fields = after.split()
    if len(fields) < 20:
        return None
    return ProcessInfo(
        pid=pid,
        start_ticks=int(fields[19]),
        parent_pid=int(fields[1]),
        session=int(fields[3]),
        state=fields[0].decode(),
        threads=int(fields[17]),
        name=before.partition(b"(")[2],
    )


def read_all() -> list[ProcessInfo]:
    """Every process that can be seen, zombies too. Not a snapshot: it may miss what forks meanwhile."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 (a hot path)
    return [process for process in map(read, pids) if process is not None]


def descendants(table: Iterable[ProcessInfo], roots: Iterable[int]) -> Iterator[ProcessInfo]:
    """Those of the table that descend from the roots, parents first; the roots themselves are not among them."""
    children: dict[int, list[ProcessInfo]] = {}
    for process in table:
        children.setdefault(process.parent_pid, []).append(process)
    waiting = list(roots)
    seen = set(waiting)
    for pid in waiting:
        for child in children.get(pid, ()):
            if child.pid not in seen:
                seen.add(child.pid)
                waiting.append(child.pid)
                yield child


def identity(pid: int) -> str:
    """The account as which the process runs: its name, or its number where it has none; "" when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return ""
    for line in status.splitlines():
        if line.startswith(b"Uid:"):
            return account_name(int(line.split()[2]))
    return ""


def has_threads(uid: int, count: int) -> bool:
    """Whether an account runs so many processes and threads, zombies too, as far as they can be seen."""
    table = read_all()
    # Whose a process is takes a second file of each: for a machine that has that many at all.
    if sum(max(process.threads, 1) for process in table) < count:
        return False
    wanted = b"Uid:\t%d\t" % uid
    found = 0
    for process in table:
        try:
            with open(f"/proc/{process.pid}/status", "rb") as file:  # noqa: PTH123 (a hot path)
                if wanted in file.read(4096):
                    found += max(process.threads, 1)
        except OSError:
            continue
    return found >= count


_learnt: dict[int, str] = {}


def learn_account(uid: int, name: str) -> None:
    """Have `account_name` know an account of a directory service."""
    _learnt[uid] = name


def learn_own_account() -> None:
    """As `learn_account`, for this process's own. The name service is asked: that takes as long as it does."""
    with contextlib.suppress(KeyError):
        learn_account(os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name)


def account_name(uid: int) -> str:
    """The name of an account that was learnt, or is in this machine's own table; the number of any other. The name
    service is not asked: it may not answer for minutes, and whoever calls this has a stop to see to."""
    return _learnt.get(uid) or _local_name(uid) or str(uid)


@functools.lru_cache(maxsize=256)
def _local_name(uid: int) -> str:
    try:
        with open(_ACCOUNTS, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 (read line by line)
            fields = (line.split(":") for line in file)
            return next((each[0] for each in fields if len(each) > 2 and each[2] == str(uid)), "")
    except OSError:
        return ""


def environment_has(pid: int, entry: bytes) -> bool:
    """Whether the process was started with this NAME=VALUE. False also where this account may not look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 (a hot path)
            return entry in file.read(_MAX_ENVIRONMENT_BYTES).split(b"\0")
    except OSError:
        return False


def send_signal(process: ProcessInfo, number: signal.Signals) -> bool:
    """Signal exactly this process. False when it is gone or has ended.

    Raises:
        PermissionError: it runs as an account that this one may not signal.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # Read after the pidfd was opened: what has the right start time now is what the pidfd stands for.
        current = read(process.pid)
        if current is None or current.key != process.key or not current.alive:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


@functools.cache
def boot_id() -> str:
    """Changes when the machine restarts."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def signal_name(number: int) -> str:
    """The signal's name without SIG."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:  # a real-time signal
        return str(number)
