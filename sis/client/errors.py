"""What can go wrong in a call, as one tree.

    ClientError
     ├─ ClientClosed         the client was closed, before the call or during it
     ├─ ConfigurationError   it is not known where the servers are, or their token or CA cannot be read
     └─ ApiError             a server refused the call, or could not be reached
         └─ ResumeExpired    what came after a resume token is not known any more

A message is one sentence that names the thing and says what to do. No error of gRPC leaves this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import grpc
from google.protobuf import message as protobuf
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

_DOMAIN = "sis"
STREAM_OVER = "STREAM_OVER"
"""The `cause` of an error by which a server ends a stream that has been open for as long as it may be."""


class ClientError(Exception):
    """Any failure of this library."""


class ClientClosed(ClientError):
    """The client was closed: make another one."""

    def __init__(self) -> None:
        super().__init__("the client is closed")


class ConfigurationError(ClientError):
    """Where the servers are, or how to prove who calls, is not known."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: its path in the request and what to do about it."""

    field: str
    description: str


class ApiError(ClientError):
    """A call that a server refused, or that did not reach one.

    Attributes:
        code: the name of the gRPC status, "NOT_FOUND".
        reason: a name of `sis.errors.v1.Reason` without its prefix, "JOB_NOT_FOUND"; "" when no server of the
            suite answered, so that nobody knows whether the call had an effect.
        metadata: what the server says besides for a program to read: `dependency` and `cause` of what it waits for.
        violations: each wrong field, where fields were wrong.
        retry_after: seconds to wait before another try, where the server said so.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] = MappingProxyType({}),
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata)
        self.violations = violations
        self.retry_after = retry_after

    @property
    def unreachable(self) -> bool:
        """Whether no server of the suite answered: refused, cut off, or silent."""
        return not self.reason

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later, so that one that is safe to repeat should be repeated."""
        if self.unreachable:
            # A server that dies in the middle of a stream leaves any of these behind, as the moment has it.
            return self.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL", "CANCELLED")
        return self.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


class ResumeExpired(ApiError):
    """What came after the resume token is not known any more: begin again without it."""


def from_grpc(error: grpc.RpcError, endpoint: str) -> ApiError:
    """The typed error of a failed call to `endpoint`."""
    call = cast("grpc.Call", error)  # every error that a stub raises is one
    code, text = call.code().name, call.details() or "no explanation was given"
    found = _typed(code, text, _details(call))
    return found if found.reason else ApiError(code, _transport_message(code, text, endpoint))


def from_status(status: status_pb2.Status) -> ApiError:
    """The typed error that a server gave as a message: why one of many jobs was refused."""
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    return _typed(code, status.message, status.details)


def _typed(code: str, text: str, details: Iterable[Any]) -> ApiError:
    reason, metadata, violations, retry_after = "", dict[str, str](), list[Violation](), None
    for detail in details:
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    kind = ResumeExpired if reason == "RESUME_EXPIRED" else ApiError
    return kind(code, text, reason=reason, metadata=metadata, violations=tuple(violations), retry_after=retry_after)


def _details(call: grpc.Call) -> Iterable[Any]:
    """The details of the rich status; none where there is no such status, or it contradicts the plain one."""
    try:
        status = rpc_status.from_call(call)
    except (ValueError, protobuf.DecodeError):
        return ()
    return status.details if status else ()


def _transport_message(code: str, text: str, endpoint: str) -> str:
    lowered = text.lower()
    if "certificate" in lowered or "handshake" in lowered or "ssl" in lowered:
        return f"the server at {endpoint} is not the one that the CA certificate vouches for: {text}"
    if code == "UNAVAILABLE":
        return f"the server at {endpoint} cannot be reached: {text}"
    if code == "DEADLINE_EXCEEDED":
        return f"the server at {endpoint} did not answer in time"
    return f"the call to {endpoint} failed ({code}): {text}"
