"""`package.yaml`: what a package is called, what it can do, what each operation takes and gives back.

`parse` reads one and names every mistake; docs/packages/authoring.md shows the fields to whoever writes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from sis.packages import document, templates
from sis.packages.fields import LOWER, Line, Name, Part, Published, Text, shaped
from sis.packages.operation import MAX_CANCEL_GRACE, MAX_RUN_TIMEOUT, CredentialReference, Input, Operation, Output
from sis.packages.templates import Reference

__all__ = [
    "FILE_NAME",
    "MAX_BYTES",
    "MAX_PROBLEMS",
    "VERSION",
    "CredentialReference",
    "Input",
    "InvalidManifest",
    "Manifest",
    "Operation",
    "Output",
    "Problem",
    "load",
    "parse",
    "parse_bytes",
    "version_key",
]

FILE_NAME = "package.yaml"
MAX_BYTES = 4 * document.MAX_CHARACTERS
"""Of the file: as many as its permitted characters can take."""

MAX_PROBLEMS = 50
"""Mistakes that are named at once."""

PackageName = Annotated[Name, shaped(r"[a-z0-9]+([.-][a-z0-9]+)*", f"{LOWER} joined by . or -, such as disk.clean-up")]
OperationName = Annotated[
    Name, shaped(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*", f"{LOWER} joined by . _ or -, such as clean-up")
]
_NUMBER = r"(0|[1-9][0-9]{0,17})"
_IDENTIFIER = r"(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
Platform = Literal["linux", "darwin", "windows"]
VERSION = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-(?P<pre>{_IDENTIFIER}(\.{_IDENTIFIER})*))?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is (`operations.run.inputs.count.default`) and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidManifest(Exception):
    """The manifest has mistakes; `problems` names each one."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class Manifest(Part):
    """A valid `package.yaml`."""

    name: PackageName
    """What the package is called."""
    version: Annotated[Name, shaped(VERSION.pattern, "a semantic version, such as 1.0.0 or 2.1.0-beta.1")]
    """Of the package. What was pushed as a version never changes."""
    publisher: Line = ""
    """Who wrote it."""
    description: Text = ""
    """What it is for."""
    platforms: Annotated[list[Platform], Published({"uniqueItems": True})] = Field(["linux"], min_length=1)
    """Where it runs."""
    operations: Annotated[dict[OperationName, Operation], Field(min_length=1, max_length=100)]
    """What it can do, by name."""

    @field_validator("platforms")
    @classmethod
    def _platforms_differ(cls, platforms: list[str]) -> list[str]:
        if len(set(platforms)) != len(platforms):
            raise ValueError("names one of them twice")
        return platforms


def parse(text: str) -> Manifest:
    """The manifest that a text holds. Raises InvalidManifest, which names each mistake."""
    try:
        tree = document.read(text)
    except document.InvalidDocument as error:
        raise InvalidManifest([Problem(FILE_NAME, str(error))]) from None
    if not isinstance(tree, dict):
        raise InvalidManifest([Problem(FILE_NAME, "must be a mapping that begins with name: and version:")])
    problems: list[Problem] = []
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        problems += map(_problem, error.errors(include_url=False, include_input=False))
    problems += _command_problems(tree)
    if problems:
        raise InvalidManifest(problems[:MAX_PROBLEMS])
    return manifest


def parse_bytes(content: bytes) -> Manifest:
    """As `parse`, of the bytes of the file."""
    if len(content) > MAX_BYTES:
        raise InvalidManifest([Problem(FILE_NAME, f"is larger than {MAX_BYTES // 1024} KiB")])
    try:
        return parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidManifest([Problem(FILE_NAME, f"is not UTF-8 (byte {error.start})")]) from None


def load(directory: Path) -> Manifest:
    """The manifest of an unpacked package. Raises InvalidManifest, also when there is none."""
    try:
        with (directory / FILE_NAME).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidManifest([Problem(FILE_NAME, f"cannot be read: {error.strerror}")]) from None
    return parse_bytes(content)


def version_key(version: str) -> str:
    """A text whose order, byte by byte, is the precedence of semantic versions; build metadata has none."""
    match = VERSION.fullmatch(version)
    if match is None:
        raise ValueError(f"{version!r} is not a semantic version")
    key = "".join(f"{len(number):02}{number}" for number in match.group(1, 2, 3))
    if match["pre"] is None:
        return key + "~"
    # A number comes before a text, and the end of the identifiers before another one.
    return key + "".join(
        f" 0{len(part):03}{part}" if part.isdigit() else f" 1{part}" for part in match["pre"].split(".")
    )


def _command_problems(tree: dict[object, object]) -> Iterator[Problem]:
    """Commands that disagree with the inputs, also where either has other mistakes."""
    for operation_name, operation in _mapping(tree.get("operations")).items():
        inputs = _mapping(_mapping(operation).get("inputs"))
        command = _mapping(operation).get("command")
        for index, argument in enumerate(command if isinstance(command, list) else []):
            try:
                parts = templates.split(argument) if isinstance(argument, str) else ()
            except templates.InvalidTemplate:
                continue
            path = f"operations.{operation_name}.command[{index}]"
            for name in (part.name for part in parts if isinstance(part, Reference) and part.kind == "param"):
                declared = _mapping(inputs.get(name))
                if name not in inputs:
                    yield Problem(path, f"names {name}, which is not an input: declare it or correct the name")
                elif declared.get("sensitive") is True:
                    yield Problem(path, f"names the sensitive input {name}: a command line is no secret; remove it")
                elif declared.get("type") == "list" and len(parts) > 1:
                    yield Problem(path, f"has the list {name} within other text: give it an argument of its own")


def _mapping(value: object) -> dict[object, object]:
    return value if isinstance(value, dict) else {}


def _problem(detail: ErrorDetails) -> Problem:
    location = [part for part in detail["loc"] if part != "[key]"]
    return Problem(_path(location), _message(detail, location))


def _path(location: list[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:100]}"
    return path.removeprefix(".")


def _message(detail: ErrorDetails, location: list[int | str]) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"is not a field; the fields here are {', '.join(_fields(location[:-1]))}"
        case "value_error":
            return str(context["error"])
        case "string_type":
            return "must be text"
        case "bool_type":
            return "must be true or false"
        case "list_type":
            return "must be a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "must be a mapping of names to what they mean"
        case "enum" | "literal_error":
            return f"must be one of {context['expected'].replace(' or ', ', ')}".replace("'", "")
        case "too_short":
            return "must not be empty"
        case "too_long" if context["field_type"] in ("List", "Dictionary"):
            return f"has more than {context['max_length']} entries"
        case "too_long":
            return f"is longer than {context['max_length']:,} characters"
        case "less_than_equal":
            return f"is longer than {_LONGEST[context['le']]}"
        case _:
            return detail["msg"]


_LONGEST: Final = {MAX_RUN_TIMEOUT: "a year", MAX_CANCEL_GRACE: "an hour"}


def _fields(location: list[int | str]) -> list[str]:
    match location:
        case []:
            model: type[BaseModel] = Manifest
        case [_, _]:
            model = Operation
        case [_, _, "inputs", _]:
            model = Input
        case [_, _, "credentials", _]:
            model = CredentialReference
        case _:
            model = Output
    return list(model.model_fields)
