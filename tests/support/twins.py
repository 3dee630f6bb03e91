"""One method over HTTP and over gRPC: the same request made both ways, and the two answers in a form that compares."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import requests
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # noqa: F401 (its messages are found in the pool)
from grpc_status import rpc_status

from gateway.routes import Binding
from tests.support.stack import Stack

SECONDS = 20.0

HTTP_CODES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
}
"""As AIP-193 has them, for what is refused here."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back: the responses as proto3 JSON, or the error."""

    responses: list[Document]
    error: Document | None = None

    @property
    def reason(self) -> str:
        details = self.error["details"] if self.error else []
        return next((str(each["reason"]) for each in details if each["@type"].endswith("ErrorInfo")), "")


class Twins:
    """The two ways into one stack. With `token`, calls prove themselves by it."""

    def __init__(self, stack: Stack, token: str | None) -> None:
        self._base = stack.gateway
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._metadata = tuple((key.lower(), value) for key, value in self._headers.items())
        state = stack.state
        endpoints = {
            "sis.queue.v1": state.queue_endpoint,
            "sis.credentials.v1": state.credentials_endpoint,
            "sis.agent.v1": state.hub_endpoint,
        }
        trusted = grpc.ssl_channel_credentials(state.ca.read_bytes())
        self._channels = {package: grpc.secure_channel(each, trusted) for package, each in endpoints.items()}

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def grpc(self, binding: Binding, request: Document, *, first: bool = False, archive: bytes = b"") -> Answer:
        """The call itself. With `first`, only the first response of a stream is read."""
        method = binding.method
        message = _parsed(method.input_type, request)
        channel = self._channels[method.containing_service.file.package]
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        call = getattr(channel, kind)(
            binding.full_name,
            request_serializer=lambda found: found.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        sent: Any = iter([message, _parsed(method.input_type, _chunk(archive))]) if method.client_streaming else message
        try:
            found = call(sent, timeout=SECONDS, metadata=self._metadata)
            if not method.server_streaming:
                return Answer([_printed(found)])
            responses = []
            for response in found:
                responses.append(_printed(response))
                if first:
                    found.cancel()
                    break
            return Answer(responses)
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)  # type: ignore[arg-type]
            assert status is not None, error
            document = _printed(status)
            document["status"] = error.code().name  # type: ignore[attr-defined]
            document["code"] = HTTP_CODES[document["status"]]
            return Answer([], document)

    def http(self, binding: Binding, request: Document, *, first: bool = False, archive: bytes = b"") -> Answer:
        """The same by its HTTP request; streams as NDJSON."""
        remaining = dict(request)
        path = binding.template
        for field in binding.path_fields:
            path = path.replace(f"{{{field}}}", str(remaining.pop(_camel(field))))
        headers = {**self._headers, "Accept": "application/x-ndjson" if binding.method.server_streaming else "*/*"}
        sent: dict[str, Any] = {"params": list(_flat("", remaining))}
        if binding.body:
            sent = {"json": remaining}
        elif binding.method.client_streaming:
            headers["Content-Type"] = "application/gzip"
            sent["data"] = archive  # whose Content-Length says the size
            sent["params"] = [pair for pair in sent["params"] if pair[0] != "upload.sizeBytes"]
        with requests.request(
            binding.verb, self._base + path, headers=headers, timeout=SECONDS, stream=True, **sent
        ) as response:
            if not response.ok:
                error = response.json()["error"]
                assert error["code"] == response.status_code
                return Answer([], error)
            if not binding.method.server_streaming:
                return Answer([response.json()])
            found = []
            for line in response.iter_lines():
                found.append(json.loads(line))
                if first:
                    break
            return Answer(found)


def comparable(answer: Answer) -> object:
    """Without what differs from call to call: times, tokens, numbers of jobs, names made for the occasion."""
    return _steady([answer.responses, answer.error])


_VOLATILE = re.compile(r"([tT]oken|[tT]ime|^job_?[iI]d|JobId|^code)$")


def _steady(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            key: "…" if _VOLATILE.search(key) and isinstance(each, str) and each
            # Violations name fields as the request does: job_id in a message, jobId in JSON.
            else _camel(str(each)) if key == "field"
            else _steady(each)
            for key, each in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [_steady(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"twin-\d+|job \d+|jobs/\d+|[\d-]{10} [\d:]{8} UTC", "…", value)
    return value


def _parsed(descriptor: Any, document: Document) -> Message:
    return json_format.ParseDict(document, message_factory.GetMessageClass(descriptor)())


def _printed(message: Message) -> Document:
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


def _chunk(archive: bytes) -> Document:
    return {"chunk": base64.b64encode(archive).decode()}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(each.title() for each in rest)


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    """A request as query parameters."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, each)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for each in value:
            yield from _flat(prefix, each)
    else:
        yield prefix, json.dumps(value) if isinstance(value, bool) else str(value)
