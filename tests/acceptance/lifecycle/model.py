"""The model: in which states a job may be, given what was done to it and what was answered. Pure.

What is not known is a set: of a call whose answer was lost it may or may not have happened, of two at once either may
have been the first, and meanwhile the world does what it can (`Powers`). An answer or a look narrows the set; when
nothing is left, the product has done what the design does not permit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.acceptance.lifecycle.rulebook import (
    Operation,
    State,
    accept,
    finished,
    first_process,
    given_back,
    hello,
    hidden_end,
    home,
    payload_ended,
)
from tests.support.agreed_states import HELD_BY_AGENT


class Violation(AssertionError):
    """The product has done what the design does not permit."""


@dataclass(frozen=True)
class Powers:
    """What the world may do to a job at this moment, unasked."""

    claimants: frozenset[str] = frozenset()
    """Agents that may claim it."""
    refused: bool = False
    """Its leases may be refused."""
    release: bool = False
    expire: bool = False
    """Its latest start may have passed."""
    held_too_long: bool = False
    """Its deferral may be over."""
    silence: bool = False
    """Its agent may not have been heard for longer than its heartbeat timeout."""
    limits: frozenset[str] = frozenset()
    """The statuses in which it may have been for longer than their limit."""
    acting: str = ""
    """An agent that acts by itself has it: with what outcome its payload ends, STOPPED if not by itself."""


def unasked(s: State, powers: Powers) -> Iterator[State]:
    """What may have become of it after one such step."""
    if s.status == "WAITING":
        for agent in powers.claimants:
            yield replace(
                s, status="STARTING", agent=agent, attempt=s.attempt + 1, accepted=False, began=False, ended=False,
                live=True, lost=False, stop="NONE",
            )  # fmt: skip
    if powers.refused and s.live and not s.accepted:
        yield given_back(s)
        if s.status == "STARTING":
            yield replace(given_back(s), status="FAILED")
    if powers.release and s.status == "DEFERRED":
        yield replace(s, status="WAITING")
    if powers.expire and s.status in ("DEFERRED", "WAITING"):
        yield replace(s, status="EXPIRED")
    if powers.held_too_long and s.status == "DEFERRED":
        yield replace(s, status="EXPIRED")
    if powers.silence and s.status in HELD_BY_AGENT:
        yield hidden_end(replace(s, status="AWOL"))
    if powers.silence and s.terminal and s.live and s.stop == "PENDING":
        yield replace(s, stop="UNCONFIRMED")
    if s.status in powers.limits and s.status in ("STARTING", "PROCESSING_OUTPUT"):
        yield replace(s, status="FAILED", stop="PENDING")
    if "STOP" in powers.limits and s.status == "CANCEL_REQUESTED":
        yield replace(s, status="FAILED", stop="PENDING")
    if "RUN" in powers.limits and s.status in ("RUNNING", "CANCEL_REQUESTED"):
        yield replace(s, status="TIMED_OUT", stop="PENDING")
    if powers.acting and s.live and not s.lost:
        yield from _acting(s, powers.acting)


def _acting(s: State, outcome: str) -> Iterator[State]:
    """The next steps of an honest agent."""
    if not s.accepted:
        yield from (state for state, _ in accept(s))
        yield from (state for state, _ in hello(s.agent, frozenset(), trusted=True)(s))
        return
    yield home(s)
    if not s.began:
        yield from (state for state, _ in first_process(s))
    stopped = s.status in ("CANCEL_REQUESTED", "ABORTED", "TIMED_OUT", "FAILED")
    if outcome == "STOPPED" and not stopped:
        return
    if not s.ended:
        yield from (state for state, _ in payload_ended(s))
    else:
        yield from (state for state, _ in finished(outcome, empty=True)(s))
    if stopped:
        yield from (state for state, _ in finished("STOPPED", empty=True)(s))


@dataclass
class Known:
    """One job."""

    states: set[State]
    powers: Powers = field(default_factory=Powers)
    told: list[str] = field(default_factory=list)
    """What was done and seen, for the message of a violation."""


class Model:
    """All jobs that a machine has made."""

    def __init__(self) -> None:
        self.jobs: dict[int, Known] = {}

    def created(self, job_id: int, status: str) -> None:
        """A job was acknowledged."""
        self.jobs[job_id] = Known({State(status)}, told=[f"created {status}"])

    def did(self, job_id: int, *calls: tuple[str, Operation, str | None]) -> None:
        """Calls were made at once, each with its answer, None where that was lost.

        Raises:
            Violation: no order of them, whatever happened in between, gives these answers.
        """
        known = self.jobs[job_id]
        before = self._reached(known)
        after: set[State] = set()
        for order in itertools.permutations(calls):
            states = before
            for _, operation, answer in order:
                states = {
                    state
                    for s in states
                    for state, found in operation(s)
                    if answer is None or found == answer
                } | (states if answer is None else set())  # fmt: skip
                states = self._closure(states, known.powers)
            after |= states
        self._narrow(job_id, after, " and ".join(f"{name} -> {answer!r}" for name, _, answer in calls))

    def saw(self, job_id: int, what: str, holds: Callable[[State], bool]) -> None:
        """Somebody looked at it.

        Raises:
            Violation: it cannot be so.
        """
        self._narrow(job_id, {s for s in self._reached(self.jobs[job_id]) if holds(s)}, what)

    def may(self, job_id: int) -> set[State]:
        """In which states it may be now."""
        return self._reached(self.jobs[job_id])

    def _narrow(self, job_id: int, after: set[State], what: str) -> None:
        known = self.jobs[job_id]
        known.told.append(what)
        if not after:
            lines = "\n  ".join(known.told[-40:])
            raise Violation(
                f"job {job_id}: {what}: the design has no way to that from\n"
                f"{sorted(known.states, key=str)}\nwith {known.powers}; what was done:\n  {lines}"
            )
        known.states = after

    def _reached(self, known: Known) -> set[State]:
        return self._closure(known.states, known.powers)

    @staticmethod
    def _closure(states: Iterable[State], powers: Powers) -> set[State]:
        found = set(states)
        todo: Sequence[State] = list(found)
        while todo:
            todo = [new for s in todo for new in unasked(s, powers) if new.attempt <= s.attempt + 1]
            todo = [new for new in dict.fromkeys(todo) if new not in found]
            # A job may be claimed and given back time and again; nobody looks so late.
            highest = min((s.attempt for s in states), default=0) + 6
            todo = [new for new in todo if new.attempt <= highest]
            found.update(todo)
        return found
