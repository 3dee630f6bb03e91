"""Named places at which a test can have a process killed, stopped or held: `faults.point("hub.leased")`.

Absent from normal runs: only a process that was started with SIS_FAULTS, a directory, looks at all. A file in it, named
as the place, has the next process that comes by do what its content says, once:

- `kill`: the process gets SIGKILL;
- `stop`: it gets SIGSTOP, and writes its pid into `NAME.stopped` before; whoever armed the place sends SIGCONT;
- `hold`: it writes its pid into `NAME.held` and stands still until that file is removed, for 60 s at the most, so that
  something else can be done at that very moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

HOLD_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.005

_DIRECTORY: Final = os.environ.get("SIS_FAULTS", "")


def point(name: str) -> None:
    """A place by this name is passed."""
    if _DIRECTORY:
        _pass(Path(_DIRECTORY), name)


def _pass(directory: Path, name: str) -> None:
    armed = directory / name
    with contextlib.suppress(OSError):
        action = armed.read_text(encoding="ascii").strip()
        # Of two processes only the one that could remove it was meant.
        armed.unlink()
        match action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                _tell(armed.with_name(f"{name}.stopped"))
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hold":
                _hold(armed.with_name(f"{name}.held"))


def _tell(file: Path) -> None:
    """Write the pid of this process, so that it is there as soon as the file is."""
    fresh = file.with_suffix(f"{file.suffix}.{os.getpid()}")
    fresh.write_text(str(os.getpid()), encoding="ascii")
    fresh.rename(file)


def _hold(file: Path) -> None:
    _tell(file)
    deadline = time.monotonic() + HOLD_SECONDS
    while file.exists() and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
