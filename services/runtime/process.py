"""The life of a server process: `python -m services.<service>.main` serves, with `migrate` it migrates and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol, Self, TypeVar

import uvloop

from services.runtime.errors import SisError
from services.runtime.telemetry import configure_logging


class ServerSettings(Protocol):
    """What the settings of every server have."""

    @property
    def database_url(self) -> str: ...

    @property
    def database_direct_url(self) -> str | None: ...

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
        from services.runtime.migrations import migrate  # Alembic is slow to import, and this alone needs it

        try:
            migrate(settings.database_direct_url or settings.database_url, migrations, schema)
        except SisError as error:
            sys.exit(f"error: {error}")
    elif sys.argv[1:]:
        sys.exit(f"error: {' '.join(sys.argv[1:])!r} is not known; give nothing to serve, or migrate")
    else:
        uvloop.run(serve(settings))
