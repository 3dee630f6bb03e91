"""Removes what a payload could write to. Such a tree is trusted in nothing: neither links nor depth, nor modes, nor
mounts."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from services.sis_agent.agent.linux import mounts
from services.sis_agent.agent.linux.mounts import StillMounted

log = logging.getLogger(__name__)

_DEPTH: Final = 32  # so many directories are open at once; what lies deeper is moved up
_PASSES: Final = 1_000
_HELD: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def remove_tree(path: Path | str, parent: int | None = None) -> None:
    """Remove a file, or a directory with all that is in it, as far as that is possible; what remains is logged, once.
    With the descriptor of a `parent`, path is a name in it. Repeatable.

    What is mounted in it is unmounted first. Where that is not permitted, nothing at all is removed: it would be what
    others have in there. A mount that is made meanwhile is not noticed; whatever could make one has ended.
    """
    directory, name = os.path.split(path)
    try:
        held = os.open(directory or ".", _HELD, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
        return
    try:
        os.unlink(name, dir_fd=held)  # a link or a file needs no more than this
    except FileNotFoundError:
        return
    except OSError:
        _remove_mounted(held, name, path)
    finally:
        os.close(held)


def _remove_mounted(held: int, name: str, path: Path | str) -> None:
    try:
        mounts.detach_below(held, name)
        _remove(held, name, path)
    except StillMounted as error:
        log.warning("%s is kept: %s", path, error)
    except OSError as error:
        log.warning("%s is kept: what is mounted in it cannot be told: %s", path, error.strerror)


def _remove(parent: int, name: str, path: Path | str) -> None:
    # Once more: what has ended only now may have renamed something meanwhile, as a guardian does with its mark.
    tries = 2
    for _ in range(_PASSES):
        walk = _Walk()
        walk.remove(parent, name, str(path))
        tries -= not walk.moved_up
        if walk.remains is None or not tries:
            break
    if walk.remains is not None:
        where, error = walk.remains
        log.warning("%s cannot be removed whole; one of what remains is %r: %s", path, where, error.strerror)


class _Walk:
    """One way through a tree. It goes by descriptors and follows no link, also one that was a directory just now."""

    def __init__(self) -> None:
        self.remains: tuple[str, OSError] | None = None
        """Something that could not be removed, and why."""
        self.moved_up = False
        """Whether something was, which another walk has to remove."""
        self._top = -1

    def remove(self, parent: int, name: str, path: str, depth: int = 0) -> None:
        """Remove what has this name in an open directory; the path is for people."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            refusal = error
        else:
            return
        try:
            directory = _open(parent, name)
        except OSError as error:
            self._note(path, refusal if error.errno == errno.ENOTDIR else error)
            return
        try:
            if depth == 0:
                self._top = directory
            if depth == _DEPTH:
                os.rename(name, f".{secrets.token_hex(8)}", src_dir_fd=parent, dst_dir_fd=self._top)
                self.moved_up = True
                return
            for each in os.listdir(directory):  # noqa: PTH208 (through a descriptor)
                self.remove(directory, each, f"{path}/{each}", depth + 1)
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            self._note(path, error)
        finally:
            os.close(directory)

    def _note(self, path: str, error: OSError) -> None:
        if self.remains is None and error.errno != errno.ENOENT:
            self.remains = path, error


def _open(parent: int, name: str) -> int:
    """Open a directory in another one, and have its owner be able to remove what is in it. Raises OSError."""
    held = os.open(name, _HELD | os.O_NOFOLLOW, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(held).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            with contextlib.suppress(OSError):  # root needs no mode, and others are told what comes of it
                Path(f"/proc/self/fd/{held}").chmod(mode | stat.S_IRWXU)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held)
    finally:
        os.close(held)
