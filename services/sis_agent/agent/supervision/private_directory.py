"""The private directory of an attempt: for what may be secret, as SIS_OUTPUT and the files of credentials and inputs
are.

It belongs to the account of the attempt's payload (0700), and is gone when that has ended. Its name follows from the
token of the attempt, and nobody can know it before it is there.

It is in memory, where this machine has a file system for that. For a payload of the agent's own account /run comes
first, where that can be had, because logind removes what an ordinary account has in /dev/shm and /run/user when that
logs out. For one of another account it is in /dev/shm, which every account can fill anyway: in /run, such a payload
could take the memory that the services of the system need.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Final, Self

from services.sis_agent.agent.linux import mounts
from services.sis_agent.agent.linux.removal import remove_tree
from services.sis_agent.agent.supervision.run_as import Account
from sis.packages.values import File

OUTPUT: Final = "output"
PROGRESS: Final = "progress"
_NAME: Final = "private"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_TRIES: Final = 200  # more than the files that an attempt can have
_FOR_ALL: Final = Path("/dev/shm")  # noqa: S108 (that is what it is for)


class PrivateDirectory:
    """One that was made. Its owner may put anything in the place of its path, so the supervisor goes through the
    descriptor, by `inside`."""

    def __init__(self, path: Path, owner: Account | None, *, in_memory: bool) -> None:
        self.path = path
        self.in_memory: Final = in_memory
        self.names: Final[list[str]] = []
        """Of the files that `write` has made here, in order."""
        self._owner = owner
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    @classmethod
    def make(cls, attempt: str, beside: Path, owner: Account | None) -> Self:
        """For the attempt of this token; in the directory `beside` where nothing in memory can be had. Without an
        owner it is this process's account's.

        Raises:
            OSError: it cannot be made; also where somebody was there before, or all memory is full: others must not
                be able to have secrets written to disk.
        """
        full = None
        for parent in places(owner):
            try:
                return cls._make(parent / name_of(attempt, _NAME), owner, in_memory=True)
            except FileExistsError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    full = error
        if full is not None:
            raise full
        return cls._make(beside / _NAME, owner, in_memory=False)

    @classmethod
    def _make(cls, path: Path, owner: Account | None, *, in_memory: bool) -> Self:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            raise FileExistsError(f"{path} was there before") from None
        directory = cls(path, owner, in_memory=in_memory)
        try:
            directory._give(directory._descriptor)
        except OSError:
            directory.remove()
            raise
        return directory

    def write(self, name: str, content: bytes = b"") -> Path:
        """Make a new file (0600) for the owner; returns its path. Raises OSError."""
        self._create(name, 0o600, content)
        self.names.append(name)
        return self.path / name

    def write_input(self, given: File) -> Path:
        """Make a file that the owner can only read (0400) of one that was given as a value; returns its path. It has
        the name that was given, as far as that is safe in a shell and nothing else here has it. Raises OSError."""
        safe = _UNSAFE.sub("_", given.name)
        for name in (safe, *(f"{number}-{safe[-200:]}" for number in range(2, _TRIES))):
            try:
                self._create(name, 0o400, given.content)
            except FileExistsError:
                continue
            return self.path / name
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def inside(self, name: str) -> Path:
        """By which this process opens a file of the directory, whatever has become of its path."""
        return Path(f"/proc/self/fd/{self._descriptor}/{name}")

    def remove(self) -> None:
        """Remove it with all that is in it, as far as that is possible. Once."""
        with contextlib.suppress(OSError):  # its owner may have closed it, to this process too
            os.fchmod(self._descriptor, 0o700)
        for name in os.listdir(self._descriptor):  # noqa: PTH208 (through a descriptor)
            remove_tree(name, self._descriptor)
        os.close(self._descriptor)
        remove_tree(self.path)

    def _create(self, name: str, mode: int, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, mode, dir_fd=self._descriptor), "wb") as file:
            self._give(file.fileno())
            file.write(content)

    def _give(self, descriptor: int) -> None:
        if self._owner is not None:
            os.fchown(descriptor, self._owner.uid, self._owner.gid)


def name_of(attempt: str, what: str) -> str:
    """What this directory of an attempt is called, by the attempt's token, which cannot be learned from the name."""
    digest = hashlib.sha256(f"{attempt} {what}".encode()).hexdigest()
    return f"sis-{attempt.rpartition('.')[0]}.{digest[:16]}"


def paths(attempt: str, beside: Path) -> list[Path]:
    """Where the one of an attempt may be; `beside` as it was given to `make`."""
    return [*(parent / name_of(attempt, _NAME) for parent in memory_file_systems()), beside / _NAME]


def places(owner: Account | None) -> tuple[Path, ...]:
    """The directories in memory in which one for this owner may be made, best first."""
    found = memory_file_systems()
    return (_FOR_ALL,) if owner is not None and _FOR_ALL in found else found


@functools.cache
def memory_file_systems() -> tuple[Path, ...]:
    """The directories in memory in which this account can make others, best first."""
    named = ["/run", str(_FOR_ALL), os.environ.get("XDG_RUNTIME_DIR", "")]
    try:
        in_memory = {mount.point for mount in mounts.read() if mount.file_system == "tmpfs"}
    except OSError:
        return ()
    return tuple(Path(name) for name in named if name in in_memory and os.access(name, os.W_OK | os.X_OK))
