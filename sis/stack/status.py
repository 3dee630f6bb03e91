"""How the stack of a data directory is, seen from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from sis.stack import state as states
from sis.stack.errors import refusals
from sis.stack.health import HEALTHY, Probe
from sis.stack.layout import Layout
from sis.stack.processes import Identity
from sis.stack.state import ProcessState, StackState


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process. `health` is "healthy", or what is wrong in a few words; of the `restarts`, `hangs` were of one that
    hung."""

    name: str
    kind: str
    pid: int
    endpoint: str
    health: str
    restarts: int
    hangs: int

    @property
    def healthy(self) -> bool:
        return self.health == HEALTHY


@dataclass(frozen=True, slots=True)
class Status:
    """The stack: its `sis up`, and the processes that it keeps running."""

    data: Path
    up: Identity | None
    """The living `sis up`; None: the stack is down, and whatever still runs was left behind."""
    starting: bool
    """Whether some processes are still to be started."""
    endpoints: Mapping[str, str]
    """Where clients find `queue`, `hub` and `credentials`, where agents enrol (`enrolment`), and the URLs of the
    gateways (`gateway`, `gateway-2`, …); empty when the stack is down."""
    processes: tuple[ProcessStatus, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything is there and healthy: the exit code of `sis status` is 0 for nothing less."""
        everything = self.up is not None and not self.starting and bool(self.processes)
        return everything and all(process.healthy for process in self.processes)

    def to_json(self) -> str:
        """One document: `data`, `up` (a pid or null), `starting`, `healthy`, `endpoints`, and `processes` with
        all fields of each."""
        document = {
            "data": str(self.data),
            "up": self.up.pid if self.up else None,
            "starting": self.starting,
            "healthy": self.healthy,
            "endpoints": dict(self.endpoints),
            "processes": [asdict(each) for each in self.processes],
        }
        return json.dumps(document, indent=2)


def status(data: Path) -> Status:
    """Look at the stack in `data`: asks every process at the same time, and takes a few seconds at the most.

    Raises:
        StackError: its files cannot be read.
    """
    layout = Layout(data.expanduser().absolute())
    up = states.holder(layout)
    state = states.read(layout)
    if state is None or not state.processes:
        return Status(layout.data, up, up is not None, {}, ())
    with refusals():
        probe = Probe.of(state)
    endpoints = {
        "queue": state.queue_endpoint,
        "hub": state.hub_endpoint,
        "credentials": state.credentials_endpoint,
        "enrolment": state.enrolment_endpoint,
    }
    for number, endpoint in enumerate(state.gateway_endpoints, start=1):
        endpoints["gateway" if number == 1 else f"gateway-{number}"] = f"http://{endpoint}"
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = pool.map(lambda process: _look(state, probe, process), state.processes)
        return Status(layout.data, up, up is not None and not state.started, endpoints, tuple(found))


def look(state: StackState, probe: Probe, process: ProcessState) -> str:
    """The health of one process."""
    if not state.current or not process.identity.alive:
        return "dead"
    if process.kind == "postgres":
        return probe.postgres(process.endpoint)
    if process.kind == "vault":
        return probe.vault(process.endpoint)
    if process.kind == "agent":
        hubs = [each.endpoint for each in state.processes if each.kind == "hub" and each.identity.alive]
        return probe.agent(hubs, process.name)
    if process.kind == "gateway":
        return probe.gateway(process.endpoint)
    return probe.server(process.endpoint)


def _look(state: StackState, probe: Probe, process: ProcessState) -> ProcessStatus:
    return ProcessStatus(
        name=process.name,
        kind=process.kind,
        pid=process.pid,
        endpoint=process.endpoint,
        health=look(state, probe, process),
        restarts=process.restarts,
        hangs=process.hangs,
    )
