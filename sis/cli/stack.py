"""`sis up`, `sis down`, `sis restart`, `sis status`, `sis demo`: the stack on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from sis.cli.options import Data, Json
from sis.paths import expanded


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(short_help="Start the stack on this machine.")(up)
    app.command()(down)
    app.command(short_help="Restart servers on this machine, one by one.")(restart)
    app.command(short_help="Show the stack on this machine.")(status)
    app.command(short_help="Show on this machine what SIS does, in a minute.")(demo)


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return once everything is healthy.")] = False,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="How many of each server, up to 4 (1).")
    ] = None,
    agents: Annotated[
        int | None, typer.Option("--agents", min=0, help="How many local agents, in group local (1).")
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="Jobs at once, for each agent (8).")] = None,
    queue_port: Annotated[
        int | None, typer.Option("--queue-port", min=0, max=65535, help="Where people call; 0 picks one.")
    ] = None,
    queue_internal_port: Annotated[
        int | None, typer.Option("--queue-internal-port", min=0, max=65535, help="Where servers call.")
    ] = None,
    hub_port: Annotated[
        int | None, typer.Option("--hub-port", min=0, max=65535, help="Where people call the first hub.")
    ] = None,
    hub_agent_port: Annotated[
        int | None, typer.Option("--hub-agent-port", min=0, max=65535, help="Where agents call it.")
    ] = None,
    hub_enrolment_port: Annotated[
        int | None, typer.Option("--hub-enrolment-port", min=0, max=65535, help="Where agents enrol.")
    ] = None,
    credentials_port: Annotated[
        int | None, typer.Option("--credentials-port", min=0, max=65535, help="Where people call the KeySafe.")
    ] = None,
    vault_port: Annotated[int | None, typer.Option("--vault-port", min=0, max=65535, help="OpenBao.")] = None,
    gateway_port: Annotated[int | None, typer.Option("--gateway-port", min=0, max=65535, help="HTTP.")] = None,
    retention_days: Annotated[
        float | None,
        typer.Option("--retention-days", metavar="DAYS", help="Delete jobs that ended so long ago; 0 keeps them (0)."),
    ] = None,
    retention_jobs: Annotated[
        int | None,
        typer.Option("--retention-jobs", metavar="COUNT", help="Keep so many jobs that have ended; 0 keeps all (0)."),
    ] = None,
    retention_export: Annotated[
        str | None,
        typer.Option("--retention-export", metavar="DIR", help='Export them there before; "" does not.'),
    ] = None,
    metrics: Annotated[
        bool | None,
        typer.Option("--metrics/--no-metrics", help="Let Prometheus read what the processes measure (no)."),
    ] = None,
    data: Data = None,
) -> None:
    """Start the stack on this machine: PostgreSQL, OpenBao, credential service, queue, hub, gateway, agents;
    restart what dies or hangs, until Ctrl-C.

    With --replicas there are several of each server, and work goes on while one is away; ports that are given are those
    of the first. What is not given stays as at the last start. Data survives down and up.
    """
    from sis.client.endpoints import data_directory

    with stack_errors():
        import sis.stack

        options = sis.stack.Options(
            data=data_directory(data),
            detach=detach,
            replicas=replicas,
            agents=agents,
            slots=slots,
            queue_port=queue_port,
            queue_internal_port=queue_internal_port,
            hub_port=hub_port,
            hub_agent_port=hub_agent_port,
            hub_enrolment_port=hub_enrolment_port,
            credentials_port=credentials_port,
            vault_port=vault_port,
            gateway_port=gateway_port,
            retention_days=retention_days,
            retention_jobs=retention_jobs,
            retention_export=_export_directory(retention_export),
            metrics=metrics,
        )
        raise typer.Exit(sis.stack.up(options, say))


def _export_directory(given: str | None) -> str | None:
    """The whole path, for the queue runs elsewhere. Raises OptionError."""
    from sis.cli.values import OptionError

    if not given:
        return given
    directory = expanded(given).absolute()
    if not directory.is_dir():
        raise OptionError(f"--retention-export: there is no directory {directory}; make it first")
    return str(directory)


def down(data: Data = None) -> None:
    """Stop the stack on this machine. Payloads go on under their supervisors, and are named."""
    from sis.client.endpoints import data_directory

    with stack_errors():
        import sis.stack

        raise typer.Exit(sis.stack.down(data_directory(data), say))


def restart(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Processes, or kinds of them; all servers by default."),
    ] = None,
    data: Data = None,
) -> None:
    """Restart servers and agents on this machine one by one, each with the code that is installed now: it hands over
    what it does, ends, and is healthy again before the next.

    With `sis up --replicas 2` or more nobody notices. Stops at the first that does not end or come back in time.
    """
    from sis.client.endpoints import data_directory

    with stack_errors():
        import sis.stack

        sis.stack.restart(data_directory(data), names or (), say)


def status(json: Json = False, data: Data = None) -> None:
    """Show the processes of the stack on this machine and its endpoints; exit 0 only when everything is healthy."""
    from rich.text import Text

    from sis.cli import terminal
    from sis.client.endpoints import data_directory

    with stack_errors():
        import sis.stack

        found = sis.stack.status(data_directory(data))
    if json:
        print(found.to_json())
    elif not found.processes:
        print(f"no stack is up in {found.data}; start one with `sis up --detach`")
    else:
        out = terminal.console()
        table = terminal.table(out, "Process", "PID", "Endpoint", "Health", "Restarts", right=("PID", "Restarts"))
        for each in found.processes:
            health = Text(each.health, style="green" if each.healthy else "red")
            restarts = f"{each.restarts} ({each.hangs} hung)" if each.hangs else str(each.restarts)
            table.add_row(each.name, str(each.pid), each.endpoint, health, restarts)
        out.print(table)
        out.print()
        terminal.section(out, "Endpoints", terminal.facts(found.endpoints.items()))
        if found.up is None:
            print("its `sis up` is gone; `sis up --detach` takes over what is left")
    if not found.healthy:
        raise typer.Exit(1)


def demo(data: Data = None) -> None:
    """Show on this machine what SIS does: gather facts, follow a job live, hide a secret that one prints, stop one
    that does not want to.

    Uses the stack that is up; else starts one for the demonstration and takes it down again.
    """
    with stack_errors():
        from sis.cli.demo import run

        raise typer.Exit(run(data))


@contextmanager
def stack_errors() -> Iterator[None]:
    """Errors of the local stack, as lines and exit code 1."""
    from sis.cli import failures

    try:
        yield
    except ModuleNotFoundError as error:
        # The client alone can be installed, without what a stack needs.
        if error.name is None or error.name.partition(".")[0] == "sis":
            raise
        failures.say(f"this needs {error.name}; run `make setup`, or install the wheel of SIS with the extra stack")
        raise typer.Exit(1) from None
    except Exception as error:
        from sis.stack.errors import StackError

        if not isinstance(error, StackError):
            raise
        for line in str(error).splitlines():
            failures.say(line)
        raise typer.Exit(1) from None


def say(line: str) -> None:
    print(line, flush=True)
