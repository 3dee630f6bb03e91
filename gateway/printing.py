"""Messages as JSON: proto3's mapping, with lowerCamelCase names and every field that has no presence."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2  # noqa: F401  so that these details, packed in an Any, are known

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def printed(message: Message) -> dict[str, Any]:
    """The JSON object of a message, without details of errors that are not known here, or damaged."""
    try:
        return _printed(message)
    except _UNPRINTABLE:
        kept = type(message)()
        kept.CopyFrom(message)
        _strip(kept)
        return _printed(kept)


_UNPRINTABLE = (TypeError, ValueError, DecodeError, SerializeToJsonError)


def _printed(message: Message) -> dict[str, Any]:
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def _strip(message: Message) -> None:
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is None or is_map(kind):
            continue
        if kind is AnyMessage.DESCRIPTOR and field.is_repeated:
            for number in reversed(range(len(value))):
                if not _is_printable(value[number]):
                    del value[number]
        else:
            for each in value if field.is_repeated else [value]:
                _strip(each)


def _is_printable(detail: AnyMessage) -> bool:
    try:
        _printed(detail)
    except _UNPRINTABLE:
        return False
    return True


def document(value: dict[str, Any]) -> bytes:
    """JSON without blanks and line breaks, in UTF-8."""
    return _encode(value).encode()


def json_path(descriptor: Descriptor, path: str) -> str:
    """A path to a field (`filter.run_states[0]`) as JSON names it (`filter.runStates[0]`); what is no field of the
    message, as the key of a map, stays as it is."""
    found: list[str] = []
    message: Descriptor | None = descriptor
    for part in path.split("."):
        name, bracket, index = part.partition("[")
        field = message.fields_by_name.get(name) if message is not None else None
        found.append((field.json_name if field is not None else name) + bracket + index)
        message = field.message_type if field is not None else None
        if message is not None and is_map(message):
            message = None
    return ".".join(found)


@cache
def is_map(descriptor: Descriptor) -> bool:
    """Whether it is the entry of a map."""
    return descriptor.GetOptions().map_entry
