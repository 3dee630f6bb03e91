"""Named places at which a test can have a process killed: `faults.point("hub.leased")`.

Absent from normal runs: only a process that was started with SIS_FAULT_FILE looks at all. Whoever writes the name of a
place into that file has the next process that comes by it killed with SIGKILL; the file is gone then.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

_FILE: Final = os.environ.get("SIS_FAULT_FILE", "")


def point(name: str) -> None:
    """A place by this name is passed."""
    if _FILE:
        _pass(Path(_FILE), name)


def _pass(file: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        if file.read_text(encoding="ascii").strip() == name:
            # Of two processes only the one that could remove it was meant.
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
