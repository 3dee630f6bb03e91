"""The tree where there is no cgroup to be had: the subreaper alone."""

from __future__ import annotations

import os
import signal
from typing import Final

from services.sis_agent.agent import processes
from services.sis_agent.agent.process_tree import ProcessTree, has_children, kill_each
from services.sis_agent.agent.processes import ProcessInfo

_FREEZE_AFTER: Final = 3
_FREEZE_WALKS: Final = 50


class SubreaperTree(ProcessTree):
    """All descendants of this process, by a walk through /proc."""

    method = "subreaper"

    def __init__(self) -> None:
        self._kills = 0

    def enter(self) -> None:
        """Nothing to do: it is a descendant by now, and cannot cease to be one."""

    def members(self) -> list[ProcessInfo]:
        found = processes.descendants(processes.read_all(), [os.getpid()])
        return [process for process in found if process.alive]

    def empty(self) -> bool:
        return not has_children()

    def kill(self) -> list[ProcessInfo]:
        self._kills += 1
        # Killing makes room for what a fork bomb is waiting to fork. What outlives three rounds is stopped first.
        return kill_each(self._frozen() if self._kills > _FREEZE_AFTER else self.members())

    def close(self) -> None:
        """Nothing to do."""

    def _frozen(self) -> list[ProcessInfo]:
        """The members, stopped one after the other until no walk finds another one."""
        stopped: set[tuple[int, int]] = set()
        members: list[ProcessInfo] = []
        for _ in range(_FREEZE_WALKS):
            members = self.members()
            new = [process for process in members if process.key not in stopped]
            if not new:
                break
            for process in new:
                stopped.add(process.key)
                try:
                    processes.send_signal(process, signal.SIGSTOP)
                except PermissionError:
                    continue
        return members
