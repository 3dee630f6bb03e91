"""What is in a directory in which processes may still be at work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def contents(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """Every regular file below, and what is in it; without those that are renamed or removed before they are read."""
    for folder, _, names in os.walk(directory):
        for path in (Path(folder, name) for name in names):
            try:
                if path.is_file():
                    yield path, path.read_bytes()
            except FileNotFoundError:
                continue
