"""The evidence of an attempt: every process that was seen, what was sent to it and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Self

from google.protobuf.timestamp_pb2 import Timestamp

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.supervision.sightings import Sightings, read_keys
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

MAX_PROCESSES: Final = 1_000

_Key = tuple[int, int]


class Evidence:
    """Records processes as they are seen, tells the log of each, and keeps their start times on disk, so that they
    can be found again if the supervisor is lost. At most 1,000 are recorded; survivors are always named."""

    def __init__(self, recorder: Recorder, keys_file: Path) -> None:
        self._recorder = recorder
        self._records: dict[_Key, job_pb2.Process] = {}
        self._full = False
        self._sightings = Sightings(keys_file)

    @classmethod
    def resume(cls, recorder: Recorder, keys_file: Path, frames: Iterable[pb.Frame]) -> Self:
        """The evidence that a lost supervisor had put into its spool."""
        keys = {pid: (pid, ticks) for pid, ticks in read_keys(keys_file)}
        evidence = cls(recorder, keys_file)
        for frame in frames:
            evidence._replay(frame.notice, frame.time, keys)
        return evidence

    def supervisor(self, process: ProcessInfo) -> None:
        """Tell the log who supervises the attempt. It is no process of the tree, so no stop is about it."""
        self._tell("Package processing", process, self._describe(process, job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR))

    def run_as_executor(self, process: ProcessInfo) -> None:
        """Record the process that stands between supervisor and payload."""
        self._record("Run-as executor", process, job_pb2.PROCESS_ROLE_RUN_AS_EXECUTOR)

    def payload(self, process: ProcessInfo) -> None:
        """Record the initial process of the payload."""
        self._record("Payload processing", process, job_pb2.PROCESS_ROLE_PAYLOAD)

    def seen(self, members: Iterable[ProcessInfo]) -> None:
        """Record those of the tree's processes that are new."""
        for process in members:
            if process.key in self._records:
                self._sightings.saw_again(process)
                continue
            if self._full:
                continue
            if len(self._records) >= MAX_PROCESSES:
                self._full = True
                text = f"More than {MAX_PROCESSES:,} processes were started; further ones are not recorded"
                self._recorder.notice(pb.SEVERITY_WARNING, text)
                continue
            self._record(f"Process {self._name(process)}", process, job_pb2.PROCESS_ROLE_DESCENDANT)

    def looked(self, members: Iterable[ProcessInfo]) -> None:
        """As `seen`, for a look around: what has ended meanwhile is noticed as well."""
        # The ends first: one that is new may have the id of one that has ended, and of an id the last record holds.
        self._sightings.look_for_ends()
        self.seen(members)

    def signalled(self, process: ProcessInfo, name: str) -> None:
        """Record that a signal was sent; the same one again is not told again."""
        self.seen([process])
        record = self._records.get(process.key)
        if record is None or name in record.signals:
            return
        record.signals.append(name)
        record.signal_times.add().GetCurrentTime()
        fact = pb.ProcessSignalled(pid=process.pid, signal=name)
        self._recorder.notice(pb.SEVERITY_INFO, f"Sent {name} to {self._name(process)}, PID {process.pid}", fact)

    def reaped(self, process: ProcessInfo, code: int) -> None:
        """Record how a process ended: its exit code, or minus the number of the signal that ended it."""
        self.seen([process])
        self._sightings.ended(process.key)
        record = self._records.get(process.key)
        if record is None or record.ended:
            return
        record.ended = True
        fact = pb.ProcessExited(pid=process.pid)
        if code < 0:
            record.end_signal = fact.signal = processes.signal_name(-code)
            how = f"was ended by signal {fact.signal}"
        else:
            record.exit_code = fact.exit_code = code
            how = f"exited with code {code}"
        self._recorder.notice(pb.SEVERITY_DEBUG, f"Process {self._name(process)}, PID {process.pid}, {how}", fact)

    def _name(self, process: ProcessInfo) -> str:
        return self._recorder.masked_name(process.name)

    def to_proto(self, method: str, survivors: Iterable[ProcessInfo], *, tree_empty: bool) -> job_pb2.StopEvidence:
        """The evidence as of now. What does not survive has ended, seen or not."""
        alive = {process.key: process for process in survivors}
        for key, record in self._records.items():
            record.ended = key not in alive
        evidence = job_pb2.StopEvidence(
            method=method,
            tree_empty=tree_empty,
            processes=self._records.values(),
            survivors=[
                self._records.get(key) or self._describe(process, job_pb2.PROCESS_ROLE_DESCENDANT)
                for key, process in list(alive.items())[:MAX_PROCESSES]
            ],
        )
        evidence.verify_time.GetCurrentTime()
        return evidence

    def close(self) -> None:
        self._sightings.close()

    def _record(self, what: str, process: ProcessInfo, role: job_pb2.ProcessRole.ValueType) -> None:
        record = self._records[process.key] = self._describe(process, role)
        self._sightings.saw(process)
        self._tell(what, process, record)

    def _tell(self, what: str, process: ProcessInfo, record: job_pb2.Process) -> None:
        text = f"{what} started as {record.identity}, PID {process.pid}"
        # What a script starts by the dozen would bury what is going on; the job's list of processes has all of it.
        minor = record.role == job_pb2.PROCESS_ROLE_DESCENDANT
        severity = pb.SEVERITY_DEBUG if minor else pb.SEVERITY_INFO
        self._recorder.notice(severity, text, pb.ProcessStarted(process=record))

    def _describe(self, process: ProcessInfo, role: job_pb2.ProcessRole.ValueType) -> job_pb2.Process:
        start_time = Timestamp()
        start_time.FromMilliseconds(int(process.start_time * 1000))
        return job_pb2.Process(
            pid=process.pid,
            name=self._name(process),
            identity=processes.identity(process.pid),
            role=role,
            start_time=start_time,
            parent_pid=process.parent_pid,
        )

    def _replay(self, notice: pb.Notice, time: Timestamp, keys: Mapping[int, _Key]) -> None:
        match notice.WhichOneof("fact"):
            case "process_started":
                process = notice.process_started.process
                if process.role != job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR:
                    self._records[_key(process.pid, keys)] = process
            case "process_signalled":
                if record := self._records.get(_key(notice.process_signalled.pid, keys)):
                    record.signals.append(notice.process_signalled.signal)
                    record.signal_times.append(time)
            case "process_exited":
                exited = notice.process_exited
                if record := self._records.get(_key(exited.pid, keys)):
                    record.ended = True
                    record.end_signal = exited.signal
                    if exited.HasField("exit_code"):
                        record.exit_code = exited.exit_code


def _key(pid: int, keys: Mapping[int, _Key]) -> _Key:
    return keys.get(pid, (pid, 0))
