"""The spool: the log of an attempt at its site, an append-only file with one writer at a time.

It consists of the frames of `frame_file`. A frame is cut once and never changed. The running digest is
h = SHA-256(h || bytes of the frame), from 32 zero bytes on. The file is locked while it is open for writing, so the
lock says whether a writer lives, whatever the process table says; a writer that died in the middle of a frame leaves a
torn one, which the next writer cuts off, as it does with whatever lies behind the last frame. More than that is damage:
it is cut off as well, the log says so, and its last frame has no digest, so that nobody takes it for complete. An empty
file beside it, `.damaged`, tells later writers.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import os
import time
import zlib
from pathlib import Path
from typing import Final, Self

from services.sis_agent.agent.recording.frame_file import HEADER, MAX_FRAME_BYTES, FrameFile, torn
from services.sis_agent.agent.recording.milestones import Milestones
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

MAX_CHUNK_BYTES: Final = 64 << 10
MAX_TEXT_CHARACTERS: Final = 4_000
DAMAGED: Final = ".damaged"
NO_DIGEST: Final = bytes(32)

_INDEX_STRIDE: Final = 64

Fact = (
    pb.ProcessStarted
    | pb.ProcessSignalled
    | pb.ProcessExited
    | pb.Progress
    | pb.PayloadEnded
    | pb.StopBegun
    | pb.Finished
    | pb.LogTruncated
)
_FACT_FIELDS: Final[dict[type[Fact], str]] = {
    pb.ProcessStarted: "process_started",
    pb.ProcessSignalled: "process_signalled",
    pb.ProcessExited: "process_exited",
    pb.Progress: "progress",
    pb.PayloadEnded: "payload_ended",
    pb.StopBegun: "stop_begun",
    pb.Finished: "finished",
    pb.LogTruncated: "log_truncated",
}


class SpoolError(Exception):
    """The spool cannot be used as asked."""


class SpoolBusy(SpoolError):
    """Another writer has the spool: its supervisor lives."""


class SpoolSealed(SpoolError):
    """The last frame is written; nothing can be appended."""


class SpoolWriter:
    """The one writer of a spool, from where the last one ended. Made by `open`; a context manager that closes it."""

    def __init__(self, descriptor: int, damaged: Path) -> None:
        self._descriptor = descriptor
        self._damage = damaged
        self._offset = 0
        self.sequence = 0
        """Of the last frame; 0 without one."""
        self.digest = NO_DIGEST
        """Of all frames so far."""
        self.output_bytes = 0
        """What the payload has written so far, as far as it was kept."""
        self.finished: pb.Finished | None = None
        """The last frame's fact, once the attempt has ended."""
        self.damaged = damaged.exists()
        """Whether frames that were whole are lost."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Lock the spool, made if it is not there, read it through and cut a torn end off.

        Raises:
            SpoolBusy: another writer has it.
            OSError: the file cannot be opened, read or cut.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        writer = cls(descriptor, path.with_name(path.name + DAMAGED))
        try:
            writer._take_over()
        except BaseException:
            writer.close()
            raise
        return writer

    def append_chunk(self, channel: job_pb2.Channel.ValueType, data: bytes) -> None:
        """Append what the payload wrote: 1 byte to 64 KiB. All or nothing; raises OSError, then repeatable."""
        if not 0 < len(data) <= MAX_CHUNK_BYTES:
            raise ValueError(f"a chunk is 1 to {MAX_CHUNK_BYTES} bytes, not {len(data)}")
        self._append(pb.Frame(chunk=pb.Chunk(channel=channel, data=data)))
        self.output_bytes += len(data)

    def append_notice(self, severity: pb.Severity.ValueType, text: str, fact: Fact | None = None) -> None:
        """Append a system line. All or nothing; raises OSError, then repeatable.

        A `Finished` is given the digest of what precedes it, none where something is lost, and seals the spool.
        """
        notice = pb.Notice(severity=severity, text=clean_text(text))
        if isinstance(fact, pb.Finished):
            fact.digest = b"" if self.damaged else self.digest
        if fact is not None:
            getattr(notice, _FACT_FIELDS[type(fact)]).CopyFrom(fact)
        self._append(pb.Frame(notice=notice))
        if isinstance(fact, pb.Finished):
            self.finished = fact

    def sync(self) -> None:
        """Make what was appended durable. Raises OSError."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let the spool go. Repeatable."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_over(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpoolBusy("another process writes this spool") from None
        frames = FrameFile(self._descriptor)
        while found := frames.next():
            raw, frame = found
            if self.finished is not None or frame.sequence != self.sequence + 1:
                break
            self._count(raw, frame)
        cut = os.fstat(self._descriptor).st_size - self._offset
        if cut > 0:
            damage = self.finished is None and not torn(self._descriptor, self._offset, cut)
            if damage:
                self._damage.touch()
                self.damaged = True
            os.ftruncate(self._descriptor, self._offset)
            os.fdatasync(self._descriptor)
            if damage:
                text = f"This log was damaged at its site: {cut:,} bytes of it, from here on, are lost"
                self.append_notice(pb.SEVERITY_ERROR, text)

    def _append(self, frame: pb.Frame) -> None:
        if self.finished is not None:
            raise SpoolSealed("the last frame of this attempt is written")
        frame.sequence = self.sequence + 1
        frame.time.FromNanoseconds(time.time_ns())
        raw = frame.SerializeToString()
        if len(raw) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame has at most {MAX_FRAME_BYTES} bytes, not {len(raw)}")
        data = memoryview(HEADER.pack(len(raw), zlib.crc32(raw)) + raw)
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._offset + written)
        except OSError:
            if written:
                # Readers and the next writer take the torn frame for what it is; the next append writes over it.
                os.ftruncate(self._descriptor, self._offset)
            raise
        self._offset += len(data)
        self.sequence += 1
        self.digest = hashlib.sha256(self.digest + raw).digest()

    def _count(self, raw: bytes, frame: pb.Frame) -> None:
        self._offset += HEADER.size + len(raw)
        self.sequence += 1
        self.digest = hashlib.sha256(self.digest + raw).digest()
        self.output_bytes += len(frame.chunk.data)
        if frame.notice.WhichOneof("fact") == "finished":
            self.finished = frame.notice.finished


class SpoolReader:
    """Reads whole frames of a spool, also while it is written. Cheap to call again: it goes on where it was.

    A frame that is not whole yet is as if it were not there. One that was read can be gone: where a writer has found
    damage before it, and cut all off from there on, the spool is read anew. For one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: FrameFile | None = None
        # The offsets of frames 1, 65, 129 …, so that going back is not reading everything again.
        self._index = array.array("Q")
        self._sequence = 0
        # The last frame that was read: its sequence, its offset and its header.
        self._furthest = (0, 0, b"")
        self.cuts = 0
        """How often it was noticed that frames which had been read are gone."""
        self.finished: pb.Finished | None = None
        """The last frame's fact, once that frame was read."""
        self.milestones = Milestones()
        """Of the frames that were read."""

    @property
    def last_sequence(self) -> int:
        """Of the last whole frame in the file now; 0 without one. Reads what has been added."""
        while self._advance():
            pass
        return self._sequence

    def read(self, after_sequence: int, max_bytes: int) -> list[bytes]:
        """The serialised frames that follow a sequence, as many as fit, yet at least one where there is one.

        Raises:
            OSError: the file cannot be read. That it is not there yet is no error.
        """
        self._seek(after_sequence)
        frames: list[bytes] = []
        total = 0
        cuts = self.cuts
        while raw := self._advance():
            if self.cuts != cuts:
                frames, total, cuts = [], 0, self.cuts
            if self._sequence <= after_sequence:
                continue
            total += len(raw)
            if frames and total > max_bytes:
                self._seek(self._sequence - 1)
                break
            frames.append(raw)
        return frames if self.cuts == cuts else []

    @property
    def stuck(self) -> bool:
        """Whether more was written behind a frame that is damaged: nothing more will ever be read."""
        return self._frames is not None and self._frames.stuck()

    def sync(self) -> None:
        """Make what is in the file durable, whoever wrote it. Raises OSError."""
        if self._frames is not None:
            os.fdatasync(self._frames.descriptor)

    def close(self) -> None:
        """Let the file go. Repeatable; a later read opens it anew."""
        if self._frames is not None:
            os.close(self._frames.descriptor)
            self._frames = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seek(self, sequence: int) -> None:
        """Go to where the frame after the sequence begins, or before it."""
        entry = min(sequence // _INDEX_STRIDE, len(self._index) - 1)
        if self._frames is None or entry < 0 or sequence == self._sequence or self._cut():
            return
        if sequence < self._sequence or entry * _INDEX_STRIDE > self._sequence:
            self._sequence = entry * _INDEX_STRIDE
            self._frames.offset = self._index[entry]

    def _advance(self) -> bytes | None:
        if self._frames is None:
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            self._frames = FrameFile(descriptor)
            self._sequence = 0
        offset = self._frames.offset
        found = self._frames.next()
        if found is None or found[1].sequence != self._sequence + 1:
            self._frames.offset = offset
            return self._advance() if self._cut() else None
        raw, frame = found
        if self._sequence % _INDEX_STRIDE == 0 and self._sequence // _INDEX_STRIDE == len(self._index):
            self._index.append(offset)
        self._sequence += 1
        if self._sequence > self._furthest[0]:
            self._furthest = (self._sequence, offset, self._frames.header)
        if (fact := frame.notice.WhichOneof("fact")) is not None:
            self.milestones.note(frame)
            if fact == "finished":
                self.finished = frame.notice.finished
        return raw

    def _cut(self) -> bool:
        """Whether what was read is no longer there; then nothing is taken for read."""
        sequence, offset, header = self._furthest
        if self._frames is None or not sequence or self._frames.has(header, offset):
            return False
        self._frames.rewind()
        del self._index[:]
        self._sequence = 0
        self._furthest = (0, 0, b"")
        self.finished = None
        self.cuts += 1
        return True


def clean_text(text: str) -> str:
    """A text as a notice may hold it: bounded, valid Unicode and without NUL characters."""
    return text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode().replace("\0", "\ufffd")
