"""What the commands of `sis credentials` do: one call of the client, then its answer as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import RenderableType

from sis.cli import failures, secrets, terminal, words
from sis.client import ApiError, Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Source:
    """Where a secret comes from."""

    prompt: str
    from_stdin: bool
    file: Path | None
    passphrase_file: Path | None

    def read(self) -> credential_pb2.SecretValue:
        """The secret as it is sent. Raises OptionError: it cannot be had."""
        secret = secrets.read(self.prompt, from_stdin=self.from_stdin, file=self.file)
        passphrase = secrets.read_file("--passphrase-file", self.passphrase_file) if self.passphrase_file else b""
        return credential_pb2.SecretValue(secret=secret, passphrase=passphrase)


def create(
    data: Path | None,
    *,
    name: str,
    kind: str,
    username: str,
    domain: str,
    description: str,
    secret: Source,
    request_id: str,
    json: bool,
) -> None:
    """Store a credential and say so."""
    with Client.find(data) as client:
        credentials = client.credentials  # nobody is asked for a secret that could not be sent
        request = pb.CreateCredentialRequest(
            name=name,
            kind=credential_pb2.CredentialKind.Value(f"CREDENTIAL_KIND_{kind.upper().replace('-', '_')}"),
            username=username,
            domain=domain,
            description=description,
            value=secret.read(),
            request_id=request_id,
        )
        made = credentials.create(request)
    print(terminal.document(made) if json else f"Credential {made.name} stored, version {made.version}")


def list_credentials(data: Path | None, *, every: bool, json: bool) -> None:
    """Print all of them."""
    with Client.find(data) as client:
        found = list(client.credentials.all(include_for_one_job=every))
    if json:
        print(terminal.document(pb.ListCredentialsResponse(credentials=found)))
        return
    out = terminal.console()
    headers = ["Name", "Kind", "Account", "Version", "State", "Created On", "Last Used"]
    table = terminal.table(out, *headers, *(["Made For"] if every else []), right=("Version",))
    for each in found:
        cells: list[RenderableType] = [
            terminal.cell(each.name),
            words.credential_kind(each.kind),
            terminal.cell(account(each)),
            str(each.version),
            words.credential_state(each.state),
            words.local_time(each.create_time),
            words.local_time(each.last_use_time),
        ]
        table.add_row(*cells, *([_made_for(each)] if every else []))
    out.print(table if found else "No credentials")


def _made_for(credential: credential_pb2.Credential) -> str:
    if credential.job_id:
        return f"job {credential.job_id}"
    if credential.HasField("expire_time"):
        return f"one job, until {words.local_time(credential.expire_time)}"
    return words.NOT_APPLICABLE


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
    secret: Source,
    version: int,
    json: bool,
) -> None:
    """Replace the secret and say so."""
    with Client.find(data) as client:
        credentials = client.credentials
        request = pb.ReplaceCredentialRequest(
            name=name,
            value=secret.read(),
            username=username,
            domain=domain,
            description=description,
            version=version,
        )
        made = credentials.replace(request)
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
