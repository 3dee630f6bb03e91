"""What is done at a moment: to the process that passes it, to another one, or to a link between two.

A fault is written as `kill`, `stop` (the process itself), `kill:queue`, `stop:postgres` (another one, while the process
stands still there), `cut:hub-queue`, `hole:agent-hub` (a link, likewise). What stops comes back after a second; with
`hang:queue` and `lapse:hub-queue` only after whoever waits for it has given it up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType
from typing import Final

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from tests.crash.points import Passage
from tests.support.linked_stack import LinkedStack
from tests.support.stack import Stack
from tests.support.stopping import stop
from tests.support.tcp_proxy import ProxyThread

PROCESSES: Final = ("queue", "hub", "agent", "zygote", "guardian", "supervisor", "credentials", "postgres", "vault")
"""Those that a fault can name."""
LINKS: Final = (
    "agent-hub",
    "hub-queue",
    "hub-credentials",
    "hub-postgres",
    "queue-postgres",
    "credentials-postgres",
    "credentials-vault",
)
SECONDS: Final = MappingProxyType({"stop": 1.0, "hole": 1.0, "hang": 20.0, "lapse": 20.0})
"""For so long a process is stopped, or a link holds everything back: others go on meanwhile."""
PASS_SECONDS: Final = 60.0
IDLE_SECONDS: Final = 60.0
"""A zygote whose spares die makes none for up to 30 s."""
END_SECONDS: Final = 5.0

_ZYGOTE: Final = "sis-zygote"
_GUARDIAN: Final = "sis-guardian"
_SUPERVISOR: Final = "sis-supervisor: job"
_SPARE: Final = "sis-supervisor: spare"
_PARTS: Final = {"hub": "hub-1", "agent": "local-1"}


class NotPassed(AssertionError):
    """Nothing came by the moment."""


class Strike(threading.Thread):
    """One fault at one moment. `arm` it, have the scenario go on, and `finish`."""

    def __init__(self, stack: Stack, passage: Passage, fault: str) -> None:
        super().__init__(name=f"{passage.point} {fault}", daemon=True)
        self.passage = passage
        self.fault = fault
        self.passed = False
        """Whether something came by."""
        self.hit = False
        """Whether somebody was struck then: a process that lives, a link that is in use."""
        self.victim = ""
        """The process that was killed; "" if none was."""
        self._stack = stack
        self._failure: BaseException | None = None
        self._given_up = threading.Event()

    def arm(self) -> None:
        """From now on, the next process that comes by is struck."""
        kind, _, target = self.fault.partition(":")
        self._stack.faults.arm(self.passage.point, "hold" if target else kind)
        self.start()

    def finish(self, *, needed: bool) -> None:
        """Wait until it is done; where it is not `needed`, what has not begun is not waited for any longer.

        Raises:
            NotPassed: it was needed, and nothing came by.
        """
        if not needed:
            self._given_up.set()
        self.join()
        if self._failure is not None and (needed or not isinstance(self._failure, NotPassed)):
            raise self._failure

    def run(self) -> None:
        try:
            self._wait_passed()
            self._strike()
        except BaseException as error:  # `finish` raises it
            self._failure = error
        finally:
            self._stack.faults.disarm(self.passage.point)
            self._stack.faults.release(self.passage.point)

    def _wait_passed(self) -> None:
        deadline = time.monotonic() + PASS_SECONDS
        while self._stack.faults.is_armed(self.passage.point):
            if time.monotonic() > deadline or self._given_up.is_set():
                raise NotPassed(f"nothing came by {self.passage.point}")
            time.sleep(0.005)
        self.passed = True

    def _strike(self) -> None:
        kind, _, target = self.fault.partition(":")
        match kind, target:
            case "kill", "":
                self.hit, self.victim = True, self.passage.process
            case "stop", "":
                self._stack.faults.wait_passed(self.passage.point)
                self.hit = True
                time.sleep(SECONDS[kind])
            case "kill", _:
                self._stack.faults.wait_passed(self.passage.point)
                self.victim = kill(self._stack, target)
                self.hit = bool(self.victim)
            case "stop" | "hang", _:
                self._stack.faults.wait_passed(self.passage.point)
                pid = _pid(self._stack, target)[1]
                self.hit = stop(pid)
                self._stack.faults.release(self.passage.point)
                time.sleep(SECONDS[kind] if self.hit else 0)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            case "cut", _:
                self._stack.faults.wait_passed(self.passage.point)
                link = self._link(target)
                self.hit = link.proxy.connections > 0
                link(lambda proxy: proxy.cut())
            case "hole" | "lapse", _:
                self._stack.faults.wait_passed(self.passage.point)
                link = self._link(target)
                link(lambda proxy: proxy.black_hole())
                self._stack.faults.release(self.passage.point)
                time.sleep(SECONDS[kind])
                # Those that were made meanwhile are held, too.
                self.hit = link.proxy.connections > 0
                link(lambda proxy: proxy.heal())
            case _:
                raise ValueError(self.fault)

    def _link(self, name: str) -> ProxyThread:
        assert isinstance(self._stack, LinkedStack), f"{self.fault} needs a stack with links"
        return self._stack.links[name]


def kill(stack: Stack, process: str) -> str:
    """Kill one, and wait until it is gone. Returns what it was: a supervisor that has no attempt yet is a "spare"; ""
    where there is none at the moment."""
    what, pid = _pid(stack, process)
    return what if _kill(pid) else ""


def is_there(stack: Stack, process: str) -> bool:
    """Whether there is such a process at the moment."""
    return _runs(_pid(stack, process)[1])


def wait_idle(stack: Stack) -> None:
    """Wait until no supervisor of an attempt is left, and the zygote, which must be there, has a spare."""
    deadline = time.monotonic() + IDLE_SECONDS
    while not ((found := _pid(stack, "supervisor"))[0] == "spare" and found[1]):
        assert time.monotonic() < deadline, f"the agent does not come to rest: {found}{stack.logs()}"
        time.sleep(0.02)


def end(tokens: Collection[str]) -> None:
    """Kill whatever lives of these attempts, for as long as it takes, or 5 s."""
    deadline = time.monotonic() + END_SECONDS
    while tokens and (found := living(tokens)) and time.monotonic() < deadline:
        for pid in found:
            _kill(pid)


def _kill(pid: int) -> bool:
    """Kill it, and wait until it is gone; whether it was there."""
    if not _runs(pid):
        return False
    with contextlib.ExitStack() as opened, contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        opened.callback(os.close, descriptor)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        while _runs(pid):
            time.sleep(0.005)
        return True
    return False


def _pid(stack: Stack, process: str) -> tuple[str, int]:
    """What it is, and its pid; 0 if there is none at the moment."""
    if process in ("zygote", "guardian", "supervisor"):
        return _below_the_agent(stack, process)
    return process, stack.pid(_PARTS.get(process, process))


def _below_the_agent(stack: Stack, process: str) -> tuple[str, int]:
    """The zygote is the agent's child, and makes guardians with a supervisor each; supervisors that have an attempt
    outlive it, and are known by their files."""
    table = {each.pid: (each, _title(each.pid)) for each in processes.read_all()}
    agent = stack.pid(_PARTS["agent"])
    zygote = next((pid for pid, (each, title) in table.items() if title == _ZYGOTE and each.parent_pid == agent), 0)
    if process == "zygote":
        return "zygote", zygote
    identities = map(SupervisorIdentity.read, (stack.layout.agent(_PARTS["agent"]) / "attempts").glob("*"))
    announced = [each.pid for each in identities if each is not None and each.process() is not None]
    below = [
        each.pid for each in processes.descendants((each for each, _ in table.values()), [zygote] if zygote else [])
    ]
    supervisors = [pid for pid in (*announced, *below) if pid in table and table[pid][1].startswith(_SUPERVISOR)]
    spares = [pid for pid in below if table[pid][1] == _SPARE]
    if process == "supervisor":
        return ("supervisor", supervisors[0]) if supervisors else ("spare", spares[0] if spares else 0)
    of_spares = {table[pid][0].parent_pid for pid in spares}
    of_attempts = [table[pid][0].parent_pid for pid in supervisors] + [pid for pid in below if pid not in of_spares]
    guardians = [pid for pid in of_attempts if pid in table and table[pid][1] == _GUARDIAN]
    return ("guardian", guardians[0]) if guardians else ("spare", next(iter(of_spares), 0))


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
    except OSError:
        return ""


def living(tokens: Collection[str], *, stopped: bool = False) -> list[int]:
    """The pids of the running processes that have one of these attempts' tokens in their environment; of those that
    are stopped alone, if so asked."""
    marks = [f"SIS_ATTEMPT={token}".encode() for token in tokens]
    candidates = [each for each in processes.read_all() if each.alive and (each.stopped or not stopped)]
    return [each.pid for each in candidates if any(mark in _environment(each.pid) for mark in marks)]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
