"""Writes a supervisor's frames to the spool, and waits for the disk when it must, without losing one."""

from __future__ import annotations

import copy
import sys
from collections import deque
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.sis_agent.agent.recording.spool import Fact, SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

MAX_NAME_BYTES: Final = 15
"""What Linux keeps of the name of a process."""

_RETRY_SECONDS: Final = 1.0

_Chunk = tuple[job_pb2.Channel.ValueType, bytes]
_Notice = tuple[pb.Severity.ValueType, str, Fact | None]


class Recorder:
    """Keeps what cannot be written in memory, in order, and tries again each second.

    The backlog is bounded by those who record: while `blocked`, no pipe is read and no process is looked for, so only
    what a stop has to say is added. System lines are masked here, with every text in their facts; output was before.
    """

    def __init__(self, writer: SpoolWriter, masker: Masker) -> None:
        self._writer = writer
        self._masker = masker
        self._backlog: deque[_Chunk | _Notice] = deque()
        self._sync_wanted = False
        self._retry_at = 0.0
        self.trouble: OSError | None = None
        """Why the spool could not be written; None where it could."""

    @property
    def blocked(self) -> bool:
        """Whether the spool could not be written: record only what must not be lost."""
        return bool(self._backlog) or self._sync_wanted

    @property
    def retry_at(self) -> float | None:
        """When `retry` has something to do, by the monotonic clock."""
        return self._retry_at if self.blocked else None

    @property
    def sequence(self) -> int:
        """Of the last frame in the spool."""
        return self._writer.sequence

    def chunk(self, channel: job_pb2.Channel.ValueType, data: bytes) -> None:
        """Record what the payload wrote, masked."""
        self._record((channel, data))

    def notice(self, severity: pb.Severity.ValueType, text: str, fact: Fact | None = None) -> None:
        """Record a system line, after masking it; the fact itself is not changed."""
        if self._masker and fact is not None:
            fact = copy.deepcopy(fact)
            self._mask_fields(fact)
        self._record((severity, self.masked(text), fact))

    def masked(self, text: str) -> str:
        """A text as it may be recorded: mask it before anything of it is changed or cut off."""
        return self._masker.text(text)

    def masked_name(self, name: bytes) -> str:
        """The name of a process as it may be recorded. The kernel cuts names short, and what is left of a secret would
        not be known later, within another text."""
        return self._masker.data(name, cut=len(name) >= MAX_NAME_BYTES).decode(errors="replace")

    def sync(self) -> None:
        """Make all that was recorded durable, now or as soon as the disk permits."""
        self._sync_wanted = True
        if not self._backlog:
            self._write()

    def retry(self, now: float) -> None:
        """Try again what is waiting, if it is time to."""
        if self.blocked and now >= self._retry_at:
            self._retry_at = now + _RETRY_SECONDS
            self._write()

    def _record(self, entry: _Chunk | _Notice) -> None:
        waiting = self.blocked
        self._backlog.append(entry)
        if not waiting:
            self._write()

    def _mask_fields(self, message: Message) -> None:
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                for inner in value if field.is_repeated else (value,):
                    self._mask_fields(inner)
            elif field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
                value[:] = map(self.masked, value)
            elif field.type == FieldDescriptor.TYPE_STRING:
                setattr(message, field.name, self.masked(value))

    def _write(self) -> None:
        try:
            while self._backlog:
                entry = self._backlog[0]
                if len(entry) == 2:
                    self._writer.append_chunk(*entry)
                else:
                    self._writer.append_notice(*entry)
                self._backlog.popleft()
            if self._sync_wanted:
                self._writer.sync()
                self._sync_wanted = False
            self.trouble = None
        except OSError as error:
            self.trouble = error
            print(f"the spool cannot be written: {error}; trying again each second", file=sys.stderr, flush=True)
