"""How each service process of a stack is started: its program, its environment, its place."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sis.stack.certificates import Authority, Files
from sis.stack.layout import Layout
from sis.stack.ports import HOST, Reservations
from sis.stack.processes import Command, Kind
from sis.stack.settings import Settings

GROUP = "local"
"""The group of the local agents."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The listeners of a stack."""

    queue: int
    queue_internal: int
    hubs: tuple[int, ...]
    hub_agents: tuple[int, ...]

    @classmethod
    def take(cls, settings: Settings, reservations: Reservations) -> tuple[Ports, Settings]:
        """Take every port that is needed; returns them, and the settings that remember them.

        Raises:
            StackError: a port cannot be had.
        """
        taken: dict[str, int] = {}

        def take(name: str, wanted: int) -> int:
            taken[name] = reservations.take(wanted, settings.ports.get(name, 0))
            return taken[name]

        # Wanted ones first, so that none of them is picked for somebody else.
        wanted = {
            "queue": settings.queue_port,
            "queue-internal": settings.queue_internal_port,
            "hub-1": settings.hub_port,
            "hub-1-agents": settings.hub_agent_port,
            **{name: 0 for n in range(2, settings.hubs + 1) for name in (f"hub-{n}", f"hub-{n}-agents")},
        }
        for name in sorted(wanted, key=lambda name: wanted[name] == 0):
            take(name, wanted[name])
        ports = cls(
            queue=taken["queue"],
            queue_internal=taken["queue-internal"],
            hubs=tuple(taken[f"hub-{n}"] for n in range(1, settings.hubs + 1)),
            hub_agents=tuple(taken[f"hub-{n}-agents"] for n in range(1, settings.hubs + 1)),
        )
        return ports, settings.model_copy(update={"ports": taken})


@dataclass(frozen=True, slots=True)
class Services:
    """The commands of one stack's services."""

    layout: Layout
    settings: Settings
    ports: Ports
    authority: Authority
    database_url: str
    token_sha256: str

    def queue(self) -> Command:
        tls = self.authority.issue("queue", "spiffe://sis/service/queue", ["queue"])
        environment = {
            "DATABASE_URL": self.database_url,
            "LISTEN": _endpoint(self.ports.queue),
            "INTERNAL_LISTEN": _endpoint(self.ports.queue_internal),
            "ADMIN_TOKEN_SHA256": self.token_sha256,
        }
        return self._service(
            "queue",
            "queue",
            "services.queue.main",
            "SIS_QUEUE_",
            environment,
            tls,
            _endpoint(self.ports.queue),
        )

    def hubs(self) -> list[Command]:
        return [self._hub(number) for number in range(1, self.settings.hubs + 1)]

    def agents(self) -> list[Command]:
        return [self._agent(number) for number in range(1, self.settings.agents + 1)]

    def migrations(self) -> list[Command]:
        """What brings the database up to date; safe to repeat."""
        return [_migration(self.queue()), _migration(self._hub(1))]

    def _hub(self, number: int) -> Command:
        name = f"hub-{number}"
        tls = self.authority.issue(name, "spiffe://sis/service/hub", ["hub", name])
        endpoint = _endpoint(self.ports.hubs[number - 1])
        environment = {
            "NAME": name,
            "DATABASE_URL": self.database_url,
            "AGENT_LISTEN": _endpoint(self.ports.hub_agents[number - 1]),
            "LISTEN": endpoint,
            "QUEUE_ENDPOINT": _endpoint(self.ports.queue_internal),
            "ADMIN_TOKEN_SHA256": self.token_sha256,
        }
        return self._service(name, "hub", "services.sis_agent.hub.main", "SIS_HUB_", environment, tls, endpoint)

    def _agent(self, number: int) -> Command:
        name = f"local-{number}"
        tls = self.authority.issue(name, f"spiffe://sis/agent/{GROUP}/{name}")
        directory = self.layout.agent(name)
        directory.mkdir(mode=0o700, exist_ok=True)
        # Each agent begins with another hub, so that they are spread.
        first = (number - 1) % len(self.ports.hub_agents)
        hubs = self.ports.hub_agents[first:] + self.ports.hub_agents[:first]
        environment = {
            "STATE": str(directory),
            "HUB_ENDPOINTS": ",".join(_endpoint(port) for port in hubs),
            "SLOTS": str(self.settings.slots),
        }
        return self._service(name, "agent", "services.sis_agent.agent.main", "SIS_AGENT_", environment, tls, "")

    def _service(
        self,
        name: str,
        kind: Kind,
        module: str,
        prefix: str,
        environment: Mapping[str, str],
        tls: Files,
        endpoint: str,
    ) -> Command:
        own = {
            **environment,
            "TLS_CA": str(tls.ca),
            "TLS_CERTIFICATE": str(tls.certificate),
            "TLS_KEY": str(tls.key),
        }
        return Command(
            name=name,
            kind=kind,
            arguments=(*_python(), "-m", module),
            directory=self.layout.data,
            log=self.layout.log(name),
            environment={**_inherited(), **{prefix + key: value for key, value in own.items()}},
            death_signal=signal.SIGTERM,
            endpoint=endpoint,
        )


def token_sha256(token: str) -> str:
    """All that a server knows of the administrator's token."""
    return hashlib.sha256(token.encode("ascii")).hexdigest()


def _python() -> Sequence[str]:
    # -P: a directory of services must never be on sys.path, and neither must the data directory.
    return (sys.executable, "-P")


def _inherited() -> dict[str, str]:
    """This process's environment without what would change the meaning of the settings given."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SIS_", "PG"))}


def _migration(service: Command) -> Command:
    return Command(
        name=f"the migration of {service.kind}",
        kind=service.kind,
        arguments=(*service.arguments, "migrate"),
        directory=service.directory,
        log=service.log,
        environment=service.environment,
    )


def _endpoint(port: int) -> str:
    return f"{HOST}:{port}"
