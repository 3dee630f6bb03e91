"""Finishes an attempt whose supervisor is dead: ends what is left of it, and says so in its spool.

The supervisor's guardian is the subreaper of those processes, and says when there are none. They are found by their
descent from it, by their cgroup where there is one, and by what they cannot easily shed: the attempt's name in their
environment, their id and start time where the supervisor had seen them, and descent from any of these. Where the
guardian was killed as well, or nobody can tell any more who it is, that is all there is, beside the session that one of
those was seen to lead, and finding nothing proves nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.runtime import faults
from services.sis_agent.agent.attempts import AssignmentDamaged, read_assignment
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.cgroup_tree import Cgroup
from services.sis_agent.agent.linux.process_limit import PidsCgroup
from services.sis_agent.agent.linux.process_tree import FREEZE_AFTER, frozen, kill_each
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import SpoolBusy, SpoolReader, SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision import stage
from services.sis_agent.agent.supervision.evidence import Evidence
from services.sis_agent.agent.supervision.leases import LeaseUnreadable, leases_of
from services.sis_agent.agent.supervision.sightings import Leader, read_keys, read_leaders
from services.sis_agent.agent.supervision.supervisor_identity import (
    MARK,
    PROCESSES,
    SPOOL,
    SupervisorIdentity,
    SupervisorUnknown,
)
from services.sis_agent.agent.supervision.termination import CONFIRM_SECONDS
from services.sis_agent.agent.supervision.verdict import Verdict
from sis.queue.v1 import frame_pb2 as pb

log = logging.getLogger(__name__)

_LOCK_SECONDS: Final = 1.0
_LOCK_PAUSE: Final = 0.01
_PAUSE: Final = 0.02
_EMPTY_WALKS: Final = 3
_READ_BYTES: Final = 1 << 20


def finish_lost(
    directory: Path,
    identity_directory: Path | None = None,
    *,
    spawned_in: str = "",
    confirm_seconds: float = CONFIRM_SECONDS,
    told: Callable[[], object] = lambda: None,
) -> None:
    """Have the attempt in this directory finished, if its supervisor has not done so itself, and what it has left
    outside removed. Blocks for up to 30 s, calls `told`, for the end is durable, and blocks while it removes the rest.

    Repeatable, also after it was interrupted. Afterwards no supervisor can start the attempt any more. Its secrets are
    masked in what is found; where they cannot be opened with the keys in `identity_directory`, processes have no names.
    `spawned_in` is the machine's boot id when a supervisor was asked for, "" where that is not known: where what was
    written of it has not survived a power cut, nothing else tells of the restart.

    Raises:
        SpoolBusy: a supervisor lives; adopt it.
        OSError: the spool cannot be read or written. Repeatable.
    """
    with _open(directory / SPOOL) as writer:
        history = _History.read(directory / SPOOL) if writer.finished is None else _History()
        identity = _supervisor(directory, history, spawned_in)
        if writer.finished is None:
            if identity is not None and identity.process() is not None:
                raise SpoolBusy("the supervisor of this attempt lives")
            _finish(directory, writer, history, identity, _masker(directory, identity_directory), confirm_seconds)
        told()
        if identity is not None:
            _clear(directory, identity)


def _supervisor(directory: Path, history: _History, spawned_in: str) -> SupervisorIdentity | None:
    """The supervisor that the attempt had; None where it had none. Raises OSError."""
    try:
        identity = SupervisorIdentity.read(directory)
    except SupervisorUnknown as error:
        log.warning("%s, and what it may have left outside of that directory cannot be found", error)
    else:
        # Its record is written before the first frame, but reaches the disk when the kernel pleases.
        if identity is not None or not (history.started or spawned_in not in ("", processes.boot_id())):
            return identity
    # Nobody can be held to be it, and that the machine has restarted since, only the journal can tell.
    return SupervisorIdentity(0, 0, spawned_in or processes.boot_id(), "")


def _clear(directory: Path, identity: SupervisorIdentity) -> None:
    """Remove what the attempt has left outside of its directory. Last: what still ran could have made it anew."""
    if identity.attempt:
        stage.remove_leftovers(identity.attempt, directory)
    if identity.cgroup:
        Cgroup(Path(identity.cgroup)).remove()
    if identity.pids_cgroup:
        PidsCgroup(Path(identity.pids_cgroup)).remove()


def _masker(directory: Path, identity_directory: Path | None) -> Masker | None:
    """For the secrets of the attempt; None where they are not known."""
    try:
        return Masker(leases_of(read_assignment(directory), identity_directory).secrets())
    except (AssignmentDamaged, LeaseUnreadable, OSError):
        return None


def _finish(
    directory: Path,
    writer: SpoolWriter,
    history: _History,
    identity: SupervisorIdentity | None,
    masker: Masker | None,
    confirm_seconds: float,
) -> None:
    recorder = Recorder(writer, masker or Masker())
    evidence = Evidence.resume(recorder, directory / PROCESSES, _noticed(directory / SPOOL))
    try:
        remains = Remains(directory, identity, named=masker is not None)
        survivors = _end(remains, evidence, confirm_seconds)
        verdict = _judge(history, remains, left=bool(survivors), started=identity is not None, damaged=writer.damaged)
        finished = pb.Finished(
            outcome=verdict.outcome,
            failure_reason=verdict.failure_reason,
            evidence=evidence.to_proto(remains.method, survivors, tree_empty=remains.proven and not survivors),
            # What was in the pipes of its payload, and beyond the cap of the log, nobody can tell any more.
            output_cut=identity is not None,
        )
        if history.exit_code is not None:
            finished.result_code = history.exit_code
        faults.point("agent.lost.writing")
        recorder.notice(verdict.severity, verdict.text, finished)
        recorder.sync()
        if recorder.trouble is not None:
            raise recorder.trouble
        faults.point("agent.lost.written")
    finally:
        evidence.close()


class Remains:
    """What is left of an attempt whose supervisor is dead."""

    def __init__(self, directory: Path, identity: SupervisorIdentity | None, *, named: bool) -> None:
        """A process that is not to be `named` is called "?": it may have given itself a secret for a name."""
        self._named = named
        self._started = identity is not None
        self._identity = identity if identity is not None and identity.of_this_boot else None
        self._mark = directory / MARK
        # Without its last part, which is damaged with the rest, the name is no attempt's own.
        self._token = f"SIS_ATTEMPT={identity.attempt}".encode() if identity is not None and identity.attempt else None
        self._cgroup = Cgroup(Path(identity.cgroup)) if self._identity and identity and identity.cgroup else None
        self._seen = dict(read_keys(directory / PROCESSES))
        self._leaders = read_leaders(directory / PROCESSES)
        self._kills = 0

    @property
    def method(self) -> str:
        """How it is looked for, as the evidence names it."""
        if self._identity is None:
            return "reboot" if self._started else ""
        if self._cgroup is not None:
            return "cgroup"
        return "guardian" if self.proven or self._identity.guardian() is not None else "environment"

    @property
    def proven(self) -> bool:
        """Whether it is certain that nothing is left: nothing was started, the machine has restarted since, or the
        guardian has seen the last of it. A cgroup alone is no proof: root can leave it."""
        return self._identity is None or (self._identity.guardian_pid != 0 and not self._mark.exists())

    def members(self) -> list[ProcessInfo]:
        """The living processes that can be found. None after a restart of the machine."""
        if self._identity is None:
            return []
        table = processes.read_all()
        inside = self._cgroup.pids() if self._cgroup else set()
        found = {
            process.key: process
            for process in table
            if process.pid in inside
            or self._was_seen(process)
            or (self._token is not None and processes.environment_has(process.pid, self._token))
        }
        guardian = self._identity.guardian()
        if guardian is not None and guardian.key not in {process.key for process in table}:
            guardian = None
        if guardian is None and not self.proven:
            found |= {process.key: process for process in _in_sessions(self._leaders, table, found)}
        roots = [pid for pid, _ in found]
        if guardian is not None:
            roots.append(guardian.pid)
        found |= {process.key: process for process in processes.descendants(table, roots)}
        members = [process for process in found.values() if process.alive and process.pid != os.getpid()]
        return members if self._named else [replace(process, name=b"?") for process in members]

    def kill(self, members: list[ProcessInfo]) -> list[ProcessInfo]:
        """Send KILL to these, and to all of the cgroup; returns those that were hit by name."""
        self._kills += 1
        hit = kill_each(frozen(self.members) if self._kills > FREEZE_AFTER else members)
        if self._cgroup is not None:
            self._cgroup.kill()
        return hit

    def empty(self) -> bool:
        """Whether the cgroup and the guardian, as far as they are there, agree that nothing is left."""
        if self._cgroup is not None and self._cgroup.populated():
            return False
        return self.proven or self._identity is None or self._identity.guardian() is None

    def wake(self) -> None:
        """Have a guardian that somebody has stopped go on, or it cannot see the end."""
        guardian = self._identity.guardian() if self._identity is not None else None
        if guardian is not None and guardian.stopped:
            processes.send_signal(guardian, signal.SIGCONT)

    def _was_seen(self, process: ProcessInfo) -> bool:
        return self._seen.get(process.pid) == process.start_ticks


def _in_sessions(
    leaders: Mapping[int, Leader], table: Collection[ProcessInfo], found: Container[tuple[int, int]]
) -> Iterator[ProcessInfo]:
    """The processes of the sessions that these led, by their ids, as far as those are the same sessions still.

    The kernel gives an id to nobody else while there is a session of that id. So a session is the attempt's as a whole
    or not at all: it is where somebody in it was found already, or was there before its leader was seen to end. Without
    either, somebody else may have the id by now.
    """
    starts = {process.pid: process.start_ticks for process in table}
    sessions: dict[int, list[ProcessInfo]] = {}
    for process in table:
        if process.session in leaders:
            sessions.setdefault(process.session, []).append(process)
    for session, members in sessions.items():
        leader = leaders[session]
        until = sys.maxsize if leader.ended_ticks is None else leader.ended_ticks
        if starts.get(session, leader.start_ticks) == leader.start_ticks and any(
            process.key in found or leader.start_ticks <= process.start_ticks <= until for process in members
        ):
            yield from members


@dataclass(slots=True)
class _History:
    """What the spool says of the attempt's end so far."""

    started: bool = False
    """Whether there was a supervisor: the first thing that it writes is who it is."""
    cause: pb.StopKind.ValueType | None = None
    """The first stop that was begun before the payload had ended."""
    ended: bool = False
    exit_code: int | None = None

    @classmethod
    def read(cls, spool: Path) -> _History:
        history = cls()
        for notice in (frame.notice for frame in _noticed(spool)):
            fact = notice.WhichOneof("fact")
            if fact == "process_started":
                history.started = True
            elif fact == "stop_begun" and not history.ended and history.cause is None:
                history.cause = notice.stop_begun.kind
            elif fact == "payload_ended":
                history.ended = True
                if notice.payload_ended.HasField("exit_code"):
                    history.exit_code = notice.payload_ended.exit_code
        return history


def _open(spool: Path) -> SpoolWriter:
    """The spool, as soon as its last writer has let it go."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return SpoolWriter.open(spool)
        except SpoolBusy:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOCK_PAUSE)


def _noticed(spool: Path) -> Iterator[pb.Frame]:
    """The frames that are notices."""
    with SpoolReader(spool) as reader:
        sequence = 0
        while frames := reader.read(sequence, _READ_BYTES):
            sequence += len(frames)
            for frame in map(pb.Frame.FromString, frames):
                if frame.HasField("notice"):
                    yield frame


def _end(remains: Remains, evidence: Evidence, confirm_seconds: float) -> list[ProcessInfo]:
    """Kill until nothing is found three times in a row, or the time is over; returns what is left then.

    Once is not enough: a process has no environment for a moment while it execs.
    """
    deadline = time.monotonic() + confirm_seconds
    empty_walks = 0
    while True:
        members = remains.members()
        empty_walks = empty_walks + 1 if not members and remains.empty() else 0
        if empty_walks == _EMPTY_WALKS or time.monotonic() > deadline:
            return members
        remains.wake()
        evidence.seen(members)
        faults.point("agent.kill.sending")
        for process in remains.kill(members):
            evidence.signalled(process, "KILL")
        faults.point("agent.kill.sent")
        time.sleep(_PAUSE)


def _judge(history: _History, remains: Remains, *, left: bool, started: bool, damaged: bool) -> Verdict:
    if not started:
        return Verdict(pb.OUTCOME_FAILED, "SUPERVISOR_LOST", "Failed: no supervisor was started for this job")
    if left:
        text = "Failed: the supervisor of this job was lost, and processes of the job could not be ended"
        return Verdict(pb.OUTCOME_FAILED, "SUPERVISOR_LOST", text)
    gone = "no process of it is left" if remains.proven else "no process of it was found, which is no proof"
    if history.cause == pb.STOP_KIND_TIME_OUT:
        text = f"Ended at its run timeout; its supervisor was lost meanwhile, and {gone}"
        return Verdict(pb.OUTCOME_TIMED_OUT, "RUN_TIMEOUT", text)
    if history.cause is not None:
        text = f"The job was stopped; its supervisor was lost meanwhile, and {gone}"
        return Verdict(pb.OUTCOME_STOPPED, "", text)
    if damaged:
        text = f"Failed: the log of this job was damaged at its site, so nobody can tell how it ended; {gone}"
        return Verdict(pb.OUTCOME_FAILED, "LOG_DAMAGED", text)
    text = f"Failed: the supervisor of this job was lost; what was left of the job was ended, and {gone}"
    return Verdict(pb.OUTCOME_FAILED, "SUPERVISOR_LOST", text)
