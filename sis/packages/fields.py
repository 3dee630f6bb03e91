"""What the fields of a manifest have in common: the texts that they may be, and that nothing unknown is taken."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

LOWER: Final = "lower-case letters and digits"
SCALARS: Final = ("string", "integer", "boolean")
"""What a document may have where a text is wanted, in the words of JSON Schema."""
_CONTROL: Final = r"[\u0000-\u001f\u007f-\u009f\u2028\u2029]"


class Part(BaseModel):
    """Part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True)
class Published:
    """What the published schema says of a value beside what its type tells: keywords of JSON Schema."""

    keywords: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | dict(self.keywords)


@dataclass(frozen=True)
class Rule(Published):
    """A check of a value of the right type, and as much of it as the published schema can say."""

    check: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def as_text(value: object) -> object:
    """The text that a number or a truth value was written as; anything else as it is."""
    # The document reads only canonical forms as numbers and booleans, so nothing that was written is lost.
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


def shaped(pattern: str, what: str) -> Rule:
    """That a text has this pattern, which is said to be `what`."""
    shape = re.compile(pattern)

    def check(value: str) -> str:
        if not shape.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    written = {"string": True, "integer": shape.fullmatch("1"), "boolean": shape.fullmatch("true")}
    keywords: dict[str, object] = {
        "type": [type_ for type_ in SCALARS if written[type_]],
        "pattern": f"^(?:{re.sub(r'[(][?]P<[a-z]+>', '(?:', pattern)})$",
        "description": f"{what[0].upper()}{what[1:]}.",
    }
    if written["integer"]:
        keywords["minimum"] = 0
    return Rule(keywords, check)


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of printable text")
    return value


Text = Annotated[
    str, BeforeValidator(as_text), StringConstraints(max_length=10_000), Published({"type": list(SCALARS)})
]
Line = Annotated[
    Text, StringConstraints(max_length=1_000), Rule({"not": {"type": "string", "pattern": _CONTROL}}, _one_line)
]
Name = Annotated[Line, StringConstraints(max_length=100)]
