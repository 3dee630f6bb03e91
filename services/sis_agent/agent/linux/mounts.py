"""What is mounted where this process looks, and how it is taken away from a tree that is to be removed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_HELD: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ROUNDS: Final = 100  # so many mounts may lie one upon the other
_ESCAPED: Final = re.compile(rb"\\([0-3][0-7]{2})")

_libc = ctypes.CDLL(None, use_errno=True)


class StillMounted(Exception):
    """Something is mounted in the tree and cannot be taken away; the message names it and the reason."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the kernel's table."""

    root: str
    """Which part of the file system it shows."""
    point: str
    """Where, as a path without links."""
    file_system: str
    """Its type."""
    options: tuple[str, ...]
    """Of the file system, not of this mount."""


def parse(table: bytes) -> list[Mount]:
    """The mounts of a /proc/PID/mountinfo, in its order: of two at one point the later one lies on top.

    Raises:
        ValueError: it is none.
    """
    return [_mount(line) for line in table.split(b"\n") if line]


def read() -> list[Mount]:
    """Those that this process can see. Raises OSError."""
    try:
        return parse(Path("/proc/self/mountinfo").read_bytes())
    except ValueError as error:
        raise OSError(errno.EBADMSG, f"the table of mounts is not understood: {error}") from None


def below(path: str, mounts: Iterable[Mount]) -> list[Mount]:
    """Those at a path without links, or below it."""
    return [mount for mount in mounts if f"{mount.point}/".startswith(f"{path}/")]


def outermost(mounts: Iterable[Mount]) -> list[str]:
    """The points that lie below no other one of them, each once."""
    found: list[str] = []
    for point in sorted(f"{mount.point}/" for mount in mounts):
        if not found or not point.startswith(found[-1]):
            found.append(point)
    return [point.removesuffix("/") for point in found]


def detach_below(parent: int, name: str) -> None:
    """Have nothing mounted at this name in an open directory, nor below it. What is mounted stays as it is, and so it
    does wherever else it can be seen. Never waits for the server of a file system.

    Raises:
        StillMounted: there is something that this process may not unmount, or that cannot be unmounted.
        OSError: it cannot be told whether there is.
    """
    directory = str(Path(f"/proc/self/fd/{parent}").readlink())
    path = os.path.join(directory, name)  # noqa: PTH118 (a name is no path to be tidied)
    for _ in range(_ROUNDS):
        found = below(path, read())
        if not found:
            return
        # Only the outermost: what is mounted in them goes along, and the way to those leads through no other.
        for point in outermost(found):
            try:
                _detach(parent, point[len(directory.rstrip("/")) + 1 :].split("/"), alone=len(below(point, found)) == 1)
            except OSError as error:
                raise StillMounted(f"{point!r} is mounted and cannot be unmounted: {error.strerror}") from None
    raise StillMounted(f"{found[0].point!r} is mounted again and again")


def _mount(line: bytes) -> Mount:
    fields = line.split(b" ")
    # Optional fields, of any number, end with a hyphen.
    kind, *_, options = fields[fields.index(b"-", 6) + 1 :]
    root, point = (os.fsdecode(_ESCAPED.sub(_unescaped, field)) for field in fields[3:5])
    return Mount(root, point, os.fsdecode(kind), tuple(os.fsdecode(options).split(",")))


def _unescaped(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def _detach(parent: int, names: list[str], *, alone: bool) -> None:
    """Unmount what is on top at this place below an open directory. Raises OSError."""
    # Step by step, for a payload that still runs can put a link in the place of each directory.
    with _opened(parent, names[:-1]) as directory:
        if not alone:
            # Else a part of the machine that `mount --rbind` has put here would lose its own mounts as well.
            _make_private(directory, names[-1])
        point = os.fsencode(f"/proc/self/fd/{directory}/{names[-1]}")
        if _libc.umount2(point, _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            raise _error()


def _make_private(directory: int, name: str) -> None:
    held = os.open(name, _HELD, dir_fd=directory)
    try:
        if _libc.mount(None, f"/proc/self/fd/{held}".encode(), None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0:
            raise _error()
    finally:
        os.close(held)


@contextlib.contextmanager
def _opened(parent: int, names: Iterable[str]) -> Iterator[int]:
    held = os.dup(parent)
    try:
        for name in names:
            inner = os.open(name, _HELD | os.O_DIRECTORY, dir_fd=held)
            os.close(held)
            held = inner
        yield held
    finally:
        os.close(held)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
