"""The way in for programs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from sis.client import endpoints
from sis.client.agents import Agents
from sis.client.connection import CALL_SECONDS, Connection
from sis.client.errors import ConfigurationError
from sis.client.jobs import Jobs
from sis.client.packages import Packages


class Client:
    """A connection to a suite, for one thread or many.

        with Client.find() as sis:
            job = sis.jobs.get(42)

    Messages of `sis.queue.v1` and `sis.agent.v1` go in and come out. Every call has a deadline (`seconds`,
    for calls that are answered once), and those that are safe to repeat are repeated while a server is away
    for a moment.
    """

    def __init__(
        self,
        queue_endpoint: str,
        hub_endpoint: str,
        token: str,
        ca: bytes | None,
        *,
        seconds: float = CALL_SECONDS,
    ) -> None:
        self._queue = Connection(queue_endpoint, token, ca, seconds)
        self._hub = Connection(hub_endpoint, token, ca, seconds) if hub_endpoint else None
        self.jobs = Jobs(self._queue)
        self.packages = Packages(self._queue)

    @property
    def agents(self) -> Agents:
        """The agents.

        Raises:
            ConfigurationError: the hub's endpoint is not known.
        """
        if self._hub is None:
            raise ConfigurationError(
                "the hub's endpoint is not known; set SIS_HUB_ENDPOINT to its public listener, host:port"
            )
        return Agents(self._hub)

    @classmethod
    def find(cls, data: Path | None = None) -> Client:
        """The client of the local stack, or of the suite that the environment names: see `endpoints.find`.

        Raises:
            ConfigurationError: no stack is up there, or a file cannot be read.
        """
        found = endpoints.find(data)
        return cls(found.queue, found.hub, found.token, found.ca)

    def close(self) -> None:
        """Close the channels; calls in flight are cancelled."""
        self._queue.close()
        if self._hub is not None:
            self._hub.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
