"""Which HTTP request is which method: read from the `google.api.http` annotations of the contracts, nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from sis.agent.v1 import agent_admin_service_pb2
from sis.credentials.v1 import agent_identity_service_pb2, credential_service_pb2
from sis.http.v1 import byte_stream_pb2
from sis.queue.v1 import job_service_pb2, package_service_pb2

_FILES = (
    job_service_pb2,
    package_service_pb2,
    credential_service_pb2,
    agent_admin_service_pb2,
    agent_identity_service_pb2,
)
"""A test holds this list against every contract."""

_VARIABLE = re.compile(r"\{([a-z_][a-z0-9_.]*)\}")


@dataclass(frozen=True, slots=True)
class Binding:
    """One method as HTTP offers it."""

    method: MethodDescriptor
    verb: str
    """GET, POST, PUT, PATCH or DELETE."""
    template: str
    """A path with fields of the request in braces: "/v1/jobs/{job_id}:cancel". A field is one segment, or what of one
    is before the verb's colon."""
    body: str
    """What the body holds: "*" for all fields that the path does not, the name of one, or "" for nothing. What is
    in neither path nor body is a query parameter."""

    @property
    def full_name(self) -> str:
        """As gRPC calls it: "/sis.queue.v1.JobService/CancelJob"."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields in the path, in order."""
        return tuple(_VARIABLE.findall(self.template))

    @property
    def byte_stream(self) -> byte_stream_pb2.ByteStream | None:
        """Where its stream has the bytes of a file, if it has."""
        options = self.method.GetOptions()
        if not options.HasExtension(byte_stream_pb2.byte_stream):
            return None
        return options.Extensions[byte_stream_pb2.byte_stream]

    def pattern(self) -> re.Pattern[str]:
        """What matches the raw path of a request: the fields are groups, in the order of `path_fields`."""
        parts = _VARIABLE.split(self.template)
        literals, count = parts[::2], len(parts) // 2
        found = re.escape(literals[0])
        for number in range(count):
            found += "([^/:]+)" + re.escape(literals[number + 1])
        return re.compile(found)


@cache
def bindings() -> tuple[Binding, ...]:
    """Every public method, in the order of the contracts."""
    return tuple(
        _binding(method)
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.GetOptions().HasExtension(annotations_pb2.http)
    )


def _binding(method: MethodDescriptor) -> Binding:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    kind = rule.WhichOneof("pattern")
    if kind not in ("get", "post", "put", "patch", "delete") or rule.additional_bindings or rule.response_body:
        raise TypeError(f"{method.full_name}: its google.api.http annotation uses what the gateway does not offer")
    return Binding(method, kind.upper(), getattr(rule, kind), rule.body)
