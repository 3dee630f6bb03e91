"""Reads a gzip-compressed tar that somebody else has written.

It may hold plain files and directories beneath its root, each once, and nothing else. Whatever its headers
claim, reading it costs no more than the limits here. (Of `tarfile` only the parser of one header is used: its
reader takes a damaged header for the end, and reads extension headers of any size into memory. `gzip` is not used: it
skips padding and reads the fields of a member's header byte by byte, and takes as many members as there are.)
"""

from __future__ import annotations

import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

MAX_PACKED_BYTES = 64 * 1024 * 1024
MAX_UNPACKED_BYTES = 512 * 1024 * 1024
MAX_ENTRIES = 10_000
"""Files and directories, with those directories that are only implied."""
MAX_PATH_BYTES = 1_024
MAX_NAME_BYTES = 255

_BLOCK = tarfile.BLOCKSIZE
_COPY_BYTES = 64 * 1024
_MAX_EXTENSION_BYTES = 8 * 1024
_MAX_EXTENSIONS = 3
_MAX_TRAILING_BYTES = 1024 * 1024
_GLOBAL_HEADER = b"g"
_GZIP = 31
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)


class InvalidArchive(Exception):
    """The archive is refused, or the directory cannot become one; the message says why."""


@dataclass(slots=True)
class Entry:
    """A file or a directory of an archive. Its content is there until the next entry is asked for."""

    path: str
    directory: bool
    executable: bool
    size: int
    _content: _Inflated
    _remaining: int

    def read(self, size: int) -> bytes:
        """At most so many of the bytes that are still to come; none at the end. Raises InvalidArchive."""
        data = self._content.read_exactly(min(size, self._remaining))
        self._remaining -= len(data)
        return data


def entries(packed: BinaryIO, packed_size: int) -> Iterator[Entry]:
    """What an archive holds, in its order, each thing checked before it is given out.

    The archive is known to be sound only when the iterator has ended. Raises InvalidArchive.
    """
    if packed_size > MAX_PACKED_BYTES:
        raise InvalidArchive(f"it is larger than {MAX_PACKED_BYTES >> 20} MiB")
    inflated = _Inflated(packed)
    names = _Names()
    unpacked = 0
    while (header := _next_header(inflated)) is not None:
        path = clean_path(header.name)
        directory = header.type == tarfile.DIRTYPE
        if not directory and header.type not in _FILES:
            raise InvalidArchive(f"{path!r} is neither a plain file nor a directory: remove it")
        if not directory and header.mode & (stat.S_ISUID | stat.S_ISGID):
            raise InvalidArchive(f"{path!r} has the setuid or the setgid bit: remove it")
        if header.size < 0 or (directory and header.size):
            raise InvalidArchive(f"{path!r} has an impossible size")
        unpacked += header.size
        if unpacked > MAX_UNPACKED_BYTES:
            raise InvalidArchive(f"it has more than {MAX_UNPACKED_BYTES >> 20} MiB when unpacked")
        if not path and not directory:
            raise InvalidArchive("it holds a file without a name")
        names.add(path, directory)
        entry = Entry(path, directory, bool(header.mode & stat.S_IXUSR), header.size, inflated, header.size)
        if path:
            yield entry
        while entry.read(_COPY_BYTES):
            pass
        inflated.read_exactly(-header.size % _BLOCK)


def clean_path(name: str) -> str:
    """The path of an entry beneath the root, without `.` and doubled slashes; "" for the root itself.

    Raises InvalidArchive when it would lead elsewhere, or is one that people could not read or type.
    """
    shown = repr(name) if len(name) <= MAX_NAME_BYTES else f"{name[:100]!r}…"
    if not name or name.startswith("/"):
        raise InvalidArchive(f"the path {shown} is not beneath the root of the package")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for part in parts:
        if part == ".." or "\\" in part:
            raise InvalidArchive(f"the path {shown} is not beneath the root of the package")
        if not part.isprintable():
            raise InvalidArchive(f"the path {shown} has characters that cannot be printed")
        if len(part.encode()) > MAX_NAME_BYTES:
            raise InvalidArchive(f"the path {shown} has a name of more than {MAX_NAME_BYTES} bytes")
    path = "/".join(parts)
    if len(path.encode()) > MAX_PATH_BYTES:
        raise InvalidArchive(f"the path {shown} is longer than {MAX_PATH_BYTES:,} bytes")
    return path


class _Inflated:
    """The decompressed bytes of an archive, which is one gzip member and nothing else."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._inflater = zlib.decompressobj(wbits=_GZIP)
        self._buffer = memoryview(b"")

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end of a sound archive."""
        if not self._buffer:
            self._buffer = memoryview(self._inflate())
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return bytes(data)

    def _inflate(self) -> bytes:
        while not self._inflater.eof:
            piece = self._inflater.unconsumed_tail or self._packed.read(_COPY_BYTES)
            try:
                data = self._inflater.decompress(piece, _COPY_BYTES)
            except zlib.error as error:
                raise InvalidArchive(f"it is not gzip-compressed, or damaged: {error}") from None
            if data:
                return data
            if not piece and not self._inflater.eof:
                raise InvalidArchive("it ends in the middle: send it again")
        if self._inflater.unused_data or self._packed.read(1):
            raise InvalidArchive("it has data behind its end")
        return b""

    def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.read(size - len(data))
            if not more:
                raise InvalidArchive("its tar ends in the middle")
            data += more
        return data


@dataclass(slots=True)
class _Names:
    """The paths that an archive has used so far."""

    files: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    stated: set[str] = field(default_factory=set)
    folded: dict[str, str] = field(default_factory=dict)
    """Each path by what a file system makes of it that knows neither case nor Unicode's several ways to write it."""

    def add(self, path: str, directory: bool) -> None:
        if path in self.files or path in self.stated or (path in self.directories and not directory):
            raise InvalidArchive(f"it holds {path or '.'!r} twice")
        self._tell_apart(path)
        parent = path
        while "/" in parent and (parent := parent.rpartition("/")[0]) not in self.directories:
            if parent in self.files:
                raise InvalidArchive(f"it holds {parent!r} both as a file and as a directory")
            self._tell_apart(parent)
            self.directories.add(parent)
        if directory:
            self.stated.add(path)
            self.directories.add(path)
        else:
            self.files.add(path)
        if len(self.files) + len(self.directories) > MAX_ENTRIES:
            raise InvalidArchive(f"it has more than {MAX_ENTRIES:,} files and directories")

    def _tell_apart(self, path: str) -> None:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
        if (other := self.folded.setdefault(folded, path)) != path:
            raise InvalidArchive(f"it holds {other!r} and {path!r}, which not every file system tells apart")


def _next_header(inflated: _Inflated) -> tarfile.TarInfo | None:
    """The header of the next entry, with what extension headers say of it; None at the end."""
    name: str | None = None
    size: int | None = None
    for _ in range(_MAX_EXTENSIONS + 1):
        block = inflated.read_exactly(_BLOCK)
        if not any(block):
            _expect_end(inflated)
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise InvalidArchive(f"it is not a tar, or damaged: {error}") from None
        if header.type == tarfile.XHDTYPE:
            records = _extended_records(_extension(inflated, header))
            name = _sole_name(name, records.get("path"))
            size = _extended_size(records, size)
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            name = _sole_name(name, _utf8(_extension(inflated, header).rstrip(b"\0")))
        elif header.type == _GLOBAL_HEADER:
            # What other programs would take to be said of each entry; a comment is all that there is use for.
            if _extended_records(_extension(inflated, header)).keys() & {"path", "linkpath", "size"}:
                raise InvalidArchive("it has a global header that names or measures its entries")
        else:
            header.name = header.name if name is None else name
            header.size = header.size if size is None else size
            return header
    raise InvalidArchive("it has too many extension headers in a row")


def _extension(inflated: _Inflated, header: tarfile.TarInfo) -> bytes:
    if not 0 <= header.size <= _MAX_EXTENSION_BYTES:
        raise InvalidArchive("it has an extension header that is too large")
    content = inflated.read_exactly(header.size)
    inflated.read_exactly(-header.size % _BLOCK)
    return content


def _extended_records(content: bytes) -> dict[str, str]:
    """The records `length key=value` of a pax header."""
    records: dict[str, str] = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length[:9]) <= len(content):
            raise InvalidArchive("it has a malformed extension header")
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise InvalidArchive("it has a malformed extension header")
        records[_utf8(key)] = _utf8(value[:-1])
    return records


def _sole_name(name: str | None, other: str | None) -> str | None:
    """The name of an entry, which is given once: of several, each program takes another one."""
    if name is not None and other is not None:
        raise InvalidArchive("it names an entry more than once")
    return name if other is None else other


def _extended_size(records: dict[str, str], size: int | None) -> int | None:
    if any(key.startswith("GNU.sparse") for key in records):
        raise InvalidArchive("it holds a sparse file: pack it as a plain one")
    text = records.get("size")
    if text is None:
        return size
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidArchive("it has a malformed extension header")
    return int(text)


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArchive("it has a name that is not UTF-8") from None


def _expect_end(inflated: _Inflated) -> None:
    """Nothing may hide behind the end."""
    trailing = 0
    while data := inflated.read(_COPY_BYTES):
        trailing += len(data)
        if any(data) or trailing > _MAX_TRAILING_BYTES:
            raise InvalidArchive("it has data behind its end")
