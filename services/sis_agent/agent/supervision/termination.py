"""How a tree ends: TERM, the grace, KILL, again until nothing is left, and no longer than 30 s."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Final

from services.runtime import faults
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.process_tree import ProcessTree
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.supervision.evidence import Evidence

CONFIRM_SECONDS: Final = 30.0
"""From the first KILL on: what is left then is a survivor."""
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.1


class Termination:
    """The signals of one attempt, by the monotonic clock, and their evidence. Later calls only hasten the end."""

    def __init__(self, tree: ProcessTree, evidence: Evidence) -> None:
        self._tree = tree
        self._evidence = evidence
        self._kill_at: float | None = None
        self._pause = _FIRST_PAUSE
        self.give_up_at: float | None = None
        """When to stop waiting for the tree to be empty; None before the first KILL."""

    @property
    def due_at(self) -> float | None:
        """When `advance` has something to do."""
        return self._kill_at

    def terminate(self, members: Iterable[ProcessInfo], now: float, grace: float) -> None:
        """Send TERM to these, and KILL to the tree when the grace is over; nothing more once it is being killed."""
        if self.give_up_at is not None:
            return
        for process in members:
            faults.point("supervisor.term.sending")
            try:
                sent = processes.send_signal(process, signal.SIGTERM)
                faults.point("supervisor.term.sent")
                if sent and process.stopped:
                    # A stopped process takes a TERM only when it goes on.
                    processes.send_signal(process, signal.SIGCONT)
                    faults.point("supervisor.cont.sent")
            except PermissionError:
                continue
            if sent:
                self._evidence.signalled(process, "TERM")
        self.kill(now + grace)

    def kill(self, at: float) -> None:
        """Send KILL to the tree at this time, or when it was to be sent before."""
        if self.give_up_at is None:
            self._kill_at = at if self._kill_at is None else min(self._kill_at, at)

    def advance(self, now: float) -> None:
        """Send KILL to the tree, where it is time for it. To be repeated until the tree is empty."""
        if self._kill_at is None or now < self._kill_at:
            return
        if self.give_up_at is None:
            self.give_up_at = now + CONFIRM_SECONDS
        faults.point("supervisor.kill.sending")
        for process in self._tree.kill():
            self._evidence.signalled(process, "KILL")
        faults.point("supervisor.kill.sent")
        self._kill_at = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
