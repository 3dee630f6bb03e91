"""`stack.json`: what runs now and how to reach it; and the lock that keeps a data directory to one `sis
up`."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sis.private_files import write_private
from sis.stack import processes
from sis.stack.errors import StackError
from sis.stack.layout import Layout
from sis.stack.processes import Identity, Kind


class ProcessState(BaseModel):
    """One process that `sis up` keeps running. Between a death and the restart it is the dead one that is
    named."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    pid: int
    start_ticks: int
    endpoint: str
    log: str
    restarts: int
    hangs: int = 0
    """How many of the restarts were of one that hung."""

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start_ticks)


class StackState(BaseModel):
    """Everything that another process needs to know of a stack that is up, or was when its `sis up` was
    killed."""

    model_config = ConfigDict(frozen=True)

    boot_id: str
    pid: int
    start_ticks: int
    runtime: Path
    started: bool
    """Whether everything has been started and was healthy once; until then some processes are missing
    here."""
    queue_endpoint: str
    """host:port, or where there are several queues a target of gRPC's with all of them; likewise the next two."""
    hub_endpoint: str
    credentials_endpoint: str
    enrolment_endpoint: str
    """Where agents enrol."""
    gateway_endpoints: tuple[str, ...]
    """host:port of each."""
    ca: Path
    vault_ca: Path
    token: Path
    processes: tuple[ProcessState, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, values: object) -> object:
        # There was one gateway once. A stack of that time can be up while its program is upgraded.
        if isinstance(values, dict) and "gateway_endpoint" in values:
            return {**values, "gateway_endpoints": (values["gateway_endpoint"],)}
        return values

    @property
    def current(self) -> bool:
        """Whether its pids mean anything: the machine has not been started anew since."""
        return self.boot_id == processes.boot_id()

    @property
    def alive(self) -> list[ProcessState]:
        """The processes that still run, whoever keeps them."""
        return [process for process in self.processes if process.identity.alive] if self.current else []


def read(layout: Layout) -> StackState | None:
    """The stack that is up, or was not taken down; None if there is none.

    Raises:
        StackError: the file cannot be read.
    """
    try:
        return StackState.model_validate_json(layout.stack.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StackError(f"{layout.stack} cannot be read: {error.strerror}") from None
    except ValidationError:
        # Writes are atomic, so somebody else's hand was in it. Nothing in it can be believed.
        return None


def write(layout: Layout, state: StackState) -> None:
    write_private(layout.stack, state.model_dump_json(indent=2).encode() + b"\n")


@contextlib.contextmanager
def lock(layout: Layout) -> Iterator[None]:
    """Be the only `sis up` of this data directory. The kernel takes the lock back however the process ends.

    Raises:
        AlreadyUpError: another process holds it.
    """
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUpError(holder(layout)) from None
        identity = this_process()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{processes.boot_id()} {identity.pid} {identity.start_ticks}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def this_process() -> Identity:
    """Who we are, for others to verify."""
    identity = processes.identify(os.getpid())
    if identity is None:
        raise StackError("/proc does not show this process; is it mounted?")
    return identity


def holder(layout: Layout) -> Identity | None:
    """The living `sis up` of this data directory, if any."""
    try:
        boot, pid, ticks = layout.lock.read_text(encoding="ascii").split()
        identity = Identity(int(pid), int(ticks))
    except (OSError, ValueError):
        return None
    return identity if boot == processes.boot_id() and identity.alive else None


class AlreadyUpError(StackError):
    """Another `sis up` runs on this data directory."""

    def __init__(self, holder: Identity | None) -> None:
        self.holder = holder
        super().__init__(f"the stack is up already{f', kept by PID {holder.pid}' if holder else ''}")
