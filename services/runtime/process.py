"""The life of a server process: `python -m services.<service>.main` serves, with `migrate` it migrates and ends."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol, Self, TypeVar

import uvloop

from services.runtime import shutdown
from services.runtime.backoff import Backoff
from services.runtime.dependencies import Complaints
from services.runtime.errors import SisError, Unavailable
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


def start(
    name: str, settings_type: type[S], serve: Callable[[S], Coroutine[None, None, None]], migrations: Path, schema: str
) -> None:
    """Do what the command line asks for; exits with a status and, where something is wrong, with words."""
    configure_logging(name)
    settings = settings_type.load()
    if sys.argv[1:] == ["migrate"]:
        try:
            _migrate(settings.database_direct_url or settings.database_url, migrations, schema)
        except SisError as error:
            sys.exit(f"error: {error}")
    elif sys.argv[1:]:
        sys.exit(f"error: {' '.join(sys.argv[1:])!r} is not known; give nothing to serve, or migrate")
    else:
        shutdown.prepare()
        with exported(name, settings.metrics_listen):
            uvloop.run(serve(settings))


def _migrate(url: str, migrations: Path, schema: str) -> None:
    """Migrate as soon as PostgreSQL is there; the log says what is waited for."""
    from services.runtime.migrations import migrate  # Alembic is slow to import, and this alone needs it

    deadline = time.monotonic() + MIGRATE_SECONDS
    backoff = Backoff(initial=0.2, maximum=3.0)
    complaints = Complaints(_log, f"schema {schema} is not migrated yet")
    while True:
        try:
            return migrate(url, migrations, schema)
        except Unavailable as error:
            delay = backoff.next_delay()
            if time.monotonic() + delay > deadline:
                raise
            complaints.note(error)
            time.sleep(delay)
