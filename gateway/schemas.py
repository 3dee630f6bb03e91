"""Messages as JSON Schema (2020-12): what the gateway takes, and what it prints.

What is taken and what is printed differ: fields are required in other places, a request has nothing beyond the fields
that are known, while a response may get new ones. A message that is in both has two schemas, of which what is printed
is called `…Output`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.rpc import code_pb2, error_details_pb2

from gateway.printing import is_map
from sis.errors.v1 import reason_pb2

Schema: TypeAlias = dict[str, Any]

DETAILS: tuple[Descriptor, ...] = tuple(
    message.DESCRIPTOR
    for message in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.RetryInfo,
    )
)
"""What the `details` of an error consist of, ErrorInfo first."""

INT64: Schema = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,18}$"}
"""As it is written in a path or a query. Some numbers of nineteen digits would be read, too."""
_PRINTED_INT64: Schema = {**INT64, "pattern": "^-?[0-9]{1,19}$"}
# JavaScript's numbers are exact only to 2**53, so strings are what is printed; both are read.
_TAKEN_INT64: Schema = {**INT64, "type": ["string", "integer"], "minimum": -(2**63), "maximum": 2**63 - 1}
_INT32: Schema = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_BYTES: Schema = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
_DAY = "(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
_ZONE = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_PRINTED_TIMESTAMP: Schema = {
    "type": "string",
    "format": "date-time",
    "pattern": f"^[0-9]{{4}}-{_DAY}T{_TIME}Z$",
    "examples": ["2026-01-31T12:00:00Z"],
}
# The years 0001 and 9999 could leave the range by their offset; services take 1970 to 8999.
_TAKEN_TIMESTAMP: Schema = {**_PRINTED_TIMESTAMP, "pattern": f"^[1-8][0-9]{{3}}-{_DAY}T{_TIME}{_ZONE}$"}
_PRINTED_DURATION: Schema = {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$", "examples": ["1.5s"]}
_TAKEN_DURATION: Schema = {**_PRINTED_DURATION, "pattern": r"^-?[0-9]{1,11}(\.[0-9]{1,9})?s$"}
_FIELD_MASK: Schema = {"type": "string", "examples": ["displayName,labels"]}

_F = FieldDescriptor
_SCALARS: Mapping[int, tuple[Schema, Schema]] = {
    _F.TYPE_STRING: ({"type": "string"}, {"type": "string"}),
    _F.TYPE_BOOL: ({"type": "boolean"}, {"type": "boolean"}),
    _F.TYPE_INT32: (_INT32, _INT32),
    _F.TYPE_INT64: (_TAKEN_INT64, _PRINTED_INT64),
    _F.TYPE_BYTES: (_BYTES, _BYTES),
}
"""What is taken, and what is printed; of the types that the contracts use."""

_WELL_KNOWN: Mapping[str, tuple[Schema, Schema]] = {
    "google.protobuf.Timestamp": (_TAKEN_TIMESTAMP, _PRINTED_TIMESTAMP),
    "google.protobuf.Duration": (_TAKEN_DURATION, _PRINTED_DURATION),
    "google.protobuf.FieldMask": (_FIELD_MASK, _FIELD_MASK),
}
_ANY = "google.protobuf.Any"
_REASONS = [name.removeprefix("REASON_") for name, number in reason_pb2.Reason.items() if number]


class Schemas:
    """Schemas as they are asked for, with all that they refer to. `comments` become descriptions."""

    def __init__(self, comments: Mapping[str, str], taken: Collection[Descriptor]) -> None:
        """`taken` are the messages that bodies of requests hold."""
        self._comments = {**comments, **_GOOGLE}
        self._taken = {found.full_name for message in taken for found in reachable(message)}
        self._components: dict[str, Schema] = {}
        self._origin: dict[str, str] = {}

    def components(self) -> dict[str, Schema]:
        """Those that were asked for, by name."""
        return dict(sorted(self._components.items()))

    def taken(self, message: Descriptor, path_fields: Collection[str] = ()) -> Schema:
        """Of the body of a request, without the fields that its path holds."""
        return self._reference(_name(message), message, lambda: self._object(message, True, path_fields))

    def printed(self, message: Descriptor) -> Schema:
        """Of a message in a response."""
        suffix = "Output" if message.full_name in self._taken else ""
        return self._reference(_name(message) + suffix, message, lambda: self._object(message, False))

    def error(self) -> Schema:
        """Of every answer that is not what was asked for."""
        inner: Schema = {
            "type": "object",
            "properties": {
                "code": {"type": "integer", "description": "The HTTP status, also where the answer has begun as 200."},
                "message": {"type": "string", "description": "What is wrong and what to do, for a person."},
                "status": {
                    "type": "string",
                    "enum": [name for name, number in code_pb2.Code.items() if number],
                    "description": "The kind of error, a name of google.rpc.Code.",
                },
                "details": {"type": "array", "items": self._detail()},
            },
            "required": ["code", "message", "status", "details"],
        }
        schema = {
            "type": "object",
            "description": "An error. Programs switch on the `reason` of the ErrorInfo among its details.",
            "properties": {"error": inner},
            "required": ["error"],
        }
        return self._reference("Error", None, lambda: schema)

    def field(self, field: FieldDescriptor, taken: bool) -> Schema:
        """Of one field's value."""
        if field.message_type is not None and is_map(field.message_type):
            value = field.message_type.fields_by_name["value"]
            return {"type": "object", "additionalProperties": self._value(value, taken)}
        if field.is_repeated:
            return {"type": "array", "items": self._value(field, taken)}
        return self._value(field, taken)

    def description(self, full_name: str) -> Schema:
        """The keyword for a comment, if there is one."""
        comment = self._comments.get(full_name)
        return {"description": comment} if comment else {}

    def _value(self, field: FieldDescriptor, taken: bool) -> Schema:
        if field.enum_type is not None:
            return self.enum(field.enum_type)
        message = field.message_type
        if message is None:
            return dict(_SCALARS[field.type][not taken])
        if message.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[message.full_name][not taken])
        if message.full_name == _ANY:
            return self._detail()
        return self.taken(message) if taken else self.printed(message)

    def _object(self, message: Descriptor, taken: bool, left_out: Collection[str] = ()) -> Schema:
        fields = [field for field in message.fields if field.name not in left_out]
        schema: Schema = {"type": "object", **self.description(message.full_name)}
        schema["properties"] = {field.json_name: self._property(field, taken) for field in fields}
        # What has no presence is always printed.
        names = [field.json_name for field in fields if (required(field) if taken else not field.has_presence)]
        if names:
            schema["required"] = names
        if taken:
            schema["additionalProperties"] = False
        choices = [_at_most_one([field.json_name for field in oneof.fields]) for oneof in _oneofs(message)]
        if choices:
            schema["allOf"] = choices
        return schema

    def _property(self, field: FieldDescriptor, taken: bool) -> Schema:
        schema = self.field(field, taken) | self.description(field.full_name)
        if field_behavior_pb2.OUTPUT_ONLY in _behaviour(field):
            schema["readOnly"] = True
        return schema

    def enum(self, enum: EnumDescriptor) -> Schema:
        """Of an enum, by the names of its values."""
        comment = self._comments.get(enum.full_name, "")
        values = [
            f"- `{value.name}`: {self._comments.get(f'{enum.full_name}.{value.name}', '')}" for value in enum.values
        ]
        listed = "\n".join(value.removesuffix(": ") for value in values)
        description = f"{comment}\n\n{listed}" if comment else listed
        schema = {"type": "string", "enum": [value.name for value in enum.values], "description": description}
        return self._reference(_name(enum), enum, lambda: schema)

    def _detail(self) -> Schema:
        """What an Any holds: in these contracts, a detail of an error."""

        def build() -> Schema:
            urls = [type_url(each) for each in DETAILS]
            other = {
                "type": "object",
                "description": "Of a kind that is not described here.",
                "properties": {"@type": {"type": "string", "not": {"enum": urls}}},
                "required": ["@type"],
                "additionalProperties": True,
            }
            known = [self._reference(_name(each), each, partial(self._typed, each)) for each in DETAILS]
            return {"description": "One detail of an error; an ErrorInfo is always there.", "oneOf": [*known, other]}

        return self._reference("ErrorDetail", None, build)

    def _typed(self, message: Descriptor) -> Schema:
        schema = self._object(message, False)
        schema["properties"] = {"@type": {"type": "string", "const": type_url(message)}, **schema["properties"]}
        schema["required"] = ["@type", *schema.get("required", ())]
        if message is DETAILS[0]:
            schema["properties"]["reason"] |= {"enum": _REASONS}
        return schema

    def _reference(self, name: str, origin: Descriptor | EnumDescriptor | None, build: Callable[[], Schema]) -> Schema:
        """A reference to the component of this name, which is built once."""
        full_name = origin.full_name if origin is not None else ""
        if self._origin.setdefault(name, full_name) != full_name:
            raise TypeError(f"{self._origin[name]} and {full_name} would both be the schema {name}")
        if name not in self._components:
            self._components[name] = {}  # refers to itself meanwhile
            self._components[name] = build()
        return {"$ref": f"#/components/schemas/{name}"}


def reachable(message: Descriptor) -> Iterator[Descriptor]:
    """A message and all in it that have a schema of their own."""
    seen: set[str] = set()
    pending = [message]
    while pending:
        found = pending.pop()
        if found.full_name in seen or found.full_name in _WELL_KNOWN or found.full_name == _ANY:
            continue
        seen.add(found.full_name)
        if not is_map(found):
            yield found
        pending += [field.message_type for field in found.fields if field.message_type is not None]


def type_url(message: Descriptor) -> str:
    """What "@type" says of it."""
    return f"type.googleapis.com/{message.full_name}"


def required(field: FieldDescriptor) -> bool:
    """Whether the contract says that a request must have it."""
    return field_behavior_pb2.REQUIRED in _behaviour(field)


def _behaviour(field: FieldDescriptor) -> Collection[int]:
    found: Collection[int] = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return found


def _oneofs(message: Descriptor) -> list[Any]:
    """Those that are written in the contract; an `optional` field is in one of its own, too."""
    return [oneof for oneof in message.oneofs if len(oneof.fields) > 1]


def _at_most_one(names: list[str]) -> Schema:
    each = [{"required": [name]} for name in names]
    return {"description": f"At most one of {', '.join(names)}.", "oneOf": [*each, {"not": {"anyOf": each}}]}


def _name(message: Descriptor | EnumDescriptor) -> str:
    return str(message.full_name).removeprefix(f"{message.file.package}.")


_GOOGLE = {
    "google.rpc.Status": "An error within an answer.",
    "google.rpc.Status.code": "A number of google.rpc.Code: 5 is NOT_FOUND.",
    "google.rpc.Status.message": "What is wrong and what to do, for a person.",
    "google.rpc.Status.details": "",
    "google.rpc.ErrorInfo": "Why a call was refused, for a program.",
    "google.rpc.ErrorInfo.reason": "A name of sis.errors.v1.Reason; it never gets another meaning, new ones may come.",
    "google.rpc.ErrorInfo.domain": '"sis".',
    "google.rpc.ErrorInfo.metadata": "Facts, such as what it is about.",
    "google.rpc.BadRequest": "The fields that are wrong, all of them.",
    "google.rpc.BadRequest.FieldViolation": "One wrong field.",
    "google.rpc.BadRequest.FieldViolation.field": 'Its path in the request: "filter.runStates[0]".',
    "google.rpc.BadRequest.FieldViolation.description": "What to do about it.",
    "google.rpc.PreconditionFailure": "What does not permit it.",
    "google.rpc.PreconditionFailure.Violation": "One condition that does not hold.",
    "google.rpc.PreconditionFailure.Violation.type": "A word for the condition, for a program.",
    "google.rpc.PreconditionFailure.Violation.subject": "The thing that it is about.",
    "google.rpc.PreconditionFailure.Violation.description": "What would have to change.",
    "google.rpc.RetryInfo": "When to try again.",
    "google.rpc.RetryInfo.retry_delay": "Not sooner than this.",
}
