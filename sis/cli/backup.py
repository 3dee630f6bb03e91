"""`sis backup`, `sis restore`: the stack on this machine, kept and brought back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sis.cli.options import Data
from sis.cli.stack import say, stack_errors


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(short_help="Make a backup of the stack on this machine.")(backup)
    app.command(short_help="Restore a backup into a data directory that has no stack.")(restore)


def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to; it must not be there yet.")],
    data: Data = None,
) -> None:
    """Make a backup of the stack on this machine, which is up and goes on: PostgreSQL and OpenBao together, and the
    keys that open them. Whoever can read it has the secrets.
    """
    from sis.client.endpoints import data_directory

    with stack_errors():
        import sis.stack

        sis.stack.backup(data_directory(data), directory, say)


def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="What `sis backup` has made.")],
    data: Data = None,
) -> None:
    """Restore a backup into a data directory that has neither database nor OpenBao; `sis up` starts it then.

    Jobs that waited are held, since they may have run after the backup: `sis jobs list --status deferred` shows them,
    `sis jobs activate` and `sis jobs cancel` decide. Agents come home by themselves.
    """
    from sis.client.endpoints import data_directory

    with stack_errors():
        import sis.stack

        sis.stack.restore(data_directory(data), directory, say)
