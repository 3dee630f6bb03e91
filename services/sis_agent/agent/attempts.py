"""The attempts at this site: what names one, and the directory in which everything about it lies."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from google.protobuf.message import DecodeError

from services.runtime import faults
from services.sis_agent.agent.linux.removal import remove_tree
from sis.private_files import sync_directory
from sis.queue.v1 import dispatch_service_pb2 as dispatch

log = logging.getLogger(__name__)

ASSIGNMENT = "assignment"
"""The name of the file: the SHA-256 of the serialised message, and the message."""
_DIGEST_BYTES = 32
# In a directory whose attempt is no longer reported by this agent. Nothing but a person removes it.
ORPHANED = "orphaned"
_ASIDE = ".aside"


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


class AssignmentDamaged(Exception):
    """What an attempt has to do was lost."""


def write_assignment(directory: Path, assignment: dispatch.Assignment) -> None:
    """Put an assignment into the directory of its attempt, which has none. Its content is durable when it returns."""
    content = assignment.SerializeToString(deterministic=True)
    with (directory / ASSIGNMENT).open("xb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        faults.point("agent.assignment.syncing")
        os.fsync(file.fileno())
        faults.point("agent.assignment.synced")


def read_assignment(directory: Path) -> dispatch.Assignment:
    """What `write_assignment` has written, and nothing else: one flipped bit could be another command.

    Raises:
        AssignmentDamaged: it is not there, or not what was written.
        OSError: it cannot be read.
    """
    path = directory / ASSIGNMENT
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            raise AssignmentDamaged(f"{path} is damaged")
        return dispatch.Assignment.FromString(content[_DIGEST_BYTES:])
    except FileNotFoundError:
        raise AssignmentDamaged(f"{path} is gone") from None
    except DecodeError:
        raise AssignmentDamaged(f"{path} is damaged") from None


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
        key = AttemptKey.of(assignment.attempt)
        path = self.path(key)
        if path.exists():
            self.remove(key)
        path.mkdir(mode=0o700)
        write_assignment(path, assignment)

    def assignment(self, key: AttemptKey) -> dispatch.Assignment:
        """What the attempt has to do. If that is lost, or cannot be read, an assignment of nothing, and a directory to
        say so in, if it can be made."""
        path = self.path(key)
        try:
            return read_assignment(path)
        except (AssignmentDamaged, OSError) as error:
            log.error("the assignment of attempt %s is lost: %s", key, error)  # noqa: TRY400
            with contextlib.suppress(OSError):
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
        """Remove the directory and all that is in it, as far as `remove_tree` can. Repeatable."""
        remove_tree(self.path(key))

    def set_aside(self, key: AttemptKey) -> Path:
        """Have the directory be of no attempt any more, so that it can be removed while others come; returns where it
        is. Raises OSError."""
        aside = self._root / f"{key}.{secrets.token_hex(8)}{_ASIDE}"
        self.path(key).rename(aside)
        return aside

    def aside(self) -> list[Path]:
        """What was set aside and is still here."""
        return sorted(self._root.glob(f"*{_ASIDE}"))

    def __iter__(self) -> Iterator[AttemptKey]:
        names = sorted(path.name for path in self._root.iterdir() if path.is_dir())
        return (key for key in map(AttemptKey.parse, names) if key is not None)
