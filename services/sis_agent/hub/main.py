"""The hub: the agents' streams and their registry. `python -m services.sis_agent.hub.main [migrate]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic_settings import SettingsConfigDict

from services.runtime.database import Database
from services.runtime.process import start
from services.runtime.server import Listener, Server, run
from services.runtime.settings import Endpoint, Settings, Sha256Hex
from services.sis_agent.hub.dispatcher import Dispatcher
from services.sis_agent.hub.heartbeats import Heartbeats
from services.sis_agent.hub.presence import Presence
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.reporter import Reporter
from services.sis_agent.hub.servicers import AgentAdminServicer, AgentServicer
from services.sis_agent.hub.sessions import Sessions
from services.sis_agent.hub.streams import Streams
from services.sis_agent.hub.tables import SCHEMA
from services.sis_agent.hub.watch import Watch
from sis.agent.v1.agent_admin_service_pb2_grpc import add_AgentAdminServiceServicer_to_server
from sis.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server

MIGRATIONS = Path(__file__).parent / "migrations"
POOL = 2


class HubSettings(Settings):
    """The environment of a hub."""

    model_config = SettingsConfigDict(env_prefix="SIS_HUB_")

    # Unlike that of any other hub.
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    database_url: str
    # Past a connection pooler, for migrations.
    database_direct_url: str | None = None
    agent_listen: Endpoint
    listen: Endpoint
    # The queue's internal listener.
    queue_endpoint: Endpoint
    admin_token_sha256: Sha256Hex
    # How often agents show that they live, and the hub says so to the queue.
    beat_seconds: Annotated[float, Field(ge=0.1, le=10)] = 5.0
    # Of one agent, in memory.
    unacknowledged_limit_bytes: Annotated[int, Field(ge=1024 * 1024, le=16 * 1024 * 1024)] = 4 * 1024 * 1024


class Hub:
    """The parts of a hub, wired. It keeps nothing that its successor needs."""

    def __init__(self, settings: HubSettings) -> None:
        name = settings.name
        self._database = Database(settings.database_url, pool_size=POOL, application_name=f"sis-hub {name}")
        self._connection = QueueConnection(settings.queue_endpoint, settings.tls)
        self._sessions = Sessions()
        self._dispatcher = Dispatcher(self._connection, self._sessions)
        self._reporter = Reporter(
            self._connection,
            session_bytes=settings.unacknowledged_limit_bytes,
            on_free=self._dispatcher.wake,
        )
        self._watch = Watch(
            self._connection,
            self._sessions,
            hub=name,
            on_open=self._reporter.wake,
            on_wake=self._dispatcher.wake,
        )
        self._presence = Presence(self._database, self._sessions, hub=name)
        self._heartbeats = Heartbeats(
            self._connection,
            self._sessions,
            self._dispatcher,
            self._presence,
            hub=name,
            interval=settings.beat_seconds,
        )
        self._streams = Streams(
            self._connection,
            self._sessions,
            self._reporter,
            hub=name,
            beat_interval=settings.beat_seconds,
            unacknowledged_limit_bytes=settings.unacknowledged_limit_bytes,
            on_free=self._dispatcher.wake,
        )
        self.server = Server(
            "hub",
            [
                (add_AgentServiceServicer_to_server, AgentServicer(self._streams, self._connection)),
                (add_AgentAdminServiceServicer_to_server, AgentAdminServicer(self._database)),
            ],
            [
                Listener(settings.agent_listen, settings.tls, demand_client_certificate=True),
                Listener(settings.listen, settings.tls),
            ],
            admin_token_sha256=settings.admin_token_sha256,
        )

        self.background = (
            self._watch.run,
            self._dispatcher.run,
            self._reporter.run,
            self._heartbeats.run,
            self._streams.run,
            self._presence.run,
        )

    async def healthy(self) -> bool:
        """Whether agents do well to come here: the queue answers, or did until a moment ago."""
        return self._watch.healthy()

    async def drain(self) -> None:
        """Send the agents elsewhere, and have all that they said until then committed."""
        self._dispatcher.stop()
        await self._streams.drain()
        await self._presence.written()

    async def close(self) -> None:
        """Give up the connections."""
        await self._connection.close()
        await self._database.dispose()


async def serve(settings: HubSettings) -> None:
    """Serve until SIGTERM."""
    hub = Hub(settings)
    try:
        await run(hub.server, *hub.background, healthy=hub.healthy, on_drain=hub.drain)
    finally:
        await hub.close()


def main() -> None:
    start("hub", HubSettings, serve, MIGRATIONS, SCHEMA)


if __name__ == "__main__":
    main()
