"""Whether there is room for the agent's state."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path
from typing import Final

from services.sis_agent.agent.errors import JournalUnwritable

log = logging.getLogger(__name__)

_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
ROOM_BYTES: Final = 256 << 10
"""To take a job needs less."""
_TRIAL: Final = ".room"


class StateDirectory:
    """The directory with the agent's state. Says once that it cannot be written, and once that it can again: until
    then no job is taken, and whatever has to be written is tried again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trouble = ""
        self._too_little = -1
        """How many free bytes were too few for what was to be written; -1 where it was little."""

    @property
    def full(self) -> bool:
        """Whether it could not be written when that was tried last."""
        return bool(self._trouble)

    def failed(self, error: JournalUnwritable | OSError, *, more: bool = False) -> bool:
        """Something in it could not be written; with `more`, something large, for which what is free now is not enough.
        Whether that is the trouble of all: else of what was to be written alone, which is not mended by waiting for
        room."""
        if isinstance(error, OSError) and error.errno not in _UNWRITABLE:
            return False
        if not self._trouble:
            log.error("%s: this agent takes no jobs until %s can be written; what runs goes on", error, self._path)
        self._trouble = str(error)
        if more:
            self._too_little = max(self._too_little, self._free())
        return True

    def _free(self) -> int:
        found = os.statvfs(self._path)
        return found.f_bavail * found.f_frsize

    def look(self) -> None:
        """Find out whether it can be written again, where it could not."""
        if not self._trouble:
            return
        trial = self._path / _TRIAL
        try:
            with trial.open("wb") as file:
                file.write(bytes(ROOM_BYTES))
                file.flush()
                os.fsync(file.fileno())
            if self._free() <= self._too_little:
                return
        except OSError as error:
            self._trouble = str(error)
        else:
            self._trouble, self._too_little = "", -1
            log.info("%s can be written again: this agent takes jobs", self._path)
        finally:
            with contextlib.suppress(OSError):
                trial.unlink(missing_ok=True)
