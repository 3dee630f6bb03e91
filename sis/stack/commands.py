"""How each service process of a stack is started: its program, its environment, its place."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sis.stack.layout import Layout
from sis.stack.openbao import OpenBao
from sis.stack.ports import HOST, Reservations
from sis.stack.processes import Command, Kind
from sis.stack.settings import Settings

GROUP = "local"
"""The group of the local agents."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The listeners of a stack."""

    vault: int
    vault_cluster: int
    credentials: int
    credentials_internal: int
    queue: int
    queue_internal: int
    hubs: tuple[int, ...]
    hub_agents: tuple[int, ...]
    hub_enrolments: tuple[int, ...]
    gateway: int
    metrics: Mapping[str, int]
    """Where Prometheus reads, by the name of the process; empty where it does not."""

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

        def of_hubs(suffix: str) -> tuple[int, ...]:
            return tuple(taken[f"hub-{number}{suffix}"] for number in range(1, settings.hubs + 1))

        # Wanted ones first, so that none of them is picked for somebody else.
        wanted = {
            "vault": settings.vault_port,
            "vault-cluster": 0,
            "credentials": settings.credentials_port,
            "credentials-internal": 0,
            "queue": settings.queue_port,
            "queue-internal": settings.queue_internal_port,
            "gateway": settings.gateway_port,
            **{f"hub-{n}{suffix}": 0 for n in range(1, settings.hubs + 1) for suffix in _HUB_LISTENERS},
            "hub-1": settings.hub_port,
            "hub-1-agents": settings.hub_agent_port,
            "hub-1-enrolment": settings.hub_enrolment_port,
        }
        measured = [*settings.servers, *settings.local_agents] if settings.metrics else []
        wanted |= {f"{name}-metrics": 0 for name in measured}
        for name in sorted(wanted, key=lambda name: wanted[name] == 0):
            take(name, wanted[name])
        ports = cls(
            vault=taken["vault"],
            vault_cluster=taken["vault-cluster"],
            credentials=taken["credentials"],
            credentials_internal=taken["credentials-internal"],
            queue=taken["queue"],
            queue_internal=taken["queue-internal"],
            hubs=of_hubs(""),
            hub_agents=of_hubs("-agents"),
            hub_enrolments=of_hubs("-enrolment"),
            gateway=taken["gateway"],
            metrics={name: taken[f"{name}-metrics"] for name in measured},
        )
        return ports, settings.model_copy(update={"ports": taken})


_HUB_LISTENERS = ("", "-agents", "-enrolment")


@dataclass(frozen=True, slots=True)
class Services:
    """The commands of one stack's services."""

    layout: Layout
    settings: Settings
    ports: Ports
    vault: OpenBao
    database_url: str
    token_sha256: str
    join_sha256: Mapping[str, str]
    """Of the join token of each service."""

    def credentials(self) -> Command:
        environment = {
            "DATABASE_URL": self.database_url,
            "LISTEN": _endpoint(self.ports.credentials),
            "INTERNAL_LISTEN": _endpoint(self.ports.credentials_internal),
            "JOIN_TOKENS": ",".join(f"{name}={digest}" for name, digest in self.join_sha256.items()),
            "VAULT_ADDRESS": self.vault.address,
            "VAULT_CA": str(self.vault.ca),
            "VAULT_ROLE_ID_FILE": str(self.layout.tls / "role-id"),
            "VAULT_SECRET_ID_FILE": str(self.layout.tls / "secret-id"),
        }
        port = self.ports.credentials
        return self._server("credentials", "credentials", "services.credentials.main", environment, port)

    def queue(self) -> Command:
        environment = {
            "DATABASE_URL": self.database_url,
            "LISTEN": _endpoint(self.ports.queue),
            "INTERNAL_LISTEN": _endpoint(self.ports.queue_internal),
            **self._retention(),
            **self._joining("queue"),
        }
        return self._server("queue", "queue", "services.queue.main", environment, self.ports.queue)

    def gateway(self) -> Command:
        environment = {
            "LISTEN": _endpoint(self.ports.gateway),
            "QUEUE_ENDPOINT": _endpoint(self.ports.queue_internal),
            "CREDENTIALS_ENDPOINT": _endpoint(self.ports.credentials_internal),
            # Any hub answers for all agents.
            "HUB_ENDPOINT": f"ipv4:{','.join(map(_endpoint, self.ports.hub_agents))}",
            "SESSION_KEY_FILE": str(self.layout.session_key),
            **self._joining("gateway"),
        }
        return self._server("gateway", "gateway", "gateway.main", environment, self.ports.gateway)

    def hubs(self) -> list[Command]:
        return [self._hub(number) for number in range(1, self.settings.hubs + 1)]

    def agents(self) -> list[Command]:
        return [self._agent(number) for number in range(1, self.settings.agents + 1)]

    def targets(self) -> list[dict[str, object]]:
        """Where Prometheus finds them, as its `file_sd_configs` read it."""
        return [
            {"targets": [_endpoint(port)], "labels": {"job": "sis", "process": name}}
            for name, port in self.ports.metrics.items()
        ]

    def migrations(self) -> list[Command]:
        """What brings the database up to date; safe to repeat."""
        return [_once(command, "migrate") for command in (self.credentials(), self.queue(), self._hub(1))]

    def vault_bootstrap(self) -> Command:
        """What makes OpenBao the suite's Vault; safe to repeat."""
        arguments = self.vault.bootstrap_arguments(self.layout.tls)
        return self._command("vault-bootstrap", "vault", "services.credentials.bootstrap", {}, arguments)

    def enrolment(self, agent: Command, code: str) -> Command:
        """What makes a local agent one."""
        enrol = _once(agent, "enrol", "--hub", self.enrolment_endpoint, "--code", "-")
        return replace(enrol, input=code.encode("ascii"))

    @property
    def enrolment_endpoint(self) -> str:
        return _endpoint(self.ports.hub_enrolments[0])

    def _hub(self, number: int) -> Command:
        name = f"hub-{number}"
        environment = {
            "NAME": name,
            "DATABASE_URL": self.database_url,
            "AGENT_LISTEN": _endpoint(self.ports.hub_agents[number - 1]),
            "ENROLMENT_LISTEN": _endpoint(self.ports.hub_enrolments[number - 1]),
            "LISTEN": _endpoint(self.ports.hubs[number - 1]),
            "QUEUE_ENDPOINT": _endpoint(self.ports.queue_internal),
            "CREDENTIALS_ENDPOINT": _endpoint(self.ports.credentials_internal),
            "AGENT_ENDPOINTS": ",".join(map(_endpoint, self.ports.hub_agents)),
            **self._joining("hub"),
        }
        return self._server(name, "hub", "services.sis_agent.hub.main", environment, self.ports.hubs[number - 1])

    def _agent(self, number: int) -> Command:
        name = f"local-{number}"
        directory = self.layout.agent(name)
        directory.mkdir(mode=0o700, exist_ok=True)
        # Each agent begins with another hub, so that they are spread.
        first = (number - 1) % len(self.ports.hub_agents)
        hubs = self.ports.hub_agents[first:] + self.ports.hub_agents[:first]
        environment = {
            "SIS_AGENT_STATE": str(directory),
            "SIS_AGENT_HUB_ENDPOINTS": ",".join(map(_endpoint, hubs)),
            "SIS_AGENT_SLOTS": str(self.settings.slots),
            **{f"SIS_AGENT_{key}": value for key, value in self._measured(name).items()},
        }
        return self._command(name, "agent", "services.sis_agent.agent.main", environment)

    def _retention(self) -> dict[str, str]:
        """What the queue deletes of what has ended."""
        rules = {"AGE": self.settings.retention_days, "COUNT": self.settings.retention_jobs}
        chosen = {f"RETENTION_{name}": str(value) for name, value in rules.items() if value}
        if chosen and self.settings.retention_export:
            chosen["RETENTION_EXPORT"] = self.settings.retention_export
        return chosen

    def _measured(self, name: str) -> dict[str, str]:
        """Where Prometheus reads what a process measures."""
        port = self.ports.metrics.get(name)
        return {} if port is None else {"METRICS_LISTEN": _endpoint(port)}

    def _joining(self, service: str) -> dict[str, str]:
        """By what a service gets its certificate."""
        return {
            "JOIN_ENDPOINT": _endpoint(self.ports.credentials),
            "JOIN_TOKEN_FILE": str(self.layout.join_token(service)),
        }

    def _server(self, name: str, kind: Kind, module: str, environment: Mapping[str, str], port: int) -> Command:
        own = {
            **environment,
            "ADMIN_TOKEN_SHA256": self.token_sha256,
            "TLS_CA": str(self.layout.ca),
            "IDENTITY": str(self.layout.identity(name)),
            "HOST_NAMES": f"localhost,{HOST},{name}",
            **self._measured(name),
        }
        prefix = f"SIS_{kind.upper()}_"
        command = self._command(name, kind, module, {prefix + key: value for key, value in own.items()})
        return replace(command, endpoint=_endpoint(port))

    def _command(
        self, name: str, kind: Kind, module: str, environment: Mapping[str, str], arguments: Sequence[str] = ()
    ) -> Command:
        return Command(
            name=name,
            kind=kind,
            arguments=(*_python(), "-m", module, *arguments),
            directory=self.layout.data,
            log=self.layout.log(name),
            environment={**_inherited(), **environment},
            death_signal=signal.SIGTERM,
        )


def token_sha256(token: str) -> str:
    """All that a server knows of the administrator's token."""
    return hashlib.sha256(token.encode("ascii")).hexdigest()


def _python() -> Sequence[str]:
    # -P: a directory of services must never be on sys.path, and neither must the data directory.
    return (sys.executable, "-P")


def _inherited() -> dict[str, str]:
    """This process's environment without what would change the meaning of the settings given."""
    return {
        key: value
        for key, value in os.environ.items()
        # By OTEL_SERVICE_NAME they could not be told apart.
        if not key.startswith(("SIS_", "PG", "VAULT_", "BAO_", "OTEL_SERVICE_NAME")) or key == "SIS_FAULTS"
    }


def _once(service: Command, *arguments: str) -> Command:
    """The same program, for something that it does and ends."""
    name = f"{service.name} {arguments[0]}"
    return replace(service, name=name, arguments=(*service.arguments, *arguments), endpoint="")


def _endpoint(port: int) -> str:
    return f"{HOST}:{port}"
