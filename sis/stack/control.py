"""`sis up` and `sis down`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sis.stack import detached, leftovers, processes
from sis.stack import settings as choices
from sis.stack import state as states
from sis.stack.errors import StackError, refusals
from sis.stack.layout import Layout
from sis.stack.settings import Options
from sis.stack.state import AlreadyUpError, Purpose
from sis.stack.status import status

DOWN_SECONDS = 30.0
"""How long `down` waits for the stack to stop."""


def up(options: Options, say: Callable[[str], None] = print) -> int:
    """Start the stack in `options.data`; `say` gets the lines that a person is to see. Returns the exit code.

    In the foreground it returns when SIGTERM, SIGINT or SIGHUP has stopped everything; it must be called in
    the main thread, and sets the process's umask. With `detach` it returns when everything is healthy, but for
    agents that do not come. That takes up to about a minute, and with replicas a quarter more for each, beside what
    PostgreSQL's recovery and migrations take, up to an hour each; if the stack was up already, that is success too.

    Raises:
        StackError: it could not be started, and nothing is left running; or (foreground) it is up already; or a
            restore is under way.
    """
    layout = Layout(options.data.expanduser().absolute())
    with refusals():
        return _up(layout, replace(options, data=layout.data), _patient(say))


def _up(layout: Layout, options: Options, say: Callable[[str], None]) -> int:
    if states.keeper(layout) is None:
        try:
            if options.detach:
                detached.start(layout, options, say)
            else:
                _foreground(layout, options, say)
        except AlreadyUpError:
            pass  # somebody was faster
        else:
            return 0
    if not options.detach:
        raise AlreadyUpError(states.keeper(layout))
    _join(layout, options, say)
    return 0


def _foreground(layout: Layout, options: Options, say: Callable[[str], None]) -> None:
    from sis.stack import stack  # what only this side of an `up` needs takes a while to import

    os.umask(0o077)
    layout.create()
    with states.lock(layout):
        stack.run(layout, options, say, ready=lambda: say("the stack is up; Ctrl-C stops it"))
    _name_payloads(layout, say)


def _join(layout: Layout, options: Options, say: Callable[[str], None]) -> None:
    """Be content with the stack that another `sis up` keeps, once it is healthy."""
    kept = choices.load(layout, Options(layout.data))
    began = time.monotonic()
    if choices.load(layout, options) != kept:
        raise StackError("the stack is up already, with other settings; run `sis down` first to change them")
    while not (found := status(layout.data)).healthy:
        if found.up is None:
            raise StackError("the stack was just being stopped; try again")
        bound = choices.longest_start_seconds if found.starting else choices.start_seconds
        if time.monotonic() > began + bound(kept.replicas):
            ill = "; ".join(f"{each.name}: {each.health}" for each in found.processes if not each.healthy)
            raise StackError(f"the stack is up already and not healthy: {ill or 'it is still starting'}")
        processes.wait_gone([found.up], 0.2)
    say(str(AlreadyUpError(found.up)))


def down(data: Path, say: Callable[[str], None] = print) -> int:
    """Stop the stack in `data`, and name the payloads that go on under their supervisors. Returns the exit
    code: 0 if nothing but those runs any more, also when nothing did; 1 if something is left after
    DOWN_SECONDS.

    Raises:
        StackError: what was left behind by a killed `sis up` cannot be ended, or a file cannot be read; or a restore,
            which is not stopped, is under way.
    """
    with refusals():
        return _down(Layout(data.expanduser().absolute()), say)


def _down(layout: Layout, say: Callable[[str], None]) -> int:
    state = states.read(layout)
    up = states.keeper(layout)
    if up is not None:
        up.signal(signal.SIGTERM)
        if processes.wait_gone([up], DOWN_SECONDS):
            say(f"`sis up`, PID {up.pid}, has not ended within {DOWN_SECONDS:.0f} s; see {layout.log('up')}")
            for process in state.alive if state else ():
                say(f"still running: {process.name}, PID {process.pid}")
            return 1
        say("the stack is down")
    elif state is not None:
        with states.lock(layout, Purpose.DOWN):
            leftovers.end(layout)
        say("the stack is down; its `sis up` had been killed")
    else:
        say(f"no stack is up in {layout.data}")
    _name_payloads(layout, say)
    return 0


def _name_payloads(layout: Layout, say: Callable[[str], None]) -> None:
    for payload in leftovers.payloads(layout):
        say(f"goes on: {payload}; the next `sis up` finds it again")


def _patient(say: Callable[[str], None]) -> Callable[[str], None]:
    """That nobody reads on is no reason to stop a stack."""

    def patient(line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            say(line)

    return patient
