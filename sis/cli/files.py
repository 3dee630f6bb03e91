"""Files that a command writes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sis.cli.values import OptionError


@contextmanager
def replaced(option: str, path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, with its permissions, when the block ends; with an error, `path` stays as
    it is. A symbolic link stays, and what it leads to is replaced.

    Raises:
        OptionError: there cannot be a file, or something else is there.
        OSError: it cannot be written.
    """
    if path.name in ("", "-"):
        raise OptionError(f"{option}: {str(path)!r} is no file; name one")
    place = Path(os.path.realpath(path))
    fresh = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        found = place.stat() if place.exists() else None
        # A device or a pipe must not be replaced by a file.
        if found and not stat.S_ISREG(found.st_mode):
            what = "a directory" if stat.S_ISDIR(found.st_mode) else "no file"
            raise OptionError(f"{option}: {path} is {what}; name a file")
        fresh.unlink(missing_ok=True)  # of a process with this id that was killed
        opened = fresh.open("xb")
    except OSError as error:
        raise OptionError(f"{option}: {path} cannot be written: {error.strerror}") from None
    try:
        with opened as file:
            if found:
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(place)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
