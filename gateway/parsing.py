"""JSON and the texts of URLs into fields of messages; strict, and every refusal names the field as JSON calls it.

Names may be lowerCamelCase or as in the contract. What proto3's JSON mapping leaves open is refused: unknown fields,
one given twice, two of a oneof, numbers that are none.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from gateway.printing import is_map
from services.runtime.errors import InvalidArgument

MAX_VALUES = 200_000
"""How many values a JSON document may have: a small one can otherwise take much memory."""
_MAX_DEPTH = 32

_TEXTUAL: Mapping[str, str] = {
    "google.protobuf.Timestamp": "2026-01-31T12:00:00Z",
    "google.protobuf.Duration": "1.5s",
    "google.protobuf.FieldMask": "displayName,labels",
}
"""Messages that JSON writes as a text, and what it may be."""

_WHOLE = re.compile(r"-?[0-9]{1,20}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_PRINTABLE = re.compile(r"[ -~]{1,100}")

_RANGES: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
}


class _Wrong(ValueError):
    """A value that the field does not take; the message says what it must be."""


def check(descriptor: Descriptor) -> None:
    """Raises TypeError if a message has what cannot be read from JSON here."""
    seen: set[str] = set()
    pending = [descriptor]
    while pending:
        found = pending.pop()
        if found.full_name in _TEXTUAL or found.full_name in seen:
            continue
        seen.add(found.full_name)
        for field in found.fields:
            if field.message_type is not None:
                pending.append(field.message_type)
            if found.full_name.startswith("google.protobuf.") or (
                field.message_type is None and field.cpp_type not in _SCALARS
            ):
                raise TypeError(f"{field.full_name} cannot be part of a request over HTTP")


@cache
def fields_of(descriptor: Descriptor) -> Mapping[str, FieldDescriptor]:
    """The fields of a message by both of their names."""
    return {
        **{field.name: field for field in descriptor.fields},
        **{field.json_name: field for field in descriptor.fields},
    }


def shown(name: str) -> str:
    """A name that somebody sent, fit to be shown to them."""
    return name if _PRINTABLE.fullmatch(name) else ascii(name)[1:-1][:100]


# --- JSON ---


def read(body: bytes) -> dict[str, Any]:
    """The object in a JSON document.

    Raises:
        InvalidArgument: it is none; MALFORMED_REQUEST, or INVALID_FIELD for a name that is there twice.
    """
    if body.count(b",") + body.count(b"{") + body.count(b"[") > MAX_VALUES:
        raise _malformed(f"has more than {MAX_VALUES:,} values")
    try:
        found = _decoder.decode(body.decode())
    except UnicodeDecodeError:
        raise _malformed("is not in UTF-8") from None
    except RecursionError:
        raise _malformed("is nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise _malformed("must be a JSON object")
    return found


def _malformed(what: str) -> InvalidArgument:
    return InvalidArgument(f"the body {what}", reason="MALFORMED_REQUEST")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _refusal(shown(name), "is given twice")
        found[name] = value
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def fill(message: Message, value: Any, path: str = "", *, depth: int = 0) -> None:
    """Set the fields of a message from a JSON object; `path` leads to it.

    Raises:
        InvalidArgument: INVALID_FIELD; a field is unknown, wrong or given twice.
    """
    if type(value) is not dict:
        raise _refusal(path, "must be an object")
    if depth > _MAX_DEPTH:
        raise _refusal(path, "is nested too deeply")
    known = fields_of(message.DESCRIPTOR)
    taken: set[str] = set()
    for name, each in value.items():
        field = known.get(name)
        if field is None:
            raise _refusal(_joined(path, shown(name)), "is not known")
        at = _joined(path, field.json_name)
        if field.name in taken:
            raise _refusal(at, "is given twice")
        taken.add(field.name)
        if each is None:
            continue
        if field.containing_oneof is not None:
            _take_oneof(field.containing_oneof, taken, at)
        _set(message, field, each, at, depth)


def _take_oneof(oneof: OneofDescriptor, taken: set[str], at: str) -> None:
    key = f"oneof {oneof.name}"
    if key in taken:
        raise _refusal(at, _one_of(oneof))
    taken.add(key)


def _one_of(oneof: OneofDescriptor) -> str:
    return f"cannot be given with another of {', '.join(each.json_name for each in oneof.fields)}"


def _set(message: Message, field: FieldDescriptor, value: Any, path: str, depth: int) -> None:
    kind = field.message_type
    if kind is not None and is_map(kind):
        _set_map(message, field, kind, value, path, depth)
    elif field.is_repeated:
        if type(value) is not list:
            raise _refusal(path, "must be an array")
        container = getattr(message, field.name)
        for number, each in enumerate(value):
            at = f"{path}[{number}]"
            if kind is None:
                container.append(_scalar(field, each, at))
            else:
                _set_message(container.add(), each, at, depth)
    elif kind is not None:
        nested = getattr(message, field.name)
        nested.SetInParent()
        _set_message(nested, value, path, depth)
    else:
        setattr(message, field.name, _scalar(field, value, path))


def _set_map(message: Message, field: FieldDescriptor, kind: Descriptor, value: Any, path: str, depth: int) -> None:
    if type(value) is not dict:
        raise _refusal(path, "must be an object")
    entry = kind.fields_by_name
    container = getattr(message, field.name)
    for name, each in value.items():
        at = f"{path}.{shown(name)}"
        key = _from_text(entry["key"], name, at)
        if entry["value"].message_type is None:
            container[key] = _scalar(entry["value"], each, at)
        else:
            _set_message(container[key], each, at, depth)


def _set_message(message: Message, value: Any, path: str, depth: int) -> None:
    if message.DESCRIPTOR.full_name in _TEXTUAL:
        if type(value) is not str:
            raise _refusal(path, f"must be a text, as JSON writes a {message.DESCRIPTOR.name}")
        _set_textual(message, value, path)
    else:
        fill(message, value, path, depth=depth + 1)


def _scalar(field: FieldDescriptor, value: Any, path: str) -> Any:
    try:
        return _SCALARS[field.cpp_type](field, value)
    except _Wrong as wrong:
        raise _refusal(path, str(wrong)) from None


def _integer(field: FieldDescriptor, value: Any) -> int:
    low, high = _RANGES[field.cpp_type]
    exact = type(value) is float and value.is_integer() and abs(value) <= 2**53
    if exact or (type(value) is str and _WHOLE.fullmatch(value)):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise _Wrong(f"must be a whole number from {low} to {high}")
    return value


def _boolean(_: FieldDescriptor, value: Any) -> bool:
    if type(value) is not bool:
        raise _Wrong("must be true or false")
    return value


def _enum(field: FieldDescriptor, value: Any) -> int:
    kind = field.enum_type
    assert kind is not None
    if type(value) is str:
        found = kind.values_by_name.get(value)
    else:
        found = kind.values_by_number.get(value) if type(value) is int else None
    if found is None:
        names = ", ".join(each.name for each in kind.values[:20])
        raise _Wrong(f"must be one of {names}")
    return found.number


def _text(field: FieldDescriptor, value: Any) -> str | bytes:
    if type(value) is not str:
        raise _Wrong("must be a text")
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Wrong("has half of a surrogate pair") from None
    return value


def _bytes(value: str) -> bytes:
    whole = _BASE64.fullmatch(value) is not None and ("=" not in value or len(value) % 4 == 0)
    bare = value.rstrip("=") if whole else "!"
    try:
        return base64.b64decode(bare.translate(_URL_SAFE) + "=" * (-len(bare) % 4), validate=True)
    except binascii.Error:
        raise _Wrong("must be base64") from None


_URL_SAFE = str.maketrans("-_", "+/")

_SCALARS: Mapping[int, Callable[[FieldDescriptor, Any], Any]] = {
    **dict.fromkeys(_RANGES, _integer),
    FieldDescriptor.CPPTYPE_BOOL: _boolean,
    FieldDescriptor.CPPTYPE_ENUM: _enum,
    FieldDescriptor.CPPTYPE_STRING: _text,
}


# --- URLs ---


def set_texts(message: Message, name: str, texts: Sequence[str]) -> str:
    """Set the field that `name` leads to (`filter.runStates`, in either form) from what a URL says of it. Returns the
    path by the names of the contract.

    Raises:
        InvalidArgument: INVALID_FIELD.
    """
    *parents, last = name.split(".")
    at = shown(name)
    path: list[str] = []
    for part in parents:
        field = fields_of(message.DESCRIPTOR).get(part)
        if field is None or field.message_type is None or field.is_repeated:
            raise _refusal(at, "is not known")
        if field.message_type.full_name in _TEXTUAL:
            raise _refusal(at, "is not known")
        path.append(field.name)
        message = getattr(message, field.name)
    field = fields_of(message.DESCRIPTOR).get(last)
    if field is None:
        raise _refusal(at, "is not known")
    path.append(field.name)
    oneof = field.containing_oneof
    if oneof is not None and message.WhichOneof(oneof.name) is not None:
        raise _refusal(at, _one_of(oneof))
    _set_field(message, field, texts, at)
    return ".".join(path)


def _set_field(message: Message, field: FieldDescriptor, texts: Sequence[str], at: str) -> None:
    textual = field.message_type is not None and field.message_type.full_name in _TEXTUAL
    if field.message_type is not None and (field.is_repeated or not textual):
        raise _refusal(at, "cannot be given in a URL; name the fields in it")
    if field.is_repeated:
        getattr(message, field.name).extend(_from_text(field, text, at) for text in texts)
    elif len(texts) > 1:
        raise _refusal(at, "is given twice")
    elif textual:
        nested = getattr(message, field.name)
        nested.SetInParent()
        _set_textual(nested, texts[0], at)
    else:
        setattr(message, field.name, _from_text(field, texts[0], at))


def _from_text(field: FieldDescriptor, text: str, path: str) -> Any:
    """A scalar from what a URL, or the name of a map's entry, says."""
    value: Any = text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        value = {"true": True, "false": False}.get(text)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM and _WHOLE.fullmatch(text):
        value = int(text)
    return _scalar(field, value, path)


def _set_textual(message: Any, text: str, path: str) -> None:
    try:
        if not text.isascii():
            raise ValueError(text)
        message.FromJsonString(text)
    except (ValueError, OverflowError, IndexError):
        example = _TEXTUAL[message.DESCRIPTOR.full_name]
        raise _refusal(path, f"must be a {message.DESCRIPTOR.name} such as {example!r}") from None


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refusal(path: str, what: str) -> InvalidArgument:
    return InvalidArgument.field(path[:300] or "body", what)
