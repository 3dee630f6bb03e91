"""Methods that take a stream of requests, called with asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def uploading(
    method: grpc.aio.StreamUnaryMultiCallable[_Request, _Response],
) -> Callable[..., Awaitable[_Response]]:
    """The method, so that its answer counts whenever it comes: also as a refusal, before all requests are sent.

    grpc.aio's own way loses it now and then: a write that fails after the call has ended puts its own error in the
    place of the answer (grpc/grpc#36066). So here none is left in flight.
    """

    async def call(requests: Iterable[_Request], *, timeout: float, metadata: Sequence[tuple[str, str]]) -> _Response:
        answer: Any = method(timeout=timeout, metadata=metadata)
        writing = asyncio.create_task(_write(answer, requests))
        answer.add_done_callback(lambda _: writing.cancel())
        try:
            found: _Response = await answer
        finally:
            answer.cancel()
            writing.cancel()
            await asyncio.wait([writing])
        return found

    return call


async def _write(call: Any, requests: Iterable[_Request]) -> None:
    try:
        for request in requests:
            await call.write(request)
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        pass  # it has ended; the answer says why
