"""The API as an OpenAPI 3.1 document: made from the contracts by `tools/generate.py`, read by the gateway."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from gateway import answers, comments
from gateway.answers import reference
from gateway.examples import BODIES
from gateway.routes import Binding, bindings
from gateway.schemas import INT64, Schemas, reachable, required

Json: TypeAlias = dict[str, Any]

FILE = Path(__file__).with_name("openapi.json")

_DESCRIPTION = (
    "Jobs, their output, packages, credentials and agents over HTTP. Each operation is a method of the contracts in "
    "`protos/`. Whatever can be read with GET answers HEAD as well.\n\n"
    "JSON is that of proto3: names in lowerCamelCase, 64-bit integers as strings, enums by name, bytes in base64. "
    "Answers have every field but those that are optional, are messages or exclude each other, and have no value. "
    "Requests may also have the contract's snake_case names, enums by number, and null for what is left out; a field "
    "or a query parameter that is not known is refused.\n\n"
    "An answer that is neither 2xx nor 304 has an `Error`, whatever the request accepts: 404 also for a path that is "
    "not here, 405 with `Allow` for another method.\n\n"
    "A stream comes as server-sent events, or as `application/x-ndjson` when the request accepts that: one JSON "
    "document a line. The schema of either is that of one event, or of one line. While nothing happens, a comment or "
    "an empty line comes every 15 seconds. After the last response comes the event `end`; after an error in the middle "
    "the event `failure` with it, or it is the last line.\n\n"
    "A retry of what creates something is safe with the same `requestId`: it gives back what was created."
)

_REQUEST_ID: Json = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "By which logs name this request, here and in the services: 1 to 64 letters, digits, '.', '_', ':' "
    "or '-'. Without one, or with anything else, one is made.",
    "schema": {"type": "string"},
}
_LAST_EVENT_ID: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The `id` of the last event that was received, as a browser sends it: instead of `resumeToken`.",
    "schema": {"type": "string"},
}
_RANGES: tuple[Json, ...] = (
    {
        "name": "Range",
        "in": "header",
        "description": 'One range of bytes, such as "bytes=1000-".',
        "schema": {"type": "string"},
    },
    {
        "name": "If-Range",
        "in": "header",
        "description": "The `ETag` that the bytes before had: with another the whole comes.",
        "schema": {"type": "string"},
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of what is here already: with the same the answer is 304.",
        "schema": {"type": "string"},
    },
)
_PARAMETERS = {each["name"]: each for each in (_REQUEST_ID, _LAST_EVENT_ID, *_RANGES)}


@cache
def document() -> bytes:
    """The document as it was made."""
    return FILE.read_bytes()


def build(image: FileDescriptorSet) -> Json:
    """The document, from the contracts and an image of them with source info."""
    found = bindings()
    schemas = Schemas(comments.read(image), [each.method.input_type for each in found if each.body])
    paths: dict[str, Json] = {}
    for binding in found:
        item = paths.setdefault(_path(binding), {"parameters": [reference("parameters", "X-Request-Id")]})
        item[binding.verb.lower()] = _operation(schemas, binding)
    services = {each.method.containing_service.full_name: each.method.containing_service for each in found}
    error = schemas.error()
    return {
        "openapi": "3.1.1",
        "info": {"title": "SIS", "version": "v1", "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": each.name, **schemas.description(each.full_name)} for each in services.values()]
        + [answers.HEALTH_TAG],
        "paths": {**paths, **answers.health(reference("parameters", "X-Request-Id"))},
        "components": {
            "schemas": schemas.components(),
            "responses": answers.errors(error),
            "parameters": _PARAMETERS,
            "headers": answers.HEADERS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of the suite; `sis up` writes the administrator's to a file.",
                }
            },
        },
    }


def _path(binding: Binding) -> str:
    """The template with the names that parameters have."""
    fields = binding.method.input_type.fields_by_name
    return re.sub(r"\{(\w+)\}", lambda found: f"{{{fields[found[1]].json_name}}}", binding.template)


def _operation(schemas: Schemas, binding: Binding) -> Json:
    method = binding.method
    comment = schemas.description(method.full_name)
    operation: Json = {
        "operationId": method.name,
        "summary": re.sub(r"(?<!^)([A-Z])", lambda found: f" {found[1].lower()}", method.name),
        **comment,
        "tags": [method.containing_service.name],
    }
    parameters = list(_parameters(schemas, binding))
    if parameters:
        operation["parameters"] = parameters
    body = _body(schemas, binding)
    if body is not None:
        operation["requestBody"] = body
    codes = answers.codes(comment.get("description", ""), body=body is not None, ranges=_in_ranges(binding))
    operation["responses"] = {**_good(schemas, binding), **codes}
    return operation


def _parameters(schemas: Schemas, binding: Binding) -> Iterator[Json]:
    message = binding.method.input_type
    for name in binding.path_fields:
        field = message.fields_by_name[name]
        yield {
            "name": field.json_name,
            "in": "path",
            "required": True,
            **schemas.description(field.full_name),
            "schema": _of_parameter(schemas, field) | ({"minLength": 1} if field.type == field.TYPE_STRING else {}),
        }
    if not binding.body:
        stream = binding.byte_stream
        # The body of an upload says both.
        uploaded = {stream.data, stream.size} if stream and binding.method.client_streaming else set()
        yield from _query(schemas, message, {*binding.path_fields, *uploaded})
    if binding.method.server_streaming and "resume_token" in message.fields_by_name:
        yield reference("parameters", "Last-Event-ID")
    if _in_ranges(binding):
        yield from (reference("parameters", each["name"]) for each in _RANGES)


def _query(schemas: Schemas, message: Descriptor, left_out: set[str], prefix: str = "") -> Iterator[Json]:
    """The fields of a message, those of messages in it by their paths; `left_out` are such paths in the contract."""
    for field in message.fields:
        if field.name in left_out:
            continue
        name = prefix + field.json_name
        if field.message_type is not None and field.message_type in reachable(field.message_type):
            if field.is_repeated:
                raise TypeError(f"{field.full_name} cannot be written as a query parameter")
            within = {path.removeprefix(f"{field.name}.") for path in left_out if path.startswith(f"{field.name}.")}
            yield from _query(schemas, field.message_type, within, f"{name}.")
            continue
        yield {
            "name": name,
            "in": "query",
            **({"required": True} if required(field) else {}),
            **_described(schemas, field, prefix),
            "schema": _of_parameter(schemas, field),
        }


def _described(schemas: Schemas, field: FieldDescriptor, prefix: str) -> Json:
    """What is said of a field, and what excludes it: parameters have no keyword for that."""
    said = schemas.description(field.full_name)
    oneof = field.containing_oneof
    others = [f"`{prefix}{each.json_name}`" for each in oneof.fields if each != field] if oneof else []
    if not others:
        return said
    return {"description": f"{said.get('description', '')} Not together with {' or '.join(others)}.".strip()}


def _of_parameter(schemas: Schemas, field: FieldDescriptor) -> Json:
    """A number of 64 bits is text to begin with, so nothing makes it less exact."""
    schema = INT64 if field.type == FieldDescriptor.TYPE_INT64 else schemas.field(field, taken=True)
    return {"type": "array", "items": schema} if field.is_repeated and schema is INT64 else dict(schema)


def _body(schemas: Schemas, binding: Binding) -> Json | None:
    message, stream = binding.method.input_type, binding.byte_stream
    if binding.method.client_streaming and stream:
        return {"required": True, "content": {stream.media_type: {}, "application/octet-stream": {}}}
    if not binding.body:
        return None
    media: Json = {"schema": schemas.taken(message, binding.path_fields)}
    if binding.method.name in BODIES:
        media["example"] = BODIES[binding.method.name]
    rest = [field for field in message.fields if field.name not in binding.path_fields]
    return {"required": any(required(field) for field in rest), "content": {"application/json": media}}


def _in_ranges(binding: Binding) -> bool:
    fields = binding.method.input_type.fields_by_name
    return bool(binding.byte_stream and binding.method.server_streaming and {"offset", "length"} <= set(fields))


def _good(schemas: Schemas, binding: Binding) -> Json:
    """The answers to a request that succeeds."""
    printed = schemas.printed(binding.method.output_type)
    if not binding.method.server_streaming:
        return {"200": answers.one(printed)}
    resumable = "resume_token" in binding.method.output_type.fields_by_name
    streams = answers.streams(printed, schemas.error(), resumable)
    stream = binding.byte_stream
    if stream is None:
        return {"200": answers.stream(streams)}
    return answers.download(stream.media_type, streams, ranges=_in_ranges(binding))
