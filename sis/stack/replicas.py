"""The servers of which a stack has several: how many of each kind, and where each listens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from sis.stack.ports import HOST, Reservations
from sis.stack.processes import Kind
from sis.stack.settings import Settings

PUBLIC: Final = "public"
"""The listener for people."""
INTERNAL: Final = "internal"
"""The listener for the suite's own processes."""
AGENTS: Final = "agents"
ENROLMENT: Final = "enrolment"
METRICS: Final = "metrics"
"""For Prometheus, where it was asked for."""

LISTENERS: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        "credentials": (PUBLIC, INTERNAL),
        "queue": (PUBLIC, INTERNAL),
        "hub": (PUBLIC, AGENTS, ENROLMENT),
        "gateway": (PUBLIC,),
    }
)
"""Of each kind, in the order in which they are started, and restarted one by one."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One server; the first of its kind has number 1."""

    kind: Kind
    number: int
    ports: Mapping[str, int]
    """By listener."""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number}"

    def endpoint(self, listener: str = PUBLIC) -> str:
        """host:port of one of its listeners."""
        return endpoint(self.ports[listener])


@dataclass(frozen=True, slots=True)
class Ports:
    """The listeners of a stack."""

    vault: int
    vault_cluster: int
    replicas: Mapping[Kind, tuple[Replica, ...]]
    metrics: Mapping[str, int]
    """Where Prometheus reads, by the name of the process; empty where it does not."""

    @classmethod
    def take(cls, settings: Settings, reservations: Reservations) -> tuple[Ports, Settings]:
        """Take every port that is needed; returns them, and the settings that remember them.

        Raises:
            StackError: a port cannot be had.
        """
        wanted = {"vault": settings.vault_port, "vault-cluster": 0, **_wanted(settings)}
        servers = [f"{kind}-{number}" for kind in LISTENERS for number in range(1, settings.replicas + 1)]
        measured = [*servers, *settings.local_agents] if settings.metrics else []
        wanted |= {f"{name}-{METRICS}": 0 for name in measured}
        taken: dict[str, int] = {}
        # Wanted ones first, so that none of them is picked for somebody else.
        for name in sorted(wanted, key=lambda name: wanted[name] == 0):
            taken[name] = reservations.take(wanted[name], settings.ports.get(name, 0))
        replicas = {
            kind: tuple(
                Replica(kind, number, {each: taken[_port_name(kind, number, each)] for each in listeners})
                for number in range(1, settings.replicas + 1)
            )
            for kind, listeners in LISTENERS.items()
        }
        # Those of replicas that are not there now are kept for when they are there again.
        remembered = settings.model_copy(update={"ports": {**settings.ports, **taken}})
        metrics = {name: taken[f"{name}-{METRICS}"] for name in measured}
        return cls(taken["vault"], taken["vault-cluster"], replicas, metrics), remembered

    def all(self) -> Iterator[Replica]:
        """Every server, in the order in which they are started."""
        for kind in LISTENERS:
            yield from self.replicas[kind]

    def endpoints(self, kind: Kind, listener: str = PUBLIC) -> list[str]:
        """host:port of a listener of each server of this kind."""
        return [replica.endpoint(listener) for replica in self.replicas[kind]]

    def target(self, kind: Kind, listener: str = PUBLIC) -> str:
        """All of them as one target of gRPC's: host:port where it is a single one."""
        found = self.endpoints(kind, listener)
        return found[0] if len(found) == 1 else f"ipv4:{','.join(found)}"


def endpoint(port: int) -> str:
    """host:port of a port on this machine."""
    return f"{HOST}:{port}"


def _wanted(settings: Settings) -> dict[str, int]:
    """The port that each listener shall have, by its name in the settings; 0 for any."""
    chosen = {
        "credentials-1": settings.credentials_port,
        "queue-1": settings.queue_port,
        "queue-1-internal": settings.queue_internal_port,
        "hub-1": settings.hub_port,
        "hub-1-agents": settings.hub_agent_port,
        "hub-1-enrolment": settings.hub_enrolment_port,
        "gateway-1": settings.gateway_port,
    }
    names = [
        _port_name(kind, number, listener)
        for kind, listeners in LISTENERS.items()
        for number in range(1, settings.replicas + 1)
        for listener in listeners
    ]
    return {name: chosen.get(name, 0) for name in names}


def _port_name(kind: Kind, number: int, listener: str) -> str:
    return f"{kind}-{number}" if listener == PUBLIC else f"{kind}-{number}-{listener}"
