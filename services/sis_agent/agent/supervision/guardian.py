"""The guardian: one process above each supervisor, which has nothing to do but to outlive it.

It is a child subreaper, so whatever a killed supervisor leaves behind becomes its child, however it has tried to get
away. When the kernel says that the guardian has no child any more, nothing of the attempt is left: then it takes the
mark in the attempt's directory away, and ends. It renames it, which needs no room on the disk, for the mark says who
the two were, also where the supervisor's own record is lost. So whoever comes later can tell, from the mark alone:

    no mark                 the supervisor has ended, and every process that descended from it
    a mark, a guardian      something is left, and it descends from the guardian
    a mark, no guardian     the guardian was killed; what it had under it can be anywhere
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final, NoReturn

from setproctitle import setproctitle

from services.runtime import faults
from services.sis_agent.agent.linux import process_tree, processes
from services.sis_agent.agent.linux.process_limit import PidsCgroup
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.supervision import payload
from services.sis_agent.agent.supervision.supervisor_identity import EMPTIED, MARK, SupervisorIdentity

_MAX_PATH_BYTES: Final = 4096


class Guarded:
    """The supervisor's side of its guardian."""

    def __init__(self, pid: int, line: int, pids_cgroup: PidsCgroup | None) -> None:
        self._pid = pid
        self._line = line
        self.pids_cgroup: Final = pids_cgroup
        """In which this process is, and all that it starts."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What this process must keep open."""
        return (self._line,)

    def process(self) -> ProcessInfo | None:
        """The guardian, while it lives."""
        return processes.read(self._pid) if os.getppid() == self._pid else None

    def mark(self, directory: Path, identity: SupervisorIdentity) -> None:
        """Have the attempt in this directory guarded, which this process, by this identity, has claimed. Once.

        Raises:
            OSError: it cannot be.
        """
        # First: a mark that the guardian does not know of would stay for ever.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._line, os.fsencode(directory))
        os.close(self._line)
        identity.mark(directory)
        process_tree.outlive_parent()


def fork_guarded(process_limit: int) -> Guarded:
    """Have the calling process, a fresh fork of the zygote, be a guardian. Returns in its child, which is to be the
    supervisor, and dies with the guardian until it has marked a directory.

    Raises:
        OSError: it cannot be, or its child cannot be limited. Either is to end then.
    """
    os.setsid()
    process_tree.become_subreaper()
    process_tree.forbid_attaching()
    for number in payload.IGNORED:
        signal.signal(number, signal.SIG_IGN)
    pids_cgroup = PidsCgroup.create(process_limit) if process_limit else None
    guardian = os.getpid()
    try:
        reader, line = os.pipe()
        child = os.fork()
    except OSError:
        if pids_cgroup is not None:
            pids_cgroup.remove()
        raise
    if child != 0:
        _guard(reader, pids_cgroup)
    os.close(reader)
    process_tree.die_with_parent(guardian)
    if pids_cgroup is not None:
        pids_cgroup.enter()
    return Guarded(guardian, line, pids_cgroup)


def _guard(reader: int, pids_cgroup: PidsCgroup | None) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        setproctitle("sis-guardian")
        payload.close_all_but([reader])
        _close_output()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, process_tree.WAIT_ALL)
        # Nobody is left who could still write.
        if directory := os.read(reader, _MAX_PATH_BYTES):
            faults.point("guardian.emptied")
            _take_away(Path(os.fsdecode(directory)))
            faults.point("guardian.unmarked")
        if pids_cgroup is not None:
            pids_cgroup.remove()
    finally:
        os._exit(0)


def _take_away(directory: Path) -> None:
    mark = directory / MARK
    with contextlib.suppress(FileNotFoundError):
        try:
            mark.rename(directory / EMPTIED)
        except OSError:  # there is no room after all
            mark.unlink()


def _close_output() -> None:
    """Let go of the agent's standard output and error: whoever reads them waits for the end of the agent, and of nobody
    else."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)
