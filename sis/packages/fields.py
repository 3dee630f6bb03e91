"""What the fields of a manifest have in common: the texts that they may be, and that nothing unknown is taken."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints

LOWER: Final = "lower-case letters and digits"


class Part(BaseModel):
    """Part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def as_text(value: object) -> object:
    """The text that a number or a truth value was written as; anything else as it is."""
    # The document reads only canonical forms as numbers and booleans, so nothing that was written is lost.
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


def shaped(pattern: str, what: str) -> AfterValidator:
    """That a text has this pattern, which is said to be `what`."""
    shape = re.compile(pattern)

    def check(value: str) -> str:
        if not shape.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return AfterValidator(check)


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of printable text")
    return value


Text = Annotated[str, BeforeValidator(as_text), StringConstraints(max_length=10_000)]
Line = Annotated[Text, StringConstraints(max_length=1_000), AfterValidator(_one_line)]
Name = Annotated[Line, StringConstraints(max_length=100)]
