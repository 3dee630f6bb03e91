"""What may still run when its `sis up` has ended: processes left behind by a kill -9, and payloads, which
are meant to.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from sis.stack import processes
from sis.stack import state as states
from sis.stack.errors import StackError
from sis.stack.layout import Layout
from sis.stack.postgres import Postgres
from sis.stack.processes import Identity

_GRACE_SECONDS = 7.0
_KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Payload:
    """A supervisor that goes on with its job's payload, whether its agent runs or not."""

    agent: str
    attempt: str
    """`<job>.<attempt>`"""
    identity: Identity

    def __str__(self) -> str:
        job, _, number = self.attempt.partition(".")
        supervisor = f"its supervisor, PID {self.identity.pid}, of agent {self.agent}"
        return f"job {job} (attempt {number}) under {supervisor}"


def payloads(layout: Layout) -> list[Payload]:
    """The payloads that run on this machine under the local agents' supervisors."""
    boot = processes.boot_id()
    found = []
    for path in sorted(layout.agents.glob("*/attempts/*/supervisor.json")):
        try:
            known = json.loads(path.read_bytes())
            identity = Identity(int(known["pid"]), int(known["start_ticks"]))
            same_boot = known["boot_id"] == boot
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is being written or removed just now; a supervisor that starts is not left behind
        if same_boot and identity.alive:
            found.append(Payload(path.parents[2].name, path.parent.name, identity))
    return found


def end(layout: Layout) -> None:
    """End the processes that a killed `sis up` left behind, each verified to be the one that it started,
    and clear what they left. The caller holds the lock of the data directory. Payloads are none of them.

    Raises:
        StackError: one of them cannot be ended; names it.
    """
    state = states.read(layout)
    if state is None:
        return
    services = [process.identity for process in state.alive if process.kind != "postgres"]
    _signal(services, signal.SIGTERM)
    left = processes.wait_gone(services, _GRACE_SECONDS)
    _signal(left, signal.SIGKILL)
    if left := processes.wait_gone(left, _KILL_SECONDS):
        pids = ", ".join(str(identity.pid) for identity in left)
        raise StackError(f"processes of an earlier `sis up` cannot be ended: PID {pids}")
    if layout.cluster.exists():
        Postgres(layout.cluster, state.runtime, layout.log("postgres")).settle()
    shutil.rmtree(state.runtime, ignore_errors=True)
    layout.stack.unlink(missing_ok=True)


def _signal(identities: Sequence[Identity], number: signal.Signals) -> None:
    for identity in identities:
        identity.signal(number)
