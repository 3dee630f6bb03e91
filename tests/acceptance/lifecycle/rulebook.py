"""What may become of a job by what is done to it: the tables of the design, written by hand and not from the product's
rulebook. Pure.

Each call is an `Operation`: the states that it may leave behind, each with the answer that belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from tests.support.agreed_states import HELD_BY_AGENT, TERMINAL

REFUSED = "ILLEGAL_TRANSITION"
NOT_FOUND = "JOB_NOT_FOUND"
STALE = "STALE_ATTEMPT"
SEALED = "LOG_SEALED"
DONE = ""


@dataclass(frozen=True)
class State:
    """All of a job that decides what may become of it."""

    status: str
    agent: str = ""
    attempt: int = 0
    accepted: bool = False
    began: bool = False
    """Its first process was reported."""
    ended: bool = False
    """The end of its payload was reported."""
    live: bool = False
    """Something of the attempt may be at its site."""
    lost: bool = False
    """Its agent's journal does not know it any more."""
    cancel: bool = False
    """A cancel is recorded."""
    stop: str = "NONE"
    hidden: bool = False

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL


Step = tuple[State, str]
"""What a call leaves behind, and its answer."""
Operation = Callable[[State], Iterable[Step]]
"""What a call may do to a job in a state."""


# What people do


def activate(s: State) -> Iterator[Step]:
    if s.hidden:
        yield s, NOT_FOUND
    elif s.status in ("DEFERRED", "WAITING"):
        yield replace(s, status="WAITING"), DONE
    else:
        yield s, REFUSED


def cancel(s: State) -> Iterator[Step]:
    if s.hidden:
        yield s, NOT_FOUND
    elif s.status in ("DEFERRED", "WAITING"):
        yield replace(s, status="CANCELED", cancel=True), DONE
    elif s.status in ("STARTING", "RUNNING"):
        yield replace(s, status="CANCEL_REQUESTED", cancel=True), DONE
    elif s.status == "AWOL":
        yield replace(s, cancel=True), DONE
    elif s.status in ("CANCEL_REQUESTED", "CANCELED"):
        yield s, DONE
    else:
        yield s, REFUSED


def abort(s: State) -> Iterator[Step]:
    if s.hidden:
        yield s, NOT_FOUND
    elif s.status in ("DEFERRED", "WAITING"):
        yield replace(s, status="ABORTED"), DONE
    elif s.status in HELD_BY_AGENT:
        yield replace(s, status="ABORTED", stop="PENDING"), DONE
    elif s.status == "AWOL":
        yield replace(s, status="ABORTED", stop="UNCONFIRMED"), DONE
    elif s.status == "ABORTED":
        yield s, DONE
    else:
        yield s, REFUSED


def force(s: State) -> Iterator[Step]:
    """Let go of what an agent that is gone still holds."""
    if s.hidden:
        yield s, NOT_FOUND
    elif s.live and (s.status == "AWOL" or s.stop == "UNCONFIRMED"):
        status = "ABORTED" if s.status == "AWOL" else s.status
        yield replace(s, status=status, live=False, lost=True, stop="UNCONFIRMED"), DONE
    elif s.terminal and not s.live:
        yield s, DONE
    else:
        yield s, "FORCE_REFUSED"


def delete(s: State) -> Iterator[Step]:
    if s.hidden:
        yield s, NOT_FOUND
    elif s.status in ("DEFERRED", "WAITING"):
        yield replace(s, status="CANCELED", hidden=True), DONE
    elif s.status == "AWOL":
        yield replace(s, status="ABORTED", stop="UNCONFIRMED", hidden=True), DONE
    elif s.status == "CANCEL_REQUESTED" or s.terminal:
        yield replace(s, hidden=True), DONE
    else:
        yield s, REFUSED


def rerun(s: State) -> Iterator[Step]:
    if s.hidden:
        yield s, NOT_FOUND
    else:
        yield s, DONE if s.terminal else REFUSED


VERBS: dict[str, Operation] = {
    "ACTIVATE": activate,
    "CANCEL": cancel,
    "ABORT": abort,
    "FORCE": force,
    "DELETE": delete,
    "RERUN": rerun,
}


# What an agent reports of an attempt


def home(s: State) -> State:
    """It is heard of again."""
    if s.terminal and s.live and not s.lost and s.stop == "UNCONFIRMED":
        return replace(s, stop="PENDING")
    if s.status != "AWOL" or s.lost:
        return s
    return replace(
        s,
        status="CANCEL_REQUESTED" if s.cancel
        else "PROCESSING_OUTPUT" if s.ended
        else "RUNNING" if s.began
        else "STARTING",
    )  # fmt: skip


def given_back(s: State) -> State:
    """It is proven that the attempt never started."""
    if s.status == "STARTING" or (s.status == "AWOL" and not s.cancel):
        return replace(s, status="WAITING", agent="", live=False)
    if s.status in ("CANCEL_REQUESTED", "AWOL"):
        s = replace(s, status="CANCELED")
    return replace(s, live=False, stop=s.stop if s.stop == "NONE" else "CONFIRMED")


def report(agent: str, attempt: int, act: Callable[[State], Iterable[Step]]) -> Operation:
    """A report of an agent about one of its attempts, which is refused when it is not the current one."""

    def operation(s: State) -> Iterable[Step]:
        # An attempt that was given back is still its agent's, as far as the log goes.
        if s.attempt != attempt or (s.agent not in ("", agent)) or s.lost:
            return [(s, STALE)]
        return act(s)

    return operation


def accept(s: State) -> Iterator[Step]:
    if s.accepted:
        yield (home(s) if s.live else s), DONE
    elif not s.live:
        yield s, STALE
    elif (s := home(s)).status == "STARTING":
        yield replace(s, accepted=True), DONE
    else:
        yield given_back(s), STALE


def decline(s: State) -> Iterator[Step]:
    if s.accepted:
        yield s, STALE
    else:
        yield (given_back(s) if s.live else s), DONE


def _frame(move: Callable[[State], State]) -> Operation:
    def operation(s: State) -> Iterator[Step]:
        if not s.accepted:
            yield (home(s) if s.live else s), STALE
        elif not s.live:
            yield s, SEALED
        else:
            yield move(home(s)), DONE

    return operation


@_frame
def first_process(s: State) -> State:
    return replace(s, began=True, status="RUNNING" if s.status == "STARTING" else s.status)


@_frame
def payload_ended(s: State) -> State:
    return replace(s, ended=True, status="PROCESSING_OUTPUT" if s.status == "RUNNING" else s.status)


@_frame
def printed(s: State) -> State:
    return s


@_frame
def timed_out(s: State) -> State:
    """The agent has taken up a stop because the run timeout has passed."""
    if s.status in ("RUNNING", "CANCEL_REQUESTED"):
        return replace(s, status="TIMED_OUT", stop="PENDING")
    return s


_FINISHES = {
    ("PROCESSING_OUTPUT", "SUCCEEDED"): "SUCCEEDED",
    ("CANCEL_REQUESTED", "SUCCEEDED"): "SUCCEEDED",
    ("CANCEL_REQUESTED", "STOPPED"): "CANCELED",
    ("RUNNING", "TIMED_OUT"): "TIMED_OUT",
    ("CANCEL_REQUESTED", "TIMED_OUT"): "TIMED_OUT",
}
"""From and outcome, to; an end that does not follow is a failure."""


def finished(outcome: str, *, empty: bool) -> Operation:
    """The last frame."""

    @_frame
    def operation(s: State) -> State:
        status = s.status if s.terminal else _FINISHES.get((s.status, outcome), "FAILED")
        return replace(s, status=status, live=False, stop="CONFIRMED" if empty else "UNCONFIRMED")

    return operation


def in_turn(*operations: Operation) -> Operation:
    """Reports of one batch; the answer is the last one's."""

    def operation(s: State) -> Iterator[Step]:
        steps: list[Step] = [(s, DONE)]
        for each in operations:
            steps = [step for state, _ in steps for step in each(state)]
        yield from steps

    return operation


def hello(agent: str, held: frozenset[int], *, trusted: bool) -> Operation:
    """A session begins; `held` are the numbers of the job's attempts in hand. Trusted: the same journal, no shorter."""

    def operation(s: State) -> Iterator[Step]:
        has = s.attempt in held
        if s.agent != agent or not s.live or s.lost:
            yield s, DONE
        elif (s.accepted and not (has and trusted)) or (not s.accepted and not has and not trusted):
            yield lost(s), DONE
        elif not has:
            if s.status == "STARTING":
                yield s, DONE  # delivered again
            yield given_back(s), DONE
        elif not s.accepted and s.terminal:
            yield given_back(s), DONE
        else:
            yield home(s), DONE

    return operation


def lost(s: State) -> State:
    """Its agent cannot know of it any more."""
    if s.status in HELD_BY_AGENT:
        return hidden_end(replace(s, status="AWOL", lost=True))
    return replace(s, lost=True, stop="UNCONFIRMED" if s.stop == "PENDING" else s.stop)


def hidden_end(s: State) -> State:
    """Nobody can end a deleted job that has become AWOL."""
    return replace(s, status="ABORTED", stop="UNCONFIRMED") if s.hidden and s.status == "AWOL" else s
