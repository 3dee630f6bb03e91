"""The queue: jobs, their logs, the package library. `python -m services.queue.main [migrate]`."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import SettingsConfigDict

from services.queue.servicers.dispatch import DispatchServicer
from services.queue.servicers.job import JobServicer
from services.queue.servicers.package import PackageServicer
from services.queue.sweeper import Sweeper
from services.queue.tables import SCHEMA
from services.queue.wakes import CHANNEL, Wakes
from services.runtime import joining
from services.runtime.database import Database
from services.runtime.process import start
from services.runtime.server import Listener, Server, run
from services.runtime.settings import Endpoint, ServiceSettings, Sha256Hex
from sis.queue.v1.dispatch_service_pb2_grpc import add_DispatchServiceServicer_to_server
from sis.queue.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server
from sis.queue.v1.package_service_pb2_grpc import add_PackageServiceServicer_to_server

MIGRATIONS = Path(__file__).parent / "migrations"
POOL = 4


class QueueSettings(ServiceSettings):
    """The environment of the queue."""

    model_config = SettingsConfigDict(env_prefix="SIS_QUEUE_")

    database_url: str
    # Past a connection pooler, for LISTEN and migrations.
    database_direct_url: str | None = None
    listen: Endpoint
    internal_listen: Endpoint
    admin_token_sha256: Sha256Hex


async def serve(settings: QueueSettings) -> None:
    """Serve until SIGTERM."""
    identity = joining.identity(settings, "queue")
    await identity.ready()
    database = Database(
        settings.database_url,
        direct_url=settings.database_direct_url,
        pool_size=POOL,
        application_name="sis-queue",
    )
    wakes = Wakes()
    server = Server(
        "queue",
        [
            (add_JobServiceServicer_to_server, JobServicer(database, wakes)),
            (add_PackageServiceServicer_to_server, PackageServicer(database)),
            (add_DispatchServiceServicer_to_server, DispatchServicer(database, wakes)),
        ],
        [
            Listener(settings.listen, identity.tls),
            Listener(settings.internal_listen, identity.tls, demand_client_certificate=True),
        ],
        admin_token_sha256=settings.admin_token_sha256,
    )
    try:
        await run(
            server,
            lambda: database.listen(CHANNEL, wakes.heard, wakes.heard_all),
            Sweeper(database).run,
            identity.run,
            healthy=database.ping,
            on_drain=wakes.drain,
        )
    finally:
        await database.dispose()


def main() -> None:
    start("queue", QueueSettings, serve, MIGRATIONS, SCHEMA)


if __name__ == "__main__":
    main()
