"""Builds what a payload is started with: its command line and its parameters in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sis.packages import templates, values
from sis.packages.manifest import Operation
from sis.packages.values import Value


def command_line(
    operation: Operation, resolved: Mapping[str, Value], package_directory: Path, work_directory: Path
) -> list[str]:
    """The program and its arguments. `resolved` is what `parameters.check` gave without a problem.

    A list becomes one argument for each item. An argument that names an absent or empty value vanishes.
    """
    directories = {"package": str(package_directory), "work": str(work_directory)}
    line = [operation.interpreter] if operation.interpreter else []
    for argument in operation.command:
        line += _expand(templates.split(argument), resolved, directories)
    return line


def environment(resolved: Mapping[str, Value], secrets: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables SIS_PARAM_NAME; a list is its items, a line each. `secrets` are the sensitive inputs' values."""
    given = {**resolved, **(secrets or {})}
    return {f"SIS_PARAM_{name.upper()}": values.text(value) for name, value in given.items()}


def _expand(
    parts: tuple[templates.Part, ...], resolved: Mapping[str, Value], directories: Mapping[str, str]
) -> list[str]:
    if len(parts) == 1 and isinstance(parts[0], templates.Reference) and parts[0].kind == "param":
        value = resolved.get(parts[0].name, "")
        return list(value) if isinstance(value, list) else [value] if value else []
    argument = ""
    for part in parts:
        if isinstance(part, str):
            argument += part
            continue
        value = resolved.get(part.name, "") if part.kind == "param" else directories[part.kind]
        if not value:
            return []
        argument += values.text(value)
    return [argument]
