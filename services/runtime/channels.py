"""Channels to the suite's other processes, and their refusals as this process's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.runtime import errors
from services.runtime.errors import FieldViolation, SisError
from services.runtime.settings import TlsFiles

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# A peer that is gone without a word is noticed within 15 s. Servers permit pings at half this interval.
KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000

KEEPALIVE: Sequence[tuple[str, int]] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # gRPC's own pings, which measure bandwidth, would otherwise hold keepalive up for a minute.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def secure_channel(
    endpoint: str, tls: TlsFiles, *, server_name: str | None = None, retried: Sequence[str] = ()
) -> grpc.aio.Channel:
    """A channel to `host:port` on which both sides prove themselves.

    `server_name` is what the server's certificate must name, if not the endpoint's host. The methods
    `retried` (`package.Service/Method`, or `package.Service` for all of them) are tried up to four times
    within about two seconds while the server is UNAVAILABLE; name only those that their contract calls safe
    to retry.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(),
        private_key=tls.key.read_bytes(),
        certificate_chain=tls.certificate.read_bytes(),
    )
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.service_config", _service_config(retried)),
        *KEEPALIVE,
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(endpoint, credentials, options=options)


def _service_config(retried: Sequence[str]) -> str:
    names = [dict(zip(("service", "method"), each.split("/"), strict=False)) for each in retried]
    if not names:
        return "{}"
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


_BY_CODE: Mapping[int, type[SisError]] = {
    error.code: error
    for error in (
        errors.InvalidArgument,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.NotFound,
        errors.AlreadyExists,
        errors.Aborted,
        errors.ResourceExhausted,
        errors.DeadlineExceeded,
        errors.Unavailable,
        errors.Internal,
    )
}


def grpc_error(error: grpc.aio.AioRpcError) -> SisError:
    """The error that a server ended a call with, as it was raised there.

    One that carries no details (the connection broke, the server is no part of this suite) keeps its code; a
    call that was cut off counts as Unavailable, anything unexpected as Internal.
    """
    status = _status(error)
    if status is not None:
        return from_status(status)
    code = int(error.code().value[0])
    if code in (code_pb2.UNAVAILABLE, code_pb2.CANCELLED):
        return errors.Unavailable(f"the server does not answer: {error.details()}; try again", retry_after=1.0)
    kind = _BY_CODE.get(code)
    if kind is None:
        return errors.Internal(f"the server answered {error.code().name}: {error.details()}")
    return kind(error.details() or error.code().name)


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def from_status(status: status_pb2.Status) -> SisError:
    """The reverse of `errors.to_status`; Internal for a code that has no error of its own."""
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    failure = error_details_pb2.PreconditionFailure()
    has_retry = False
    for detail in status.details:
        for known in (info, request, failure):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
        has_retry = detail.Unpack(retry) or has_retry
    if status.code == code_pb2.FAILED_PRECONDITION and failure.violations:
        violation = failure.violations[0]
        precondition = errors.FailedPrecondition(
            status.message, subject=violation.subject, condition=violation.type, metadata=info.metadata
        )
        precondition.reason = info.reason or precondition.reason
        return precondition
    kind = _BY_CODE.get(status.code, errors.Internal)
    return kind(
        status.message,
        reason=info.reason or None,
        metadata=info.metadata,
        violations=[FieldViolation(v.field, v.description) for v in request.field_violations],
        retry_after=retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
    )
