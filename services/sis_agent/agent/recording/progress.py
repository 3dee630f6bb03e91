"""The payload's progress file, watched by its time and size."""

from __future__ import annotations

from pathlib import Path

from services.sis_agent.agent.recording import outputs
from services.sis_agent.agent.recording.outputs import ProgressReport
from services.sis_agent.agent.secrecy.masking import Masker


class ProgressFile:
    """Tells what is new in the file that SIS_PROGRESS names, masked."""

    def __init__(self, path: Path, masker: Masker) -> None:
        self._path = path
        self._masker = masker
        self._mark: tuple[int, int, int] | None = None
        self._last: ProgressReport | None = None

    def news(self) -> ProgressReport | None:
        """What the payload says now, unless it said so before. Cheap when nothing has changed."""
        try:
            status = self._path.lstat()
        except OSError:
            return None
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        if mark == self._mark:
            return None
        self._mark = mark
        report = outputs.read_progress(self._path, self._masker)
        if report is None or report == self._last:
            return None
        self._last = report
        return report
