"""What an attempt reports, as the queue understands it: frames of its log and the facts in them.

The proto is `sis.queue.v1.Frame`; `convert` reads it into these. The digest covers the bytes of the frames.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

DIGEST_START = bytes(32)
"""The digest of an empty log."""


def extend_digest(digest: bytes, frame: bytes) -> bytes:
    """The running digest after one more frame: SHA-256(digest || frame)."""
    return hashlib.sha256(digest + frame).digest()


class Channel(IntEnum):
    """The streams of a log; the numbers are the proto's and the database's."""

    SYSTEM = 1
    STDOUT = 2
    STDERR = 3
    DEBUG = 4


class Severity(IntEnum):
    """How much a system line matters; the numbers are the proto's and the database's. Output has NONE."""

    NONE = 0
    DEBUG = 1
    INFO = 2
    WARNING = 3
    ERROR = 4


class StopKind(StrEnum):
    """What a stop does; an abort overtakes the others."""

    CANCEL = "CANCEL"
    TIME_OUT = "TIME_OUT"
    ABORT = "ABORT"


class Outcome(StrEnum):
    """How an attempt ended, as its journal proves."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    TIMED_OUT = "TIMED_OUT"


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """A process was seen. `process` is the JSON of `sis.queue.v1.Process`."""

    pid: int
    payload: bool
    process: dict[str, object]


@dataclass(frozen=True, slots=True)
class ProcessSignalled:
    pid: int
    signal: str


@dataclass(frozen=True, slots=True)
class ProcessExited:
    pid: int
    exit_code: int | None
    signal: str


@dataclass(frozen=True, slots=True)
class Progress:
    percent: int
    text: str


@dataclass(frozen=True, slots=True)
class PayloadEnded:
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class StopBegun:
    kind: StopKind
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last frame. `evidence` is the JSON of `sis.queue.v1.StopEvidence`; `digest` covers the frames before."""

    outcome: Outcome
    failure_reason: str
    message: str
    result_code: int | None
    outputs: dict[str, str]
    tree_empty: bool
    evidence: dict[str, object]
    digest: bytes
    discarded_bytes: int
    output_cut: bool


Fact = ProcessStarted | ProcessSignalled | ProcessExited | Progress | PayloadEnded | StopBegun | Finished


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: what is stored of it, and the fact in it, if there is one."""

    sequence: int
    at: datetime
    channel: Channel
    severity: Severity
    body: bytes
    output_bytes: int
    fact: Fact | None
