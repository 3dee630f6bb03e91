"""The faults of a soak: drawn beforehand from a seed, then done to the processes at their time."""

from __future__ import annotations

import contextlib
import heapq
import logging
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import psycopg

from sis.stack.processes import Identity
from tests.soak import proc
from tests.soak.actor import Actor
from tests.soak.ledger import Ledger
from tests.soak.proc import Machine
from tests.support.stack import Stack

GROUPS: Final = (("queue", "credentials"), ("hub", "gateway"), ("agent", "zygote", "postgres", "vault"))
"""While a third of the soak lasts, one of these is spared from being killed, so that each process has one long life in
which growth can be seen."""
SECONDS_BETWEEN: Final = 9.0
LONGEST_STOP: Final = 8.0
HANG: Final = 50.0
"""For which a server stands still that is to be noticed and started again."""

_log = logging.getLogger("soak.faults")


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """What is done to whom, and when."""

    at: float
    """Seconds from the beginning."""
    action: str
    """kill, stop (for `seconds`, then it goes on) or cut (connections of PostgreSQL are ended)"""
    victim: str
    seconds: float = 0.0


def schedule(seed: int, seconds: float, victims: Sequence[str]) -> list[Fault]:
    """All faults of a soak of this length: the same for the same seed. The last twelfth is quiet."""
    dice = random.Random(f"{seed} faults")
    found = []
    at = min(10.0, seconds / 6)
    end = seconds * 11 / 12
    while at < end:
        spared = GROUPS[min(2, int(3 * at / seconds))]
        found.append(_draw(dice, at, [v for v in victims if kind(v) not in spared], victims))
        at += dice.uniform(0.3, 1.7) * SECONDS_BETWEEN
    # Each kind of server hangs once, in a third in which it may die; only a soak of some length has the time.
    for number, name in enumerate(("hub-1", "gateway-1", "queue-1", "credentials-1")):
        begin = seconds * (0.1 + 0.2 * number)
        if name in victims and begin + 2 * HANG < end and kind(name) not in GROUPS[min(2, int(3 * begin / seconds))]:
            found.append(Fault(begin, "stop", name, HANG))
    return sorted(found)


def kind(victim: str) -> str:
    """What kind of process a victim is: hub-1 is a hub."""
    name = victim.partition(" ")[0]
    return {"local": "agent", "far": "agent"}.get(head := name.partition("-")[0], head)


def _draw(dice: random.Random, at: float, mortal: Sequence[str], all_victims: Sequence[str]) -> Fault:
    action = dice.choices(("kill", "stop", "cut"), (50, 38, 12))[0]
    if action == "cut":
        return Fault(at, action, "connections")
    if action == "stop":
        return Fault(at, action, dice.choice(all_victims), dice.uniform(0.5, LONGEST_STOP))
    return Fault(at, action, dice.choice(mortal))


@dataclass(order=True)
class _Due:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class Faults(Actor):
    """Does what the schedule says. `done` is what was done in fact, for the pictures and the report. When it has ended,
    nobody stands still."""

    def __init__(
        self,
        stack: Stack,
        planned: Sequence[Fault],
        ledger: Ledger,
        began: float,
        others: Callable[[], Mapping[str, int]],
        revive: Mapping[str, Callable[[], None]],
    ) -> None:
        """`others` are the pids of processes that the stack does not know; `revive` starts one of these again."""
        super().__init__("faults", ledger, 60)
        self._stack = stack
        self._began = began
        self._others = others
        self._revive = revive
        self._dice = random.Random(len(planned))
        self._due = [_Due(began + fault.at, n, partial(self._do, fault)) for n, fault in enumerate(planned)]
        self._stopped: list[Identity] = []
        self.done: list[Fault] = []

    def join(self) -> None:
        super().join()
        for identity in list(self._stopped):
            identity.signal(signal.SIGCONT)

    def _run(self) -> None:
        heapq.heapify(self._due)
        while self._due and not self._over.wait(max(0.0, self._due[0].at - time.monotonic())):
            try:
                heapq.heappop(self._due).act()
            except Exception as error:
                _log.exception("a fault could not be done")
                self._ledger.trouble(f"a fault could not be done: {error!r}")

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, _Due(time.monotonic() + seconds, id(act), act))

    def _do(self, fault: Fault) -> None:
        if fault.action == "cut":
            happened = self._cut()
        else:
            happened = (identity := self._find(fault.victim)) is not None and self._strike(fault, identity)
        if happened:
            _log.info("%s %s %.1f", fault.action, fault.victim, fault.seconds)
            self.done.append(Fault(time.monotonic() - self._began, fault.action, fault.victim, fault.seconds))

    def _strike(self, fault: Fault, identity: Identity) -> bool:
        if fault.action == "kill":
            self._foretell(fault.victim, identity)
            struck = identity.signal(signal.SIGKILL)
            if struck and fault.victim in self._revive:
                self._later(0.5, self._revive[fault.victim])
            return struck
        if struck := identity.signal(signal.SIGSTOP):
            self._stopped.append(identity)
            self._later(fault.seconds, lambda: self._resume(identity))
        return struck

    def _foretell(self, victim: str, identity: Identity) -> None:
        """Tell the ledger which attempts may come to nothing by this kill. A guardian's is not among them."""
        if victim == "supervisor" and (key := _attempt_of(identity)) is not None:
            self._ledger.bereaved(key)
        elif victim == "zygote" and (zygote := Machine.look().processes.get(identity.pid)) is not None:
            agents = {pid: name for name, pid in self._pids().items()}
            self._ledger.killed(agents.get(zygote.parent, ""))
        elif kind(victim) == "agent":
            self._ledger.killed(victim)

    def _resume(self, identity: Identity) -> None:
        identity.signal(signal.SIGCONT)
        self._stopped.remove(identity)

    def _find(self, victim: str) -> Identity | None:
        """The living process that is meant, if there is one now."""
        machine = Machine.look()
        pids = self._pids()
        if victim in pids:
            process = machine.processes.get(pids[victim])
            return process.identity if process else None
        agents = [name for name in pids if kind(name) == "agent"]
        zygotes = [zygote for name in agents for zygote in machine.titled(pids[name], "sis-zygote")]
        if victim == "zygote":
            return self._dice.choice(zygotes).identity if zygotes else None
        title = "sis-guardian" if victim == "guardian" else "sis-supervisor: job"
        found = [each for zygote in zygotes for each in machine.titled(zygote.identity.pid, title)]
        if victim == "guardian":
            # Before there is a payload, its supervisor would die with it.
            found = [each for each in found if len(machine.below(each.identity.pid)) > 2]
        return self._dice.choice(found).identity if found else None

    def _pids(self) -> dict[str, int]:
        """Of the processes that have names."""
        return {process.name: process.pid for process in self._stack.state.processes} | dict(self._others())

    def _cut(self) -> bool:
        """End some connections of the services, each with what it was in the middle of."""
        with contextlib.suppress(psycopg.Error, AssertionError, StopIteration), self._stack.database() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = 'sis' AND pid <> pg_backend_pid() AND random() < 0.5"
            )
            return True
        return False


def _attempt_of(supervisor: Identity) -> tuple[int, int] | None:
    """The attempt that a supervisor says it is for."""
    words = proc.command(supervisor.pid).split()
    with contextlib.suppress(ValueError, IndexError):
        job, _, number = words[2].partition(".")
        return int(job), int(number)
    return None
