"""What a payload writes to its two output streams, on its way from the pipes to the spool."""

from __future__ import annotations

import fcntl
import functools
import os
import selectors
import struct
import termios
import time
from typing import Final

from services.sis_agent.agent.recording.output_markers import OutputMarkers
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import MAX_CHUNK_BYTES
from services.sis_agent.agent.secrecy.masking import Masker
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

_FLUSH_BYTES: Final = 32 << 10
_FLUSH_SECONDS: Final = 0.02


class OutputPipes:
    """Two pipes and one buffer. What has come is masked and recorded at 32 KiB, 20 ms after its first byte, or when the
    other stream has something to say, so that the order in which it was read is kept. Only what may be the beginning of
    a secret waits for what follows it, or for the end of its stream. Beyond the cap it is counted and dropped."""

    def __init__(self, selector: selectors.BaseSelector, recorder: Recorder, cap_bytes: int, masker: Masker) -> None:
        self._selector = selector
        self._recorder = recorder
        self._masks = {channel: masker.stream() for channel in (job_pb2.CHANNEL_STDOUT, job_pb2.CHANNEL_STDERR)}
        self._cap = cap_bytes
        self._kept = 0
        self.discarded = 0
        """Bytes dropped at the cap, which counts what is left of them when they are masked."""
        self.markers: Final = OutputMarkers()
        """Those in what was recorded of standard output."""
        self._buffer = bytearray()
        self._channel: job_pb2.Channel.ValueType = job_pb2.CHANNEL_STDOUT
        self._flush_at = 0.0
        stdout, self.stdout = os.pipe()
        stderr, self.stderr = os.pipe()
        self._readers: dict[int, job_pb2.Channel.ValueType] = {
            stdout: job_pb2.CHANNEL_STDOUT,
            stderr: job_pb2.CHANNEL_STDERR,
        }
        self._watching = False
        for descriptor in self._readers:
            os.set_blocking(descriptor, False)

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return bool(self._readers)

    @property
    def flush_at(self) -> float | None:
        """When `flush` is due, by the monotonic clock."""
        return self._flush_at if self._buffer else None

    def close_writers(self) -> None:
        """Let go of the payload's ends, so that the pipes end when it has."""
        os.close(self.stdout)
        os.close(self.stderr)

    def watch(self, active: bool) -> None:
        """Have the selector's events read the pipes from now on, or leave what comes in them."""
        if active == self._watching:
            return
        self._watching = active
        for descriptor in self._readers:
            if active:
                self._selector.register(descriptor, selectors.EVENT_READ, functools.partial(self._read, descriptor))
            else:
                self._selector.unregister(descriptor)

    def read_present(self) -> None:
        """Take out what is in the pipes now, and not what may follow: their other ends may stay busy."""
        for descriptor in list(self._readers):
            present = _bytes_in(descriptor)
            while present > 0 and (count := self._read(descriptor, present)):
                present -= count
        self.flush()

    def flush(self) -> None:
        """Record what has come."""
        if not self._buffer:
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        # Nobody will see what comes beyond the cap, so it is not masked.
        self._record(self._channel, data if self.discarded else self._masks[self._channel].feed(data))

    def close(self) -> None:
        """Let go of what is still open, and record what has come of it: not what a secret begins with, which may go on
        in what is not read any more."""
        for descriptor in list(self._readers):
            self._end(descriptor, cut=True)

    def _read(self, descriptor: int, limit: int = MAX_CHUNK_BYTES) -> int:
        """Take up to 64 KiB out of a pipe; returns how much."""
        if descriptor not in self._readers:
            return 0
        channel = self._readers[descriptor]
        if self._buffer and channel != self._channel:
            self.flush()
        try:
            data = os.read(descriptor, min(limit, MAX_CHUNK_BYTES - len(self._buffer)))
        except BlockingIOError:
            return 0
        if not data:
            self._end(descriptor)
            return 0
        if not self._buffer:
            self._channel = channel
            self._flush_at = time.monotonic() + _FLUSH_SECONDS
        self._buffer += data
        if len(self._buffer) >= _FLUSH_BYTES:
            self.flush()
        return len(data)

    def _end(self, descriptor: int, *, cut: bool = False) -> None:
        self.flush()
        channel = self._readers.pop(descriptor)
        mask = self._masks[channel]
        self._record(channel, mask.cut() if cut else mask.flush())
        if self._watching:
            self._selector.unregister(descriptor)
        os.close(descriptor)

    def _record(self, channel: job_pb2.Channel.ValueType, data: bytes) -> None:
        """Record masked output as far as there is room."""
        room = 0 if self.discarded else min(self._cap - self._kept, len(data))
        self._kept += room
        # What was held back may have made it longer than what was read.
        for start in range(0, room, MAX_CHUNK_BYTES):
            self._recorder.chunk(channel, data[start : min(start + MAX_CHUNK_BYTES, room)])
        if channel == job_pb2.CHANNEL_STDOUT:
            self.markers.feed(data[:room])
        if len(data) > room:
            if self.discarded == 0:
                text = f"The output is longer than {self._cap:,} bytes; what follows is discarded"
                self._recorder.notice(pb.SEVERITY_WARNING, text, pb.LogTruncated(cap_bytes=self._cap))
            self.discarded += len(data) - room


def _bytes_in(descriptor: int) -> int:
    answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", answer)[0])
