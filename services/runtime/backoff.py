"""Delays between retries."""

from __future__ import annotations

import random

# Its own: a delay must not change what others draw from the global generator, which tests seed and compare.
_dice = random.Random()  # noqa: S311  (jitter, not a secret)


class Backoff:
    """Doubling delays with jitter: each is drawn between half of and the whole of the current step, and the
    step never exceeds `maximum`. Seconds."""

    def __init__(self, initial: float = 0.2, maximum: float = 10.0) -> None:
        if not 0 < initial <= maximum:
            raise ValueError("a backoff needs 0 < initial <= maximum")
        self._initial = initial
        self._maximum = maximum
        self._step = initial

    def next_delay(self) -> float:
        """How long to wait before the next try; the one after it is longer."""
        step = self._step
        self._step = min(step * 2, self._maximum)
        return step * _dice.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the shortest delay again; call it after a success."""
        self._step = self._initial
