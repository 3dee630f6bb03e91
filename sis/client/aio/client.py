"""The way in for programs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from sis.client import endpoints
from sis.client.aio.agents import Agents
from sis.client.aio.connection import Connection
from sis.client.aio.credentials import Credentials
from sis.client.aio.identities import AgentIdentities
from sis.client.aio.jobs import Jobs
from sis.client.aio.packages import Packages
from sis.client.endpoints import Endpoints
from sis.client.errors import ConfigurationError
from sis.client.service_config import CALL_SECONDS


class AsyncClient:
    """A connection to a suite, for the tasks of one event loop.

        async with AsyncClient.find() as sis:
            job = await sis.jobs.get(42)

    Messages of `sis.queue.v1`, `sis.credentials.v1` and `sis.agent.v1` go in and come out. Every call has a
    deadline (`seconds`, for calls that are answered once), and those that are safe to repeat are repeated while
    a server is away for a moment.
    """

    def __init__(self, endpoints: Endpoints, *, seconds: float = CALL_SECONDS) -> None:
        def connect(service: str, endpoint: str) -> Connection:
            return Connection(endpoint, endpoints.token, endpoints.ca, seconds, service=service)

        self._queue = connect("queue", endpoints.queue)
        self._hub = connect("hub", endpoints.hub) if endpoints.hub else None
        self._credentials = connect("credentials", endpoints.credentials) if endpoints.credentials else None
        self.jobs = Jobs(self._queue)
        self.packages = Packages(self._queue)

    @property
    def agents(self) -> Agents:
        """The agents.

        Raises:
            ConfigurationError: the hub's endpoint is not known.
        """
        return Agents(_known(self._hub, "hub", "SIS_HUB_ENDPOINT"))

    @property
    def credentials(self) -> Credentials:
        """The KeySafe.

        Raises:
            ConfigurationError: the credential service's endpoint is not known.
        """
        return Credentials(_known(self._credentials, "credential service", "SIS_CREDENTIALS_ENDPOINT"))

    @property
    def identities(self) -> AgentIdentities:
        """Which agents belong to the suite.

        Raises:
            ConfigurationError: the credential service's endpoint is not known.
        """
        return AgentIdentities(_known(self._credentials, "credential service", "SIS_CREDENTIALS_ENDPOINT"))

    @classmethod
    def find(cls, data: Path | None = None) -> Self:
        """The client of the local stack, or of the suite that the environment names: see `endpoints.find`.

        Raises:
            ConfigurationError: no stack is up there, or a file cannot be read.
        """
        return cls(endpoints.find(data))

    async def close(self) -> None:
        """Close the channels; calls in flight are cancelled."""
        for connection in (self._queue, self._hub, self._credentials):
            if connection is not None:
                await connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _known(connection: Connection | None, server: str, variable: str) -> Connection:
    if connection is None:
        raise ConfigurationError(
            f"the {server}'s endpoint is not known; set {variable} to its public listener, host:port"
        )
    return connection
