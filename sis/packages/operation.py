"""What an operation of a package declares: how it is started, what it takes and what it gives back."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from sis.packages import templates, values
from sis.packages.fields import LOWER, SCALARS, Line, Name, Part, Published, Rule, Text, as_text, shaped
from sis.packages.templates import Reference
from sis.packages.values import Given, InputType, Plain, Value

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_RUN_TIMEOUT: Final = 365 * _SECONDS["d"]
MAX_CANCEL_GRACE: Final = _SECONDS["h"]
CANCEL_GRACE_SECONDS: Final = 10
"""What a payload has after TERM where its operation says nothing else."""

# What a credential of a job is for, its ref: an account of the job itself, …
ADMIN: Final = "admin"
RUN_AS: Final = "run_as"
"""References of these names are given the accounts of the job itself."""
# … or, after one of these, the name of a reference or of a sensitive input.
REFERENCE_PREFIX: Final = "credential."
INPUT_PREFIX: Final = "param."


class CredentialKind(StrEnum):
    """What a credential is made of, in the words of manifests; the contracts have the names."""

    USERNAME_PASSWORD = "username-password"  # noqa: S105  (a kind, not a password)
    SSH_KEY = "ssh-key"
    TOKEN = "token"  # noqa: S105
    DOMAIN_ACCOUNT = "domain-account"


InputName = Annotated[
    Name, StringConstraints(max_length=64), shaped(r"[a-z][a-z0-9_]*", f"{LOWER} and _, such as free_space")
]
ReferenceName = Annotated[
    Name, StringConstraints(max_length=64), shaped(r"[a-z][a-z0-9_]*", f"{LOWER} and _, such as database")
]
OutputName = Annotated[Name, shaped(r"[A-Za-z_][A-Za-z0-9_.-]*", "letters, digits, _ . and -, such as free_space")]

Delivery = Literal["environment", "file", "stdin"]


def _pattern(value: str) -> str:
    values.compile_pattern(value)
    return value


def _is(field: str, value: JsonValue) -> JsonValue:
    return {"required": [field], "properties": {field: {"const": value}}}


def _unchecked_value(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, list):
        items = [as_text(item) for item in value]
        if all(isinstance(item, str) for item in items):
            return items
    elif isinstance(text := as_text(value), str):
        return text
    raise ValueError("must be text, or a list of texts for an input of type list")


# The rules between the fields of an input, for editors; its validators have them for everybody.
_NO_DEFAULT: Final[dict[str, JsonValue]] = {"default": {"type": "null"}}
_INPUT_RULES: Final[list[JsonValue]] = [
    {
        "if": _is("type", "enum"),
        "then": {"required": ["choices"], "properties": {"choices": {"minItems": 1}}},
        "else": {"properties": {"choices": {"maxItems": 0}}},
    },
    {"if": _is("type", "file"), "then": {"properties": {"pattern": {"const": ""}, **_NO_DEFAULT}}},
    {"if": _is("sensitive", True), "then": {"properties": {"type": {"const": "string"}, **_NO_DEFAULT}}},
    {"if": _is("required", True), "then": {"properties": _NO_DEFAULT}},
]
_VALUES: Final = [{"type": [*SCALARS, "null"]}, {"type": "array", "items": {"type": list(SCALARS)}}]


class Input(Part):
    """A typed input of an operation. A sensitive one takes no plain value and is no part of a command."""

    model_config = ConfigDict(json_schema_extra={"allOf": _INPUT_RULES})

    type: Annotated[InputType, Field(strict=False)]
    """What it takes."""
    description: Text = ""
    """What it is for."""
    hint: Text = ""
    """What to type."""
    required: bool = False
    """Whether a job must give it, not empty."""
    sensitive: bool = False
    """Whether it is a secret: it takes a credential, no plain value, and stands in no command."""
    choices: Annotated[
        list[Annotated[Line, Published({"minLength": 1})]], Field(max_length=200), Published({"uniqueItems": True})
    ] = Field([], validate_default=True)
    """What an enum may be."""
    pattern: Annotated[Line, AfterValidator(_pattern)] = ""
    """A regular expression that the whole value, or each item of a list, must match; without look-around and
    back-references."""
    default: Annotated[Plain | None, BeforeValidator(_unchecked_value), Published({"anyOf": _VALUES})] = None
    """The value without one."""

    def check(self, value: Given) -> Value:
        """The value in its canonical form. Raises `values.InvalidValue`."""
        return values.check(self.type, value, choices=self.choices, pattern=self.pattern)

    @field_validator("sensitive")
    @classmethod
    def _sensitive_is_text(cls, sensitive: bool, info: ValidationInfo) -> bool:
        if sensitive and info.data.get("type", InputType.STRING) is not InputType.STRING:
            raise ValueError("goes with the type string only")
        return sensitive

    @field_validator("choices")
    @classmethod
    def _choices_of_an_enum(cls, choices: list[str], info: ValidationInfo) -> list[str]:
        type_ = info.data.get("type")
        if type_ is InputType.ENUM and not choices:
            raise ValueError("is missing: an enum needs the list of what it may be")
        if type_ not in (None, InputType.ENUM) and choices:
            raise ValueError("goes with the type enum only")
        if "" in choices or len(set(choices)) != len(choices):
            raise ValueError("must be different texts, none of them empty")
        return choices

    @field_validator("pattern")
    @classmethod
    def _pattern_of_text(cls, pattern: str, info: ValidationInfo) -> str:
        if pattern and info.data.get("type") is InputType.FILE:
            raise ValueError("does not go with the type file: remove it")
        return pattern

    @field_validator("default")
    @classmethod
    def _default_fits(cls, default: Plain | None, info: ValidationInfo) -> Value | None:
        if default is None:
            return None
        if info.data.get("type") is InputType.FILE:
            raise ValueError("does not go with the type file: remove it")
        if info.data.get("sensitive"):
            raise ValueError("cannot be given for a sensitive input: remove it")
        if info.data.get("required"):
            raise ValueError("is never used for a required input: remove one of the two")
        if {"type", "choices", "pattern"} <= info.data.keys():
            return values.check(info.data["type"], default, choices=info.data["choices"], pattern=info.data["pattern"])
        return default


class Output(Part):
    """An output that the payload gives back through the file named by SIS_OUTPUT."""

    description: Text = ""
    """What it tells."""
    required: bool = False
    """Whether a job that succeeds without it fails."""


class CredentialReference(Part):
    """A credential that an operation wants, and how it reaches the payload."""

    description: Text = ""
    """What it is for."""
    required: bool = False
    """Whether a job must name one."""
    kinds: Annotated[list[Annotated[CredentialKind, Field(strict=False)]], Published({"uniqueItems": True})] = Field(
        [], max_length=4
    )
    """What it may be; empty for anything."""
    delivery: Delivery = "environment"
    """How its secret reaches the payload; a private key is a file, unless it comes on standard input."""

    @field_validator("kinds")
    @classmethod
    def _kinds_differ(cls, kinds: list[CredentialKind]) -> list[CredentialKind]:
        if len(set(kinds)) != len(kinds):
            raise ValueError("names one of them twice")
        return kinds


# The literals and the directories of a template, and its inputs, for editors.
_ARGUMENT: Final = r"[^{}\u0000]|\{\{|\}\}|\{(?:package|work)\}"
_PARAMETER: Final = r"\{param\.[a-z][a-z0-9_]*\}"
_DURATION_SCHEMA: Final = {"type": ["integer", "string"], "minimum": 0, "pattern": f"^(?:{_DURATION.pattern})$"}


def _template(value: str) -> str:
    templates.split(value)
    if "\0" in value:
        raise ValueError("has a NUL character, which no process can be given")
    return value


def _duration(zero: str) -> BeforeValidator:
    """Reads seconds; `zero` is what 0 means."""

    def seconds(value: object) -> object:
        match = _DURATION.fullmatch(value if isinstance(value, str) else str(value))
        if isinstance(value, bool) or match is None:
            raise ValueError(f"must be seconds, or a number with s, m, h or d, such as 5m; 0 means {zero}")
        return int(match.group(1)) * _SECONDS[match.group(2) or "s"]

    return BeforeValidator(seconds)


class Operation(Part):
    """Something that the package can do."""

    description: Text = ""
    """What it does."""
    inputs: dict[InputName, Input] = Field({}, max_length=100)
    """What a job gives, by name."""
    credentials: dict[ReferenceName, CredentialReference] = Field({}, max_length=20)
    """The credentials that a job names, by reference."""
    outputs: dict[OutputName, Output] = Field({}, max_length=200)
    """What the job gives back, by name."""
    interpreter: Line = ""
    """The program that runs the command, where its first argument is a script; "" for none."""
    command: Annotated[
        list[Annotated[Text, Rule({"pattern": f"^(?:{_ARGUMENT}|{_PARAMETER})*$"}, _template)]],
        Field(min_length=1, max_length=200),
        Published({"allOf": [{"prefixItems": [{"pattern": f"^(?:{_ARGUMENT})+$"}]}]}),
    ]
    """The program and its arguments, which no shell reads. {param.NAME} is the value of an input, {package} and {work}
    are directories, {{ and }} braces; an argument that names an absent or empty value vanishes."""
    run_timeout: Annotated[int, Field(le=MAX_RUN_TIMEOUT), _duration("no limit"), Published(_DURATION_SCHEMA)] = 0
    """In seconds, or a number with s, m, h or d; 0 means no limit."""
    cancel_grace: Annotated[int, Field(le=MAX_CANCEL_GRACE), _duration("KILL at once"), Published(_DURATION_SCHEMA)] = (
        CANCEL_GRACE_SECONDS
    )
    """How long a job that is canceled has between TERM and KILL: in seconds, or a number with s, m, h or d, an hour at
    the most."""
    output_markers: bool = False
    """Whether outputs are also read from standard output, marked as packages written for Hornbill do it."""

    @field_validator("credentials")
    @classmethod
    def _credentials_fit(cls, credentials: dict[str, CredentialReference]) -> dict[str, CredentialReference]:
        if sum(reference.delivery == "stdin" for reference in credentials.values()) > 1:
            raise ValueError("has more than one delivery by stdin: there is one standard input")
        for name in (ADMIN, RUN_AS):
            if name in credentials and CredentialKind.TOKEN in credentials[name].kinds:
                raise ValueError(f"has the kind token for {name}, which is the job's account: remove it")
        return credentials

    @field_validator("command")
    @classmethod
    def _program_is_certain(cls, command: list[str]) -> list[str]:
        # An argument vanishes with the value that it names: the next one must not become the program.
        program = templates.split(command[0])
        if not program or any(isinstance(part, Reference) and part.kind == "param" for part in program):
            raise ValueError("must begin with a program or a script that depends on no input")
        return command
