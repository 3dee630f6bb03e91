"""What the commands of `sis packages` do that work on a directory of this machine."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from sis.cli import failures
from sis.packages import lint as linter
from sis.packages import scaffold
from sis.packages.manifest import FILE_NAME, InvalidManifest


def lint(directory: Path) -> None:
    """Say every problem of a package; exit 1 if there is one."""
    manifest, problems = linter.lint(directory)
    for problem in problems:
        failures.say(str(problem))
    if problems or manifest is None:
        raise typer.Exit(1)
    print(f"{manifest.name} {manifest.version}: no problems found")


def new(name: str, directory: Path) -> None:
    """Make a package to begin with, and say what to do with it; exit 1 where that cannot be."""
    try:
        scaffold.write(name, directory)
    except InvalidManifest as error:
        for problem in error.problems:
            failures.say(f"NAME: {problem.message}" if problem.path == "name" else str(problem))
        raise typer.Exit(1) from None
    except scaffold.AlreadyThere as error:
        failures.say(str(error))
        raise typer.Exit(1) from None
    what = f"{directory / FILE_NAME} and what it needs are there"
    print(f"{what}. Try it: sis packages test {shlex.quote(str(directory))} greet --param name=World")
