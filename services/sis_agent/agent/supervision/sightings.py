"""The processes of an attempt that its supervisor has seen, kept on disk, so that they can be found again if the
supervisor is lost: which they were, whether they led a session of their own, and by when they had ended.

Only the ends of leaders are kept. One record a line; of the same process the last one holds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.records import sealed, unsealed


@dataclass(frozen=True, slots=True)
class Leader:
    """A process that led the session of its id when it was seen."""

    start_ticks: int
    ended_ticks: int | None
    """When it was known to have ended, as `ProcessInfo.start_ticks`; None where nobody has seen that."""


class Sightings:
    """Writes what is seen. To be closed. On a full disk nothing is kept: the spool will tell."""

    def __init__(self, file: Path) -> None:
        """Raises OSError."""
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._leading: set[tuple[int, int]] = set()

    def saw(self, process: ProcessInfo) -> None:
        """This one was seen, as it is now."""
        leads = process.session == process.pid
        if leads:
            self._leading.add(process.key)
        self._write({"pid": process.pid, "start_ticks": process.start_ticks, "led": leads})

    def saw_again(self, process: ProcessInfo) -> None:
        """As `saw`, where that says anything new: it has taken a session of its own since."""
        if process.session == process.pid and process.key not in self._leading:
            self.saw(process)

    def ended(self, key: tuple[int, int]) -> None:
        """This one has ended."""
        if key in self._leading:
            self._leading.remove(key)
            pid, start_ticks = key
            end = {"pid": pid, "start_ticks": start_ticks, "led": True, "ended_ticks": processes.now_ticks()}
            self._write(end)

    def look_for_ends(self) -> None:
        """See which of the leaders have ended."""
        for key in list(self._leading):
            current = processes.read(key[0])
            if current is None or current.key != key or not current.alive:
                self.ended(key)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, record: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):
            # What a full disk has cut short before must not become one line with it.
            os.write(self._file, b"\n" + sealed({"boot": processes.boot_id(), **record}))


def read_keys(file: Path) -> list[tuple[int, int]]:
    """Process id and start time of each process that was seen since the machine was started, as far as they were
    written down and are undamaged. Before that, they were those of others. Raises OSError."""
    return [(int(str(record["pid"])), int(str(record["start_ticks"]))) for record in _read(file)]


def read_leaders(file: Path) -> dict[int, Leader]:
    """Of the same processes those that led a session, by its id: of several that have had one id, the last. Raises
    OSError."""
    leaders: dict[int, Leader] = {}
    for record in _read(file):
        pid, ended = int(str(record["pid"])), record.get("ended_ticks")
        if record.get("led"):
            leaders[pid] = Leader(int(str(record["start_ticks"])), int(str(ended)) if ended is not None else None)
        else:
            leaders.pop(pid, None)
    return leaders


def _read(file: Path) -> Iterator[dict[str, object]]:
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for record in map(unsealed, lines):
        if record is not None and record.get("boot") == processes.boot_id():
            yield record
