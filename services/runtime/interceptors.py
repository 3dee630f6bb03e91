"""What happens around every call, as one list: `layers`.

A layer is an async context manager around the call, the first one outermost; `chain` puts the calls through them.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NoReturn, TypeAlias
from urllib.parse import unquote

import grpc
from grpc_status import rpc_status

from services.runtime import access, metrics, tracing
from services.runtime.access import ACCESS, Audience, Caller
from services.runtime.errors import (
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    SisError,
    to_status,
)
from services.runtime.tracing import Attribute
from sis.trace_context import TraceContext

UNARY_LIMIT_SECONDS = 30.0
UPLOAD_LIMIT_SECONDS = 600.0
"""How long a call may take that answers once: with one request, with a stream of them."""

OPEN_STREAM_SECONDS = 60.0
"""How long a stream may last that anyone may open. Who watches a server's health, or reads its reflection, learns what
there is in the first of them and can call again; who only holds a place loses it soon."""

UNARY_LIMIT, STREAM_LIMIT = 256, 1_000
"""How many calls may be in flight: with one request and one answer, others."""
INNER_STREAM_LIMIT = 1_000
"""How many streams of agents, and of servers among themselves, there may be beside people's: however many watch, a stop
finds its way."""
AGENT_LIMIT = 64
"""How many of either may be one agent's: its stream, and packages that it fetches."""
PROBE_LIMIT, OPEN_STREAM_LIMIT, ENROLMENT_LIMIT = 64, 64, 64
"""The same of calls that anyone may make, each kind apart, lest one keep another out: health checks, streams (of health
and reflection), enrolments."""

STREAM_OVER = "STREAM_OVER"
"""The `cause` in the metadata of the error by which a stream ends that has been open for as long as it may be."""

# Clients refuse more than 8 KiB of trailers, in which the message travels twice, percent-encoded and base64.
_MESSAGE_CHARACTERS = 600
_STATUS_BYTES = 3_072

# A context says its code as a number if it was aborted, else as it was set.
_CODES: dict[object, grpc.StatusCode] = {form: code for code in grpc.StatusCode for form in (code, code.value[0])}

# How calls end when nothing is wrong with them; what is waited for is logged by who waits.
_PASSING = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)

# Those that are faults of the server, as OpenTelemetry has it.
_FAULTS = (
    *(grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED),
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS),
)

_log = logging.getLogger("rpc")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Kind(enum.Enum):
    """What is bounded apart from the rest."""

    UNARY = enum.auto()
    STREAM = enum.auto()
    INNER_STREAM = enum.auto()
    # Those that anyone may make.
    PROBE = enum.auto()
    OPEN_STREAM = enum.auto()
    ENROLMENT = enum.auto()


@dataclass(slots=True)
class Call:
    """A call in progress, as the layers see it."""

    method: str
    streams_requests: bool
    streams_responses: bool
    context: Context
    request_id: str
    caller: Caller | None = None
    planned: bool = False
    """Whether it ended with an error as the server means calls to end."""

    @property
    def audience(self) -> Audience | None:
        return ACCESS.get(self.method)

    @property
    def kind(self) -> Kind:
        streams = self.streams_requests or self.streams_responses
        if self.audience is not Audience.ANYONE:
            inner = self.audience in (Audience.AGENT, Audience.HUB, Audience.SERVICE)
            return (Kind.INNER_STREAM if inner else Kind.STREAM) if streams else Kind.UNARY
        if streams:
            return Kind.OPEN_STREAM
        return Kind.PROBE if self.method.startswith("/grpc.") else Kind.ENROLMENT


class StreamOver(DeadlineExceeded):
    """A stream has been open for as long as it may be: most have no other end."""

    planned = True

    def __init__(self, message: str) -> None:
        super().__init__(message, metadata={"cause": STREAM_OVER})


Layer = Callable[[Call], AbstractAsyncContextManager[None]]


def layers(*, admin_token_sha256: str | None, join_tokens: Mapping[str, str]) -> Sequence[Layer]:
    """The chain, outermost first."""
    return [
        telemetry,
        errors,
        deadline,
        authentication(admin_token_sha256, join_tokens),
        authorisation,
        limits(
            {
                Kind.UNARY: UNARY_LIMIT,
                Kind.STREAM: STREAM_LIMIT,
                Kind.INNER_STREAM: INNER_STREAM_LIMIT,
                Kind.PROBE: PROBE_LIMIT,
                Kind.OPEN_STREAM: OPEN_STREAM_LIMIT,
                Kind.ENROLMENT: ENROLMENT_LIMIT,
            }
        ),
    ]


@asynccontextmanager
async def telemetry(call: Call) -> AsyncIterator[None]:
    """Traces, measures and logs each call; what goes well between the suite's own processes is logged for debugging
    only, and gRPC's own services are not traced."""
    if call.method.startswith("/grpc."):
        async with _logged(call):
            yield
        return
    name = call.method.removeprefix("/")
    about: dict[Attribute, str | int] = {Attribute.RPC_SYSTEM: "grpc", Attribute.RPC_METHOD: name}
    began = time.monotonic()
    with tracing.served(name, _trace_context(call.context), about) as said:
        status = grpc.StatusCode.CANCELLED
        try:
            async with _logged(call):
                yield
            status = _status(call)
        except asyncio.CancelledError:
            raise
        except BaseException:
            status = _status(call)
            raise
        finally:
            said[Attribute.RPC_STATUS] = status.name
            if status in _FAULTS and not call.planned:
                said[Attribute.ERROR_TYPE] = status.name
            metrics.RPC.record(time.monotonic() - began, {**about, **said})


@asynccontextmanager
async def _logged(call: Call) -> AsyncIterator[None]:
    began = time.monotonic()
    cancelled = False
    try:
        yield
    except asyncio.CancelledError:
        cancelled = True
        raise
    finally:
        status = grpc.StatusCode.CANCELLED if cancelled else _status(call)
        quiet = call.audience in (Audience.ANYONE, Audience.HUB)
        level = logging.DEBUG if quiet and status in _PASSING else logging.INFO
        if status in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            level = logging.WARNING
        _log.log(
            level,
            "call",
            extra={
                "method": call.method,
                "code": status.name,
                "milliseconds": round((time.monotonic() - began) * 1000, 1),
                "caller": f"{call.caller.kind}:{call.caller.name}" if call.caller else "",
                "origin": call.caller.origin if call.caller else "",
                "request_id": call.request_id,
            },
        )


def _status(call: Call) -> grpc.StatusCode:
    """How a call has ended that was not cancelled."""
    return _CODES.get(call.context.code(), grpc.StatusCode.OK)


def _trace_context(context: Context) -> TraceContext | None:
    """The trace that the caller is in; None where it says nothing of one, or nothing that can be true."""
    found = [value for key, value in context.invocation_metadata() or () if key == tracing.HEADER]
    return TraceContext.parse(found[0]) if len(found) == 1 and isinstance(found[0], str) else None


@asynccontextmanager
async def errors(call: Call) -> AsyncIterator[None]:
    """Ends a failed call with the status of its error; a fault is logged and shown as a number."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except NotImplementedError:
        await call.context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{call.method}: this server does not offer it")
    except Exception as error:
        await _abort(call, _only_sis_error(error) or _fault(call, error))


def _only_sis_error(error: Exception) -> SisError | None:
    """The SisError that `error` is, or the first of a task group in which nothing else was raised."""
    if isinstance(error, SisError):
        return error
    if isinstance(error, ExceptionGroup):
        found = [_only_sis_error(each) for each in error.exceptions]
        return found[0] if all(found) else None
    return None


def _fault(call: Call, error: Exception) -> SisError:
    number = secrets.token_hex(4)
    _log.error(
        "fault %s in %s",
        number,
        call.method,
        exc_info=error,
        extra={"fault": number, "request_id": call.request_id},
    )
    return Internal(
        f"the server failed; its operators find the reason in its log under fault {number}",
        metadata={"fault": number},
    )


async def _abort(call: Call, error: SisError) -> NoReturn:
    call.planned = error.planned
    await call.context.abort_with_status(rpc_status.to_status(to_status(_fitting(error))))


def _fitting(error: SisError) -> SisError:
    """`error`, shortened until it fits in the trailers."""
    if len(error.message) > _MESSAGE_CHARACTERS:
        error.message = error.message[:_MESSAGE_CHARACTERS] + " …"
    while error.violations and to_status(error).ByteSize() > _STATUS_BYTES:
        error.violations = error.violations[:-1]
    return error


@asynccontextmanager
async def deadline(call: Call) -> AsyncIterator[None]:
    """Ends a call that takes too long, a little before its client gives up, so that the client hears why."""
    own = limit = _limit(call)
    remaining = call.context.time_remaining()
    if remaining is not None:
        shaved = max(remaining - min(0.1, remaining / 10), 0)
        limit = shaved if limit is None else min(limit, shaved)
    timeout = asyncio.timeout(limit)
    try:
        async with timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        if call.kind is Kind.OPEN_STREAM and limit == own:
            raise StreamOver(f"{call.method}: it was open for {limit:.1f} s, which is its limit; call again") from None
        if call.streams_responses:
            raise StreamOver(
                f"{call.method}: it was open for {limit:.1f} s, as long as it was asked for; call again"
            ) from None
        raise DeadlineExceeded(
            f"{call.method}: no answer within {limit:.1f} s; try again, or with a longer deadline"
        ) from None


def _limit(call: Call) -> float | None:
    """In seconds, whatever the client allows."""
    if call.kind is Kind.OPEN_STREAM:
        return OPEN_STREAM_SECONDS
    if call.streams_responses:
        return None
    return UPLOAD_LIMIT_SECONDS if call.streams_requests else UNARY_LIMIT_SECONDS


def authentication(admin_token_sha256: str | None, join_tokens: Mapping[str, str]) -> Layer:
    """Finds out who calls, for `current_caller()`."""

    @asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        metadata = call.context.invocation_metadata() or ()
        peer = call.context.auth_context()
        spiffe_ids = tuple(peer.get("peer_spiffe_id", ()))
        call.caller = access.authenticate(
            call.method,
            authorization=tuple(str(value) for key, value in metadata if key == "authorization"),
            spiffe_id=spiffe_ids[0].decode() if spiffe_ids else None,
            origin=_origin(call.context.peer()),
            admin_token_sha256=admin_token_sha256,
            join_tokens=join_tokens,
            certificate=next(iter(peer.get("x509_pem_cert", ())), b""),
            forwarded_origin=_forwarded_origin(metadata),
        )
        with access.acting_as(call.caller):
            yield

    return layer


def _forwarded_origin(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """What `x-sis-origin` says, if it is an address."""
    for key, value in metadata:
        if key == "x-sis-origin" and isinstance(value, str):
            try:
                return str(ip_address(value))
            except ValueError:
                return ""
    return ""


def _origin(peer: str) -> str:
    """The address in `ipv4:10.0.0.1:4242` or `ipv6:%5B::1%5D:4242`."""
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else address


@asynccontextmanager
async def authorisation(call: Call) -> AsyncIterator[None]:
    """Lets nobody call what `access.py` does not give them."""
    access.authorise(call.method, access.current_caller())
    yield


def limits(bounds: Mapping[Kind, int]) -> Layer:
    """Refuses calls when too many of their kind are in flight."""
    in_flight: Counter[Kind | str] = Counter()

    @asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        kind = call.kind
        if in_flight[kind] >= bounds[kind]:
            raise ResourceExhausted(
                f"this server has {bounds[kind]} calls in flight, which is its limit; try again",
                retry_after=1.0,
            )
        agent = call.caller.name if call.caller and call.caller.kind == "agent" else ""
        if agent and in_flight[agent] >= AGENT_LIMIT:
            raise ResourceExhausted(
                f"agent {agent} has {AGENT_LIMIT} calls in flight, which is the limit of one; end some, and try again",
                retry_after=1.0,
            )
        in_flight.update((kind, agent))
        try:
            yield
        finally:
            in_flight.subtract((kind, agent))
            if not in_flight[agent]:
                del in_flight[agent]

    return layer
