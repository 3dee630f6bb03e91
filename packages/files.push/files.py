"""Puts a file into place or takes it away: `files.py push`, `check` or `remove`. Needs Python 3.9 or later, no more.

All of it happens in the directory of the file, opened once, so that nobody can pass another one off as it. The new file
is written and synced beside the old one and then renamed over it, which happens whole or not at all. Exit codes: 0
done, 1 refused or failed, with everything as before.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import grp
import hashlib
import io
import json
import os
import pwd
import secrets
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

NEW_FILE_MODE = 0o644
PART_BYTES = 1 << 20
KEPT_ATTRIBUTES = ("security.selinux", "system.posix_acl_access")
UNCHANGED_ID = (1 << 32) - 1  # to chown; no account has it


class Refused(Exception):
    """It is not done; the message says why."""


class NoDirectory(Refused):
    """The directory of the file is missing."""


@dataclass(frozen=True)
class Rights:
    """Who may do what with a file; None for what may be as it is."""

    mode: int | None
    uid: int | None = None
    gid: int | None = None

    def or_else(self, other: Rights) -> Rights:
        """These, and those of the other one where there is none."""
        return Rights(
            self.mode if self.mode is not None else other.mode,
            self.uid if self.uid is not None else other.uid,
            self.gid if self.gid is not None else other.gid,
        )


@dataclass(frozen=True)
class Wish:
    """What a file is to be."""

    content: bytes
    rights: Rights

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Place:
    """A name in an open directory, and what has it now."""

    path: Path
    directory: int
    found: os.stat_result | None

    def open(self) -> BinaryIO:
        """The file that was found, no other."""
        descriptor = os.open(self.path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.directory)
        file = os.fdopen(descriptor, "rb")
        if self.found is None or not os.path.samestat(os.fstat(descriptor), self.found):
            file.close()
            raise Refused(f"somebody else is changing {self.path}: try again")
        return file


def main(operation: str) -> int:
    # A stop is heeded between two parts of what takes long, never half-way through what must be undone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.umask(0o022)
    progress(0, f"{operation} {given('path')}")
    try:
        {"push": push, "check": check, "remove": remove}[operation](asked_path())
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        # What is not absolute is a name beside the file, which says nothing to anybody.
        where = str(error.filename)
        print(f"{where if where.startswith('/') else given('path')}: {error.strerror}", file=sys.stderr)
        return 1
    progress(100, "done")
    return 0


def push(path: Path) -> None:
    wish = asked_wish()
    backup = ""
    with opened(path.parent, create=given("create_directories") == "true") as directory:
        place = look(path, directory)
        different = differences(wish, place)
        if different:
            backup = put(wish, place, keep="content" in different and given("backup") == "true")
    give("changed", bool(different))
    give("sha256", wish.sha256)
    if backup:
        give("backup", backup)
    if place.found is None:
        print(f"{path}: made")
    else:
        print(f"{path}: changed ({', '.join(different)})" if different else f"{path} is as it should be")


def check(path: Path) -> None:
    wish = asked_wish()
    found: list[dict[str, str | None]]
    try:
        with opened(path.parent) as directory:
            place = look(path, directory)
            found = [described(each, wish, place) for each in differences(wish, place)]
    except NoDirectory:
        if given("create_directories") != "true":
            raise
        place = Place(path, -1, None)
        found = [described(each, wish, place) for each in differences(wish, place)]
    give("would_change", bool(found))
    give("differences", json.dumps(found))
    give("sha256", wish.sha256)
    for each in found:
        print(f"{path}: {each['name']}: {each['from'] or 'nothing'} -> {each['to']}")
    if not found:
        print(f"{path} is as it should be")


def remove(path: Path) -> None:
    removed = False
    with contextlib.suppress(NoDirectory), opened(path.parent) as directory:
        if look(path, directory).found:
            os.unlink(path.name, dir_fd=directory)
            removed = True
            sync(path.parent)
    give("changed", removed)
    print(f"{path}: removed" if removed else f"there is no {path}")


def given(name: str) -> str:
    """An input; "" without one."""
    return os.environ.get(f"SIS_PARAM_{name.upper()}", "")


def give(name: str, value: str | bool) -> None:
    """Writes an output parameter of one line."""
    text = value if isinstance(value, str) else str(value).lower()
    with Path(os.environ["SIS_OUTPUT"]).open("a", encoding="utf-8") as file:
        file.write(f"{name}={text}\n")


def progress(percent: int, text: str) -> None:
    with Path(os.environ["SIS_PROGRESS"]).open("a", encoding="utf-8") as file:
        file.write(f"{percent} {text}\n")


def asked_path() -> Path:
    """Raises Refused."""
    text = given("path")
    if {".", ".."} & set(text.split("/")):
        raise Refused(f'{text} has "." or ".." in it: give the path without')
    return Path(text)


def asked_wish() -> Wish:
    """Raises Refused."""
    rights = Rights(
        mode=int(given("mode"), 8) if given("mode") else None,
        uid=account_number("user", given("owner"), lambda name: pwd.getpwnam(name).pw_uid),
        gid=account_number("group", given("group"), lambda name: grp.getgrnam(name).gr_gid),
    )
    return Wish(Path(given("content")).read_bytes(), rights)


def account_number(kind: str, name: str, find: Callable[[str], int]) -> int | None:
    """The id of a user or a group; a number that is nobody's name stands for itself. Raises Refused."""
    if not name:
        return None
    try:
        return find(name)
    except KeyError:
        if name.isascii() and name.isdecimal() and int(name) < UNCHANGED_ID:
            return int(name)
        raise Refused(f"there is no {kind} {name} on this machine") from None


@contextlib.contextmanager
def opened(directory: Path, *, create: bool = False) -> Iterator[int]:
    """A directory to work in. Those that are made for it go again when that fails."""
    made: list[Path] = []
    try:
        for each in reversed([directory, *directory.parents]) if create else ():
            if not each.exists():
                each.mkdir()
                made.append(each)
                sync(each.parent)
        # Only for reaching what is in it, for which nobody has to be permitted to list it.
        try:
            descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            raise NoDirectory(f"there is no directory {directory}: make it, or set create_directories") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except BaseException:
        for each in reversed(made):
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


def look(path: Path, directory: int) -> Place:
    """What is at a path. Raises Refused where that is neither nothing nor a file."""
    try:
        found = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return Place(path, directory, None)
    if stat.S_ISLNK(found.st_mode):
        raise Refused(f"{path} is a symbolic link, which is not followed: give the path of the file itself")
    if stat.S_ISDIR(found.st_mode):
        raise Refused(f"{path} is a directory: give the path of a file")
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{path} is a device, a pipe or a socket: give the path of a file")
    return Place(path, directory, found)


def differences(wish: Wish, place: Place) -> list[str]:
    """What of a file is not as it should be: content, mode, owner, group."""
    found, rights = place.found, wish.rights
    different = []
    if found is None or found.st_size != len(wish.content) or digest(place) != wish.sha256:
        different.append("content")
    if rights.mode not in (None, found and stat.S_IMODE(found.st_mode)):
        different.append("mode")
    if rights.uid not in (None, found and found.st_uid):
        different.append("owner")
    if rights.gid not in (None, found and found.st_gid):
        different.append("group")
    return different


def described(name: str, wish: Wish, place: Place) -> dict[str, str | None]:
    """A difference: what is, None for nothing, and what would be."""
    found = place.found
    if name == "content":
        return {"name": name, "from": digest(place) if found else None, "to": wish.sha256}
    if name == "mode":
        return {
            "name": name,
            "from": f"{stat.S_IMODE(found.st_mode):04o}" if found else None,
            "to": f"{wish.rights.mode or 0:04o}",
        }
    number = found and (found.st_uid if name == "owner" else found.st_gid)
    return {"name": name, "from": None if number is None else account_name(name, number), "to": given(name)}


def account_name(kind: str, number: int) -> str:
    """Of an owner or a group; the number where nobody has it."""
    try:
        return pwd.getpwuid(number).pw_name if kind == "owner" else grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def digest(place: Place) -> str:
    found = hashlib.sha256()
    with place.open() as file:
        for part in parts(file):
            found.update(part)
    return found.hexdigest()


def parts(file: BinaryIO) -> Iterator[bytes]:
    """A file in parts. Raises Refused between two of them once the job is to stop."""
    while part := file.read(PART_BYTES):
        if signal.SIGTERM in signal.sigpending():
            raise Refused("stopped")
        yield part


def put(wish: Wish, place: Place, *, keep: bool) -> str:
    """Replaces what is there; returns the path of the former file where that is kept, else ""."""
    name, found = place.path.name, place.found
    time = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017  (Python 3.9)
    backup = f"{name}.{time:%Y%m%dT%H%M%S.%fZ}.bak" if keep and found else ""
    temporary = f".sis-{secrets.token_hex(8)}"
    was = Rights(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) if found else Rights(NEW_FILE_MODE)
    with contextlib.ExitStack() as undo, place.open() if found else contextlib.nullcontext() as former:
        if former is not None and backup:
            # A program that is no longer right must not go on lending its owner's rights.
            write(former, backup, place.directory, replace(was, mode=(was.mode or 0) & 0o777), former)
            undo.callback(os.unlink, backup, dir_fd=place.directory)
        write(io.BytesIO(wish.content), temporary, place.directory, wish.rights.or_else(was), former)
        undo.callback(os.unlink, temporary, dir_fd=place.directory)
        os.rename(temporary, name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
        undo.pop_all()
    sync(place.path.parent)
    return str(place.path.with_name(backup)) if backup else ""


def write(source: BinaryIO, name: str, directory: int, rights: Rights, former: BinaryIO | None) -> None:
    """Makes a new file with the extended attributes of the former one. Nothing is left of it when that fails."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts(source):
                file.write(part)
            file.flush()
            grant(descriptor, rights, former)
            os.fsync(descriptor)
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise


def grant(descriptor: int, rights: Rights, former: BinaryIO | None) -> None:
    own = os.fstat(descriptor)
    if rights.uid not in (None, own.st_uid) or rights.gid not in (None, own.st_gid):
        os.fchown(descriptor, -1 if rights.uid is None else rights.uid, -1 if rights.gid is None else rights.gid)
    if former is not None:
        wanted, there = attributes(former.fileno()), attributes(descriptor)
        for name in there.keys() - wanted.keys():
            os.removexattr(descriptor, name)
        for name, value in wanted.items():
            if there.get(name) != value:
                os.setxattr(descriptor, name, value)
    # Last: a change of the owner takes bits away, and an access list is a part of the mode.
    os.fchmod(descriptor, rights.mode or 0)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != rights.mode:
        raise Refused(f"the mode {rights.mode or 0:04o} is more than the system grants this account")


def attributes(descriptor: int) -> dict[str, bytes]:
    """The extended attributes that a file keeps with new content: its access list, its label, what people gave it."""
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}
    kept = [name for name in names if name in KEPT_ATTRIBUTES or name.startswith("user.")]
    return {name: os.getxattr(descriptor, name) for name in kept}


def sync(directory: Path) -> None:
    """Makes the names in a directory last, where it can be opened and synced."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
