"""The interceptor that puts every call of a server through the layers of `interceptors`.

Requests are deserialised inside all of them, so that bytes which are no message get a typed error too.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidArgument
from services.runtime.interceptors import Call, Context, Handler, Layer

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Chain(grpc.aio.ServerInterceptor):
    """Puts every call of a server through the layers, whichever of request and response is a stream.

    A servicer answers by returning or yielding and reads requests from its argument, never by `context.read`.
    """

    def __init__(self, chain: Sequence[Layer]) -> None:
        self._layers = chain
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # grpc answers UNIMPLEMENTED
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        read = _read_stream if handler.request_streaming else _read_one
        # Typed for grpc's threads; here it is the coroutine or generator function of an asyncio servicer.
        behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def respond(raw: Any, context: Context) -> Any:
            async with self._around(method, handler, context):
                response = await behaviour(read(handler, raw), context)
                # Inside the layers, since a response that cannot be serialised is a fault like any other.
                return handler.response_serializer(response) if handler.response_serializer else response

        async def stream(raw: Any, context: Context) -> None:
            async with self._around(method, handler, context):
                responses = behaviour(read(handler, raw), context)
                if not isinstance(responses, AsyncIterable):
                    await responses  # it writes to the context itself, as the health service does
                    return
                async with aclosing(responses):  # type: ignore[type-var]
                    async for response in responses:
                        await context.write(response)

        if handler.request_streaming:
            if handler.response_streaming:
                return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
            return grpc.stream_unary_rpc_method_handler(respond, None, None)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(respond, None, None)

    @asynccontextmanager
    async def _around(self, method: str, handler: Handler, context: Context) -> AsyncIterator[None]:
        call = Call(
            method=method,
            streams_requests=handler.request_streaming,
            streams_responses=handler.response_streaming,
            context=context,
            request_id=_request_id(context),
        )
        async with AsyncExitStack() as stack:
            for layer in self._layers:
                await stack.enter_async_context(layer(call))
            yield


def _read_one(handler: Handler, raw: bytes) -> Any:
    if handler.request_deserializer is None:
        return raw
    try:
        return handler.request_deserializer(raw)
    except (DecodeError, UnicodeDecodeError):
        raise InvalidArgument(
            "the request is not the message that this method takes: send one that its .proto file describes, "
            "with every string in UTF-8",
            reason="MALFORMED_REQUEST",
        ) from None


async def _read_stream(handler: Handler, raws: AsyncIterable[bytes]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield _read_one(handler, raw)


def _request_id(context: Context) -> str:
    """The client's `x-request-id` where it is fit for a log, else a random one."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)
