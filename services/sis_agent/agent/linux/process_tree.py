"""The tree of an attempt: every process that its payload has started, however it tries to get away.

The supervisor is a child subreaper, so whatever loses its parent becomes its child. That makes one thing exact which
no walk through /proc can be: when the kernel says that the supervisor has no child, nothing of the tree is left. Where
a cgroup can be had as well, it finds and kills also what has got out of the line of descent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.processes import ProcessInfo

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
WAIT_ALL: Final = 0x40000000
"""The kernel's __WALL, which Python does not name: also children that tell nobody of their end."""

FREEZE_AFTER: Final = 3
"""Killing makes room for what a fork bomb is waiting to fork. What outlives so many rounds is stopped first."""
_FREEZE_WALKS: Final = 50
_LAG_SECONDS: Final = 0.2
_LAG_PAUSE: Final = 0.002

_libc = ctypes.CDLL(None, use_errno=True)


class ProcessTree(ABC):
    """The tree below the calling process, which must be its supervisor (`become_subreaper`)."""

    method: str
    """How the tree is looked at, as the evidence names it."""
    directory: str = ""
    """Of the cgroup, where there is one."""

    def fork(self) -> int:
        """Fork as `os.fork` does; the child calls `enter` before anything of the payload runs. Raises OSError."""
        return os.fork()

    @abstractmethod
    def enter(self) -> None:
        """Have the calling process, just forked, belong to the tree. Raises OSError."""

    @abstractmethod
    def members(self) -> list[ProcessInfo]:
        """The living processes of the tree. What forks at this moment may be missing."""

    @abstractmethod
    def empty(self) -> bool:
        """Whether nothing of the tree is left: exact, and final once the payload was started."""

    def emptied(self) -> bool:
        """As `empty`, with the patience of `empty_soon`."""
        return empty_soon(self.empty)

    @abstractmethod
    def kill(self) -> list[ProcessInfo]:
        """Send KILL to all that can be found, once. Repeat until `empty`; returns those that were hit."""

    @abstractmethod
    def close(self) -> None:
        """Remove what the tree needed, as far as it is empty. Repeatable."""


def empty_soon(empty: Callable[[], bool]) -> bool:
    """Whether something is empty, now or in a moment: the kernel may reap a process before it takes it out of its
    cgroup. Blocks for up to 0.2 s."""
    deadline = time.monotonic() + _LAG_SECONDS
    while not empty():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LAG_PAUSE)
    return True


def has_children() -> bool:
    """Whether the kernel knows any child of this process, zombies included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WAIT_ALL)
    except ChildProcessError:
        return False
    return True


def kill_each(members: list[ProcessInfo]) -> list[ProcessInfo]:
    """Send KILL to each; returns those that were hit. What this account may not signal is left."""
    hit = []
    for process in members:
        try:
            if processes.send_signal(process, signal.SIGKILL):
                hit.append(process)
        except PermissionError:
            continue
    return hit


def frozen(members: Callable[[], list[ProcessInfo]]) -> list[ProcessInfo]:
    """The members, stopped one after the other until no walk finds another one: for what forks faster than it is
    killed."""
    stopped: set[tuple[int, int]] = set()
    found: list[ProcessInfo] = []
    for _ in range(_FREEZE_WALKS):
        found = members()
        new = [process for process in found if process.key not in stopped]
        if not new:
            break
        for process in new:
            stopped.add(process.key)
            try:
                processes.send_signal(process, signal.SIGSTOP)
            except PermissionError:
                continue
    return found


def become_subreaper() -> None:
    """From now on, orphaned descendants become children of this process. Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent, which has this pid, dies. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def outlive_parent() -> None:
    """Take back `die_with_parent`. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def forbid_attaching() -> None:
    """Have nobody but root read this process's memory, neither by attaching to it nor from a core dump. A program that
    it becomes is free of that. Raises OSError."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
