"""The life of a server process: `python -m services.<service>.main` serves, with `migrate` it migrates and ends, with
`recover` it puts a database right that was restored from a backup, and ends."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol, Self, TypeVar

import uvloop

from services.runtime import open_files, shutdown
from services.runtime.backoff import Backoff
from services.runtime.database import Database
from services.runtime.dependencies import Complaints
from services.runtime.errors import FailedPrecondition, SisError, Unavailable
from services.runtime.exporting import exported
from services.runtime.telemetry import configure_logging

MIGRATE_SECONDS = 60.0
"""For so long `migrate` waits for PostgreSQL. Then it ends, for whoever started it to see."""

_log = logging.getLogger("process")


class ServerSettings(Protocol):
    """What the settings of every server have."""

    @property
    def database_url(self) -> str: ...

    @property
    def database_direct_url(self) -> str | None: ...

    @property
    def metrics_listen(self) -> str | None: ...

    @classmethod
    def load(cls) -> Self: ...


S = TypeVar("S", bound=ServerSettings)

Recovery = Callable[[Database], Coroutine[None, None, str]]
"""Puts a database right that was restored from a backup; in words, what was done. May be repeated."""


def start(
    name: str,
    settings_type: type[S],
    serve: Callable[[S], Coroutine[None, None, None]],
    migrations: Path,
    schema: str,
    recover: Recovery,
) -> None:
    """Do what the command line asks for; exits with a status and, where something is wrong, with words."""
    configure_logging(name)
    settings = settings_type.load()
    url = settings.database_direct_url or settings.database_url
    if sys.argv[1:] in (["migrate"], ["migrate", "post"], ["recover"]):
        try:
            _migrate(url, migrations, schema, post=sys.argv[2:] == ["post"])
            if sys.argv[1] == "recover":
                print(uvloop.run(_recover(name, url, recover)))
        except SisError as error:
            sys.exit(f"error: {error}")
    elif sys.argv[1:]:
        sys.exit(
            f"error: {' '.join(sys.argv[1:])!r} is not known; give nothing to serve, or migrate, migrate post, recover"
        )
    else:
        open_files.allow()
        shutdown.prepare()
        with exported(name, settings.metrics_listen):
            uvloop.run(serve(settings))


async def _recover(name: str, url: str, recover: Recovery) -> str:
    """Recover, unless a process of the suite is connected. Raises SisError."""
    database = Database(url, application_name=f"sis-{name} recovery")
    try:
        if found := await database.connected():
            message = f"the database is in use by {', '.join(found)}: stop all processes of the suite first"
            raise FailedPrecondition(message, subject=found[0], condition="CONNECTED")
        return await recover(database)
    finally:
        await database.dispose()


def _migrate(url: str, migrations: Path, schema: str, *, post: bool) -> None:
    """Migrate as soon as PostgreSQL is there; the log says what is waited for."""
    from services.runtime.migrations import migrate  # Alembic is slow to import, and this alone needs it

    deadline = time.monotonic() + MIGRATE_SECONDS
    backoff = Backoff(initial=0.2, maximum=3.0)
    complaints = Complaints(_log, f"schema {schema} is not migrated yet")
    while True:
        try:
            return migrate(url, migrations, schema, post=post)
        except Unavailable as error:
            delay = backoff.next_delay()
            if time.monotonic() + delay > deadline:
                raise
            complaints.note(error)
            time.sleep(delay)
