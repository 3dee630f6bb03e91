"""The table of DESIGN section 4, written by hand from its words. It shares nothing with the product: the rulebook is
compared with it, and what a database says is judged by it."""

from __future__ import annotations

import itertools

HELD_BY_AGENT = frozenset({"STARTING", "RUNNING", "PROCESSING_OUTPUT", "CANCEL_REQUESTED"})
"""An agent is expected to be heard of them."""
TERMINAL = frozenset({"CANCELED", "SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "EXPIRED"})
REPORTS = frozenset(
    {"FIRST_PROCESS", "PAYLOAD_ENDED", "RUN_TIMEOUT", "FINISH_SUCCEEDED", "FINISH_FAILED", "FINISH_STOPPED"}
)
"""What a site says of its payloads. Where the table has no row for one of these, it is evidence all the same, and
recorded as ignored."""

UNACCEPTED = "never accepted"

# from (several joined by a comma) | event | to ("=" stays: a recorded no-op) | condition
AGREED = f"""
DEFERRED                                              | ACTIVATE                 | WAITING
DEFERRED                                              | RELEASE                  | WAITING
DEFERRED,WAITING                                      | EXPIRE                   | EXPIRED
DEFERRED,WAITING                                      | CANCEL                   | CANCELED
DEFERRED,WAITING                                      | ABORT                    | ABORTED
DEFERRED,WAITING                                      | DELETE                   | CANCELED
WAITING                                               | UNRUNNABLE               | FAILED
WAITING                                               | CLAIM                    | STARTING
STARTING                                              | ACCEPT                   | =
STARTING                                              | GIVE_BACK                | WAITING          | {UNACCEPTED}
STARTING                                              | LEASE_REFUSED            | WAITING          | {UNACCEPTED}
STARTING                                              | FIRST_PROCESS            | RUNNING
STARTING,RUNNING,PROCESSING_OUTPUT                    | FINISH_FAILED            | FAILED
STARTING                                              | START_LIMIT              | FAILED
PROCESSING_OUTPUT                                     | OUTPUT_LIMIT             | FAILED
RUNNING                                               | PAYLOAD_ENDED            | PROCESSING_OUTPUT
PROCESSING_OUTPUT                                     | FINISH_SUCCEEDED         | SUCCEEDED
STARTING,RUNNING                                      | CANCEL                   | CANCEL_REQUESTED
CANCEL_REQUESTED                                      | FINISH_STOPPED           | CANCELED
CANCEL_REQUESTED                                      | GIVE_BACK                | CANCELED         | {UNACCEPTED}
CANCEL_REQUESTED                                      | LEASE_REFUSED            | CANCELED         | {UNACCEPTED}
CANCEL_REQUESTED                                      | FINISH_SUCCEEDED         | SUCCEEDED
CANCEL_REQUESTED                                      | FINISH_FAILED            | FAILED
CANCEL_REQUESTED                                      | STOP_LIMIT               | FAILED
STARTING,RUNNING,PROCESSING_OUTPUT,CANCEL_REQUESTED   | ABORT                    | ABORTED
RUNNING,CANCEL_REQUESTED                              | RUN_TIMEOUT              | TIMED_OUT
STARTING,RUNNING,PROCESSING_OUTPUT,CANCEL_REQUESTED   | SILENCE                  | AWOL
STARTING,RUNNING,PROCESSING_OUTPUT,CANCEL_REQUESTED   | JOURNAL_LOST             | AWOL
AWOL                                                  | RETURN_STARTING          | STARTING
AWOL                                                  | RETURN_RUNNING           | RUNNING
AWOL                                                  | RETURN_PROCESSING_OUTPUT | PROCESSING_OUTPUT
AWOL                                                  | RETURN_CANCEL_REQUESTED  | CANCEL_REQUESTED
AWOL                                                  | GIVE_BACK                | WAITING/CANCELED | {UNACCEPTED}
AWOL                                                  | ABORT                    | ABORTED
AWOL                                                  | FORCE                    | ABORTED
AWOL                                                  | DELETE                   | ABORTED
"""

# The recorded no-ops: what the text below the table calls so, what is final, and the verbs that may be repeated.
NO_OPS = """
CANCEL_REQUESTED                          | FIRST_PROCESS,PAYLOAD_ENDED,CANCEL,DELETE
CANCEL_REQUESTED                          | ACCEPT                                       | accepted
RUNNING                                   | FIRST_PROCESS
WAITING                                   | ACTIVATE
AWOL                                      | CANCEL,SILENCE,JOURNAL_LOST
CANCELED                                  | CANCEL
ABORTED                                   | ABORT
CANCELED,SUCCEEDED,FAILED,ABORTED,TIMED_OUT,EXPIRED | DELETE,RERUN,FORCE
CANCELED,SUCCEEDED,FAILED,ABORTED,TIMED_OUT | FIRST_PROCESS,PAYLOAD_ENDED,RUN_TIMEOUT
CANCELED,SUCCEEDED,FAILED,ABORTED,TIMED_OUT | FINISH_SUCCEEDED,FINISH_FAILED,FINISH_STOPPED
DEFERRED,STARTING,RUNNING,PROCESSING_OUTPUT | RESTORE
CANCEL_REQUESTED,AWOL                       | RESTORE
CANCELED,SUCCEEDED,FAILED,ABORTED,TIMED_OUT | RESTORE
"""

# Where DESIGN is silent: a stop at the site that nobody here asked for is an error outside the payload.
# Nor does it speak of backups: what waited when one was made may have run since, so a restore holds it for people,
# until an agent proves that it has it.
SILENT = """
STARTING,RUNNING,PROCESSING_OUTPUT | FINISH_STOPPED | FAILED
WAITING                            | RESTORE        | DEFERRED
DEFERRED                           | ADOPT          | STARTING
"""

Facts = tuple[str, str, bool, bool]
"""From which status, by which event, whether the attempt was ever accepted, whether a cancel is recorded."""


def _agreed() -> dict[Facts, str]:
    found: dict[Facts, str] = {}
    rows = [row.split("|") for row in (AGREED + SILENT).strip().splitlines() if row]
    for row in NO_OPS.strip().splitlines():
        statuses, events, *condition = row.split("|")
        rows.append([statuses, events, "=", *condition])
    for statuses, events, to, *condition in rows:
        for status, event in itertools.product(statuses.strip().split(","), events.strip().split(",")):
            for accepted, canceled in itertools.product((False, True), repeat=2):
                if (condition[0].strip() if condition else "") == (UNACCEPTED if accepted else "accepted"):
                    continue
                word = to.strip().split("/")[-1 if canceled else 0]
                key = (status, event, accepted, canceled)
                assert key not in found, f"{key} is agreed twice"
                found[key] = status if word == "=" else word
    return found


MOVES = _agreed()
"""To which status; the same one is a recorded no-op, and what is not here is refused."""
