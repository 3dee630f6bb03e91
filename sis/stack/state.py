"""`stack.json`: what runs now and how to reach it; and the lock that keeps a data directory to one `sis up`, or to
one other who has it in hand."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
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


class Purpose(enum.StrEnum):
    """What a data directory is held for."""

    UP = "up"
    DOWN = "down"
    """To end what a killed `sis up` has left behind."""
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class _Hold:
    by: Identity
    purpose: Purpose


@contextlib.contextmanager
def lock(layout: Layout, purpose: Purpose = Purpose.UP) -> Iterator[None]:
    """Be the only one who has this data directory in hand. The kernel takes the lock back however the process ends.

    Raises:
        AlreadyUpError: a `sis up` holds it.
        UnderWayError: another process holds it, for something else.
    """
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUpError(keeper(layout)) from None
        identity = this_process()
        # A version that knows of no purpose takes whoever it can read for a `sis up`, and `sis down` ends that.
        words = [processes.boot_id(), str(identity.pid), str(identity.start_ticks)]
        if purpose is not Purpose.UP:
            words.append(purpose)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{' '.join(words)}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)  # this process may live on
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
    found = _hold(layout)
    return found.by if found is not None and found.purpose is Purpose.UP else None


def keeper(layout: Layout) -> Identity | None:
    """As `holder`, for whoever is about to start or stop a stack.

    Raises:
        UnderWayError: another process has the data directory in hand, and must not be disturbed.
    """
    found = _hold(layout)
    if found is not None and found.purpose is not Purpose.UP:
        raise UnderWayError(found.by, found.purpose)
    return None if found is None else found.by


def _hold(layout: Layout) -> _Hold | None:
    try:
        boot, pid, ticks, *purpose = layout.lock.read_text(encoding="ascii").split()
        found = _Hold(Identity(int(pid), int(ticks)), Purpose(" ".join(purpose) or Purpose.UP))
    except (OSError, ValueError):
        return None
    return found if boot == processes.boot_id() and found.by.alive else None


class AlreadyUpError(StackError):
    """Another `sis up` runs on this data directory."""

    def __init__(self, holder: Identity | None) -> None:
        self.holder = holder
        super().__init__(f"the stack is up already{f', kept by PID {holder.pid}' if holder else ''}")


class UnderWayError(StackError):
    """Something else than a `sis up` has this data directory in hand."""

    def __init__(self, holder: Identity, purpose: Purpose) -> None:
        what = "a restore" if purpose is Purpose.RESTORE else f"a `sis {purpose}`"
        super().__init__(f"{what} is under way (PID {holder.pid}); wait for it")
