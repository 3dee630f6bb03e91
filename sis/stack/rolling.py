"""`sis restart`: servers of a stack that is up, one by one.

Each is asked to end, as `sis down` asks: it drains, and `sis up`, which keeps it running, starts it again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sis.stack import processes
from sis.stack import state as states
from sis.stack.errors import StackError, refusals
from sis.stack.health import HEALTHY, Probe
from sis.stack.layout import Layout
from sis.stack.processes import Identity
from sis.stack.replicas import LISTENERS
from sis.stack.state import ProcessState, StackState
from sis.stack.status import look, status

DRAIN_SECONDS: Final = 20.0
"""In which a process that is asked to end has ended; its own bounds are below it."""
HEALTHY_SECONDS: Final = 60.0
"""In which it is healthy again, and everything else with it."""
SETTLE_SECONDS: Final = 3.0
"""From then to the next one: whoever calls it has found it again, for channels try every 2 s at the latest."""

_LOOK_SECONDS: Final = 0.2


def restart(data: Path, names: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Restart the processes of these names and kinds, or all servers where there are none, in the order in which they
    were started. `say` gets the lines that a person is to see.

    Raises:
        StackError: no stack is up, a name is unknown, or something does not end or become healthy in time; what had not
            had its turn is left as it is.
    """
    layout = Layout(data.expanduser().absolute())
    with refusals():
        roll = _Roll(layout, say)
        chosen = _chosen(roll.state, names)
        for number, name in enumerate(chosen, start=1):
            roll.restart(name)
            if number < len(chosen):
                roll.wait(SETTLE_SECONDS)
        say(f"restarted: {', '.join(chosen)}")


def _chosen(state: StackState, names: Sequence[str]) -> list[str]:
    """The names of the processes that are meant, each once."""
    wanted = names or tuple(LISTENERS)
    found = [each for each in state.processes if each.name in wanted or each.kind in wanted]
    known = {word for each in state.processes for word in (each.name, each.kind)}
    if unknown := [name for name in names if name not in known]:
        raise StackError(f"there is no process {unknown[0]!r}; `sis status` shows their names")
    if single := [each.name for each in found if each.kind in ("postgres", "vault")]:
        raise StackError(f"everything waits for {single[0]}, which is alone: `sis down` and `sis up` restart it")
    return [each.name for each in found]


class _Roll:
    """One round through a stack."""

    def __init__(self, layout: Layout, say: Callable[[str], None]) -> None:
        self._layout = layout
        self._say = say
        up = states.holder(layout)
        if up is None:
            raise StackError(f"no stack is up in {layout.data}; start one with `sis up --detach`")
        self._up: Identity = up

    @property
    def state(self) -> StackState:
        """What runs now."""
        state = states.read(self._layout)
        if state is None or not state.started or states.holder(self._layout) != self._up:
            raise StackError("the stack is being started or stopped; try again when `sis status` shows it healthy")
        return state

    def restart(self, name: str) -> None:
        """Restart one process, while everything else is healthy."""
        self._await_others(name)
        former = self._process(name)
        if former.identity.signal(signal.SIGTERM):
            self._say(f"{name:<13} stops  PID {former.pid}")
        if processes.wait_gone([former.identity], DRAIN_SECONDS):
            raise StackError(f"{name}, PID {former.pid}, has not ended within {DRAIN_SECONDS:.0f} s; see {former.log}")
        deadline = time.monotonic() + HEALTHY_SECONDS
        health = "it has not been started again"
        while time.monotonic() < deadline:
            state, process = self.state, self._process(name)
            if process.identity != former.identity:
                health = look(state, Probe.of(state), process)
                if health == HEALTHY:
                    self._say(f"{name:<13} ready  PID {process.pid}")
                    return
            self.wait(_LOOK_SECONDS)
        raise StackError(f"{name} is not healthy in time ({health}); see {former.log}")

    def wait(self, seconds: float) -> None:
        """Let time pass, but no longer than the stack is up."""
        processes.wait_gone([self._up], seconds)

    def _await_others(self, name: str) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS
        said = False
        while ill := [each for each in status(self._layout.data).processes if each.name != name and not each.healthy]:
            told = "; ".join(f"{each.name}: {each.health}" for each in ill)
            if time.monotonic() > deadline:
                raise StackError(f"{name} is not restarted while others are not healthy: {told}")
            if not said:
                self._say(f"{name:<13} waits  {told}")
                said = True
            self.wait(_LOOK_SECONDS)

    def _process(self, name: str) -> ProcessState:
        return next(process for process in self.state.processes if process.name == name)
