"""GetConsoleOutput: frames to the bytes that are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable

from services.queue.logs import LogRow
from services.queue.ranges import Window
from sis.queue.v1 import frame_pb2


async def to_chunks(parts: AsyncIterable[Iterable[LogRow]], window: Window) -> AsyncIterator[frame_pb2.Chunk]:
    """The chunks of these frames, cut to the window; no more is read once it is done, and nothing where it is empty."""
    if window.done():
        return
    async for rows in parts:
        for row in rows:
            chunk = frame_pb2.Frame.FromString(row.body).chunk
            if data := window.cut(chunk.data):
                yield frame_pb2.Chunk(channel=chunk.channel, data=data)
            if window.done():
                return
