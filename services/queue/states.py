"""The job state machine: the only rulebook. Pure; knows neither time nor storage.

`TRANSITIONS` is the table of ARCHITECTURE.md, row by row. Each (status, event) has one of three outcomes: a move; a
recorded no-op (the event is a fact worth keeping, the status stays); refused (`IllegalTransition`). Where a row
depends on more than the status, its `Guard` says on what.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.queue.errors import IllegalTransition


class Status(StrEnum):
    """Where a job stands. Who leaves it, and what happens when a process crashes meanwhile:"""

    DEFERRED = "DEFERRED"
    """Held. Left by a person, or by the sweeper when its time comes; any sweeper of any replica will do."""
    WAITING = "WAITING"
    """On the queue. Left by a hub's claim, a person or the sweeper; a claim that crashes is rolled back."""
    STARTING = "STARTING"
    """Claimed for one attempt. If hub or agent crash before the acceptance is committed, the agent's next hello
    proves that nothing started; after it, the agent's journal goes on with it."""
    RUNNING = "RUNNING"
    """The first payload process exists. It outlives queue, hub and agent; their return picks it up again."""
    PROCESSING_OUTPUT = "PROCESSING_OUTPUT"
    """The payload was reaped. As RUNNING on a crash."""
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    """The agent is stopping it. The wish is in the database and repeated until the agent has journalled it."""
    CANCELED = "CANCELED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    ABORTED = "ABORTED"
    TIMED_OUT = "TIMED_OUT"
    EXPIRED = "EXPIRED"
    AWOL = "AWOL"
    """Nobody knows. Left when its agent returns with it, or when a person aborts it (with force or without) or deletes
    it; by nothing else."""


class Event(StrEnum):
    """What happens to a job."""

    # People.
    ACTIVATE = "ACTIVATE"
    CANCEL = "CANCEL"
    ABORT = "ABORT"
    FORCE = "FORCE"
    DELETE = "DELETE"
    RERUN = "RERUN"
    # The clock, through the sweeper.
    RELEASE = "RELEASE"
    EXPIRE = "EXPIRE"
    SILENCE = "SILENCE"
    START_LIMIT = "START_LIMIT"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    STOP_LIMIT = "STOP_LIMIT"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    # The queue and the hub.
    UNRUNNABLE = "UNRUNNABLE"
    CLAIM = "CLAIM"
    GIVE_BACK = "GIVE_BACK"
    LEASE_REFUSED = "LEASE_REFUSED"
    JOURNAL_LOST = "JOURNAL_LOST"
    RETURN_STARTING = "RETURN_STARTING"
    RETURN_RUNNING = "RETURN_RUNNING"
    RETURN_PROCESSING_OUTPUT = "RETURN_PROCESSING_OUTPUT"
    RETURN_CANCEL_REQUESTED = "RETURN_CANCEL_REQUESTED"
    # After a restore of the database.
    RESTORE = "RESTORE"
    ADOPT = "ADOPT"
    # The agent.
    ACCEPT = "ACCEPT"
    FIRST_PROCESS = "FIRST_PROCESS"
    PAYLOAD_ENDED = "PAYLOAD_ENDED"
    FINISH_SUCCEEDED = "FINISH_SUCCEEDED"
    FINISH_FAILED = "FINISH_FAILED"
    FINISH_STOPPED = "FINISH_STOPPED"


class Guard(StrEnum):
    """What a row needs beside the status."""

    NEVER_ACCEPTED = "never accepted"
    ACCEPTED = "accepted"
    CANCEL_RECORDED = "never accepted, a cancel recorded"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: on `event` in `status`, the job goes to `to`, or stays where `to` is the same."""

    status: Status
    event: Event
    to: Status
    guard: Guard | None = None

    def holds(self, accepted: bool, cancel_recorded: bool) -> bool:
        """Whether the guard lets a job with these facts pass."""
        match self.guard:
            case Guard.NEVER_ACCEPTED:
                return not accepted
            case Guard.ACCEPTED:
                return accepted
            case Guard.CANCEL_RECORDED:
                return not accepted and cancel_recorded
            case None:
                return True


TERMINAL = frozenset(
    {Status.CANCELED, Status.SUCCEEDED, Status.FAILED, Status.ABORTED, Status.TIMED_OUT, Status.EXPIRED}
)
"""Ended; no event changes them."""

HELD_BY_AGENT = frozenset({Status.STARTING, Status.RUNNING, Status.PROCESSING_OUTPUT, Status.CANCEL_REQUESTED})
"""The four in which an agent is expected to be heard of."""

_S, _E = Status, Event

_REPORTS = (
    _E.FIRST_PROCESS,
    _E.PAYLOAD_ENDED,
    _E.RUN_TIMEOUT,
    _E.FINISH_SUCCEEDED,
    _E.FINISH_FAILED,
    _E.FINISH_STOPPED,
)
"""What may still arrive from the site after the status became final: evidence, not a move."""

_ENDED_BY_AGENT = (_S.CANCELED, _S.SUCCEEDED, _S.FAILED, _S.ABORTED, _S.TIMED_OUT)


TRANSITIONS: tuple[Rule, ...] = (
    # Held and waiting.
    Rule(_S.DEFERRED, _E.ACTIVATE, _S.WAITING),
    Rule(_S.DEFERRED, _E.RELEASE, _S.WAITING),
    Rule(_S.WAITING, _E.ACTIVATE, _S.WAITING),
    Rule(_S.DEFERRED, _E.EXPIRE, _S.EXPIRED),
    Rule(_S.WAITING, _E.EXPIRE, _S.EXPIRED),
    *(Rule(s, _E.CANCEL, _S.CANCELED) for s in (_S.DEFERRED, _S.WAITING)),
    *(Rule(s, _E.ABORT, _S.ABORTED) for s in (_S.DEFERRED, _S.WAITING)),
    *(Rule(s, _E.DELETE, _S.CANCELED) for s in (_S.DEFERRED, _S.WAITING)),
    Rule(_S.WAITING, _E.UNRUNNABLE, _S.FAILED),
    Rule(_S.WAITING, _E.CLAIM, _S.STARTING),
    # Claimed.
    Rule(_S.STARTING, _E.ACCEPT, _S.STARTING),
    Rule(_S.STARTING, _E.GIVE_BACK, _S.WAITING, Guard.NEVER_ACCEPTED),
    Rule(_S.STARTING, _E.LEASE_REFUSED, _S.WAITING, Guard.NEVER_ACCEPTED),
    Rule(_S.STARTING, _E.FIRST_PROCESS, _S.RUNNING),
    Rule(_S.STARTING, _E.START_LIMIT, _S.FAILED),
    # Running, to its end.
    Rule(_S.RUNNING, _E.FIRST_PROCESS, _S.RUNNING),
    Rule(_S.RUNNING, _E.PAYLOAD_ENDED, _S.PROCESSING_OUTPUT),
    Rule(_S.RUNNING, _E.RUN_TIMEOUT, _S.TIMED_OUT),
    Rule(_S.PROCESSING_OUTPUT, _E.FINISH_SUCCEEDED, _S.SUCCEEDED),
    Rule(_S.PROCESSING_OUTPUT, _E.OUTPUT_LIMIT, _S.FAILED),
    # An error outside the payload, or a supervisor that was lost, at any time.
    *(Rule(s, _E.FINISH_FAILED, _S.FAILED) for s in (_S.STARTING, _S.RUNNING, _S.PROCESSING_OUTPUT)),
    # Stopped at the site without a wish of ours.
    *(Rule(s, _E.FINISH_STOPPED, _S.FAILED) for s in (_S.STARTING, _S.RUNNING, _S.PROCESSING_OUTPUT)),
    # Canceled while an agent has it.
    *(Rule(s, _E.CANCEL, _S.CANCEL_REQUESTED) for s in (_S.STARTING, _S.RUNNING)),
    Rule(_S.CANCEL_REQUESTED, _E.CANCEL, _S.CANCEL_REQUESTED),
    Rule(_S.CANCEL_REQUESTED, _E.DELETE, _S.CANCEL_REQUESTED),
    Rule(_S.CANCEL_REQUESTED, _E.FIRST_PROCESS, _S.CANCEL_REQUESTED),
    Rule(_S.CANCEL_REQUESTED, _E.PAYLOAD_ENDED, _S.CANCEL_REQUESTED),
    Rule(_S.CANCEL_REQUESTED, _E.ACCEPT, _S.CANCEL_REQUESTED, Guard.ACCEPTED),
    Rule(_S.CANCEL_REQUESTED, _E.GIVE_BACK, _S.CANCELED, Guard.NEVER_ACCEPTED),
    Rule(_S.CANCEL_REQUESTED, _E.LEASE_REFUSED, _S.CANCELED, Guard.NEVER_ACCEPTED),
    Rule(_S.CANCEL_REQUESTED, _E.FINISH_STOPPED, _S.CANCELED),
    Rule(_S.CANCEL_REQUESTED, _E.FINISH_SUCCEEDED, _S.SUCCEEDED),
    Rule(_S.CANCEL_REQUESTED, _E.FINISH_FAILED, _S.FAILED),
    Rule(_S.CANCEL_REQUESTED, _E.STOP_LIMIT, _S.FAILED),
    Rule(_S.CANCEL_REQUESTED, _E.RUN_TIMEOUT, _S.TIMED_OUT),
    # Forced.
    *(Rule(s, _E.ABORT, _S.ABORTED) for s in sorted(HELD_BY_AGENT)),
    # The agent is not heard, and comes back.
    *(Rule(s, _E.SILENCE, _S.AWOL) for s in sorted(HELD_BY_AGENT)),
    *(Rule(s, _E.JOURNAL_LOST, _S.AWOL) for s in sorted(HELD_BY_AGENT)),
    Rule(_S.AWOL, _E.SILENCE, _S.AWOL),
    Rule(_S.AWOL, _E.JOURNAL_LOST, _S.AWOL),
    Rule(_S.AWOL, _E.RETURN_STARTING, _S.STARTING),
    Rule(_S.AWOL, _E.RETURN_RUNNING, _S.RUNNING),
    Rule(_S.AWOL, _E.RETURN_PROCESSING_OUTPUT, _S.PROCESSING_OUTPUT),
    Rule(_S.AWOL, _E.RETURN_CANCEL_REQUESTED, _S.CANCEL_REQUESTED),
    Rule(_S.AWOL, _E.GIVE_BACK, _S.CANCELED, Guard.CANCEL_RECORDED),
    Rule(_S.AWOL, _E.GIVE_BACK, _S.WAITING, Guard.NEVER_ACCEPTED),
    Rule(_S.AWOL, _E.CANCEL, _S.AWOL),
    Rule(_S.AWOL, _E.ABORT, _S.ABORTED),
    Rule(_S.AWOL, _E.FORCE, _S.ABORTED),
    Rule(_S.AWOL, _E.DELETE, _S.ABORTED),
    # The database was restored from a backup: what waited may have run since, so people decide, unless its agent still
    # has it.
    Rule(_S.WAITING, _E.RESTORE, _S.DEFERRED),
    *(Rule(s, _E.RESTORE, s) for s in (_S.DEFERRED, *sorted(HELD_BY_AGENT), _S.AWOL, *_ENDED_BY_AGENT)),
    Rule(_S.DEFERRED, _E.ADOPT, _S.STARTING),
    # Ended: the same verb again, letting go by force, a deletion, a repetition by a new job, and what still comes from
    # the site.
    Rule(_S.CANCELED, _E.CANCEL, _S.CANCELED),
    Rule(_S.ABORTED, _E.ABORT, _S.ABORTED),
    *(Rule(s, _E.FORCE, s) for s in sorted(TERMINAL)),
    *(Rule(s, _E.DELETE, s) for s in sorted(TERMINAL)),
    *(Rule(s, _E.RERUN, s) for s in sorted(TERMINAL)),
    *(Rule(s, e, s) for s in _ENDED_BY_AGENT for e in _REPORTS),
)

_RULES: dict[tuple[Status, Event], tuple[Rule, ...]] = {}
for _rule in TRANSITIONS:
    _RULES[_rule.status, _rule.event] = (*_RULES.get((_rule.status, _rule.event), ()), _rule)


def next_status(status: Status, event: Event, *, accepted: bool = False, cancel_recorded: bool = False) -> Status:
    """The status after `event`; the same one means a recorded no-op.

    Raises:
        IllegalTransition: the rulebook has no row for it.
    """
    for rule in _RULES.get((status, event), ()):
        if rule.holds(accepted, cancel_recorded):
            return rule.to
    raise IllegalTransition(status, event)


VERBS = (_E.ACTIVATE, _E.CANCEL, _E.ABORT, _E.DELETE, _E.RERUN)
"""What people ask for. FORCE is a way to abort, and depends on more than the status."""

_REPEATED = frozenset(
    {(_S.WAITING, _E.ACTIVATE), (_S.CANCEL_REQUESTED, _E.CANCEL), (_S.CANCELED, _E.CANCEL), (_S.ABORTED, _E.ABORT)}
)


def permitted(status: Status, *, cancel_recorded: bool = False) -> tuple[Event, ...]:
    """Which verbs the rulebook takes in a status, without those that would repeat what was done."""
    repeated = _REPEATED | {(_S.AWOL, _E.CANCEL)} if cancel_recorded else _REPEATED
    return tuple(verb for verb in VERBS if (status, verb) in _RULES and (status, verb) not in repeated)


class RunState(StrEnum):
    """The groups of statuses by which people filter."""

    READY = "READY"
    ACTIVE = "ACTIVE"
    CANCELING = "CANCELING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    HALTED = "HALTED"


RUN_STATES: dict[RunState, frozenset[Status]] = {
    RunState.READY: frozenset({_S.DEFERRED, _S.WAITING}),
    RunState.ACTIVE: frozenset({_S.STARTING, _S.RUNNING, _S.PROCESSING_OUTPUT}),
    RunState.CANCELING: frozenset({_S.CANCEL_REQUESTED, _S.CANCELED}),
    RunState.SUCCEEDED: frozenset({_S.SUCCEEDED}),
    RunState.FAILED: frozenset({_S.AWOL, _S.FAILED}),
    RunState.TIMED_OUT: frozenset({_S.TIMED_OUT, _S.EXPIRED}),
    RunState.HALTED: frozenset({_S.ABORTED, _S.CANCELED}),
}


class StopState(StrEnum):
    """What is known of the end of a job's processes, beside its status."""

    NONE = "NONE"
    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    UNCONFIRMED = "UNCONFIRMED"
