"""One TLS channel to a server: the one place where a call gets its deadline, token and typed error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import grpc

from sis.client import tracing
from sis.client.errors import ClientClosed, from_grpc
from sis.client.service_config import CALL_SECONDS, STREAM_SECONDS, options

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Connection:
    """A channel to `endpoint`, at which the replicas of `service` may be several; it connects at the first call, and to
    another replica when the one is gone. Close it after use."""

    def __init__(
        self, endpoint: str, token: str, ca: bytes | None, seconds: float = CALL_SECONDS, *, service: str = ""
    ) -> None:
        self.endpoint = endpoint
        trusted = grpc.ssl_channel_credentials(ca)
        self.channel = grpc.aio.secure_channel(endpoint, trusted, options=options(endpoint, service))
        self._closed = False
        self._seconds = seconds
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def call(
        self, method: Callable[..., Awaitable[_Response]], request: object, seconds: float | None = None
    ) -> _Response:
        """Make a call that is answered once.

        Raises:
            ApiError: it was refused, or not answered before the deadline.
            ClientClosed: by then.
        """
        self._check_open()
        try:
            metadata = (*self._metadata, *tracing.metadata())
            return await method(request, timeout=seconds or self._seconds, metadata=metadata)
        except grpc.RpcError as error:
            self._check_open()
            raise from_grpc(error, self.endpoint) from None
        except asyncio.CancelledError:
            # By close(), unless somebody has cancelled the task.
            if (task := asyncio.current_task()) is not None and not task.cancelling():
                self._check_open()
            raise

    async def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[_Request, _Response], request: _Request
    ) -> AsyncGenerator[_Response]:
        """The answers of a server-stream. Closing the iteration early cancels the call.

        Raises:
            ApiError: it was refused, or broke off.
            ClientClosed: by then.
        """
        self._check_open()
        answers = method(request, timeout=STREAM_SECONDS, metadata=(*self._metadata, *tracing.metadata()))
        try:
            async for answer in answers:
                yield answer
        except grpc.RpcError as error:
            self._check_open()
            raise from_grpc(error, self.endpoint) from None
        except asyncio.CancelledError:
            # By close(), unless somebody has cancelled the task.
            if (task := asyncio.current_task()) is not None and not task.cancelling():
                self._check_open()
            raise
        finally:
            answers.cancel()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._closed = True
        await self.channel.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed
