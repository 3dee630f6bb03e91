"""The frames of a log as they lie in a file:

<u32 length><u32 CRC-32><bytes of a serialised Frame>   (little-endian), again and again
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Final

from google.protobuf.message import DecodeError

from sis.queue.v1 import frame_pb2 as pb

MAX_FRAME_BYTES: Final = 4 << 20
"""A length beyond it is damage. The largest frame is the last, with its outputs and its evidence."""
HEADER: Final = struct.Struct("<II")

_READ_BYTES: Final = 256 << 10


class FrameFile:
    """Whole frames of a file, one after the other from an offset, read ahead in large pieces."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.offset = 0
        self.header = b""
        """Of the last frame that was read; no two frames of a log have the same."""
        self._buffer = b""
        self._buffer_offset = 0

    def next(self) -> tuple[bytes, pb.Frame] | None:
        """The frame at the offset, which moves behind it; None when no whole one is there (yet)."""
        header = self._take(self.offset, HEADER.size, fresh=False)
        if header is None:
            return None
        length, checksum = HEADER.unpack(header)
        if not 0 < length <= MAX_FRAME_BYTES:
            self._forget()
            return None
        raw = self._take(self.offset + HEADER.size, length, fresh=False)
        if raw is None:
            return None
        if zlib.crc32(raw) != checksum:
            self._forget()
            return None
        try:
            frame = pb.Frame.FromString(raw)
        except DecodeError:
            self._forget()
            return None
        self.offset += HEADER.size + length
        self.header = header
        return raw, frame

    def has(self, header: bytes, offset: int) -> bool:
        """Whether the frame with this header is still there."""
        return os.pread(self.descriptor, HEADER.size, offset) == header

    def rewind(self) -> None:
        """Read from the beginning again, what the file holds by now."""
        self.offset = 0
        self._forget()

    def stuck(self) -> bool:
        """Whether no frame can be read at the offset, and not because it is still being written."""
        size = os.fstat(self.descriptor).st_size
        header = os.pread(self.descriptor, HEADER.size, self.offset)
        if len(header) < HEADER.size:
            return False
        length, _ = HEADER.unpack(header)
        if 0 < length <= MAX_FRAME_BYTES and self.offset + HEADER.size + length >= size:
            return False
        # Only now, that it was seen to be followed by something: it may have been completed since the last look.
        offset = self.offset
        self._forget()
        found = self.next()
        self.offset = offset
        return found is None

    def _forget(self) -> None:
        # What was read ahead may have been the middle of a write.
        self._buffer = b""

    def _take(self, offset: int, size: int, *, fresh: bool) -> bytes | None:
        start = offset - self._buffer_offset
        if start >= 0 and start + size <= len(self._buffer):
            return self._buffer[start : start + size]
        if fresh:
            return None
        self._buffer_offset = offset
        self._buffer = os.pread(self.descriptor, max(size, _READ_BYTES), offset)
        return self._take(offset, size, fresh=True)


def torn(descriptor: int, offset: int, size: int) -> bool:
    """Whether that many bytes behind the last whole frame are one that was never finished. A file can have grown before
    it was written, so zeros at its end count as unwritten too."""
    most = HEADER.size + MAX_FRAME_BYTES
    if size > most and any(os.pread(descriptor, most, offset + size - most)):
        return False
    rest = os.pread(descriptor, min(size, most), offset).rstrip(b"\0")
    if len(rest) < HEADER.size:
        return True
    length, _ = HEADER.unpack_from(rest)
    if not len(rest) - HEADER.size < length <= MAX_FRAME_BYTES:
        return False
    # The length may be what is damaged: then other frames follow somewhere.
    for start in range(1, len(rest) - HEADER.size):
        length, checksum = HEADER.unpack_from(rest, start)
        end = start + HEADER.size + length
        if length > 0 and end <= len(rest) and zlib.crc32(rest[start + HEADER.size : end]) == checksum:
            return False
    return True
