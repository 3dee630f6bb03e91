"""A real stack each of whose connections goes through a proxy that misbehaves on demand.

`sis up` is run by this module as a program (`python -m tests.support.linked_stack LINKS up …`), which hands each
process the endpoints of proxies in the place of those of its servers. The proxies live in the process of the test;
LINKS is the file by which the two tell each other where the proxies listen and where they forward to.

The stack's own probes and `client()` go past the proxies.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from sis.cli import main as command_line
from sis.client import Client, endpoints
from sis.stack import stack
from sis.stack.commands import Services
from sis.stack.processes import Command, Kind
from sis.stack.replicas import AGENTS, Replica
from tests.support.stack import Stack
from tests.support.tcp_proxy import ProxyThread

# Which variable of which process holds the endpoint at the other end of which link.
_OF_PROCESSES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "credentials": {"credentials-postgres": "DATABASE_URL", "credentials-vault": "VAULT_ADDRESS"},
        "queue": {"queue-postgres": "DATABASE_URL", "queue-credentials": "JOIN_ENDPOINT"},
        "hub": {
            "hub-postgres": "DATABASE_URL",
            "hub-queue": "QUEUE_ENDPOINT",
            "hub-credentials": "CREDENTIALS_ENDPOINT",
            "hub-joining": "JOIN_ENDPOINT",
        },
        "gateway": {
            "gateway-queue": "QUEUE_ENDPOINT",
            "gateway-credentials": "CREDENTIALS_ENDPOINT",
            "gateway-joining": "JOIN_ENDPOINT",
        },
    }
)
_AGENT_HUB = "agent-hub"
_ENROLMENT = "agent-enrolment"
_GATEWAY_HUB = "gateway-hub"
_KINDS: Mapping[str, Kind] = MappingProxyType(
    {"client-queue": "queue", "client-credentials": "credentials", "client-hub": "hub"}
)
_CLIENT = tuple(_KINDS)

LINKS = (
    _AGENT_HUB,
    _ENROLMENT,
    _GATEWAY_HUB,
    *_CLIENT,
    *(link for links in _OF_PROCESSES.values() for link in links),
)
"""`agent-hub` carries the streams and the packages of all agents. `queue-credentials`, `hub-joining` and
`gateway-joining` are the ways to a certificate."""


class LinkedStack(Stack):
    """The linked stack in `data`, with one of each server; `links` are there from the beginning on."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self._targets = data.with_name("targets.json")
        self._listeners = data.with_name("links.json")
        self.links: Mapping[str, ProxyThread] = {name: ProxyThread(partial(self._target, name)) for name in LINKS}
        found = {name: link.endpoint for name, link in self.links.items()}
        self._listeners.write_text(json.dumps({"targets": str(self._targets), "links": found}))

    def _target(self, link: str) -> str:
        return str(json.loads(self._targets.read_text())[link])

    def command(self, *arguments: str | Path) -> list[str]:
        """`sis up` is that of this module."""
        plain = super().command(*arguments)
        if arguments[0] != "up":
            return plain
        return [sys.executable, "-P", "-m", __name__, str(self._listeners), *map(str, arguments)]

    def linked_client(self) -> Client:
        """A client whose connections are links too, to be closed by the caller."""
        queue, credentials, hub = (self.links[name].endpoint for name in _CLIENT)
        return Client(replace(endpoints.find(self.data), queue=queue, credentials=credentials, hub=hub))

    def heal(self) -> None:
        """Let everything flow again."""
        for link in self.links.values():
            link(lambda proxy: proxy.heal())
            link(lambda proxy: proxy.accept())

    def close(self) -> None:
        with ExitStack() as ends:  # each is tried, whatever becomes of those before
            for link in self.links.values():
                ends.callback(link.close)
            ends.callback(super().close)
            ends.callback(self.heal)


class _LinkedServices(Services):
    """The commands of a stack, with the endpoints of proxies."""

    listeners: Mapping[str, str]
    targets: Path
    """Where is written what each of them leads to."""

    def server(self, replica: Replica) -> Command:
        command = self._linked(replica.kind, super().server(replica))
        match replica.kind:
            case "gateway":
                hub = self._to(_GATEWAY_HUB, command.environment["SIS_GATEWAY_HUB_ENDPOINT"])
                return self._with(command, SIS_GATEWAY_HUB_ENDPOINT=hub)
            case "hub":
                return self._with(command, SIS_HUB_AGENT_ENDPOINTS=self._to(_AGENT_HUB, replica.endpoint(AGENTS)))
        return command

    def _agent(self, number: int) -> Command:
        command = super()._agent(number)
        hub = self._to(_AGENT_HUB, command.environment["SIS_AGENT_HUB_ENDPOINTS"])
        return self._with(command, SIS_AGENT_HUB_ENDPOINTS=hub)

    @property
    def enrolment_endpoint(self) -> str:
        return self._to(_ENROLMENT, super().enrolment_endpoint)

    def _linked(self, kind: str, command: Command) -> Command:
        prefix = f"SIS_{kind.upper()}_"
        found = {}
        for link, variable in _OF_PROCESSES[kind].items():
            plain = command.environment[prefix + variable]
            match variable:
                case "DATABASE_URL":
                    sockets = self.database_url.rpartition("host=")[2].replace("%2F", "/")
                    proxy = self._to(link, f"unix:{sockets}/.s.PGSQL.5432")
                    found[prefix + variable] = f"postgresql+psycopg://sis@{proxy}/sis?sslmode=disable"
                case "VAULT_ADDRESS":
                    found[prefix + variable] = f"https://{self._to(link, plain.removeprefix('https://'))}"
                case _:
                    found[prefix + variable] = self._to(link, plain)
        for link in _CLIENT:
            self._to(link, self.ports.target(_KINDS[link]))
        return self._with(command, **found)

    def _to(self, link: str, target: str) -> str:
        """Where to connect in the place of `target`."""
        try:
            known = json.loads(self.targets.read_text())
        except FileNotFoundError:
            known = {}
        if known.get(link) != target:
            fresh = self.targets.with_suffix(".new")
            fresh.write_text(json.dumps({**known, link: target}))
            fresh.rename(self.targets)
        return self.listeners[link]

    @staticmethod
    def _with(command: Command, **environment: str) -> Command:
        return replace(command, environment={**command.environment, **environment})


def _main(links: Path, arguments: Sequence[str]) -> int:
    found = json.loads(links.read_text())
    _LinkedServices.listeners = found["links"]
    _LinkedServices.targets = Path(found["targets"])
    stack.Services = _LinkedServices  # type: ignore[attr-defined]
    return command_line.run(arguments)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2:]))
