"""A channel whose calls carry the trace that they are part of, and are recorded as spans of it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc

from services.runtime.tracing import HEADER, Outgoing


class _TracedChannel:
    """What a stub takes of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *arguments: Any, **more: Any) -> Any:
        return _Traced(method, self._channel.unary_unary(method, *arguments, **more))

    def unary_stream(self, method: str, *arguments: Any, **more: Any) -> Any:
        return _Traced(method, self._channel.unary_stream(method, *arguments, **more))

    def stream_unary(self, method: str, *arguments: Any, **more: Any) -> Any:
        return _Traced(method, self._channel.stream_unary(method, *arguments, **more))

    def stream_stream(self, method: str, *arguments: Any, **more: Any) -> Any:
        return _Traced(method, self._channel.stream_stream(method, *arguments, **more))


def traced(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """The channel, for stubs. gRPC's interceptors would do, but they put calls of their own in the place of gRPC's,
    which behave otherwise when they are cancelled or written to."""
    return cast("grpc.aio.Channel", _TracedChannel(channel))


# Those that have not ended; a call ends with its channel at the latest.
_ending: set[asyncio.Task[None]] = set()


class _Traced:
    """A method that can be called."""

    def __init__(self, method: str, call: Any) -> None:
        self._name = method.removeprefix("/")
        self._quiet = self._name.startswith("grpc.")
        self._call = call

    def __call__(self, *arguments: Any, metadata: Any = None, **more: Any) -> Any:
        if self._quiet:
            return self._call(*arguments, metadata=metadata, **more)
        outgoing = Outgoing(self._name)
        if outgoing.context is not None:
            metadata = (*(metadata or ()), (HEADER, str(outgoing.context)))
        call = self._call(*arguments, metadata=metadata, **more)
        if outgoing.recorded:
            task = asyncio.ensure_future(_end(call, outgoing))
            _ending.add(task)
            task.add_done_callback(_ending.discard)
        return call


async def _end(call: Any, outgoing: Outgoing) -> None:
    code = grpc.StatusCode.CANCELLED.name
    try:
        code = (await call.code()).name
    finally:
        outgoing.end(code)
