"""What lies in the directory of an attempt beside its assignment, and who supervises it.

    spool                  the log; locked while its writer lives
    spool.damaged          says that frames of it are lost
    orphaned               says that the agent does not report the attempt any more
    supervisor.json        which process supervises the attempt; written once, before the payload is started
    guarded                the mark of its guardian, which says the same
    guarded.emptied        what becomes of that when nothing of the attempt is left
    processes              which processes of the job were seen, as `sightings` keeps them
    control                the supervisor's socket
    work/                  where a payload of the agent's own account starts
    private/               what `private_directory` keeps, where there is no file system in memory
    supervisor.log         the supervisor's own faults

What is named from supervisor.json on is the supervisor's; the log is so while it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.records import checksum

SPOOL: Final = "spool"
IDENTITY: Final = "supervisor.json"
MARK: Final = "guarded"
EMPTIED: Final = "guarded.emptied"
PROCESSES: Final = "processes"
CONTROL: Final = "control"
WORK: Final = "work"
LOG: Final = "supervisor.log"
_TRACES: Final = (IDENTITY, MARK, EMPTIED, PROCESSES, CONTROL, WORK, LOG)
_CREDENTIALS: Final = struct.Struct("3i")


def was_supervised(directory: Path) -> bool:
    """Whether anything in the directory shows that a supervisor was asked for, whatever else says that none was: then
    none may be asked for again."""
    return any(os.path.lexists(directory / name) for name in _TRACES)


class AlreadyStarted(Exception):
    """The attempt has had a supervisor before; it is never started twice."""


class SupervisorUnknown(Exception):
    """What is written of the attempt's supervisor is damaged. The lock on the spool tells whether one lives."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is damaged: who supervises the attempt cannot be told")


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
    pids_cgroup: str = ""
    """That of the cgroup (v1) which counts the payload's processes, the supervisor's among them; "" for none."""
    guardian_pid: int = 0
    """Of the guardian, that is the supervisor's parent; 0 for none."""
    guardian_start_ticks: int = 0

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Whoever supervises the attempt or did so, as the mark of its guardian says where the record is gone or
        damaged. None without any of it: nobody has begun to, or all of it is lost.

        Raises:
            SupervisorUnknown: something is there, and is not what was written.
            OSError: something is there and cannot be read.
        """
        unread: SupervisorUnknown | OSError | None = None
        # The mark before what becomes of it: one of them is found, whenever that happens.
        for name in (IDENTITY, MARK, EMPTIED):
            try:
                return cls._written(directory / name)
            except FileNotFoundError:
                continue
            except (SupervisorUnknown, OSError) as error:
                unread = unread or error
        if unread is not None:
            raise unread
        return None

    @classmethod
    def _written(cls, path: Path) -> Self:
        try:
            values = json.loads(path.read_bytes())
            if values.pop("checksum") == checksum(values):
                return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SupervisorUnknown(path) from error
        raise SupervisorUnknown(path)

    @classmethod
    def listening(cls, directory: Path) -> Self | None:
        """Whoever listens on the attempt's control socket, as far as that tells: for where what is written of the
        supervisor is damaged, or gone."""
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.setblocking(False)
                client.connect(f"/proc/self/fd/{descriptor}/{CONTROL}")
                pid, _, _ = _CREDENTIALS.unpack(
                    client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
        except OSError:
            return None
        finally:
            os.close(descriptor)
        found = processes.read(pid)
        return cls(pid, found.start_ticks, processes.boot_id(), "") if found is not None else None

    def write(self, directory: Path) -> None:
        """Claim the attempt for this supervisor.

        Raises:
            AlreadyStarted: another one claimed it before.
            OSError: the file cannot be written.
        """
        new = directory / f"{IDENTITY}.new"
        new.write_bytes(self._content())
        try:
            os.link(new, directory / IDENTITY)
        except FileExistsError:
            raise AlreadyStarted(f"attempt {self.attempt} was started before") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()

    def mark(self, directory: Path) -> None:
        """Write the same into the mark of its guardian. Once, for whoever has claimed the attempt. Raises OSError."""
        with (directory / MARK).open("xb") as file:
            file.write(self._content())

    def _content(self) -> bytes:
        values = asdict(self)
        return json.dumps({**values, "checksum": checksum(values)}).encode()

    @property
    def of_this_boot(self) -> bool:
        return self.boot_id == processes.boot_id()

    def process(self) -> processes.ProcessInfo | None:
        """The supervisor's process, while it lives."""
        return self._living(self.pid, self.start_ticks)

    def guardian(self) -> processes.ProcessInfo | None:
        """Its guardian's, while that one lives."""
        return self._living(self.guardian_pid, self.guardian_start_ticks)

    def _living(self, pid: int, start_ticks: int) -> processes.ProcessInfo | None:
        found = processes.read(pid) if self.of_this_boot and pid else None
        return found if found is not None and found.start_ticks == start_ticks and found.alive else None
