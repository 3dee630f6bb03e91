"""The hub: the agents' streams and their registry.

`python -m services.sis_agent.hub.main [migrate [post] | recover]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_settings import SettingsConfigDict

from services.runtime import joining, metrics
from services.runtime.database import Database
from services.runtime.dependencies import CREDENTIALS, QUEUE, Dependency, Trouble
from services.runtime.health import Health
from services.runtime.identity import Identity
from services.runtime.probes import probed
from services.runtime.process import start
from services.runtime.schema import newest_revision
from services.runtime.server import Listener, Server, run
from services.runtime.settings import DatabaseUrl, Endpoint, ServiceSettings, Sha256Hex, Target, Texts
from services.runtime.tracing import Attribute, Attributes
from services.sis_agent.hub.chains import LATE_SECONDS, Chains
from services.sis_agent.hub.credentials_connection import CredentialsConnection
from services.sis_agent.hub.dispatcher import Dispatcher
from services.sis_agent.hub.heartbeats import Heartbeats
from services.sis_agent.hub.lease_ends import LeaseEnds
from services.sis_agent.hub.leases import Leases
from services.sis_agent.hub.presence import Presence
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.recovery import recover
from services.sis_agent.hub.renewals import Certifier
from services.sis_agent.hub.reporter import Reporter
from services.sis_agent.hub.revocations import Revocations
from services.sis_agent.hub.servicers import AgentAdminServicer, AgentServicer, EnrolmentServicer
from services.sis_agent.hub.sessions import Sessions
from services.sis_agent.hub.streams import Streams
from services.sis_agent.hub.tables import SCHEMA
from services.sis_agent.hub.watch import GRACE_SECONDS, Watch
from sis.agent.v1.agent_admin_service_pb2_grpc import add_AgentAdminServiceServicer_to_server
from sis.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from sis.agent.v1.enrolment_service_pb2_grpc import add_EnrolmentServiceServicer_to_server

MIGRATIONS = Path(__file__).parent / "migrations"
POOL = 4


def _checked_agent_endpoints(endpoints: tuple[str, ...]) -> tuple[str, ...]:
    for each in endpoints:
        _, colon, port = each.rpartition(":")
        if not (colon and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError(f"{each!r} is no host:port; without a host (:port) it is the one at which an agent enrols")
    return endpoints


class HubSettings(ServiceSettings):
    """The environment of a hub."""

    model_config = SettingsConfigDict(env_prefix="SIS_HUB_")

    # Unlike that of any other hub.
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    database_url: DatabaseUrl
    # Past a connection pooler, for migrations.
    database_direct_url: DatabaseUrl | None = None
    agent_listen: Endpoint
    listen: Endpoint
    enrolment_listen: Endpoint
    # Told to agents that enrol; the port of `agent_listen` unless given.
    agent_endpoints: Annotated[Texts, AfterValidator(_checked_agent_endpoints)] = ()
    # The queue's and the credential service's internal listeners.
    queue_endpoint: Target
    credentials_endpoint: Target
    admin_token_sha256: Sha256Hex
    # How often agents show that they live, and the hub says so to the queue.
    beat_seconds: Annotated[float, Field(ge=0.1, le=10)] = 5.0
    # How long an agent's stream may last, in seconds. Then the agent goes to another hub: one that was away has some
    # again.
    stream_seconds: Annotated[float, Field(ge=1, le=30 * 86_400)] = 1_800.0
    # Of one agent, in memory.
    unacknowledged_limit_bytes: Annotated[int, Field(ge=1024 * 1024, le=16 * 1024 * 1024)] = 4 * 1024 * 1024


class Hub:
    """The parts of a hub, wired. It keeps nothing that its successor needs. For `late_seconds`, see `Chains`."""

    def __init__(
        self,
        settings: HubSettings,
        identity: Identity,
        *,
        late_seconds: float = LATE_SECONDS,
        health: Health | None = None,
    ) -> None:
        name = settings.name
        self._agent_endpoints = settings.agent_endpoints
        self._database = Database(
            settings.database_url,
            direct_url=settings.database_direct_url,
            pool_size=POOL,
            application_name=f"sis-hub {name}",
            revision=newest_revision(SCHEMA, MIGRATIONS),
        )
        self._connection = QueueConnection(settings.queue_endpoint, identity)
        self._credentials = CredentialsConnection(settings.credentials_endpoint, identity)
        self._sessions = Sessions()
        self._reporter = Reporter(
            self._connection,
            session_bytes=settings.unacknowledged_limit_bytes,
            on_free=lambda: self._dispatcher.wake(),
        )
        self._leases = Leases(self._credentials, self._reporter, on_free=lambda: self._dispatcher.wake())
        self._dispatcher = Dispatcher(self._connection, self._sessions, self._leases)
        self._lease_ends = LeaseEnds(self._credentials, self._connection)
        self._watch = Watch(
            self._connection,
            self._sessions,
            self._lease_ends,
            hub=name,
            on_open=self._reporter.wake,
            on_wake=self._dispatcher.wake,
        )
        self._chains = Chains(self._database, self._sessions, late_seconds=late_seconds)
        certifier = Certifier(self._credentials, self._chains)
        self._revocations = Revocations(self._credentials, self._database, self._sessions)
        self._presence = Presence(self._database, self._sessions, self._chains, hub=name)
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
            self._leases,
            self._chains,
            certifier,
            self._revocations,
            hub=name,
            beat_interval=settings.beat_seconds,
            unacknowledged_limit_bytes=settings.unacknowledged_limit_bytes,
            stream_seconds=settings.stream_seconds,
            on_free=self._dispatcher.wake,
        )
        self.server = Server(
            "hub",
            [
                (
                    add_AgentServiceServicer_to_server,
                    AgentServicer(self._streams, self._chains, self._revocations, self._connection),
                ),
                (
                    add_EnrolmentServiceServicer_to_server,
                    EnrolmentServicer(self._credentials, certifier, self.agent_endpoints),
                ),
                (add_AgentAdminServiceServicer_to_server, AgentAdminServicer(self._database)),
            ],
            [
                Listener(settings.agent_listen, identity.tls, demand_client_certificate=True),
                Listener(settings.listen, identity.tls),
                Listener(settings.enrolment_listen, identity.tls),
            ],
            admin_token_sha256=settings.admin_token_sha256,
            health=health,
        )

        self.background = (
            self._watch.run,
            self._dispatcher.run,
            self._leases.run,
            self._reporter.run,
            self._lease_ends.run,
            self._revocations.run,
            self._heartbeats.run,
            self._streams.run,
            self._presence.run,
        )
        self._measure()
        # Without queue and registry, and what the registry says of revocations, no agent can be welcomed here.
        self.dependencies = (
            Dependency(QUEUE, "the queue", self._watch.trouble, grace=GRACE_SECONDS),
            replace(self._database.dependency, look=self._registry_trouble, grace=GRACE_SECONDS),
            Dependency(CREDENTIALS, "the credential service", self._revocations.trouble, needed=False),
        )

    def _measure(self) -> None:
        """Have Prometheus, and whoever else asks, see how busy this hub is."""
        metrics.observe(
            "sis.hub.agents", "{agent}", "Agents whose stream is here.", lambda: [(len(self._sessions), {})]
        )
        metrics.observe("sis.hub.slots", "{slot}", "Slots of the agents whose stream is here.", self._slots)
        metrics.observe(
            "sis.hub.unacknowledged",
            "By",
            "Reports that the queue has not committed yet.",
            lambda: [(self._reporter.unacknowledged_bytes, {})],
        )

    def _slots(self) -> Sequence[tuple[int, Attributes]]:
        slots = [session.slots for session in self._sessions]
        free, total = sum(each.free for each in slots), sum(each.total for each in slots)
        return [(free, {Attribute.SLOT_STATE: "free"}), (total - free, {Attribute.SLOT_STATE: "taken"})]

    async def _registry_trouble(self) -> Trouble | None:
        return await self._database.trouble() or await self._revocations.unread()

    def agent_endpoints(self) -> tuple[str, ...]:
        """Where agents connect; an empty host is the one at which they enrolled."""
        return self._agent_endpoints or (f":{self.server.ports[0]}",)

    async def drain(self) -> None:
        """Send the agents elsewhere, and have all that they said until then committed."""
        self._dispatcher.stop()
        await self._streams.drain()
        await self._presence.written()

    async def close(self) -> None:
        """Give up the connections."""
        await self._connection.close()
        await self._credentials.close()
        await self._database.dispose()


async def serve(settings: HubSettings) -> None:
    """Serve until SIGTERM."""
    async with probed(settings.probe_listen) as health:
        await _serve(settings, health)


async def _serve(settings: HubSettings, health: Health) -> None:
    identity = joining.identity(settings, "hub")
    await identity.ready()
    hub = Hub(settings, identity, health=health)
    try:
        await run(hub.server, *hub.background, identity.run, dependencies=hub.dependencies, on_drain=hub.drain)
    finally:
        await hub.close()


def main() -> None:
    start("hub", HubSettings, serve, MIGRATIONS, SCHEMA, recover)


if __name__ == "__main__":
    main()
