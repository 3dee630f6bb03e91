"""What /proc says of processes: the sizes of one, and who lives on the whole machine."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sis.stack.processes import Identity

_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """A living process, as `ps` shows it."""

    identity: Identity
    parent: int
    threads: int
    resident: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """All processes at one moment."""

    processes: Mapping[int, Process]
    children: Mapping[int, list[Process]]

    @classmethod
    def look(cls) -> Machine:
        found = {process.identity.pid: process for process in _all()}
        children: defaultdict[int, list[Process]] = defaultdict(list)
        for process in found.values():
            children[process.parent].append(process)
        return cls(found, children)

    def titled(self, parent: int, title: str) -> list[Process]:
        """What descends from a process and calls itself so."""
        return [process for process in self.below(parent) if command(process.identity.pid).startswith(title)]

    def below(self, pid: int) -> list[Process]:
        """A process and all that descend from it."""
        found = [self.processes[pid]] if pid in self.processes else []
        for child in self.children.get(pid, ()):
            found += self.below(child.identity.pid)
        return found


def _all() -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(entry.path, "stat").read_text(errors="replace")
                fields = text[text.rindex(")") + 2 :].split()
                if fields[0] not in "ZX":
                    identity = Identity(int(entry.name), int(fields[19]))
                    yield Process(identity, int(fields[1]), int(fields[17]), int(fields[21]) * _PAGE)


def command(pid: int) -> str:
    """How a process was started, or what it calls itself; "" when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def proportional(pid: int) -> int:
    """Bytes of memory, of which what is shared counts by halves and thirds; 0 when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def open_files(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def payloads(tokens: Collection[str]) -> dict[str, list[int]]:
    """The pids of the living processes of attempts, which have their attempt's token in their environment. Whoever
    belongs to another stack on this machine has another token."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for process in _all():
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{process.identity.pid}/environ").read_bytes().split(b"\0"):
                token = entry.removeprefix(b"SIS_ATTEMPT=").decode(errors="replace")
                if token in tokens:
                    found[token].append(process.identity.pid)
    return found


def size_below(directory: Path) -> int:
    """Bytes of all files below a directory, as far as they are there."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
