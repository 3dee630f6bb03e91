"""The values of inputs: what each type permits, and the one text form of a value.

Package authors write the patterns and the server matches them: hence an engine whose time is linear in the
value, without look-around and back-references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Final

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

MAX_VALUE_BYTES = 64 * 1024
MAX_LIST_ITEMS = 1_000
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_FILES_BYTES: Final = 2 * 1024 * 1024
"""Of all files of one job."""
MAX_FILE_NAME: Final = 255
"""In characters."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as a value: its content, and the name by which people know it."""

    name: str
    content: bytes = field(repr=False)


Plain = str | list[str]
"""A value that has a text form."""
Value = Plain | File
Given = str | Sequence[str] | File
"""A value as somebody gives it, not checked."""


class InputType(StrEnum):
    """What an input takes."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    ENUM = "enum"
    LIST = "list"
    FILE = "file"


class InvalidValue(ValueError):
    """The value does not fit its input; the message says what to give."""


def text(value: Plain) -> str:
    """The text form of a value: itself, or the items of a list, a line each."""
    return value if isinstance(value, str) else "\n".join(value)


def lines(value: str) -> list[str]:
    """The list whose text form this is."""
    return value.split("\n") if value else []


def check(type_: InputType, value: Given, *, choices: Sequence[str] = (), pattern: str = "") -> Value:
    """The value in its canonical form. A text given for a list stands for the list of its lines.

    Raises:
        InvalidValue: it is of another type, too long, or not what the choices or the pattern permit.
    """
    if type_ is InputType.FILE:
        if not isinstance(value, File):
            raise InvalidValue("must be a file: give its name and its content")
        return _check_file(value)
    if isinstance(value, File):
        raise InvalidValue(f"must be a {type_} value, not a file")
    if type_ is not InputType.LIST:
        if not isinstance(value, str):
            raise InvalidValue(f"must be one {type_} value, not a list")
        return _check_scalar(type_, value, choices, pattern)
    items = lines(value) if isinstance(value, str) else list(value)
    if len(items) > MAX_LIST_ITEMS:
        raise InvalidValue(f"has more than {MAX_LIST_ITEMS:,} items")
    _check_text("\n".join(items))
    for number, item in enumerate(items, 1):
        if "\n" in item:
            raise InvalidValue(f"item {number} has a line break: an item is one line")
        _match(pattern, item, f"item {number}")
    return items


def shortened(names: Iterable[str]) -> str:
    """The first of the names, for a message."""
    listed = list(names)
    return ", ".join(listed[:20]) + (", …" if len(listed) > 20 else "")


def compile_pattern(pattern: str) -> None:
    """Raises InvalidValue when the pattern is not a regular expression of the linear kind."""
    _validator(pattern)


def _check_file(value: File) -> File:
    if not 1 <= len(value.name) <= MAX_FILE_NAME:
        raise InvalidValue(f"has a file name that is not of 1 to {MAX_FILE_NAME} characters")
    if value.name in (".", "..") or "/" in value.name or "\\" in value.name or not value.name.isprintable():
        raise InvalidValue("has a file name that is no plain name: give it without directories and control characters")
    if len(value.content) > MAX_FILE_BYTES:
        raise InvalidValue(f"is a file of more than {MAX_FILE_BYTES >> 20} MiB")
    return value


def _check_scalar(type_: InputType, value: str, choices: Sequence[str], pattern: str) -> str:
    _check_text(value)
    if type_ is InputType.INTEGER:
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", value) or not -(2**63) <= int(value) < 2**63:
            raise InvalidValue("must be a whole number of at most 64 bits, such as 42")
        value = str(int(value))
    elif type_ is InputType.BOOLEAN and value not in ("true", "false"):
        raise InvalidValue("must be true or false")
    elif type_ is InputType.ENUM and value not in choices:
        raise InvalidValue(f"must be one of {shortened(choices)}")
    _match(pattern, value, "")
    return value


def _check_text(value: str) -> None:
    if len(value.encode("utf-8", "surrogatepass")) > MAX_VALUE_BYTES:
        raise InvalidValue(f"is longer than {MAX_VALUE_BYTES // 1024} KiB")
    if "\0" in value:
        raise InvalidValue("has a NUL character, which no process can be given")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidValue("is not valid Unicode")


def _match(pattern: str, value: str, subject: str) -> None:
    if not pattern:
        return
    try:
        _validator(pattern).validate_python(value)
    except ValidationError:
        raise InvalidValue(f"{subject} must match the pattern {pattern}".lstrip()) from None


@lru_cache(maxsize=256)
def _validator(pattern: str) -> SchemaValidator:
    # Both forms are compiled: `a)|(b` is a mistake, although it is none between the parentheses.
    for form in (pattern, f"\\A(?:{pattern})\\z"):
        try:
            validator = SchemaValidator(core_schema.str_schema(pattern=form, regex_engine="rust-regex"))
        except SchemaError as error:
            raise InvalidValue(f"is not a usable regular expression: {_reason(error)}") from None
    return validator


def _reason(error: SchemaError) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip().removeprefix("error: ").removeprefix("SchemaError: ")
