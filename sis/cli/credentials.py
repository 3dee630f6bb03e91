"""`sis credentials`: the KeySafe. What one does is in `credential_actions`, imported when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sis.cli.options import Data, Json

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The credentials that jobs name. Nothing reads a secret back."
)


class Kind(StrEnum):
    USERNAME_PASSWORD = "username-password"  # noqa: S105  (a kind, no password)
    SSH_KEY = "ssh-key"
    TOKEN = "token"  # noqa: S105
    DOMAIN_ACCOUNT = "domain-account"


Name = Annotated[str, typer.Argument(metavar="NAME")]
SecretStdin = Annotated[
    bool, typer.Option("--secret-stdin", help="Read the secret from standard input; else it is asked for.")
]
SecretFile = Annotated[
    Path | None, typer.Option("--secret-file", metavar="FILE", help="Read the secret, such as a private key, from it.")
]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="Of a private key that is encrypted.")
]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="By which jobs name it.")],
    kind: Annotated[Kind, typer.Option("--kind")],
    username: Annotated[str, typer.Option("--username", metavar="NAME", help="The account; none with a token.")] = "",
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="With domain-account.")] = "",
    description: Annotated[str, typer.Option("--description", metavar="TEXT")] = "",
    secret_stdin: SecretStdin = False,
    secret_file: SecretFile = None,
    passphrase_file: PassphraseFile = None,
    request_id: Annotated[
        str, typer.Option("--request-id", metavar="ID", help="Repeating the command with it makes one credential.")
    ] = "",
    json: Json = False,
    data: Data = None,
) -> None:
    """Store a credential. Its secret is typed, or comes from standard input or a file: never as an argument."""
    from sis.cli import credential_actions

    credential_actions.create(
        data,
        name=name,
        kind=kind.value,
        username=username,
        domain=domain,
        description=description,
        secret=credential_actions.Source(f"Secret of {name}", secret_stdin, secret_file, passphrase_file),
        request_id=request_id,
        json=json,
    )


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Also those that were made for one job.")] = False,
    json: Json = False,
    data: Data = None,
) -> None:
    """List the credentials."""
    from sis.cli import credential_actions

    credential_actions.list_credentials(data, every=all_, json=json)


@app.command()
def show(name: Name, json: Json = False, data: Data = None) -> None:
    """Show what is known of a credential, which is not its secret."""
    from sis.cli import credential_actions

    credential_actions.show(data, name, json=json)


@app.command()
def replace(
    name: Name,
    username: Annotated[str | None, typer.Option("--username", metavar="NAME")] = None,
    domain: Annotated[str | None, typer.Option("--domain", metavar="NAME")] = None,
    description: Annotated[str | None, typer.Option("--description", metavar="TEXT")] = None,
    secret_stdin: SecretStdin = False,
    secret_file: SecretFile = None,
    passphrase_file: PassphraseFile = None,
    version: Annotated[
        int, typer.Option("--version", min=0, help="Only if this is the current one; makes repeating it safe.")
    ] = 0,
    json: Json = False,
    data: Data = None,
) -> None:
    """Replace the secret. Jobs that have begun keep the one that they have."""
    from sis.cli import credential_actions

    credential_actions.replace(
        data,
        name,
        username=username,
        domain=domain,
        description=description,
        secret=credential_actions.Source(f"New secret of {name}", secret_stdin, secret_file, passphrase_file),
        version=version,
        json=json,
    )


@app.command()
def delete(names: Annotated[list[str], typer.Argument(metavar="NAME")], data: Data = None) -> None:
    """Delete credentials, with every version of their secrets."""
    from sis.cli import credential_actions

    credential_actions.delete(data, names)


@app.command()
def usage(name: Name, json: Json = False, data: Data = None) -> None:
    """Show who used a credential: when, for which job, at which agent."""
    from sis.cli import credential_actions

    credential_actions.usage(data, name, json=json)
