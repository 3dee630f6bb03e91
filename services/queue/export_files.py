"""Files of exports: lines, compressed, in a directory of the operators. Either a file is there, whole and on disk under
its name, or it is not there; nothing here knows what is in one.

Its functions block.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
import time
from pathlib import Path

SUFFIX = ".ndjson.gz"
PART_SECONDS = 86_400.0
"""A part that nobody has written to for this long was left by a process that died."""


class ExportFile:
    """A file that is being written, with the suffix `.part`. `finish` or `discard` it."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError, as all methods but `discard` do: it cannot be written."""
        self._directory = directory
        self._random = secrets.token_hex(4)
        self._part = directory / f"jobs-{self._random}{SUFFIX}.part"
        # What jobs printed is nobody's but the operators'.
        self._file = os.fdopen(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._lines = gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=6, filename="")

    def write(self, line: bytes) -> None:
        """Append a line."""
        self._lines.write(line)

    def finish(self, first: int, last: int) -> str:
        """Have it on disk under its name, which says which jobs it is about; the name."""
        self._lines.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = f"jobs-{first}-{last}-{self._random}{SUFFIX}"
        self._part.rename(self._directory / name)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return name

    def discard(self) -> None:
        """Remove what there is of it."""
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)
        with contextlib.suppress(OSError, ValueError):
            self._file.close()  # which writes what it still holds, where the disk may be full


def remove_leftovers(directory: Path) -> None:
    """Remove the parts that dead processes have left. Raises OSError."""
    old = time.time() - PART_SECONDS
    for part in directory.glob(f"jobs-*{SUFFIX}.part"):
        with contextlib.suppress(FileNotFoundError):  # somebody else was quicker
            if part.stat().st_mtime < old:
                part.unlink()
