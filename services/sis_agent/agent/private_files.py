"""Files that are their owner's alone, and there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from services.sis_agent.agent.attempts import sync_directory


def write_private(path: Path, content: bytes) -> None:
    """Replace a file, mode 0600, at once and for good; directories that are missing are made, mode 0700.

    Raises:
        OSError: the file is what it was.
    """
    make_private(path.parent)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def make_private(directory: Path) -> None:
    """Make a directory and those above it that are missing, mode 0700, for good. Repeatable."""
    if not directory.exists():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
