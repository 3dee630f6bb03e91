"""`sis agents`."""

from __future__ import annotations

from typing import Annotated

import typer

from sis.cli.options import Data, Json

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
