"""What a simulated site has written down, and what it says of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sis.agent.v1 import agent_service_pb2 as stream
from sis.queue.v1 import dispatch_service_pb2 as queue
from sis.queue.v1 import frame_pb2, job_pb2
from tests.acceptance.lifecycle.rulebook import Operation
from tests.support.frames import Spool

Key = tuple[int, int]
"""Of an attempt: job and number."""
ENDED = ("STALE_ATTEMPT", "LOG_SEALED")
"""Refusals after which an attempt is forgotten."""


@dataclass
class Hand:
    """An attempt in the journal of a site."""

    key: Key
    spool: Spool
    confirmed: bool = False
    """Its acceptance is committed."""
    acknowledged: int = 0
    stop: frame_pb2.StopKind.ValueType = frame_pb2.STOP_KIND_UNSPECIFIED
    """What it was told."""
    unsure: int = 0
    """So many of `happened` were sent, and nobody knows whether they arrived."""
    happened: list[Operation] = field(default_factory=list)
    """What is in the spool and not acknowledged, as the model has it."""
    phase: str = "ready"
    """ready, running, ended (the payload), finished (the attempt)."""

    def copied(self) -> Hand:
        """As it is now."""
        spool = copy.copy(self.spool)
        spool.bodies = list(spool.bodies)
        return replace(self, spool=spool, happened=list(self.happened))


@dataclass
class Journal:
    """What a site remembers."""

    id: str
    record: int = 0
    hands: dict[Key, Hand] = field(default_factory=dict)
    declined: set[Key] = field(default_factory=set)

    def copied(self) -> Journal:
        """A backup."""
        return Journal(self.id, self.record, {k: h.copied() for k, h in self.hands.items()}, set(self.declined))


@dataclass(frozen=True)
class Hello:
    """What an agent said of itself, and when it was answered."""

    at: datetime
    journal: str
    record: int
    held: frozenset[Key]
    slots: int


@dataclass(frozen=True)
class Answer:
    """What became of a report: a refusal's reason, "" when it was committed, None when nobody knows."""

    reason: str | None
    sequence: int = 0


def frames(key: Key, bodies: Sequence[bytes]) -> stream.AgentReport:
    """A report of frames."""
    return stream.AgentReport(attempt=attempt(key), frames=queue.FrameBatch(frames=bodies))


def accepted(key: Key) -> stream.AgentReport:
    """An acceptance."""
    return stream.AgentReport(attempt=attempt(key), accepted=queue.Accepted())


def declined(key: Key) -> stream.AgentReport:
    """A decline."""
    return stream.AgentReport(attempt=attempt(key), declined=queue.Declined(reason="full"))


def other_frame(sequence: int, text: bytes) -> bytes:
    """A frame with this number that no spool has."""
    chunk = frame_pb2.Chunk(channel=job_pb2.CHANNEL_STDOUT, data=text)
    return frame_pb2.Frame(sequence=sequence, chunk=chunk).SerializeToString()


def attempt(key: Key) -> queue.Attempt:
    return queue.Attempt(job_id=key[0], number=key[1])
