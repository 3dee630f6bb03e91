"""How the child of a guardian becomes the supervisor of an attempt, the only one that it will ever have."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from setproctitle import setproctitle, setthreadtitle

from services.runtime import faults
from services.sis_agent.agent.attempts import AttemptKey, read_assignment
from services.sis_agent.agent.linux import process_tree, processes
from services.sis_agent.agent.linux.cgroup_tree import CgroupTree
from services.sis_agent.agent.linux.process_limit import ProcessLimit
from services.sis_agent.agent.linux.process_tree import ProcessTree
from services.sis_agent.agent.linux.subreaper_tree import SubreaperTree
from services.sis_agent.agent.recording.spool import SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision import payload
from services.sis_agent.agent.supervision.guardian import Guarded
from services.sis_agent.agent.supervision.leases import Leases, LeaseUnreadable, leases_of
from services.sis_agent.agent.supervision.start_failed import StartFailed
from services.sis_agent.agent.supervision.supervisor import Order, Supervisor
from services.sis_agent.agent.supervision.supervisor_identity import LOG, SPOOL, AlreadyStarted, SupervisorIdentity
from sis.packages.manifest import Manifest
from sis.queue.v1 import dispatch_service_pb2 as dispatch

Announce = Callable[[SupervisorIdentity], None]


@dataclass(frozen=True, slots=True)
class Means:
    """What all supervisors of one zygote are given."""

    cgroups: bool
    """Whether payloads can be kept together by cgroups."""
    process_limit: int
    """How many processes a payload may have at once; 0 for any number."""
    identity_directory: Path | None
    """Where the keys are to which leases are sealed; without one, an attempt with leases fails."""


def supervise(
    directory: Path,
    package_directory: Path,
    manifest: Manifest | str,
    announce: Announce,
    guarded: Guarded,
    means: Means,
) -> None:
    """Supervise the attempt that lies in a directory, to its end.

    `announce` is called once the supervisor can be found and stopped; nothing of the payload runs before.

    Raises:
        SpoolBusy, AlreadyStarted: the attempt has or had a supervisor, or has ended. Nothing was started.
        OSError, AssignmentDamaged: its directory cannot be used. Nothing was started.
    """
    process_tree.forbid_attaching()
    _log_to(directory / LOG)
    # The lock on the spool comes first and is kept to the end: whoever gets it knows that no supervisor lives.
    with SpoolWriter.open(directory / SPOOL) as writer:
        if writer.finished is not None:
            raise AlreadyStarted("the attempt has ended")
        assignment = read_assignment(directory)
        key = AttemptKey.of(assignment.attempt)
        setproctitle(f"sis-supervisor: job {key}")
        setthreadtitle("sis-supervisor")  # the name of the process, which would be the title, cut off
        # Everybody can read in /proc what the cgroup is called; from the token follow names that nobody may know yet.
        attempt, group = (f"{key}.{secrets.token_hex(8)}" for _ in range(2))
        tree = (CgroupTree.create(group) if means.cgroups else None) or SubreaperTree()
        try:
            identity = _identity(attempt, tree, guarded)
            identity.write(directory)
            guarded.mark(directory, identity)
            leases, masker = _open(assignment, means.identity_directory)
            faults.point("supervisor.opened")
            limit = ProcessLimit.of(means.process_limit, tree.directory, guarded.pids_cgroup)
            order = Order(directory, package_directory, manifest, assignment, identity, leases, limit)
            supervisor = Supervisor(order, tree, writer, masker)
            announce(identity)
            try:
                supervisor.run()
            except BaseException:
                # A fault of its own: the agent will find a dead supervisor, and this leaves it less to clean up.
                traceback.print_exc()
                tree.kill()
                raise
        finally:
            tree.close()


def _identity(attempt: str, tree: ProcessTree, guarded: Guarded) -> SupervisorIdentity:
    """Who this process is. Raises OSError."""
    own = processes.read(os.getpid())
    if own is None:
        raise OSError("the process table in /proc cannot be read")
    guardian = guarded.process()
    return SupervisorIdentity(
        pid=own.pid,
        start_ticks=own.start_ticks,
        boot_id=processes.boot_id(),
        attempt=attempt,
        cgroup=tree.directory,
        pids_cgroup=str(guarded.pids_cgroup.directory) if guarded.pids_cgroup is not None else "",
        guardian_pid=guardian.pid if guardian is not None else 0,
        guardian_start_ticks=guardian.start_ticks if guardian is not None else 0,
    )


def detach(keep: Collection[int]) -> None:
    """Leave behind, in a fresh fork, what belongs to the zygote: its session, its signals and its descriptors but
    these and the standard ones. Raises OSError."""
    os.setsid()
    os.umask(0o077)
    signal.set_wakeup_fd(-1)
    for number in payload.IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    payload.close_all_but(keep)
    process_tree.become_subreaper()


class MaskedLog(io.TextIOBase):
    """The log for a supervisor's own faults, which must not cause others: what a full disk does not take is lost."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Write a text whole; what it holds of secrets is masked."""
        with contextlib.suppress(OSError):
            os.write(2, self._masker.text(text).encode(errors="replace"))
        return len(text)


def _open(assignment: dispatch.Assignment, identity_directory: Path | None) -> tuple[Leases | StartFailed, Masker]:
    """The secrets of the attempt, and what masks them from now on, in the log too."""
    leases: Leases | StartFailed
    try:
        leases = leases_of(assignment, identity_directory)
    except LeaseUnreadable as error:
        leases, masker = StartFailed(str(error), error.reason), Masker(())
    else:
        masker = Masker(leases.secrets())
    sys.stdout = sys.stderr = MaskedLog(masker)
    return leases, masker


def _log_to(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = sys.stderr = MaskedLog(Masker())
