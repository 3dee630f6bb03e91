"""The answers of the gateway as OpenAPI: what is the same for all operations, and not in the contracts."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

HEADERS: dict[str, Json] = {
    "X-Request-Id": {
        "description": "By which logs name this request; to be told to the operators when something is wrong.",
        "schema": {"type": "string"},
        "required": True,
    },
    "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer", "minimum": 0}},
    "WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}},
    "ETag": {
        "description": "Changes whenever the bytes do.",
        "schema": {"type": "string", "pattern": '^(W/)?"[^"]*"$'},
    },
    "Accept-Ranges": {"description": "bytes.", "schema": {"type": "string", "const": "bytes"}},
    "Content-Disposition": {"description": "A name for the file.", "schema": {"type": "string"}},
    "Content-Range": {
        "description": "Which bytes these are, of how many.",
        "schema": {"type": "string", "pattern": r"^bytes ([0-9]+-[0-9]+|\*)/([0-9]+|\*)$"},
    },
}

# The name of the component, when it is so, and the headers that it has beside those of all.
_ERRORS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "400": (
        "BadRequest",
        "A field is wrong (INVALID_ARGUMENT, with a BadRequest that names each one), or the state of the thing does "
        "not permit it (FAILED_PRECONDITION, with a PreconditionFailure).",
        (),
    ),
    "401": ("Unauthorized", "There is no token, or it is not known here.", ("WWW-Authenticate",)),
    "403": ("Forbidden", "The caller is known and may not do this.", ()),
    "404": ("NotFound", "What the request names is not there.", ()),
    "406": ("NotAcceptable", "Nothing that the Accept header takes can be given.", ()),
    "408": ("BodyTooSlow", "The body did not come in time.", ()),
    "409": ("Conflict", "It is there already (ALREADY_EXISTS), or somebody else was first (ABORTED).", ()),
    "413": ("TooLarge", "The body is larger than is taken here.", ()),
    "415": ("UnsupportedMediaType", "The body is of a Content-Type that is not taken here.", ()),
    "416": ("RangeNotSatisfiable", "There are no such bytes.", ("Content-Range",)),
    "429": ("TooManyRequests", "Too much at once.", ("Retry-After",)),
    "500": ("ServerFault", "A fault of the server; its log explains it under the number in the message.", ()),
    "503": ("Unavailable", "A part that is needed does not answer at the moment.", ("Retry-After",)),
    "504": ("Timeout", "There was no answer in time.", ()),
    "default": ("Default", "Any other error.", ()),
}
_ALWAYS = ("400", "401", "403", "406", "429", "500", "503", "504", "default")

HEALTH_TAG: Json = {"name": "Health", "description": "For those who run the gateway, and for load balancers."}


def reference(kind: str, name: str) -> Json:
    """To a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def errors(schema: Json) -> Json:
    """The components for what goes wrong; `schema` is that of an error."""
    return {
        name: {"description": text, "headers": _headers(*extra), "content": {"application/json": {"schema": schema}}}
        for name, text, extra in _ERRORS.values()
    }


def codes(comment: str, *, body: bool, ranges: bool) -> Json:
    """The errors that an operation can end with. The comment of its method names the codes that are its own."""
    found = set(_ALWAYS)
    if re.search(r"\bNOT_FOUND\b", comment):
        found.add("404")
    if re.search(r"\b(ALREADY_EXISTS|ABORTED)\b", comment):
        found.add("409")
    if body:
        found |= {"408", "413", "415"}
    if ranges:
        found.add("416")
    return {code: reference("responses", _ERRORS[code][0]) for code in _ERRORS if code in found}


def one(schema: Json) -> Json:
    """The answer that is one message."""
    return {"description": "Done.", "headers": _headers(), "content": {"application/json": {"schema": schema}}}


def streams(schema: Json, error: Json, resumable: bool) -> Json:
    """The two forms of a stream of messages."""
    ids: Json = (
        {"id": {"type": "string", "description": "Where to go on after it, as `resumeToken`."}} if resumable else {}
    )
    events = [
        _event("message", schema, required=["data"], **ids),
        _event("failure", error, required=["event", "data"]),
        _event("end", {"type": "object", "maxProperties": 0}, required=["event"]),
    ]
    return {
        "text/event-stream": {"schema": {"oneOf": events}},
        "application/x-ndjson": {"schema": {"anyOf": [schema, error]}},
    }


def _event(kind: str, schema: Json, required: list[str], **more: Json) -> Json:
    """An event without a type is a message."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    properties = {"event": {"type": "string", "const": kind}, "data": data, **more}
    return {"type": "object", "properties": properties, "required": required}


def stream(content: Json) -> Json:
    """The answer that is a stream of messages."""
    return {"description": "The responses, as they come.", "headers": _headers(), "content": content}


def download(media_type: str, content: Json, *, ranges: bool) -> Json:
    """The answers that are the bytes of a file, or the messages in which they came."""
    always = ("Content-Disposition", "ETag", *(["Accept-Ranges"] if ranges else []))
    found: Json = {
        "200": {
            "description": "The bytes; the messages in which they come, if events or lines are asked for.",
            "headers": _headers(*always),
            "content": {media_type: {}, **content},
        },
    }
    if ranges:
        found["206"] = {
            "description": "The bytes that the Range header asks for.",
            "headers": _headers(*always, "Content-Range"),
            "content": {media_type: {}},
        }
    found["304"] = {"description": "The bytes are those of the ETag.", "headers": _headers("ETag")}
    return found


def health(request_id: Json) -> Json:
    """The paths that are no methods; `request_id` is the parameter that all have."""
    alive = _status(["alive"])
    upstreams = {
        "type": "object",
        "description": "What each service says of itself: SERVING, or why not.",
        "additionalProperties": {"type": "string"},
    }
    ready = _status(["ready", "not ready", "draining"], upstreams=upstreams)
    return {
        "/healthz": {
            "parameters": [request_id],
            "get": {
                **_probe("IsAlive", "Is alive", "Whether the gateway runs. It asks no service."),
                "responses": {"200": {**one(alive), "description": "It does."}, "default": _default()},
            },
        },
        "/readyz": {
            "parameters": [request_id],
            "get": {
                **_probe("IsReady", "Is ready", "Whether requests can be served: every service answers the gateway."),
                "responses": {
                    "200": {**one(ready), "description": "They can."},
                    "503": {**one(ready), "description": "Not now."},
                    "default": _default(),
                },
            },
        },
    }


def _status(names: list[str], **more: Json) -> Json:
    properties = {"status": {"type": "string", "enum": names}, **more}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _probe(name: str, summary: str, description: str) -> Json:
    said = {"operationId": name, "summary": summary, "description": description}
    return {**said, "tags": [HEALTH_TAG["name"]], "security": []}


def _default() -> Json:
    return reference("responses", _ERRORS["default"][0])


def _headers(*more: str) -> Json:
    return {name: reference("headers", name) for name in ("X-Request-Id", *more)}
