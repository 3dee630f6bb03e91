"""The tree where there is no cgroup to be had: the subreaper alone."""

from __future__ import annotations

import os

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.process_tree import FREEZE_AFTER, ProcessTree, frozen, has_children, kill_each
from services.sis_agent.agent.linux.processes import ProcessInfo


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
        return kill_each(frozen(self.members) if self._kills > FREEZE_AFTER else self.members())

    def close(self) -> None:
        """Nothing to do."""
