"""`sis agents`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from sis.cli.options import Data, Json, Reason

if TYPE_CHECKING:
    from sis.credentials.v1.agent_identity_service_pb2 import AgentIdentity

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The agents that take jobs at the sites.")


@app.command("list")
def list_(
    group: Annotated[str, typer.Option("--group", metavar="NAME", help="Only the agents of this group.")] = "",
    json: Json = False,
    data: Data = None,
) -> None:
    """List the agents."""
    from sis.agent.v1 import agent_admin_service_pb2 as pb
    from sis.cli import terminal, words
    from sis.cli.details import agent_state
    from sis.client import Client

    with Client.find(data) as client:
        found = list(client.agents.all(group=group))
    if json:
        print(terminal.document(pb.ListAgentsResponse(agents=found)))
        return
    out = terminal.console()
    table = terminal.table(out, "Name", "Group", "State", "Slots", "Host", "Version", "Hub", "Last Seen")
    for each in found:
        table.add_row(
            terminal.cell(each.name),
            terminal.cell(each.group),
            agent_state(each),
            f"{len(each.attempts)}/{each.slots}",
            terminal.cell(each.hostname),
            terminal.cell(each.version),
            terminal.cell(each.hub),
            words.local_time(each.last_seen_time),
        )
    out.print(table if found else "No agents")


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")], json: Json = False, data: Data = None) -> None:
    """Show an agent."""
    from sis.cli import terminal
    from sis.cli.details import agent_page
    from sis.client import Client

    with Client.find(data) as client:
        found = client.agents.get(name)
    if json:
        print(terminal.document(found))
    else:
        agent_page(terminal.console(), found)


@app.command()
def pair(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What the agent will be called.")],
    group: Annotated[str, typer.Option("--group", metavar="NAME", help="To which group it will belong.")],
    json: Json = False,
    data: Data = None,
) -> None:
    """Make a pairing code, good for one agent within an hour. An agent of that name is replaced when it is used."""
    from sis.cli import terminal, words
    from sis.client import Client, endpoints

    found = endpoints.find(data)
    with Client(found) as client:
        made = client.identities.pair(name, group)
    if json:
        print(terminal.document(made))
        return
    print(made.code)
    until = words.local_time(made.expire_time)
    print(f"A secret, good for one agent until {until}. On its machine this asks for it:", file=sys.stderr)
    print(f"  sis-agent enrol --hub {found.enrolment or 'HOST:PORT'} --code -", file=sys.stderr)


@app.command()
def revoke(names: Annotated[list[str], typer.Argument(metavar="NAME")], reason: Reason = "", data: Data = None) -> None:
    """Revoke agents.

    Their streams are closed at once, and they must be paired again to come back.
    """
    from sis.cli import failures
    from sis.client import ApiError, Client

    failed = False
    with Client.find(data) as client:
        for name in names:
            try:
                client.identities.revoke(name, reason)
            except ApiError as error:
                failures.report(error, name)
                failed = True
            else:
                print(f"Agent {name} is revoked; any jobs in its hands become AWOL")
    if failed:
        raise typer.Exit(1)


@app.command()
def identities(json: Json = False, data: Data = None) -> None:
    """List the agents' certificates, who paired and revoked them."""
    from sis.cli import terminal, words
    from sis.client import Client
    from sis.credentials.v1 import agent_identity_service_pb2 as pb

    with Client.find(data) as client:
        found = list(client.identities.all())
    if json:
        print(terminal.document(pb.ListAgentIdentitiesResponse(identities=found)))
        return
    out, now = terminal.console(), time.time()
    table = terminal.table(out, "Name", "Group", "State", "Certified Until", "Enrolled On", "Paired By")
    for each in found:
        table.add_row(
            terminal.cell(each.name),
            terminal.cell(each.group),
            terminal.cell(_validity(each, now)),
            words.local_time(each.not_after),
            words.local_time(each.enrol_time),
            terminal.cell(each.pairer),
        )
    out.print(table if found else "No agents")


def _validity(identity: AgentIdentity, now: float) -> str:
    if identity.revoked:
        return f"revoked by {identity.revoker}" + (f": {identity.revoke_reason}" if identity.revoke_reason else "")
    return "valid" if identity.not_after.seconds > now else "expired"
