"""Paths as people write them."""

from __future__ import annotations

import errno
from pathlib import Path


def expanded(path: Path | str) -> Path:
    """With `~` and `~user` as a shell has them.

    Raises:
        FileNotFoundError: nobody has that name, or no home directory is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "there is no such home directory", str(path)) from None
