"""How many attempts an agent can still take; pure bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple

UNANSWERED_SECONDS = 15.0
"""An agent that beats and for so long says nothing of an assignment will not take it up."""


class AttemptKey(NamedTuple):
    """One claim of one job."""

    job_id: int
    number: int


class Slots:
    """The slots of one session.

    An attempt takes a slot from its assignment until it is settled (sealed or declined) or until a beat that could
    have named it does not. A beat may have been sent before an assignment arrived or an acknowledgement was read, so
    what was assigned stays until the agent says something of it, or for UNANSWERED_SECONDS, and what was settled does
    not come back while beats still name it. What is reserved has a slot for as long as the hub prepares its delivery.
    Times are those of one monotonic clock.
    """

    def __init__(self, total: int, held: Iterable[AttemptKey], *, draining: bool) -> None:
        self._total = total
        self._draining = draining
        self._reserved: set[AttemptKey] = set()
        self._assigned: dict[AttemptKey, float] = {}  # when; the agent has said nothing of them yet
        self._held = set(held)  # as the agent said last
        self._settled: set[AttemptKey] = set()  # of those held, the ones that are over here
        self._withheld = 0  # slots that the agent does not want to be filled

    @property
    def free(self) -> int:
        """How many more attempts may be assigned now."""
        if self._draining:
            return 0
        taken = len(self._reserved - self._held) + len(self._assigned) + len(self._held) - len(self._settled)
        return max(0, self._total - taken - self._withheld)

    @property
    def total(self) -> int:
        return self._total

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def held(self) -> Set[AttemptKey]:
        """What the agent says that it has in hand, except what is settled."""
        return self._held - self._settled

    def reserve(self, attempt: AttemptKey) -> bool:
        """Take a slot for an attempt that will be assigned or released; False if it has one, or is settled."""
        if attempt in self._reserved or attempt in self._assigned or attempt in self._held:
            return False
        self._reserved.add(attempt)
        return True

    def release(self, attempt: AttemptKey) -> None:
        """Free a reserved slot."""
        self._reserved.discard(attempt)

    def assign(self, attempt: AttemptKey, now: float) -> bool:
        """Take a slot for an attempt, if it was reserved that one; False if it has one already, or is settled, and need
        not be delivered again."""
        self._reserved.discard(attempt)
        if attempt in self._assigned or attempt in self._held:
            return False
        self._assigned[attempt] = now
        return True

    def answered(self, attempt: AttemptKey) -> None:
        """The agent has said something of an attempt that was assigned."""
        if self._assigned.pop(attempt, None) is not None:
            self._held.add(attempt)

    def settle(self, attempt: AttemptKey) -> None:
        """The attempt is sealed or declined, and that is committed: its slot is free."""
        self._assigned.pop(attempt, None)
        if attempt in self._held:
            self._settled.add(attempt)

    def beat(self, attempts: Iterable[AttemptKey], free_slots: int, *, draining: bool, now: float) -> None:
        """The agent says what it has in hand, how many more it could take and whether it wants any."""
        self._held = set(attempts)
        self._assigned = {
            key: since
            for key, since in self._assigned.items()
            if key not in self._held and now - since < UNANSWERED_SECONDS
        }
        self._settled &= self._held
        self._withheld = max(0, self._total - len(self._held) - free_slots)
        self._draining = draining
