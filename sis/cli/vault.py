"""`sis vault`: preparing a Vault or OpenBao server for the suite."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare a Vault or OpenBao server for the suite.")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help="Make the mounts, CA, roles, policy and login that the credential service needs.",
    short_help="Make what the credential service needs there.",
)
def bootstrap(context: typer.Context) -> None:
    # It is a part of the credential service, which the command line does without: so, a process of its own.
    if find_spec("hvac") is None:
        from sis.cli import failures

        failures.say("this needs hvac; run `make setup`, or install the wheel of SIS with the extra server")
        raise typer.Exit(1)
    command = [sys.executable, "-P", "-m", "services.credentials.bootstrap", *context.args]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
