"""The command `sis`: what people type, as calls of the client and of the local stack.

Exit codes: 0 done, 1 refused, failed or (by `sis jobs search`) nothing found, 2 not understood, 130 interrupted. Every
problem is a line on standard error that begins with "error: "; a traceback is a fault of this program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sis.cli import agents, backup, credentials, jobs, packages, stack, tracing, vault

app = typer.Typer(
    name="sis",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="SIS: put jobs on the queue, follow them live, stop them for good.",
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(packages.app, name="packages")
app.add_typer(credentials.app, name="credentials")
app.add_typer(agents.app, name="agents")
app.add_typer(vault.app, name="vault")
stack.register(app)
backup.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"sis {version('sis')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code. Raises for nothing that a person typed or a server said."""
    for stream in (sys.stdout, sys.stderr):
        # Whatever the locale, output must not fail on a character.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if (words := _command(arguments)) and tracing.wanted():
        with tracing.traced(words) as codes:
            codes.append(_run(arguments))
            return codes[0]
    return _run(arguments)


def _command(arguments: Sequence[str]) -> list[str]:
    """The words of the command that is called, where it is one that calls the suite."""
    group = arguments[0] if arguments else ""
    if group not in tracing.TRACED or len(arguments) < 2:
        return []
    commands = getattr(typer.main.get_command(app), "commands", {})
    return [group, arguments[1]] if arguments[1] in getattr(commands.get(group), "commands", {}) else [group]


def _run(arguments: Sequence[str]) -> int:
    for argument in arguments:
        if any("\udc80" <= character <= "\udcff" for character in argument):
            return _fail(f"the argument {argument!a} is not valid UTF-8", 2)
    try:
        result = app(args=list(arguments), prog_name="sis", standalone_mode=False)
        if sys.stdout is not None:  # as it is where the shell has closed it
            sys.stdout.flush()
    except typer.TyperException as error:
        return _misunderstood(error)
    except typer.Abort:
        return 130
    except BrokenPipeError:
        # Whoever read has read enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except Exception as error:
        return _known(error)
    return result if isinstance(result, int) else 0


def _misunderstood(error: typer.TyperException) -> int:
    context: typer.Context | None = getattr(error, "ctx", None)
    message = error.format_message()
    if context is None:
        return _fail(_lowered(message), error.exit_code)
    if message == context.get_help():  # a group without a command, for which its help is the answer
        print(message, file=sys.stderr)
        return error.exit_code
    return _fail(f"{_lowered(message)} (see `{context.command_path} --help`)", error.exit_code)


def _known(error: Exception) -> int:
    """The exit code for an error of the client, after its lines; anything else is a fault and goes on."""
    # Imported here, as the quick commands need neither.
    from sis.cli import failures
    from sis.cli.values import OptionError
    from sis.client import ClientError

    if isinstance(error, OptionError):
        return _fail(str(error), 2)
    if isinstance(error, ClientError):
        failures.report(error)
        return 1
    raise error


def _fail(problem: str, code: int) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return code


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
