"""The queue: jobs, their logs, the package library. `python -m services.queue.main [migrate [post] | recover]`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.queue.census import Census
from services.queue.convert import exports as convert_exports
from services.queue.convert.jobs import HEARTBEAT_TIMEOUTS, SHORTEST_DEFERRAL
from services.queue.creation import Limits
from services.queue.recovery import recover
from services.queue.retention import Retention, Rules
from services.queue.servicers.dispatch import DispatchServicer
from services.queue.servicers.job import JobServicer
from services.queue.servicers.package import PackageServicer
from services.queue.sweeper import Sweeper
from services.queue.tables import SCHEMA
from services.queue.wakes import CHANNEL, Wakes
from services.runtime import joining, metrics
from services.runtime.database import Database
from services.runtime.health import Health
from services.runtime.probes import probed
from services.runtime.process import start
from services.runtime.schema import newest_revision
from services.runtime.server import Listener, Server, run
from services.runtime.settings import DatabaseUrl, Duration, Endpoint, ServiceSettings, Sha256Hex
from sis.queue.v1.dispatch_service_pb2_grpc import add_DispatchServiceServicer_to_server
from sis.queue.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server
from sis.queue.v1.package_service_pb2_grpc import add_PackageServiceServicer_to_server

MIGRATIONS = Path(__file__).parent / "migrations"
POOL = 4
_DEFAULTS = Limits()


class QueueSettings(ServiceSettings):
    """The environment of the queue."""

    model_config = SettingsConfigDict(env_prefix="SIS_QUEUE_")

    database_url: DatabaseUrl
    # Past a connection pooler, for LISTEN and migrations.
    database_direct_url: DatabaseUrl | None = None
    listen: Endpoint
    internal_listen: Endpoint
    admin_token_sha256: Sha256Hex
    # How long a job may be held until somebody activates it: the most, and what counts unless the job says less.
    deferral_limit: Annotated[Duration, Field(ge=SHORTEST_DEFERRAL, le=timedelta(days=3650))] = _DEFAULTS.deferral
    # How long an agent may be silent before its jobs are AWOL, where they do not say it themselves.
    heartbeat_timeout: Annotated[Duration, Field(ge=HEARTBEAT_TIMEOUTS[0], le=HEARTBEAT_TIMEOUTS[1])] = (
        _DEFAULTS.heartbeat_timeout
    )
    # Jobs that ended more than so many days ago are deleted; unset, they are kept for ever.
    retention_age: Annotated[float, Field(gt=0, le=36_500)] | None = None
    # At the most so many jobs that have ended are kept; unset, all are.
    retention_count: Annotated[int, Field(ge=1)] | None = None
    # A directory to which they are exported before; unset, they are not.
    retention_export: Path | None = None

    @field_validator("retention_export", mode="before")
    @classmethod
    def _is_given(cls, value: object) -> object:
        # "" would be the directory in which the process was started.
        return None if value == "" else value

    @field_validator("retention_export")
    @classmethod
    def _is_of_use(cls, directory: Path | None, info: ValidationInfo) -> Path | None:
        kept = [info.data.get("retention_age", 0), info.data.get("retention_count", 0)]
        if directory is not None and kept == [None, None]:
            raise ValueError("nothing is deleted; set SIS_QUEUE_RETENTION_AGE or SIS_QUEUE_RETENTION_COUNT too")
        return directory

    @property
    def retention(self) -> Rules | None:
        """What is kept; None for everything."""
        if self.retention_age is None and self.retention_count is None:
            return None
        age = None if self.retention_age is None else timedelta(days=self.retention_age)
        return Rules(age, self.retention_count)


async def serve(settings: QueueSettings) -> None:
    """Serve until SIGTERM."""
    async with probed(settings.probe_listen) as health:
        await _serve(settings, health)


async def _serve(settings: QueueSettings, health: Health) -> None:
    identity = joining.identity(settings, "queue")
    await identity.ready()
    database = Database(
        settings.database_url,
        direct_url=settings.database_direct_url,
        # An export may take its time over one.
        pool_size=POOL if settings.retention is None else POOL + 1,
        application_name="sis-queue",
        revision=newest_revision(SCHEMA, MIGRATIONS),
    )
    wakes = Wakes()
    limits = Limits(settings.deferral_limit, settings.heartbeat_timeout)
    server = Server(
        "queue",
        [
            (add_JobServiceServicer_to_server, JobServicer(database, wakes, limits)),
            (add_PackageServiceServicer_to_server, PackageServicer(database)),
            (add_DispatchServiceServicer_to_server, DispatchServicer(database, wakes)),
        ],
        [
            Listener(settings.listen, identity.tls),
            Listener(settings.internal_listen, identity.tls, demand_client_certificate=True),
        ],
        admin_token_sha256=settings.admin_token_sha256,
        health=health,
    )
    sweeper = Sweeper(database)
    metrics.observe(
        "sis.queue.sweep.age", "s", "How long ago the last sweep ended.", lambda: [(sweeper.idle_seconds, {})]
    )
    background = [sweeper.run]
    if metrics.kept():
        background.append(Census(database, wakes).run)
    if settings.retention is not None:
        background.append(
            Retention(database, settings.retention, settings.retention_export, convert_exports.to_line).run
        )
    try:
        await run(
            server,
            lambda: database.listen(CHANNEL, wakes.heard, wakes.heard_all),
            *background,
            identity.run,
            dependencies=[database.dependency],
            on_drain=wakes.drain,
        )
    finally:
        await database.dispose()


def main() -> None:
    start("queue", QueueSettings, serve, MIGRATIONS, SCHEMA, recover)


if __name__ == "__main__":
    main()
