"""The attempts at this site: what names one, and the directory in which everything about it lies."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from google.protobuf.message import DecodeError

from sis.private_files import sync_directory
from sis.queue.v1 import dispatch_service_pb2 as dispatch

log = logging.getLogger(__name__)

ASSIGNMENT = "assignment.binpb"
# In a directory whose attempt is no longer reported by this agent. Nothing but a person removes it.
ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True, order=True)
class AttemptKey:
    """One claim of one job."""

    job_id: int
    number: int

    @classmethod
    def of(cls, attempt: dispatch.Attempt) -> Self:
        return cls(attempt.job_id, attempt.number)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The key that `str` wrote, None for any other text."""
        job_id, _, number = text.partition(".")
        try:
            key = cls(int(job_id), int(number))
        except ValueError:
            return None
        return key if str(key) == text else None

    def to_proto(self) -> dispatch.Attempt:
        return dispatch.Attempt(job_id=self.job_id, number=self.number)

    def __str__(self) -> str:
        return f"{self.job_id}.{self.number}"


class AttemptDirectories:
    """`attempts/<job>.<attempt>/` of the agent's state, mode 0700, one for each attempt that was accepted.

    A directory is made, with the assignment in it, before the journal accepts the attempt, and removed after
    the journal has forgotten it. So beside an intact journal a directory that it does not know holds nothing
    of worth, unless it is marked as orphaned.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, key: AttemptKey) -> Path:
        return self._root / str(key)

    def create(self, assignment: dispatch.Assignment) -> None:
        """Make the directory anew and put the assignment into it.

        The content is durable when it returns. That its name is as well costs two more waits for the disk, and all
        that a power cut can make of that is an attempt that fails because its assignment is lost.
        """
        path = self.path(AttemptKey.of(assignment.attempt))
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(mode=0o700)
        with (path / ASSIGNMENT).open("xb") as file:
            file.write(assignment.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())

    def assignment(self, key: AttemptKey) -> dispatch.Assignment:
        """What the attempt has to do. If that was lost, an assignment of nothing, and a directory to say so in."""
        path = self.path(key)
        try:
            return dispatch.Assignment.FromString((path / ASSIGNMENT).read_bytes())
        except (FileNotFoundError, DecodeError):
            log.exception("the assignment of attempt %s is lost", key)
            path.mkdir(mode=0o700, exist_ok=True)
            return dispatch.Assignment(attempt=key.to_proto())

    def orphan(self, key: AttemptKey) -> None:
        """Mark the attempt as not reported any more, so that its directory is kept for people. Repeatable."""
        (self.path(key) / ORPHANED).touch()
        sync_directory(self.path(key))

    def orphan_all(self) -> None:
        """Mark every attempt that is here; for a new journal, which knows none of them."""
        for key in self:
            self.orphan(key)

    def is_orphaned(self, key: AttemptKey) -> bool:
        return (self.path(key) / ORPHANED).exists()

    def remove(self, key: AttemptKey) -> None:
        """Remove the directory and all that is in it. Repeatable."""
        shutil.rmtree(self.path(key), ignore_errors=True)

    def __iter__(self) -> Iterator[AttemptKey]:
        names = sorted(path.name for path in self._root.iterdir() if path.is_dir())
        return (key for key in map(AttemptKey.parse, names) if key is not None)
