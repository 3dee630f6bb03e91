"""Arms the named places of `services.runtime.faults` for the processes that a test starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.stopping import still

WAIT_SECONDS = 30.0


class FaultPoints:
    """A directory of armed places, for processes that are started with `environment`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o777, parents=True, exist_ok=True)
        directory.chmod(0o777)  # of a process that runs as somebody else too

    @property
    def environment(self) -> Mapping[str, str]:
        return {"SIS_FAULTS": str(self._directory)}

    def arm(self, point: str, action: str = "kill") -> None:
        """Have the next process that comes by killed, stopped ("stop") or held ("hold")."""
        fresh = self._directory / f".{point}.new"
        fresh.write_text(action, encoding="ascii")
        fresh.chmod(0o666)
        fresh.rename(self._directory / point)

    def is_armed(self, point: str) -> bool:
        """Whether nobody has come by it yet."""
        return (self._directory / point).exists()

    def disarm(self, point: str) -> bool:
        """Whether nobody had come by it."""
        try:
            (self._directory / point).unlink()
        except FileNotFoundError:
            return False
        return True

    def passed(self, point: str) -> int | None:
        """The pid of the process that was stopped or is held there; None while nobody has come by."""
        for kind in ("stopped", "held"):
            file = self._directory / f"{point}.{kind}"
            if file.exists():
                pid = int(file.read_text(encoding="ascii"))
                # It says so before it stops: continued too early, it would stand still for ever.
                return pid if kind == "held" or still(pid) else None
        return None

    def wait_passed(self, point: str, seconds: float = WAIT_SECONDS) -> int:
        """Wait for a process to be stopped or held there; its pid."""
        deadline = time.monotonic() + seconds
        while (pid := self.passed(point)) is None:
            assert time.monotonic() < deadline, f"nothing came by {point}"
            time.sleep(0.005)
        return pid

    def release(self, point: str) -> None:
        """Let the process that is stopped or held there go on, if it still lives. Repeatable."""
        held, stopped = self._directory / f"{point}.held", self._directory / f"{point}.stopped"
        held.unlink(missing_ok=True)
        if stopped.exists():
            pid = int(stopped.read_text(encoding="ascii"))
            stopped.unlink()
            if _is_stopped(pid):
                os.kill(pid, signal.SIGCONT)

    def clear(self) -> None:
        """Disarm every place and let everybody go on."""
        for file in list(self._directory.iterdir()):
            if file.suffix in (".held", ".stopped"):
                self.release(file.stem)
            else:
                file.unlink(missing_ok=True)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False
