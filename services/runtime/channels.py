"""Channels to the suite's other processes, and their refusals as this process's errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.runtime import errors
from services.runtime.errors import FieldViolation, SisError
from services.runtime.identity import Identity
from services.runtime.tls import TlsFiles
from services.runtime.traced_channel import traced

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# A peer that is gone without a word is noticed within 15 s. Servers permit pings at half this interval.
KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000

CONNECT_MS = 10_000
"""For one try to connect, whose handshakes go to and fro three times: enough for a site behind a satellite, and for a
hub that hundreds of agents come to at once, each of which would begin again and make it worse."""

DNS_MS = 2_000
"""How soon names are asked for again, at the earliest, while connections end or cannot be made. gRPC's own 30 s are as
long as the pods of a roll in Kubernetes live beside each other: who was told nothing new the first time would know
none of those that are there by then."""

PEER_GRACE_SECONDS = 60.0
"""How long calls may go on over a channel whose certificate was renewed."""

Stub = TypeVar("Stub")

KEEPALIVE: Sequence[tuple[str, int]] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # gRPC's own pings, which measure bandwidth, would otherwise hold keepalive up for a minute.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


class Balancing(Enum):
    """How the calls of a channel are shared by the replicas at its target."""

    ONE = "pick_first"
    """One of them, drawn for each connection, has all calls; another one when it is gone."""
    ALL = "round_robin"
    """There is a connection to each, and every call goes to the next one that is there."""


def secure_channel(
    target: str,
    tls: TlsFiles,
    *,
    server_name: str | None = None,
    retried: Sequence[str] = (),
    balancing: Balancing = Balancing.ONE,
) -> grpc.aio.Channel:
    """A channel to a `Target` on which both sides prove themselves.

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
    return grpc.aio.secure_channel(target, credentials, options=_options(server_name, retried, balancing))


def server_channel(target: str, ca: bytes, *, server_name: str | None = None) -> grpc.aio.Channel:
    """A channel to a `Target` on which the server alone proves itself, under the CA (PEM)."""
    credentials = grpc.ssl_channel_credentials(root_certificates=ca)
    return grpc.aio.secure_channel(target, credentials, options=_options(server_name, (), Balancing.ONE))


def _options(server_name: str | None, retried: Sequence[str], balancing: Balancing) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", DNS_MS),
        ("grpc.service_config", _service_config(retried, balancing)),
        *KEEPALIVE,
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


class Peer(Generic[Stub]):
    """Calls to another of the suite's services, shared by all replicas at its target, on a channel that is made anew
    with each renewed certificate.

    `make_stub` makes the stub from a channel; for the rest, see `secure_channel`. After a renewal, calls on the
    former channel have a minute to end; then they are cut off (see `refusals`).
    """

    def __init__(
        self,
        target: str,
        identity: Identity,
        make_stub: Callable[[grpc.aio.Channel], Stub],
        *,
        server_name: str | None = None,
        retried: Sequence[str] = (),
    ) -> None:
        self._target = target
        self._identity = identity
        self._make_stub = make_stub
        self._server_name = server_name
        self._retried = retried
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._generation = -1
        self._channel: grpc.aio.Channel | None = None
        self._stub: Stub | None = None

    @property
    def stub(self) -> Stub:
        """The stub with the identity's current certificate; take it anew for each call."""
        if self._stub is None or self._generation != self._identity.generation:
            self._retire()
            self._generation = self._identity.generation
            self._channel = secure_channel(
                self._target,
                self._identity.tls,
                server_name=self._server_name,
                retried=self._retried,
                balancing=Balancing.ALL,
            )
            self._stub = self._make_stub(traced(self._channel))
        return self._stub

    def _retire(self) -> None:
        if self._channel is not None:
            task = asyncio.create_task(self._close_later(self._channel))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            self._channel = self._stub = None

    async def _close_later(self, channel: grpc.aio.Channel) -> None:
        # Not by the grace of gRPC's own `close`, which nothing can cut short.
        with suppress(TimeoutError):
            async with asyncio.timeout(PEER_GRACE_SECONDS):
                await self._closing.wait()
        await channel.close()

    async def close(self) -> None:
        """End every call at once."""
        self._closing.set()
        await asyncio.gather(*self._retiring)
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._stub = None


@contextmanager
def refusals() -> Iterator[None]:
    """Raises what a call in the block ends with as this process's error; Unavailable, too, when the call was cut off
    because its `Peer` has a new certificate."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise grpc_error(error) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # gRPC says in this way that the call was cancelled, not the task.
        raise _unanswered(errors.Unavailable("the connection was replaced; try again", retry_after=0.0)) from None


def _service_config(retried: Sequence[str], balancing: Balancing) -> str:
    policy: dict[str, object] = {"shuffleAddressList": True} if balancing is Balancing.ONE else {}
    config: dict[str, object] = {"loadBalancingConfig": [{balancing.value: policy}]}
    if names := [dict(zip(("service", "method"), each.split("/"), strict=False)) for each in retried]:
        policy = {
            "maxAttempts": 4,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
    return json.dumps(config)


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

    One that carries no details (the connection broke, the server is no part of this suite) keeps its code, and is not
    `answered`; a call that was cut off counts as Unavailable, anything unexpected as Internal.
    """
    status = _status(error)
    return _unanswered(_by_code(error)) if status is None else from_status(status)


def _unanswered(error: SisError) -> SisError:
    error.answered = False
    return error


def _by_code(error: grpc.aio.AioRpcError) -> SisError:
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
