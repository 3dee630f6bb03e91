"""What the commands of `sis credentials` do: one call of the client, then its answer as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import RenderableType

from sis.cli import failures, secrets, terminal, words
from sis.client import ApiError, Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as pb


def value(secret: bytes, passphrase_file: Path | None) -> credential_pb2.SecretValue:
    """The secret as it is sent. Raises OptionError if the file cannot be read."""
    passphrase = b""
    if passphrase_file is not None:
        passphrase = secrets.read("", from_stdin=False, file=passphrase_file, option="--passphrase")
    return credential_pb2.SecretValue(secret=secret, passphrase=passphrase)


def create(
    data: Path | None,
    *,
    name: str,
    kind: str,
    username: str,
    domain: str,
    description: str,
    value: credential_pb2.SecretValue,
    request_id: str,
    json: bool,
) -> None:
    """Store a credential and say so."""
    request = pb.CreateCredentialRequest(
        name=name,
        kind=credential_pb2.CredentialKind.Value(f"CREDENTIAL_KIND_{kind.upper().replace('-', '_')}"),
        username=username,
        domain=domain,
        description=description,
        value=value,
        request_id=request_id,
    )
    with Client.find(data) as client:
        made = client.credentials.create(request)
    print(terminal.document(made) if json else f"Credential {made.name} stored, version {made.version}")


def list_credentials(data: Path | None, *, every: bool, json: bool) -> None:
    """Print all of them."""
    with Client.find(data) as client:
        found = list(client.credentials.all(include_for_one_job=every))
    if json:
        print(terminal.document(pb.ListCredentialsResponse(credentials=found)))
        return
    out = terminal.console()
    table = terminal.table(
        out, "Name", "Kind", "Account", "Version", "State", "Created On", "Last Used", right=("Version",)
    )
    for each in found:
        table.add_row(
            terminal.cell(each.name),
            words.credential_kind(each.kind),
            terminal.cell(account(each)),
            str(each.version),
            words.credential_state(each.state),
            words.local_time(each.create_time),
            words.local_time(each.last_use_time),
        )
    out.print(table if found else "No credentials")


def account(credential: credential_pb2.Credential) -> str:
    """The account that it is for: "CORP\\\\alice"; n/a for a token."""
    if credential.domain:
        return f"{credential.domain}\\{credential.username}"
    return credential.username or words.NOT_APPLICABLE


def show(data: Path | None, name: str, *, json: bool) -> None:
    """Print one."""
    with Client.find(data) as client:
        found = client.credentials.get(name)
    if json:
        print(terminal.document(found))
        return
    rows: list[tuple[str, RenderableType]] = [
        ("Kind", words.credential_kind(found.kind)),
        ("Account", account(found)),
        ("Description", found.description or words.NOT_APPLICABLE),
        ("Version", str(found.version)),
        ("State", words.credential_state(found.state)),
        ("Created", f"{words.local_time(found.create_time)} by {found.creator}"),
        ("Replaced", f"{words.local_time(found.update_time)} by {found.updater}" if found.updater else "never"),
        ("Last used", words.local_time(found.last_use_time)),
    ]
    if found.job_id:
        rows.append(("Made for", f"job {found.job_id}, with which it is deleted"))
    elif found.HasField("expire_time"):
        rows.append(("Made for", f"one job, not bound yet; deleted at {words.local_time(found.expire_time)}"))
    terminal.section(terminal.console(), f"Credential {found.name}", terminal.facts(rows))


def replace(
    data: Path | None,
    name: str,
    *,
    username: str | None,
    domain: str | None,
    description: str | None,
    value: credential_pb2.SecretValue,
    version: int,
    json: bool,
) -> None:
    """Replace the secret and say so."""
    request = pb.ReplaceCredentialRequest(
        name=name, value=value, username=username, domain=domain, description=description, version=version
    )
    with Client.find(data) as client:
        made = client.credentials.replace(request)
    print(terminal.document(made) if json else f"Credential {made.name} replaced, version {made.version}")


def delete(data: Path | None, names: Sequence[str]) -> None:
    """Delete each; one that cannot be does not stop the rest."""
    failed = False
    with Client.find(data) as client:
        for name in names:
            try:
                client.credentials.delete(name)
            except ApiError as error:
                failures.report(error, name)
                failed = True
            else:
                print(f"Credential {name} deleted")
    if failed:
        raise typer.Exit(1)


def usage(data: Path | None, name: str, *, json: bool) -> None:
    """Print its leases."""
    with Client.find(data) as client:
        found = list(client.credentials.usage(name))
    if json:
        print(terminal.document(pb.ListCredentialUsageResponse(usage=found)))
        return
    out = terminal.console()
    table = terminal.table(
        out, "Taken", "Ended", "Job", "Attempt", "Agent", "As", "Asked by", "Version", right=("Job",)
    )
    for each in found:
        table.add_row(
            words.local_time(each.take_time),
            words.local_time(each.end_time) if each.HasField("end_time") else "in use",
            str(each.job_id),
            str(each.attempt),
            terminal.cell(each.agent),
            terminal.cell(each.ref),
            terminal.cell(each.requester),
            str(each.version),
        )
    out.print(table if found else "Never used")
