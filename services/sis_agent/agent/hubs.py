"""Which hub an agent tries next."""

from __future__ import annotations

import random
from collections.abc import Sequence

# Its own: a turn must not change what others draw from the global generator, which tests seed and compare.
_dice = random.Random()  # noqa: S311  (to spread the agents, not a secret)


class Turns:
    """Every hub once, in an order that is drawn anew each time; the one that was left comes last. So the agents that a
    hub sends away are spread over all the others, and none of them is waited for while another would serve."""

    def __init__(self, first: str = "") -> None:
        """`first` is the hub to begin with, "" for any."""
        self._left = [first] if first else []
        self._last = first

    def next(self, endpoints: Sequence[str]) -> str:
        """The hub to try now, of those that there are now, one at the least."""
        self._left = [each for each in self._left if each in endpoints]
        if not self._left:
            others = [each for each in endpoints if each != self._last]
            self._left = [*_dice.sample(others, len(others)), *(each for each in endpoints if each == self._last)]
        self._last = self._left.pop(0)
        return self._last

    def welcomed(self) -> None:
        """The hub that was tried has taken this agent: what comes next is drawn anew."""
        self._left = []
