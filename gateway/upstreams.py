"""Calls to the services, and how they fail. The only module that knows gRPC.

The calls are made by the names in the contracts, over mTLS; a call carries the caller's own token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2

from gateway.errors import Refused
from gateway.routes import Binding, bindings
from services.runtime.channels import Peer
from services.runtime.errors import DeadlineExceeded, Internal, SisError, Unavailable, to_status
from services.runtime.identity import Identity

UNARY_SECONDS = 20.0
STREAM_SECONDS = 3_600.0
RESUMABLE_SECONDS = 1_800.0
"""Of a stream that can go on where it was. Whoever does nothing but watch reads anew before the session has ended."""
UPLOAD_SECONDS = 600.0
TAKE_SECONDS = 30.0
"""How long a service may leave a piece of an upload waiting."""
_HEALTH_SECONDS = 2.0
_HEALTH_KEPT_SECONDS = 1.0

_SERVICES: Mapping[str, str] = {"sis.queue.v1": "queue", "sis.credentials.v1": "credentials", "sis.agent.v1": "hub"}
"""Who serves a package; each shows a certificate with this name."""

Metadata = tuple[tuple[str, str], ...]

_log = logging.getLogger("upstreams")


class Idle(Enum):
    """Nothing has come in time."""

    IDLE = 0


IDLE: Final = Idle.IDLE


def service_of(binding: Binding) -> str:
    """Who serves a method: queue, credentials or hub."""
    return _SERVICES[binding.method.containing_service.file.package]


@dataclass(frozen=True, slots=True)
class _Calls:
    """What can be called over one channel."""

    methods: Mapping[str, Any]
    health: Any


def _calls(service: str, channel: grpc.aio.Channel) -> _Calls:
    methods: dict[str, Any] = {}
    for binding in bindings():
        if service_of(binding) != service:
            continue
        method = binding.method
        if method.client_streaming:
            make: Any = channel.stream_unary
        else:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
        methods[binding.full_name] = make(
            binding.full_name,
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
    health: Any = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return _Calls(methods, health)


class Upstreams:
    """The queue, the credential service and the hub at their listeners for the suite's own processes: for each a
    `Target`, so that there may be several of it."""

    def __init__(self, identity: Identity, *, queue: str, credentials: str, hub: str) -> None:
        self._peers = {
            service: Peer(target, identity, partial(_calls, service), server_name=service, retried=_retried(service))
            for service, target in (("queue", queue), ("credentials", credentials), ("hub", hub))
        }
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._health: Mapping[str, str] = {}

    def unary(self, binding: Binding, request: Any, metadata: Metadata) -> Unary:
        """Call a method that answers once; it runs from now on."""
        service = service_of(binding)
        method = self._peers[service].stub.methods[binding.full_name]
        return Unary(service, method(request, timeout=UNARY_SECONDS, metadata=metadata))

    def stream(self, binding: Binding, request: Any, metadata: Metadata) -> Stream:
        """Call a method that answers with a stream."""
        service = service_of(binding)
        method = self._peers[service].stub.methods[binding.full_name]
        resumable = "resume_token" in binding.method.input_type.fields_by_name
        seconds = RESUMABLE_SECONDS if resumable else STREAM_SECONDS
        return Stream(service, method(request, timeout=seconds, metadata=metadata))

    def upload(self, binding: Binding, metadata: Metadata) -> Upload:
        """Call a method that takes a stream and answers once."""
        service = service_of(binding)
        method = self._peers[service].stub.methods[binding.full_name]
        return Upload(service, method(timeout=UPLOAD_SECONDS, metadata=metadata))

    async def health(self) -> Mapping[str, str]:
        """What each service says of itself: SERVING, NOT_SERVING, or UNREACHABLE. At most a second old."""
        async with self._looking:
            if time.monotonic() - self._looked > _HEALTH_KEPT_SECONDS:
                found = await asyncio.gather(*(self._check(peer) for peer in self._peers.values()))
                self._health = dict(zip(self._peers, found, strict=True))
                self._looked = time.monotonic()
            return self._health

    @staticmethod
    async def _check(peer: Peer[_Calls]) -> str:
        try:
            answer = await peer.stub.health(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
        except grpc.aio.AioRpcError:
            return "UNREACHABLE"
        name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return name

    async def close(self) -> None:
        """End every call at once."""
        for peer in self._peers.values():
            await peer.close()


def _retried(service: str) -> list[str]:
    """What is only read, and answered once."""
    return [
        each.full_name.removeprefix("/")
        for each in bindings()
        if each.verb == "GET" and not each.method.server_streaming and service_of(each) == service
    ]


class Unary:
    """A call that answers once."""

    def __init__(self, service: str, call: Any) -> None:
        self._service = service
        self._call = call
        self.cancel = call.cancel

    async def response(self) -> Any:
        """The answer.

        Raises:
            Refused: the service refused it.
            SisError: it did not answer, or was cut off.
        """
        with _refusals(self._service):
            return await self._call


class Stream:
    """A call that answers with a stream; it ends with the block.

    async with upstreams.stream(...) as stream:
        while (message := await stream.read()) is not None: ...

    All methods raise as `Unary.response`.
    """

    def __init__(self, service: str, call: Any) -> None:
        self._service = service
        self._call = call
        self._messages = aiter(call)
        self._reading: asyncio.Task[Any] | None = None
        self._ended: SisError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.exception()

    def end(self, error: SisError | None = None) -> None:
        """Have whoever reads get `error`, now."""
        self._ended = error
        self._call.cancel()

    async def read(self) -> Any:
        """The next message; None at the end."""
        with _refusals(self._service, self):
            async for message in self._messages:
                return message
            return None

    async def poll(self, seconds: float) -> Any:
        """The same, or IDLE if none comes in time."""
        if self._reading is None:
            self._reading = asyncio.create_task(self.read())
        done, _ = await asyncio.wait([self._reading], timeout=seconds)
        if not done:
            return IDLE
        task, self._reading = self._reading, None
        return task.result()

    @property
    def ended(self) -> SisError | None:
        """What `end` was called with."""
        return self._ended


class Upload:
    """A call that takes a stream and answers once."""

    def __init__(self, service: str, call: Any) -> None:
        self._service = service
        self._call = call
        self.cancel = call.cancel

    async def send(self, messages: AsyncGenerator[Any, None]) -> Any:
        """Send them all, each when the service takes it, and return its answer; which it may give, as a refusal, before
        it has them all. Raises as `Unary.response`, and what `messages` raises."""
        writing = asyncio.create_task(self._write(messages))
        # A write that fails after the call has ended puts its own error in the place of the answer (grpc/grpc#36066).
        self._call.add_done_callback(lambda _: writing.cancel())
        try:
            await asyncio.wait([writing])
            with _refusals(self._service):
                if not writing.cancelled():
                    writing.result()
                return await self._call
        finally:
            self._call.cancel()
            writing.cancel()
            await asyncio.wait([writing])
            await messages.aclose()

    async def _write(self, messages: AsyncGenerator[Any, None]) -> None:
        async for message in messages:
            try:
                async with asyncio.timeout(TAKE_SECONDS):
                    await self._call.write(message)
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                return  # it ends; only the answer says why
            except TimeoutError:
                raise DeadlineExceeded(f"the service {self._service!r} takes no more; try again") from None
        await self._call.done_writing()


@contextmanager
def _refusals(service: str, stream: Stream | None = None) -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _refusal(service, error) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # gRPC says in this way that the call was cancelled, not the task.
        if stream is not None and stream.ended is not None:
            raise stream.ended from None
        raise Unavailable("the connection was replaced; try again", retry_after=1.0) from None


_LOST = (code_pb2.UNAVAILABLE, code_pb2.CANCELLED)


def _refusal(service: str, error: grpc.aio.AioRpcError) -> Exception:
    code = int(error.code().value[0])
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            if status.code == code:
                return Refused(status)
    # The rest is no answer of a service of this suite. What gRPC says of it names addresses: it is for the log alone.
    _log.warning("%s: %s %s", service, error.code().name, error.details())
    if code in _LOST:
        return Unavailable(f"the service {service!r} does not answer; try again", retry_after=1.0)
    if code == code_pb2.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the service {service!r} did not answer in time; try again")
    if code == code_pb2.UNIMPLEMENTED:
        status = to_status(Unavailable(f"the service {service!r} does not offer this yet: upgrade it"))
        status.code = code
        return Refused(status)
    return Internal(f"the service {service!r} failed with {error.code().name}; the gateway's log tells more")
