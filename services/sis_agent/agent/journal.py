"""The agent's journal: what it has promised and begun, on disk before it happens.

A text file of `records`. The first names the journal; each later one moves one attempt a step on. They are numbered
through the life of the journal, over compactions and restarts, so a server that sees a lower number knows that
something was lost.

The journal is the one place that decides whether an attempt may be started: SPAWNING is recorded at most once
for an attempt, durably, before anybody is asked to spawn it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from services.runtime import faults
from services.sis_agent.agent.attempts import AttemptKey
from services.sis_agent.agent.errors import IllegalStep, JournalDamaged, JournalUnwritable
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.records import sealed, unsealed
from sis.private_files import sync_directory

log = logging.getLogger(__name__)

# Beyond this size the journal is written anew, with what still matters.
COMPACTION_BYTES: Final = 1 << 20
# So many forgotten attempts are remembered, lest a late copy of an assignment starts one again.
FORGOTTEN_KEPT: Final = 1_000
_BLOCK_BYTES: Final = 512


class Step(StrEnum):
    """How far an attempt has come at this site."""

    ACCEPTED = "ACCEPTED"
    """It is in hand, and nothing is spawned. After a crash: go on."""
    DECLINED = "DECLINED"
    """It never started and never will. After a crash: say so again."""
    SPAWNING = "SPAWNING"
    """A supervisor was asked for, once and for all. After a crash: find it, or prove it dead."""
    FORGOTTEN = "FORGOTTEN"
    """The server wants nothing more of it. After a crash: remove what is left."""


NEXT_STEPS: Final[Mapping[Step | None, frozenset[Step]]] = MappingProxyType(
    {
        None: frozenset({Step.ACCEPTED, Step.DECLINED}),
        Step.ACCEPTED: frozenset({Step.SPAWNING, Step.FORGOTTEN}),
        Step.DECLINED: frozenset({Step.FORGOTTEN}),
        Step.SPAWNING: frozenset({Step.FORGOTTEN}),
        Step.FORGOTTEN: frozenset(),
    }
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an attempt stands: its last step, when its first record was made (the site's clock, seconds since
    1970), why it was declined, and the boot id of the machine when a supervisor was asked for."""

    step: Step
    received_at: float
    reason: str = ""
    spawned_in: str = ""


class Journal:
    """The journal in a file. One process at a time may have it open."""

    def __init__(self, path: Path, journal_id: str) -> None:
        self._path = path
        self._descriptor = -1
        self._size = 0
        self._compact_at = COMPACTION_BYTES
        self._entries: dict[AttemptKey, Entry] = {}
        self._numbers: dict[AttemptKey, int] = {}
        self.journal_id: Final = journal_id
        self.record_number = 0

    @property
    def entries(self) -> Mapping[AttemptKey, Entry]:
        """The attempts that the journal knows, the forgotten ones among them, by their latest record."""
        return MappingProxyType(self._entries)

    @classmethod
    def open_or_create(cls, path: Path, before_creation: Callable[[], None]) -> Self:
        """Open the journal; with none there, or a damaged one, which is set aside beside it, begin a new one.

        Calls `before_creation` before a new journal can be seen: it knows nothing of what lies at this site.

        Raises:
            OSError: neither the old one can be read nor a new one be written. Nothing has changed.
        """
        try:
            return cls.open(path)
        except FileNotFoundError:
            log.info("there is no journal yet; a new one begins", extra={"path": str(path)})
        except JournalDamaged as error:
            content = path.read_bytes()
            # The same again by the same name: where a new one cannot be begun, each start comes by here.
            aside = path.with_name(f"{path.name}.damaged-{hashlib.sha256(content).hexdigest()[:16]}")
            log.error("the journal is set aside and a new one begins: %s", error, extra={"aside": str(aside)})  # noqa: TRY400
            # A copy and not a move: until the new journal is there, the damaged one must be found again.
            try:
                aside.write_bytes(content)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
        before_creation()
        return cls.create(path)

    @classmethod
    def create(cls, path: Path) -> Self:
        """Begin a journal, in place of any that is there. Durable when it returns."""
        journal = cls(path, uuid.uuid4().hex)
        journal.record_number = 1
        journal._rewrite()
        return journal

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the journal, and cut off a record that was never finished.

        Raises:
            FileNotFoundError: there is none.
            JournalDamaged: a finished record cannot be read, or one is missing.
        """
        content = path.read_bytes()
        whole = _without_torn_tail(content)
        try:
            header, *records = [_record(number, line) for number, line in enumerate(whole.split(b"\n")[:-1], 1)]
            journal = cls(path, str(header["journal"]))
            journal._replay(int(str(header["n"])), int(str(header["kept"])), records)
        except (KeyError, ValueError, IllegalStep) as error:
            raise JournalDamaged(f"the records of the journal contradict each other: {error!r}") from error
        journal._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        journal._size = len(whole)
        if len(whole) < len(content):
            log.warning("cut %d bytes of an unfinished record off the journal", len(content) - len(whole))
            os.ftruncate(journal._descriptor, len(whole))
        # What is relied upon from here on was perhaps written, and never made durable.
        os.fsync(journal._descriptor)
        sync_directory(path.parent)
        return journal

    def append(self, step: Step, keys: Iterable[AttemptKey], reason: str = "") -> None:
        """Record that attempts take a step; several take it together or not at all. Durable when it returns.

        Raises:
            IllegalStep: one of them cannot take it; nothing was recorded.
            JournalUnwritable: nothing was recorded.
        """
        now = time.time()
        moved: dict[AttemptKey, Entry] = {}
        for key in keys:
            entry = self._entries.get(key)
            if key in moved or step not in NEXT_STEPS[entry.step if entry else None]:
                before = entry.step if entry else "nothing"
                raise IllegalStep(f"attempt {key} cannot become {step} after {before}")
            moved[key] = replace(entry, step=step) if entry else Entry(step, now, reason)
            if step is Step.SPAWNING:
                moved[key] = replace(moved[key], spawned_in=processes.boot_id())
        lines = [_line(self.record_number + n, key, entry) for n, (key, entry) in enumerate(moved.items(), 1)]
        faults.point(f"agent.{step.lower()}.journalling")
        self._write(b"".join(lines))
        faults.point(f"agent.{step.lower()}.journalled")
        for key, entry in moved.items():
            self._apply(self.record_number + 1, key, entry)
        if self._size > self._compact_at:
            self._compact()

    def close(self) -> None:
        """Close the file. Repeatable; nothing can be appended afterwards."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _apply(self, number: int, key: AttemptKey, entry: Entry) -> None:
        # Popped first: the order of the dictionary is that of the records.
        self._entries.pop(key, None)
        self._entries[key] = entry
        self._numbers[key] = number
        self.record_number = max(number, self.record_number)

    def _replay(self, number: int, kept: int, records: list[dict[str, object]]) -> None:
        self.record_number = number
        for position, record in enumerate(records):
            key = AttemptKey(int(str(record["job"])), int(str(record["attempt"])))
            step, reason = Step(str(record["step"])), str(record["reason"])
            # Older journals do not say in which boot.
            entry = Entry(step, float(str(record["at"])), reason, str(record.get("boot", "")))
            known = self._entries.get(key)
            if position >= kept:
                if record["n"] != self.record_number + 1:
                    raise ValueError(f"record {self.record_number + 1} is missing")
                if entry.step not in NEXT_STEPS[known.step if known else None]:
                    raise IllegalStep(f"attempt {key} cannot become {entry.step}")
            self._apply(int(str(record["n"])), key, entry)
        if len(records) < kept:
            raise ValueError("records are missing")

    def _write(self, content: bytes) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
            _write_all(self._descriptor, content, self._size)
            os.fsync(self._descriptor)
        except OSError as error:
            # What a failed write or fsync leaves in the file is unknown: a new try must write it again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise JournalUnwritable(f"the journal cannot be written: {error}") from error
        self._size += len(content)

    def _compact(self) -> None:
        forgotten = [key for key, entry in self._entries.items() if entry.step is Step.FORGOTTEN]
        for key in forgotten[: -FORGOTTEN_KEPT or None]:
            del self._entries[key], self._numbers[key]
        try:
            self._rewrite()
        except OSError as error:
            # The journal is as good as before, only longer.
            log.warning("the journal could not be compacted: %s", error)
        self._compact_at = max(COMPACTION_BYTES, 2 * self._size)

    def _rewrite(self) -> None:
        header = {"n": self.record_number, "journal": self.journal_id, "kept": len(self._entries)}
        lines = [_line(self._numbers[key], key, entry) for key, entry in self._entries.items()]
        content = b"".join([sealed(header), *lines])
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, content, 0)
            faults.point("agent.journal.syncing")
            os.fsync(descriptor)
            fresh.rename(self._path)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor, self._size = descriptor, len(content)
        sync_directory(self._path.parent)
        faults.point("agent.journal.synced")


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _line(number: int, key: AttemptKey, entry: Entry) -> bytes:
    record = {
        "n": number,
        "step": entry.step,
        "job": key.job_id,
        "attempt": key.number,
        "at": entry.received_at,
        "reason": entry.reason,
        "boot": entry.spawned_in,
    }
    return sealed(record)


def _record(number: int, line: bytes) -> dict[str, object]:
    record = unsealed(line)
    if record is None:
        raise JournalDamaged(f"line {number} of the journal is damaged")
    return record


def _without_torn_tail(content: bytes) -> bytes:
    """The content without a last write that a crash has cut short.

    A file can have grown before its blocks were written, so a tail from a first hole on counts as unwritten too, as
    long as no whole record follows. Any other fault is damage.
    """
    hole = content.find(b"\0")
    if hole >= 0:
        behind = len(content[hole:].lstrip(b"\0"))
        # What is missing of a write is blocks.
        if behind and (len(content) - behind) % _BLOCK_BYTES:
            raise JournalDamaged("there is a hole within a record of the journal")
        if any(unsealed(line) is not None for line in re.split(rb"[\0\n]", content[hole:])):
            raise JournalDamaged("there is a hole in the journal")
        content = content[:hole]
    end = content.rfind(b"\n") + 1
    if unsealed(content[end:-1]) is not None:
        # A write cut short ends before what it was to end with, and never with something else.
        raise JournalDamaged("the last record of the journal has lost its end")
    return content[:end]
