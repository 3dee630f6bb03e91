"""Whether there is room for the agent's state."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Hashable
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
        self.waiting: set[Hashable] = set()
        """Who waits for room for more than `look` tries: while anybody does, it finds nothing out."""

    @property
    def full(self) -> bool:
        """Whether it could not be written when that was tried last."""
        return bool(self._trouble)

    def failed(self, error: JournalUnwritable | OSError) -> bool:
        """Something in it could not be written. Whether that is the trouble of all: else of what was to be written
        alone, which is not mended by waiting for room."""
        if isinstance(error, OSError) and error.errno not in _UNWRITABLE:
            return False
        if not self._trouble:
            log.error("%s: this agent takes no jobs until %s can be written; what runs goes on", error, self._path)
        self._trouble = str(error)
        return True

    def look(self) -> None:
        """Find out whether it can be written again, where it could not."""
        if not self._trouble or self.waiting:
            return
        trial = self._path / _TRIAL
        try:
            with trial.open("wb") as file:
                file.write(bytes(ROOM_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._trouble = str(error)
        else:
            self._trouble = ""
            log.info("%s can be written again: this agent takes jobs", self._path)
        finally:
            with contextlib.suppress(OSError):
                trial.unlink(missing_ok=True)
