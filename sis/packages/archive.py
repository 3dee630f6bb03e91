"""How a package travels: a gzip-compressed tar of its directory, packed the same way each time, unpacked with
suspicion (`tarball` has the rules)."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from sis.packages import manifest
from sis.packages.manifest import Manifest
from sis.packages.tarball import (
    MAX_ENTRIES,
    MAX_PACKED_BYTES,
    MAX_UNPACKED_BYTES,
    Entry,
    InvalidArchive,
    clean_path,
    entries,
)

__all__ = [
    "MAX_PACKED_BYTES",
    "MAX_UNPACKED_BYTES",
    "InvalidArchive",
    "digest",
    "extract",
    "pack",
    "read_manifest",
    "walk",
]

_COPY_BYTES = 64 * 1024


def pack(directory: Path) -> bytes:
    """The archive of a package's directory: the same bytes for the same content. Raises InvalidArchive."""
    if not (directory / manifest.FILE_NAME).is_file():
        raise InvalidArchive(f"{directory} has no {manifest.FILE_NAME}: name the directory of a package")
    packed = io.BytesIO()
    size = 0
    try:
        with (
            gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for count, path in enumerate(walk(directory), 1):
                if count > MAX_ENTRIES:
                    raise InvalidArchive(f"{directory} has more than {MAX_ENTRIES:,} files and directories")
                size += _add(tar, path, path.relative_to(directory).as_posix())
                if size > MAX_UNPACKED_BYTES:
                    raise InvalidArchive(f"{directory} has more than {MAX_UNPACKED_BYTES >> 20} MiB")
    except OSError as error:
        raise InvalidArchive(f"{error.filename or directory}: {error.strerror or error}") from None
    if packed.tell() > MAX_PACKED_BYTES:
        raise InvalidArchive(f"{directory} is larger than {MAX_PACKED_BYTES >> 20} MiB when packed")
    return packed.getvalue()


def digest(archive: bytes) -> str:
    """The SHA-256 of an archive, in lower-case hexadecimal."""
    return hashlib.sha256(archive).hexdigest()


def read_manifest(archive: bytes) -> Manifest:
    """The manifest of an archive, after all of the archive was examined. Takes time: not for an event loop.

    Raises:
        InvalidArchive: no agent would unpack it.
        InvalidManifest: its manifest has mistakes.
    """
    content: bytes | None = None
    for entry in entries(io.BytesIO(archive), len(archive)):
        if entry.path == manifest.FILE_NAME and not entry.directory:
            content = entry.read(manifest.MAX_BYTES + 1)
    if content is None:
        raise _no_manifest()
    return manifest.parse_bytes(content)


def extract(archive: Path, target: Path) -> None:
    """Unpacks an archive into the new directory `target`, and leaves nothing behind when it fails.

    The files are on the disk when it returns, so `target` can be renamed to its place. Takes time: not for an
    event loop.

    Raises:
        InvalidArchive: it is refused, by the rules of `read_manifest`; the manifest itself is not parsed.
        OSError: the archive cannot be read, or the disk does not take the files.
    """
    target.mkdir(mode=0o700)
    try:
        _unpack(archive, target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _unpack(archive: Path, target: Path) -> None:
    found = False
    directories = {target}
    with archive.open("rb") as file:
        for entry in entries(file, os.fstat(file.fileno()).st_size):
            path = target / entry.path
            directory = path if entry.directory else path.parent
            if directory not in directories:
                directory.mkdir(parents=True, exist_ok=True)
                directories.update(d for d in (directory, *directory.parents) if d.is_relative_to(target))
            if not entry.directory:
                _write(entry, path)
                found |= entry.path == manifest.FILE_NAME
    if not found:
        raise _no_manifest()
    for directory in directories:
        _finish(os.open(directory, os.O_RDONLY | os.O_DIRECTORY), 0o755)


def _write(entry: Entry, path: Path) -> None:
    with path.open("xb") as file:
        while data := entry.read(_COPY_BYTES):
            file.write(data)
        file.flush()
        _finish(os.dup(file.fileno()), 0o755 if entry.executable else 0o644)


def _finish(descriptor: int, mode: int) -> None:
    """Sets the mode, despite the umask (a payload may run as another account than its agent), and syncs."""
    try:
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def walk(directory: Path) -> Iterator[Path]:
    """What a directory holds, directories before what is in them; no link is followed. Raises OSError.

    Python's bytecode is left out: it comes and goes, and has the time in it.
    """
    for path in sorted(directory.iterdir()):
        folder = path.is_dir() and not path.is_symlink()
        if path.name == "__pycache__" if folder else path.suffix == ".pyc":
            continue
        yield path
        if folder:
            yield from walk(path)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> int:
    """Adds one file or directory without what differs from machine to machine; the size of its content."""
    clean_path(name)
    status = path.lstat()
    info = tarfile.TarInfo(name)
    info.mode = 0o755
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        return 0
    if not stat.S_ISREG(status.st_mode):
        raise InvalidArchive(f"{path} is neither a file nor a directory: a package holds nothing else")
    if not status.st_mode & stat.S_IXUSR:
        info.mode = 0o644
    with path.open("rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        tar.addfile(info, file)
    return info.size


def _no_manifest() -> InvalidArchive:
    return InvalidArchive(f"it has no {manifest.FILE_NAME} at its root: pack the package's directory itself")
