"""Failures as HTTP says them: AIP-193's JSON, and the codes of google.rpc.Code.

Besides `services.runtime.errors`, whose codes decide, there is what only HTTP knows:

    SisError
     ├─ CrossOrigin            403
     ├─ RouteNotFound          404
     ├─ MethodNotAllowed       405, with Allow
     ├─ NotAcceptable          406
     ├─ BodyTooSlow            408
     ├─ BodyTooLarge           413
     ├─ UnsupportedMediaType   415
     ├─ RangeNotSatisfiable    416, with Content-Range
     └─ HeadTooLarge           431
    Refused                    what a service answered, passed on whole
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gateway.printing import document, json_path, printed
from services.runtime.errors import Internal, SisError, to_status

Headers = Sequence[tuple[bytes, bytes]]

_HTTP: Mapping[int, int] = {
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
}

_log = logging.getLogger("http")


class HttpError(SisError):
    """What only HTTP knows."""

    http: ClassVar[int]
    headers: Headers = ()


class CrossOrigin(HttpError):
    code, http, reason = code_pb2.PERMISSION_DENIED, 403, "CROSS_ORIGIN"

    def __init__(self) -> None:
        super().__init__("Origin: a session serves pages of this gateway alone; send an Authorization header instead")


class RouteNotFound(HttpError):
    code, http, reason = code_pb2.NOT_FOUND, 404, "ROUTE_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("there is nothing at this path; /openapi.json lists what there is")


class MethodNotAllowed(HttpError):
    code, http, reason = code_pb2.UNIMPLEMENTED, 405, "METHOD_NOT_ALLOWED"

    def __init__(self, allowed: Sequence[str]) -> None:
        names = ", ".join(allowed)
        super().__init__(f"this path takes {names}", metadata={"allow": names})
        self.headers = [(b"allow", names.encode())]


class NotAcceptable(HttpError):
    code, http, reason = code_pb2.INVALID_ARGUMENT, 406, "NOT_ACCEPTABLE"

    def __init__(self, offered: Sequence[str]) -> None:
        super().__init__(f"Accept: this path gives {', '.join(offered)}")


class BodyTooSlow(HttpError):
    code, http, reason = code_pb2.DEADLINE_EXCEEDED, 408, "DEADLINE_EXCEEDED"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not come within {seconds:.0f} s")


class BodyTooLarge(HttpError):
    code, http, reason = code_pb2.INVALID_ARGUMENT, 413, "BODY_TOO_LARGE"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body may have {limit:,} bytes at most", metadata={"limit": str(limit)})


class UnsupportedMediaType(HttpError):
    code, http, reason = code_pb2.INVALID_ARGUMENT, 415, "UNSUPPORTED_MEDIA_TYPE"

    def __init__(self, taken: Sequence[str]) -> None:
        super().__init__(f"Content-Type: this path takes {', '.join(taken)}")


class RangeNotSatisfiable(HttpError):
    code, http, reason = code_pb2.OUT_OF_RANGE, 416, "RANGE_NOT_SATISFIABLE"

    def __init__(self, size: int) -> None:
        super().__init__(f"Range: there are {size:,} bytes", metadata={"size": str(size)})
        self.headers = [(b"content-range", b"bytes */%d" % size)]


class HeadTooLarge(HttpError):
    code, http, reason = code_pb2.INVALID_ARGUMENT, 431, "MALFORMED_REQUEST"

    def __init__(self, limit: int) -> None:
        super().__init__(f"URL and headers may have {limit:,} bytes at most")


class Refused(Exception):
    """What a service ended a call with."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, ready to be sent."""

    http: int
    headers: Headers
    document: bytes


def fault(error: BaseException, what: str, request_id: str) -> Internal:
    """What to say of an error that should not have been: a number, under which it is logged here."""
    number = secrets.token_hex(4)
    _log.error("fault %s in %s", number, what, exc_info=error, extra={"fault": number, "request_id": request_id})
    return Internal(
        f"the gateway failed; its operators find the reason in its log under fault {number}",
        metadata={"fault": number},
    )


def failure(error: SisError | Refused, request: Descriptor | None = None) -> Failure:
    """An error as HTTP says it; in it, fields of `request` have their JSON names."""
    status = error.status if isinstance(error, Refused) else to_status(error)
    http = error.http if isinstance(error, HttpError) else _HTTP.get(status.code, 500)
    headers: list[tuple[bytes, bytes]] = list(error.headers) if isinstance(error, HttpError) else []
    if http == 401:
        headers.append((b"www-authenticate", b'Bearer realm="sis"'))
    found = printed(status)
    if (delay := _retry_after(status)) is not None:
        headers.append((b"retry-after", b"%d" % delay))
    if request is not None:
        _rename_fields(found["details"], request)
    body = {
        "error": {
            "code": http,
            "message": status.message,
            "status": code_pb2.Code.Name(status.code) if status.code in _HTTP else "UNKNOWN",
            "details": found["details"],
        }
    }
    return Failure(http, headers, document(body))


def _retry_after(status: status_pb2.Status) -> int | None:
    """In whole seconds, at least 1."""
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        try:
            if detail.Unpack(retry):
                return max(1, int(retry.retry_delay.seconds) + bool(retry.retry_delay.nanos))
        except DecodeError:
            continue
    return None


def _rename_fields(details: list[dict[str, object]], request: Descriptor) -> None:
    for detail in details:
        violations = detail.get("fieldViolations")
        if isinstance(violations, list):
            for violation in violations:
                violation["field"] = json_path(request, violation["field"])
