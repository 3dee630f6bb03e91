"""How long a stream that broke is opened again, and with which pauses."""

from __future__ import annotations

import random
import time

from sis.client.errors import ApiError

PATIENCE_SECONDS = 60.0
"""How long nothing may come before a broken stream is an error."""
_FIRST_DELAY, _LAST_DELAY = 0.2, 3.0
# Its own: a pause must not change what others draw from the global generator, which tests seed and compare.
_dice = random.Random()  # noqa: S311


class Patience:
    """That of one stream. Its pauses grow, and are never the same for many clients."""

    def __init__(self, seconds: float = PATIENCE_SECONDS) -> None:
        self._seconds = seconds
        self._broken_since: float | None = None
        self._opened = 0.0
        self._delay = _FIRST_DELAY

    def renew(self) -> None:
        """Something came, so the interruption is over."""
        self._broken_since = None

    def pause(self, error: ApiError) -> float:
        """How many seconds to wait before the stream that `error` broke is opened again.

        Raises:
            ApiError: `error`, if it will not pass, or nothing came for too long.
        """
        now = time.monotonic()
        if self._broken_since is None:
            self._broken_since = now
            # A stream that breaks behind its first response, time after time, must not be asked for all the time.
            if now - self._opened > _LAST_DELAY:
                self._delay = _FIRST_DELAY
        if not error.passing or now - self._broken_since >= self._seconds:
            raise error
        delay, self._delay = self._delay, min(self._delay * 2, _LAST_DELAY)
        pause = max(_dice.uniform(delay / 2, delay), min(error.retry_after or 0.0, _LAST_DELAY))
        self._opened = now + pause
        return pause
