"""The tree where a cgroup (v2) can be had: alone, or beside the controllers of v1."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from pathlib import Path
from typing import Final, Self

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.cgroup_mounts import payload_home
from services.sis_agent.agent.linux.process_tree import ProcessTree, empty_soon, has_children, kill_each
from services.sis_agent.agent.linux.processes import ProcessInfo

_PREFIX: Final = "sis-"
_TRIAL_SECONDS: Final = 2.0
_SYS_CLONE3: Final = 435  # on every architecture that Linux numbers alike since 5.1
_CLONE_INTO_CGROUP: Final = 0x200000000

# Keeps the interpreter's lock, which a fork must not find in other hands.
_libc = ctypes.PyDLL(None, use_errno=True)


class _CloneArguments(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    )


class CgroupTree(ProcessTree):
    """A cgroup of its own below this process's one, and all descendants beside it.

    A payload with the right to do so, as root has it, can move itself to another cgroup, but not out of the line of
    descent; what the cgroup finds beyond that line was moved into it. So the tree is both together.
    """

    method = "cgroup"

    def __init__(self, directory: Path) -> None:
        self._cgroup = Cgroup(directory)
        self._born_inside = False
        self.directory = str(directory)

    @classmethod
    def create(cls, name: str) -> Self | None:
        """Make a cgroup of this name, which everybody can read. None where that is not possible."""
        home = payload_home()
        if home is None:
            return None
        directory = home / f"{_PREFIX}{name}"
        try:
            directory.mkdir()
        except OSError:
            return None
        return cls(directory)

    def fork(self) -> int:
        # To move a process takes the kernel ten milliseconds and more, to make one there takes none.
        try:
            pid = self._cgroup.fork()
        except OSError:
            pid = os.fork()
        else:
            self._born_inside = True
        return pid

    def enter(self) -> None:
        if not self._born_inside:
            self._cgroup.enter()

    def members(self) -> list[ProcessInfo]:
        table = processes.read_all()
        inside = self._cgroup.pids()
        found = {p.key: p for p in table if p.pid in inside and p.pid != os.getpid()}
        roots = {os.getpid()} | {pid for pid, _ in found}
        found |= {p.key: p for p in processes.descendants(table, roots)}
        return [process for process in found.values() if process.alive]

    def empty(self) -> bool:
        return not has_children() and not self._cgroup.populated()

    def kill(self) -> list[ProcessInfo]:
        # By name first, for the evidence; then the cgroup, which no fork outruns.
        hit = kill_each(self.members())
        self._cgroup.kill()
        return hit

    def close(self) -> None:
        self._cgroup.remove()


class Cgroup:
    """A directory of the cgroup file system, and those that the payload may have made below it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def enter(self) -> None:
        """Move the calling process into it. Raises OSError."""
        descriptor = os.open(self._directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)

    def fork(self) -> int:
        """Fork as `os.fork` does, into it, where the kernel can (since 5.7). For a process with one thread, whose child
        does nothing but exec or exit: Python's own provisions for a fork are passed over. Raises OSError."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            arguments = _CloneArguments(flags=_CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=descriptor)
            pid = int(_libc.syscall(_SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)))
        finally:
            os.close(descriptor)
        if pid < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return pid

    def pids(self) -> set[int]:
        """Of the processes in it. 0 stands for one outside this process's pid namespace."""
        pids: set[int] = set()
        for directory in self._directories():
            with contextlib.suppress(OSError):
                pids.update(map(int, (directory / "cgroup.procs").read_bytes().split()))
        return pids

    def populated(self) -> bool:
        """Whether any process is in it. What is removed has none; what cannot be read counts as populated."""
        try:
            return b"populated 0" not in (self._directory / "cgroup.events").read_bytes()
        except FileNotFoundError:
            return False
        except OSError:
            return self._directory.exists()

    def kill(self) -> None:
        """Kill all that is in it at once, where the kernel can (since 5.14)."""
        with contextlib.suppress(OSError):
            (self._directory / "cgroup.kill").write_bytes(b"1")

    def emptied(self) -> bool:
        """As `not populated`, with the patience of `empty_soon`."""
        return empty_soon(lambda: not self.populated())

    def remove(self) -> None:
        """Remove it as far as it is empty. Repeatable."""
        self.emptied()
        for directory in reversed(self._directories()):
            with contextlib.suppress(OSError):
                directory.rmdir()

    def _directories(self) -> list[Path]:
        return [Path(name) for name, _, _ in os.walk(self._directory)]


def available() -> bool:
    """Whether a cgroup can really be made, entered and killed here; found out by trying, with a child."""
    tree = CgroupTree.create(f"trial-{os.getpid()}")
    if tree is None:
        return False
    try:
        return _try(tree)
    except OSError:
        return False
    finally:
        tree.close()


def _try(tree: CgroupTree) -> bool:
    cgroup = Cgroup(Path(tree.directory))
    reader, writer = os.pipe()
    child = tree.fork()
    if child == 0:
        try:
            tree.enter()
            os.write(writer, b".")
            time.sleep(_TRIAL_SECONDS * 2)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        entered = _readable(reader) and os.read(reader, 1) == b"." and child in cgroup.pids()
        if entered:
            cgroup.kill()
        # The pipe ends with the child.
        killed = entered and _readable(reader) and os.read(reader, 1) == b""
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # not reaped yet, so the pid is still the child's
        os.waitpid(child, 0)
    return killed and cgroup.emptied()


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], _TRIAL_SECONDS)[0])
