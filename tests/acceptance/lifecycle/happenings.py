"""What happens to an attempt at its site: to the site, and as the model has it."""

from __future__ import annotations

from sis.queue.v1 import frame_pb2
from tests.acceptance.lifecycle import rulebook
from tests.acceptance.lifecycle.journals import Hand
from tests.acceptance.lifecycle.rulebook import DONE, Operation, State, Step
from tests.acceptance.lifecycle.sites import Site


def can_happen(hand: Hand, what: str) -> bool:
    """Whether an attempt is so far that this can happen to it."""
    if hand.phase == "finished" or not hand.confirmed:
        return False
    match what:
        case "start":
            return hand.phase == "ready" and not hand.stop
        case "obey":
            return bool(hand.stop)
        case "survive":
            return hand.phase == "running" and bool(hand.stop)
        case "end" | "time out":
            return hand.phase == "running"
        case _:
            return hand.phase != "ready"


def happen(site: Site, hand: Hand, what: str) -> list[Operation]:
    """Let it happen, if it can; what is then in the spool, as the model has it."""
    if not can_happen(hand, what):
        return []
    match what:
        case "start":
            site.start(hand)
            return [rulebook.first_process]
        case "print":
            site.print(hand, 2)
            return [rulebook.printed]
        case "end":
            site.payload_ends(hand, 0)
            return [rulebook.payload_ended]
        case "time out":
            site.stop_begins(hand, "TIME_OUT")
            site.finish(hand, "TIMED_OUT")
            return [rulebook.timed_out, rulebook.finished("TIMED_OUT", empty=True)]
        case "obey" | "survive":
            kind = frame_pb2.StopKind.Name(hand.stop).removeprefix("STOP_KIND_")
            site.stop_begins(hand, kind)
            survivors = what == "survive"
            outcome = "FAILED" if survivors else "STOPPED"
            site.finish(hand, outcome, survivors=survivors)
            return [rulebook.printed, rulebook.finished(outcome, empty=not survivors)]
    outcome = {"succeed": "SUCCEEDED", "fail": "FAILED"}[what]
    before = [] if hand.phase == "ended" else [rulebook.payload_ended]
    if before:
        site.payload_ends(hand, 0 if what == "succeed" else 1)
    site.finish(hand, outcome)
    return [*before, rulebook.finished(outcome, empty=True)]


def perhaps(operation: Operation) -> Operation:
    return lambda s: [(s, DONE), *operation(s)]


def gap(s: State) -> list[Step]:
    s = rulebook.home(s) if s.live else s
    return [(s, rulebook.STALE if not s.accepted else rulebook.SEALED if not s.live else "SEQUENCE_GAP")]
