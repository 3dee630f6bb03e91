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
from sis.stack.ports import HOST
from sis.stack.processes import Command, Kind
from sis.stack.replicas import AGENTS, ENROLMENT, INTERNAL, Ports, Replica, endpoint
from sis.stack.settings import Settings

GROUP = "local"
"""The group of the local agents."""


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

    def servers(self) -> list[Command]:
        """What starts every server, in the order in which they are started."""
        return [self.server(replica) for replica in self.ports.all()]

    def server(self, replica: Replica) -> Command:
        """What starts one server."""
        match replica.kind:
            case "credentials":
                return self._credentials(replica)
            case "queue":
                return self._queue(replica)
            case "hub":
                return self._hub(replica)
            case "gateway":
                return self._gateway(replica)
            case kind:
                raise ValueError(f"a {kind} is no server")

    def agents(self) -> list[Command]:
        return [self._agent(number) for number in range(1, self.settings.agents + 1)]

    def scrape_targets(self) -> list[dict[str, object]]:
        """Where Prometheus finds them, as its `file_sd_configs` read it."""
        return [
            {"targets": [endpoint(port)], "labels": {"job": "sis", "process": name}}
            for name, port in self.ports.metrics.items()
        ]

    def migrations(self) -> list[Command]:
        """What brings the database up to date; safe to repeat."""
        return [_once(command, "migrate") for command in self._with_database()]

    def recoveries(self) -> list[Command]:
        """What puts a database right that was restored from a backup; migrates it first."""
        return [_once(command, "recover") for command in self._with_database()]

    def _with_database(self) -> list[Command]:
        """One server of each kind that has a schema."""
        kinds: tuple[Kind, ...] = ("credentials", "queue", "hub")
        return [self.server(self.ports.replicas[kind][0]) for kind in kinds]

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
        return self.ports.replicas["hub"][0].endpoint(ENROLMENT)

    def _credentials(self, replica: Replica) -> Command:
        environment = {
            "DATABASE_URL": self.database_url,
            "INTERNAL_LISTEN": replica.endpoint(INTERNAL),
            "JOIN_TOKENS": ",".join(f"{name}={digest}" for name, digest in self.join_sha256.items()),
            "VAULT_ADDRESS": self.vault.address,
            "VAULT_CA": str(self.vault.ca),
            "VAULT_ROLE_ID_FILE": str(self.layout.tls / "role-id"),
            "VAULT_SECRET_ID_FILE": str(self.layout.tls / "secret-id"),
        }
        return self._server(replica, "services.credentials.main", environment)

    def _queue(self, replica: Replica) -> Command:
        environment = {
            "DATABASE_URL": self.database_url,
            "INTERNAL_LISTEN": replica.endpoint(INTERNAL),
            **self._retention(),
            **self._joining("queue"),
        }
        return self._server(replica, "services.queue.main", environment)

    def _hub(self, replica: Replica) -> Command:
        environment = {
            "NAME": replica.name,
            "DATABASE_URL": self.database_url,
            "AGENT_LISTEN": replica.endpoint(AGENTS),
            "ENROLMENT_LISTEN": replica.endpoint(ENROLMENT),
            "QUEUE_ENDPOINT": self.ports.target("queue", INTERNAL),
            "CREDENTIALS_ENDPOINT": self.ports.target("credentials", INTERNAL),
            "AGENT_ENDPOINTS": ",".join(self.ports.endpoints("hub", AGENTS)),
            **self._joining("hub"),
        }
        return self._server(replica, "services.sis_agent.hub.main", environment)

    def _gateway(self, replica: Replica) -> Command:
        environment = {
            "QUEUE_ENDPOINT": self.ports.target("queue", INTERNAL),
            "CREDENTIALS_ENDPOINT": self.ports.target("credentials", INTERNAL),
            # Any hub answers for all agents.
            "HUB_ENDPOINT": self.ports.target("hub", AGENTS),
            "SESSION_KEY_FILE": str(self.layout.session_key),
            **self._joining("gateway"),
        }
        return self._server(replica, "gateway.main", environment)

    def _agent(self, number: int) -> Command:
        name = f"local-{number}"
        directory = self.layout.agent(name)
        directory.mkdir(mode=0o700, exist_ok=True)
        environment = {
            "SIS_AGENT_STATE": str(directory),
            "SIS_AGENT_HUB_ENDPOINTS": ",".join(self._hubs_of(number)),
            "SIS_AGENT_SLOTS": str(self.settings.slots),
            **{f"SIS_AGENT_{key}": value for key, value in self._measured(name).items()},
        }
        return self._command(name, "agent", "services.sis_agent.agent.main", environment)

    def _hubs_of(self, agent: int) -> list[str]:
        """Each agent begins with another hub, so that they are spread."""
        hubs = self.ports.endpoints("hub", AGENTS)
        first = (agent - 1) % len(hubs)
        return hubs[first:] + hubs[:first]

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
        return {} if port is None else {"METRICS_LISTEN": endpoint(port)}

    def _joining(self, service: str) -> dict[str, str]:
        """By what a service gets its certificate."""
        return {
            "JOIN_ENDPOINT": self.ports.target("credentials"),
            "JOIN_TOKEN_FILE": str(self.layout.join_token(service)),
        }

    def _server(self, replica: Replica, module: str, environment: Mapping[str, str]) -> Command:
        own = {
            **environment,
            "LISTEN": replica.endpoint(),
            "ADMIN_TOKEN_SHA256": self.token_sha256,
            "TLS_CA": str(self.layout.ca),
            "IDENTITY": str(self.layout.identity(replica.name)),
            "HOST_NAMES": f"localhost,{HOST},{replica.name}",
            **self._measured(replica.name),
        }
        prefix = f"SIS_{replica.kind.upper()}_"
        command = self._command(replica.name, replica.kind, module, {prefix + key: own[key] for key in own})
        return replace(command, endpoint=replica.endpoint())

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
