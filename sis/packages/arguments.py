"""Builds what a payload is started with: its command line and its parameters in the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sis.packages import templates
from sis.packages.manifest import Operation
from sis.packages.values import File, Plain, Value, text


def with_paths(resolved: Mapping[str, Value], place: Callable[[File], Path]) -> dict[str, Plain]:
    """What `parameters.check` gave without a problem, with the path where `place` has put it for each file."""
    return {name: str(place(value)) if isinstance(value, File) else value for name, value in resolved.items()}


def command_line(
    operation: Operation, values: Mapping[str, Plain], package_directory: Path, work_directory: Path
) -> list[str]:
    """The program and its arguments. `values` are those of `with_paths`.

    A list becomes one argument for each item. An argument that names an absent or empty value vanishes.
    """
    directories = {"package": str(package_directory), "work": str(work_directory)}
    line = [operation.interpreter] if operation.interpreter else []
    for argument in operation.command:
        line += _expand(templates.split(argument), values, directories)
    return line


def environment(values: Mapping[str, Plain], secrets: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables SIS_PARAM_NAME; a list is its items, a line each. `secrets` are the sensitive inputs' values."""
    given = {**values, **(secrets or {})}
    return {f"SIS_PARAM_{name.upper()}": text(value) for name, value in given.items()}


def _expand(
    parts: tuple[templates.Part, ...], values: Mapping[str, Plain], directories: Mapping[str, str]
) -> list[str]:
    if len(parts) == 1 and isinstance(parts[0], templates.Reference) and parts[0].kind == "param":
        value = values.get(parts[0].name, "")
        return list(value) if isinstance(value, list) else [value] if value else []
    argument = ""
    for part in parts:
        if isinstance(part, str):
            argument += part
            continue
        value = values.get(part.name, "") if part.kind == "param" else directories[part.kind]
        if not value:
            return []
        argument += text(value)
    return [argument]
