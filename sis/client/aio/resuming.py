"""Reading a stream to its end across broken connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from sis.client.errors import STREAM_OVER, ApiError
from sis.client.patience import PATIENCE_SECONDS, Patience

_Response = TypeVar("_Response")
OnInterruption = Callable[[ApiError], None]
"""Is told of each break; not of a stream that has been open for as long as one may be."""


async def resuming(
    open_stream: Callable[[], AsyncGenerator[_Response]],
    note: Callable[[_Response], None],
    *,
    patience: float = PATIENCE_SECONDS,
    on_interruption: OnInterruption | None = None,
) -> AsyncGenerator[_Response]:
    """The responses of a stream, which is opened again whenever it breaks.

    `note` is given each response before it is passed on, to make `open_stream` go on behind it. A response counts as
    progress and ends the interruption.

    Raises:
        ApiError: the call was refused, or for `patience` seconds no stream brought a response.
    """
    left = Patience(patience)
    while True:
        try:
            async with aclosing(open_stream()) as responses:
                async for response in responses:
                    left.renew()
                    note(response)
                    yield response
        except ApiError as error:
            pause = left.pause(error)
            if on_interruption is not None and error.metadata.get("cause") != STREAM_OVER:
                on_interruption(error)
            await asyncio.sleep(pause)
        else:
            return


async def resuming_bytes(
    open_stream: Callable[[int, int], AsyncGenerator[_Response]],
    size: Callable[[_Response], int],
    offset: int,
    length: int,
    *,
    patience: float = PATIENCE_SECONDS,
    on_interruption: OnInterruption | None = None,
) -> AsyncGenerator[_Response]:
    """The responses of a stream of bytes, each byte once, opened again at the byte where it broke.

    `open_stream` is given the offset, and how many bytes to bring (0 for all). Each stream begins with a response
    without bytes, of which only the first is passed on.

    Raises:
        ApiError: as `resuming`.
    """
    position, begun = offset, False

    def remaining() -> int:
        return length - (position - offset) if length else 0

    def note(response: _Response) -> None:
        nonlocal position
        position += size(response)

    stream = resuming(
        lambda: open_stream(position, remaining()), note, patience=patience, on_interruption=on_interruption
    )
    async with aclosing(stream) as responses:
        async for response in responses:
            if begun and not size(response):
                continue
            begun = True
            yield response
            if length and not remaining():
                return  # to be opened again for no bytes would mean for all


async def until_begun(
    open_stream: Callable[[], AsyncGenerator[_Response]], *, patience: float = PATIENCE_SECONDS
) -> AsyncGenerator[_Response]:
    """The responses of a stream that cannot be resumed: it is opened again only while it breaks before its first one.

    Raises:
        ApiError: the call was refused, broke off later, or for `patience` seconds no stream brought a response.
    """
    left, begun = Patience(patience), False
    while True:
        try:
            async with aclosing(open_stream()) as responses:
                async for response in responses:
                    begun = True
                    yield response
        except ApiError as error:
            if begun:
                raise
            await asyncio.sleep(left.pause(error))
        else:
            return
