"""Keeping processes running: one loop, in the main thread of `sis up`.

What dies is started again, after 0.2 s and then ever less often, up to every 5 s. What hangs, as somebody who watches
it tells from another thread, is killed, and so started again. SIGTERM, SIGINT and
SIGHUP ask the loop to end; stopping the processes, in order, is then its owner's next step.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Self

from sis.stack import processes
from sis.stack.errors import StackError
from sis.stack.processes import Child, Command, Identity

FIRST_DELAY = 0.2
LONGEST_DELAY = 5.0
STEADY_SECONDS = 10.0
"""A process that has run for so long is steady: its next restart is the first again."""
_ROTATE_SECONDS = 60.0


class Part:
    """A process that is kept running: the same command, again and again."""

    def __init__(self, command: Command, prepare: Callable[[], None]) -> None:
        self.command = command
        self.prepare = prepare
        self.child: Child | None = None
        self.last = Identity(0, 0)
        """The process, or when it is down the one that was."""
        self.restarts = 0
        self.hangs = 0
        """How many of the restarts were of one that hung."""
        self.started = 0.0
        self.due = 0.0
        self.delay = FIRST_DELAY


class Stopped(Exception):
    """A signal asked the loop to end."""


class Supervision:
    """Use it as a context manager, in the main thread: it holds the signals, and ends what it started."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """`note` gets a sentence about every start and death."""
        self._note = note
        self.on_change: Callable[[], None] = lambda: None
        """Called when pids have changed; if it fails with an OSError, again a little later."""
        self._changed = False
        self.parts: dict[str, Part] = {}
        self._selector = selectors.DefaultSelector()
        self._stop_asked = False
        self._hung: deque[tuple[str, Identity, float]] = deque()
        self._rotated = time.monotonic()

    def __enter__(self) -> Self:
        self._awake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._awake, selectors.EVENT_READ)
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._asked) for number in signals}
        # Without this a signal that comes just before the wait would be noticed only after it.
        self._wakeup = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(list(self.parts), grace=1.0)
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._selector.close()
        os.close(self._awake)
        os.close(self._wake)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        self._stop_asked = True

    def hangs(self, name: str, identity: Identity, seconds: float) -> None:
        """Tell, from any thread, that this process has been silent for so long: it is killed and started again. One
        that has ended since is left alone."""
        self._hung.append((name, identity, seconds))
        with contextlib.suppress(BlockingIOError):  # full: the loop is being woken anyway
            os.write(self._wake, b"\0")

    def add(self, command: Command, prepare: Callable[[], None] = lambda: None) -> None:
        """Start a command and keep it running. `prepare` runs before each start."""
        part = Part(command, prepare)
        self.parts[command.name] = part
        self._start(part)
        self._report_change()

    def finish(self, commands: Sequence[Command], timeout: float) -> None:
        """Run commands that end by themselves, side by side, while the others are kept running.

        Raises:
            StackError: one failed, or took longer than `timeout` seconds; names its log. The others had their time.
            Stopped: a signal asked for the end; the commands are ended too.
        """
        deadline = time.monotonic() + timeout
        with contextlib.ExitStack() as children:
            started = []
            for command in commands:
                started.append(child := Child(command))
                children.callback(child.close)
                children.callback(child.stop, grace=2)
            codes = []
            for child in started:
                while (code := child.wait(0.02)) is None and time.monotonic() < deadline:
                    self.step(0)
                codes.append(code)
            for child, code in zip(started, codes, strict=True):
                processes.succeeded(child.command, code, timeout)

    def pause(self, seconds: float) -> None:
        """Let time pass while the processes are kept running.

        Raises:
            Stopped: a signal asked for the end.
        """
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            self.step(remaining)

    def step(self, timeout: float) -> None:
        """Wait for something to happen, at most `timeout` seconds, and see to it.

        Raises:
            Stopped: a signal asked for the end.
        """
        now = time.monotonic()
        due = [part.due for part in self.parts.values() if part.child is None]
        if self._changed:
            due.append(now + LONGEST_DELAY)
        wait = max(0.0, min([timeout, *(moment - now for moment in due)]))
        for key, _ in self._selector.select(wait):
            if key.fd == self._awake:
                os.read(self._awake, 4096)
        if self._stop_asked:
            raise Stopped
        while self._hung:
            self._kill(*self._hung.popleft())
        for part in self.parts.values():
            if part.child is not None and (code := part.child.exit_code) is not None:
                self._bury(part, code)
            if part.child is None and part.due <= time.monotonic():
                part.restarts += 1
                self._start(part)
        if self._changed:
            self._report_change()
        if time.monotonic() - self._rotated > _ROTATE_SECONDS:
            self._rotated = time.monotonic()
            for part in self.parts.values():
                processes.rotate(part.command.log)

    def stop(self, names: Sequence[str], grace: float) -> None:
        """Ask these processes to stop, all at once, kill those that have not after `grace` seconds, and
        forget them."""
        parts = [self.parts.pop(name) for name in names if name in self.parts]
        deadline = time.monotonic() + grace
        for part in parts:
            if part.child is not None:
                part.child.signal(part.command.stop_signal)
        for part in parts:
            if part.child is None:
                continue
            if part.child.wait(max(0.0, deadline - time.monotonic())) is None:
                self._note(f"{part.command.name} did not stop within {grace:.0f} s and was killed")
                part.child.stop(0)
            self._forget(part)

    def _kill(self, name: str, identity: Identity, seconds: float) -> None:
        part = self.parts.get(name)
        if part is None or part.child is None or part.child.identity != identity:
            return
        part.hangs += 1
        self._note(f"{name} has given no answer for {seconds:.0f} s: it hangs, and is killed")
        part.child.signal(signal.SIGKILL)

    def _report_change(self) -> None:
        try:
            self.on_change()
        except OSError as error:  # a full disk is no reason to stop
            self._note(f"the change cannot be written down: {error}")
        else:
            self._changed = False

    def _start(self, part: Part) -> None:
        try:
            part.prepare()
            part.child = Child(part.command)
        except (OSError, StackError) as error:
            delay = self._later(part)
            self._note(f"{part.command.name} cannot be started: {error}; trying again in {delay:.1f} s")
            return
        part.last = part.child.identity
        part.started = time.monotonic()
        self._selector.register(part.child.descriptor, selectors.EVENT_READ)
        self._note(f"{part.command.name} started, PID {part.child.pid}")
        self._changed = True

    def _bury(self, part: Part, code: int) -> None:
        self._forget(part)
        if time.monotonic() - part.started > STEADY_SECONDS:
            part.delay = FIRST_DELAY
        delay = self._later(part)
        if code < 0:
            ended = f"was ended by {signal.Signals(-code).name}"
        elif code == 0:
            ended = "has ended as it was asked to"
        else:
            ended = f"ended with exit code {code}{processes.last_words(part.command.log)}"
        self._note(f"{part.command.name} {ended}; starting it again in {delay:.1f} s")

    def _later(self, part: Part) -> float:
        delay = part.delay
        part.due = time.monotonic() + delay
        part.delay = min(2 * delay, LONGEST_DELAY)
        return delay

    def _forget(self, part: Part) -> None:
        if part.child is not None:
            self._selector.unregister(part.child.descriptor)
            part.child.close()
            part.child = None
