"""What lies in the directory of an attempt beside its assignment, and who supervises it.

    spool                  the log; locked while its writer lives
    supervisor.json        which process supervises the attempt; written once, before the payload is started
    processes              a line `pid start_ticks` for each process of the job that was seen
    control                the supervisor's socket
    work/                  where a payload of the agent's own account starts
    private/               what `private_directory` keeps, where there is no file system in memory
    supervisor.log         the supervisor's own faults

All but the assignment is the supervisor's.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from services.sis_agent.agent import processes

SPOOL: Final = "spool"
IDENTITY: Final = "supervisor.json"
PROCESSES: Final = "processes"
CONTROL: Final = "control"
WORK: Final = "work"
LOG: Final = "supervisor.log"


class AlreadyStarted(Exception):
    """The attempt has had a supervisor before; it is never started twice."""


@dataclass(frozen=True, slots=True)
class SupervisorIdentity:
    """One supervisor: a process that no other one can be mistaken for, and what it holds."""

    pid: int
    start_ticks: int
    boot_id: str
    attempt: str
    """Its token `<job>.<attempt>.<nonce>`, as every process of the payload has it in SIS_ATTEMPT; known to nobody else
    before there is one."""
    cgroup: str = ""
    """The directory of the payload's cgroup; "" where there is none."""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Whoever supervises the attempt or did so; None when nobody has begun to.

        Raises:
            OSError: it is there and cannot be read.
        """
        try:
            values = json.loads((directory / IDENTITY).read_bytes())
            return cls(
                pid=int(values["pid"]),
                start_ticks=int(values["start_ticks"]),
                boot_id=str(values["boot_id"]),
                attempt=str(values["attempt"]),
                cgroup=str(values["cgroup"]),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            # It is linked to its name whole, so only a machine that lost its power can have damaged it, and then
            # nothing of the attempt is left.
            return cls(pid=0, start_ticks=0, boot_id="", attempt="")

    def write(self, directory: Path) -> None:
        """Claim the attempt for this supervisor.

        Raises:
            AlreadyStarted: another one claimed it before.
            OSError: the file cannot be written.
        """
        new = directory / f"{IDENTITY}.new"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        try:
            os.link(new, directory / IDENTITY)
        except FileExistsError:
            raise AlreadyStarted(f"attempt {self.attempt} was started before") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()

    @property
    def of_this_boot(self) -> bool:
        return self.boot_id == processes.boot_id()

    def process(self) -> processes.ProcessInfo | None:
        """The supervisor's process, while it lives."""
        if not self.of_this_boot:
            return None
        found = processes.read(self.pid)
        if found is None or found.start_ticks != self.start_ticks or not found.alive:
            return None
        return found
