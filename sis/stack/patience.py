"""How long a start waits for what it has started."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

RECOVERING: Final = "the database system is starting up"
"""What PostgreSQL answers until it has recovered from a crash."""
RECOVERY_SECONDS: Final = 3600.0
_SILENT_SECONDS: Final = 5.0
"""So long most recoveries take, and nobody need be told."""


class Patience:
    """It lasts `seconds`, and begins anew when the start has come further. While PostgreSQL recovers it does not end,
    for up to RECOVERY_SECONDS."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Begin anew."""
        self._began = self._clock()
        self._deadline = self._began + self._seconds

    @property
    def remaining(self) -> float:
        """Seconds; below 0 it is over."""
        return self._deadline - self._clock()

    def recovers(self, health: str) -> bool:
        """Whether this is the health of a PostgreSQL that recovers, and may go on with it; then there is as much time
        after it as there was at the beginning."""
        now = self._clock()
        if RECOVERING not in health or now > self._began + RECOVERY_SECONDS:
            return False
        self._deadline = now + self._seconds
        return True

    @property
    def tried(self) -> bool:
        """Whether it has lasted long enough for a person to be told what is waited for."""
        return self._clock() > self._began + _SILENT_SECONDS
