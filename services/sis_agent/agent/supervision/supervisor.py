"""The supervisor: one process for each attempt, which starts the payload, keeps everything that it says, ends it when
asked to, and proves that nothing of it is left.

It is forked by its guardian, has a session of its own and lives on when agent and zygote die. One loop over descriptors
and deadlines does everything, so that nothing keeps a stop waiting.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from services.runtime import faults
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.process_limit import ProcessLimit
from services.sis_agent.agent.linux.process_tree import WAIT_ALL, ProcessTree
from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.recording import outputs, spool
from services.sis_agent.agent.recording.output_pipes import OutputPipes
from services.sis_agent.agent.recording.progress import ProgressFile
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision import command, payload, run_as, stage, verdict
from services.sis_agent.agent.supervision.control import Control
from services.sis_agent.agent.supervision.evidence import Evidence
from services.sis_agent.agent.supervision.leases import Leases
from services.sis_agent.agent.supervision.payload import Command
from services.sis_agent.agent.supervision.private_directory import OUTPUT, PROGRESS
from services.sis_agent.agent.supervision.run_as import Account
from services.sis_agent.agent.supervision.stage import Stage
from services.sis_agent.agent.supervision.start_failed import StartFailed
from services.sis_agent.agent.supervision.supervisor_identity import PROCESSES, SupervisorIdentity
from services.sis_agent.agent.supervision.termination import Termination
from services.sis_agent.agent.supervision.verdict import Ending, Verdict
from sis.packages.manifest import Manifest
from sis.packages.operation import Operation
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

_LOOK_SECONDS: Final = 1.0
_LOOK_SHARE: Final = 50  # looking around takes at most a fiftieth of the time
_EMPTINESS_SECONDS: Final = 0.02
_DRAIN_SECONDS: Final = 1.0
_Limit = Literal["run_timeout", "cancel_grace", "output_timeout"]
_DEFAULT_GRACE: Final = 10.0
_DEFAULT_OUTPUT_TIMEOUT: Final = 60.0
_DEFAULT_LOG_CAP: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Order:
    """What a supervisor is made for."""

    directory: Path
    """Of the attempt."""
    package_directory: Path
    """Of the unpacked package."""
    manifest: Manifest | str
    """Of the package; or why it cannot be used."""
    assignment: dispatch.Assignment
    identity: SupervisorIdentity
    leases: Leases | StartFailed
    """The secrets of the attempt; or why it cannot have them."""
    limit: ProcessLimit
    """Of the payload."""


class Supervisor:
    """One attempt, from its start to its last frame.

    It can be stopped as soon as it is made; nothing of the payload runs before `run`.
    """

    def __init__(self, order: Order, tree: ProcessTree, writer: SpoolWriter, masker: Masker) -> None:
        assignment = order.assignment
        self._order = order
        self._tree = tree
        self._masker = masker
        grace, output = _seconds(assignment, "cancel_grace"), _seconds(assignment, "output_timeout")
        self._grace = _DEFAULT_GRACE if grace is None else grace
        self._output_timeout = _DEFAULT_OUTPUT_TIMEOUT if output is None else output
        # What the payload leaves behind must be gone before the output is waited for no longer.
        self._leftover_grace = min(self._grace, self._output_timeout / 2)
        self._recorder = Recorder(writer, masker)
        self._evidence = Evidence(self._recorder, order.directory / PROCESSES)
        self._termination = Termination(tree, self._evidence)
        self._selector = selectors.DefaultSelector()
        cap_bytes = assignment.log_cap_bytes or _DEFAULT_LOG_CAP
        self._pipes = OutputPipes(self._selector, self._recorder, cap_bytes, masker)
        self._control = Control(order.directory, self._selector, self._stop)
        self._told_sequence = 0
        self._look_at = 0.0

        self._uid = os.geteuid()  # of the payload
        self._limit_told = False
        self._stage: Stage | None = None
        self._progress: ProgressFile | None = None
        self._payload: ProcessInfo | None = None
        self._payload_pid = 0
        self._started_at = 0.0
        self._run_until: float | None = None
        self._stop_kind: pb.StopKind.ValueType = pb.STOP_KIND_UNSPECIFIED
        self._cause: pb.StopKind.ValueType | None = None
        # Set when the initial process is reaped.
        self._exit_code: int | None = None
        self._ended_at: float | None = None
        # Set when the tree is empty, or is waited for no longer.
        self._drain_until: float | None = None
        self._tree_empty = False
        self._survivors: list[ProcessInfo] = []
        self._finished = False

    def run(self) -> None:
        """Start the payload and see it to its end. Returns when the last frame is durable."""
        self._wake_on_children()
        if own := processes.read(os.getpid()):
            self._evidence.supervisor(own)
        try:
            operation = self._start()
        except StartFailed as error:
            self._tree_empty = self._tree.emptied()
            self._finish(Verdict(pb.OUTCOME_FAILED, error.reason, f"Failed: {error}"), {})
            return
        self._step()
        while not self._drained():
            self._wait()
            self._step()
        self._pipes.close()
        checked, problems = self._outputs(operation)
        ending = Ending(self._exit_code, self._cause, self._tree_empty, problems, checked.missing)
        self._finish(verdict.judge(ending), checked.values)

    def _start(self) -> Operation:
        """Start the payload; returns what it does. Raises StartFailed."""
        order = self._order
        if isinstance(order.manifest, str):
            raise StartFailed(order.manifest)
        operation = command.operation_of(order.assignment, order.manifest)
        faults.point("supervisor.starting")
        started = payload.start(self._command(order, operation), self._tree, self._pipes.stdout, self._pipes.stderr)
        if isinstance(order.leases, Leases):
            order.leases.forget()
        faults.point("supervisor.started")
        self._started_at = time.monotonic()
        self._pipes.close_writers()
        if limit := _seconds(order.assignment, "run_timeout"):
            self._run_until = self._started_at + limit
        self._look_at = self._started_at + _LOOK_SECONDS
        if started.executor is not None and (executor := processes.read(started.executor)):
            self._evidence.run_as_executor(executor)
        self._payload_pid = started.pid
        self._payload = processes.read(started.pid)  # not reaped yet, so it is there, unless /proc hides it from us
        if self._payload is not None:
            # It may have ended and been orphaned by now.
            parent = started.executor or self._payload.parent_pid
            self._evidence.payload(replace(self._payload, parent_pid=parent))
        faults.point("supervisor.recorded")
        return operation

    def _command(self, order: Order, operation: Operation) -> Command:
        """What to start, with its directories and the files of its secrets. Raises StartFailed."""
        if isinstance(order.leases, StartFailed):
            raise order.leases
        account = self._account(order.leases)
        attempt = order.identity.attempt
        try:
            self._stage = stage.make(attempt, order.directory, order.package_directory, account)
            self._progress = ProgressFile(self._stage.private.inside(PROGRESS), self._masker)
            built = command.build(order.assignment, operation, order.leases, self._stage, account, attempt)
            self._uid = account.uid if account is not None else self._uid
            return replace(built, account_limit=order.limit.of_account(self._uid))
        except OSError as error:
            raise StartFailed(f"the payload's files could not be made: {error.strerror or error}") from None
        finally:
            if self._stage is not None and self._stage.secrets_on_disk:
                where = "No file system in memory can be had here"
                text = f"{where}: the files of the credentials are on disk until the job ends"
                self._recorder.notice(pb.SEVERITY_WARNING, text)

    def _account(self, leases: Leases) -> Account | None:
        """The account that the payload has to become; None for the agent's own. The log is told. Raises StartFailed."""
        leased = leases.account
        account = run_as.find(leased) if leased is not None else None
        own = processes.account_name(os.geteuid())
        if leased is None:
            text = f"{'No Run As' if leases else 'No credentials'}: the payload runs as the agent's own account {own}"
        elif account is None:
            text = f"Run as {own} (credential {leased.credential}), the agent's own account"
        else:
            text = f"Run as {account.name} (credential {leased.credential})"
        self._recorder.notice(pb.SEVERITY_INFO, text)
        return account

    # ---- the loop

    def _step(self) -> None:
        """Do everything that is due."""
        now = time.monotonic()
        self._reap()
        if self._run_until is not None and now >= self._run_until and self._ended_at is None and self._cause is None:
            self._begin_stop(pb.STOP_KIND_TIME_OUT, "the run timeout has passed")
        if self._drain_until is None:
            self._termination.advance(now)
        self._recorder.retry(now)
        # A full disk holds the payload back: its pipes stay full.
        self._pipes.watch(not self._recorder.blocked)
        if self._pipes.flush_at is not None and now >= self._pipes.flush_at:
            self._pipes.flush()
        if now >= self._look_at:
            self._look()
        if self._drain_until is None:
            self._settle(now)
        elif self._recorder.blocked:
            # What is in the pipes waits for the disk, however long that takes.
            self._drain_until = now + _DRAIN_SECONDS
        self._tell_watchers()

    def _wait(self) -> None:
        """Sleep until something happens or is due, and take what has come."""
        due = [self._look_at, self._recorder.retry_at, self._pipes.flush_at]
        if self._drain_until is not None:
            due.append(self._drain_until)
        elif self._ended_at is not None:
            due += [self._termination.due_at, time.monotonic() + _EMPTINESS_SECONDS]
        else:
            due += [self._termination.due_at, self._run_until if self._cause is None else None]
        self._handle_events(min(at for at in due if at is not None))

    def _handle_events(self, until: float) -> None:
        for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
            key.data()

    def _wake_on_children(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)

        self._selector.register(reader, selectors.EVENT_READ, drain)

    def _tell_watchers(self) -> None:
        if self._recorder.sequence != self._told_sequence:
            self._told_sequence = self._recorder.sequence
            self._control.notify()

    def _look(self) -> None:
        """Record new processes and progress."""
        before = time.monotonic()
        if not self._recorder.blocked:
            self._evidence.looked(self._tree.members())
            self._report_progress()
            self._report_limit()
        after = time.monotonic()
        self._look_at = after + max(_LOOK_SECONDS, (after - before) * _LOOK_SHARE)

    def _report_progress(self) -> None:
        if self._progress is not None and (report := self._progress.news()):
            fact = pb.Progress(percent=report.percent, text=report.text)
            self._recorder.notice(pb.SEVERITY_INFO, f"Progress: {report.percent} % {report.text}".rstrip(), fact)

    def _report_limit(self) -> None:
        if not self._limit_told and (text := self._order.limit.reached(self._uid)):
            self._limit_told = True
            self._recorder.notice(pb.SEVERITY_WARNING, text)

    # ---- the end of processes

    def _reap(self) -> None:
        """Take the exit of every child that has ended: the payload, and orphans of its tree."""
        while True:
            try:
                # Left a zombie at first, so that its name can still be read.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WAIT_ALL)
            except ChildProcessError:
                return
            if found is None:
                return
            process = processes.read(found.si_pid)
            _, status = os.waitpid(found.si_pid, WAIT_ALL)
            code = os.waitstatus_to_exitcode(status)
            # Its id is free for others only once it was reaped.
            of_payload = found.si_pid == self._payload_pid and self._ended_at is None
            if of_payload:
                self._pipes.read_present()
            if process is not None:
                self._evidence.reaped(process, code)
            if of_payload:
                self._payload_ended(code)

    def _payload_ended(self, code: int) -> None:
        faults.point("supervisor.reaped")
        now = self._ended_at = time.monotonic()
        self._exit_code = code
        self._report_progress()
        self._report_limit()
        fact = pb.PayloadEnded()
        fact.run_time.FromMilliseconds(int((now - self._started_at) * 1000))
        if code < 0:
            fact.signal = processes.signal_name(-code)
            how = f"was ended by signal {fact.signal}"
        else:
            fact.exit_code = code
            how = f"ended with exit code {code}"
        text = f"Payload processing {how} after {now - self._started_at:.1f} s"
        self._recorder.notice(pb.SEVERITY_INFO, text, fact)
        if not self._tree.empty() and (left := self._tree.members()):
            self._recorder.notice(pb.SEVERITY_WARNING, "Ending the processes that the payload has left behind")
            self._termination.terminate(left, now, self._leftover_grace)

    def _settle(self, now: float) -> None:
        """Look whether anything of the tree is left, once nothing more can begin or it was waited for long enough."""
        if self._ended_at is not None and self._tree.empty():
            self._tree_empty = True
        else:
            limits = [self._termination.give_up_at]
            if self._ended_at is not None:
                # A tree that shows no members, and is not empty, gets its KILL as well.
                self._termination.kill(self._ended_at + self._leftover_grace)
                limits.append(self._ended_at + self._output_timeout)
            if not any(limit is not None and now >= limit for limit in limits):
                return
            self._survivors = self._tree.members()
        self._drain_until = now + _DRAIN_SECONDS

    def _drained(self) -> bool:
        """Whether the tree is settled and its output is read: to the end, or for a second."""
        if self._drain_until is None or self._recorder.blocked:
            return False
        if not self._pipes.open:
            self._pipes.flush()
            return True
        if time.monotonic() < self._drain_until:
            return False
        self._pipes.flush()
        text = "The output is held open by a process that is not of this job; nothing more of it is recorded"
        self._recorder.notice(pb.SEVERITY_WARNING, text)
        return True

    # ---- stops

    def _stop(self, kind: pb.StopKind.ValueType, reason: str) -> None:
        """A stop was asked for. Again, or a weaker one after a stronger: nothing changes."""
        if self._finished:
            return
        self._reap()
        if kind > self._stop_kind:
            self._begin_stop(kind, reason)

    def _begin_stop(self, kind: pb.StopKind.ValueType, reason: str) -> None:
        now = time.monotonic()
        timed_out = kind == pb.STOP_KIND_TIME_OUT
        self._stop_kind = pb.STOP_KIND_CANCEL if timed_out else kind
        text = {
            pb.STOP_KIND_CANCEL: "Cancel request received",
            pb.STOP_KIND_ABORT: "Abort request received",
            pb.STOP_KIND_TIME_OUT: "Run timeout reached",
        }[kind]
        if self._ended_at is not None:
            text += " after the payload had ended"
        fact = pb.StopBegun(kind=kind, reason=spool.clean_text(self._recorder.masked(reason)))
        faults.point("supervisor.stop.recording")
        self._recorder.notice(pb.SEVERITY_WARNING, f"{text}, reason: {reason or 'none given'}", fact)
        faults.point("supervisor.stop.recorded")
        if self._ended_at is None and self._cause is None:
            self._cause = kind
        if kind == pb.STOP_KIND_ABORT:
            self._termination.kill(now)
        elif self._ended_at is None:
            # As it is now: it may have stopped itself. One that /proc hides gets no TERM; the KILL finds all.
            current = [processes.read(self._payload.pid) or self._payload] if self._payload is not None else []
            self._termination.terminate(current, now, self._grace)
        # The payload itself may keep the disk so busy that this takes long; its processes have their signals by then.
        self._recorder.sync()

    # ---- the last frames

    def _outputs(self, operation: Operation) -> tuple[outputs.Checked, tuple[str, ...]]:
        """What the payload gave back, and what is wrong with it; nothing after a stop."""
        if self._cause is not None or not self._tree_empty or self._stage is None:
            return outputs.Checked({}, (), ()), ()
        self._recorder.notice(pb.SEVERITY_INFO, "Processing output")
        found = outputs.read_outputs(self._stage.private.inside(OUTPUT), self._masker)
        if operation.output_markers:
            found = found.over(self._pipes.markers.end())
        checked = outputs.check(found.values, {name: output.required for name, output in operation.outputs.items()})
        for said in found.problems + found.remarks:
            self._recorder.notice(pb.SEVERITY_WARNING, f"Output: {said}")
        if checked.undeclared:
            names = ", ".join(checked.undeclared)
            text = f"Output: the operation does not declare {names}; not kept"
            self._recorder.notice(pb.SEVERITY_WARNING, text)
        return checked, found.problems

    def _finish(self, end: Verdict, values: Mapping[str, str]) -> None:
        """Write the last frame and wait until it is durable: nobody else can say how the attempt ended. Then remove
        the rest of what is outside of its directory."""
        if self._stage is not None:
            self._stage.remove_private()
        finished = pb.Finished(
            outcome=end.outcome,
            failure_reason=end.failure_reason,
            outputs=[job_pb2.OutputParameter(name=name, value=value) for name, value in values.items()],
            evidence=self._evidence.to_proto(self._tree.method, self._survivors, tree_empty=self._tree_empty),
            discarded_bytes=self._pipes.discarded,
        )
        if self._exit_code is not None and self._exit_code >= 0:
            finished.result_code = self._exit_code
        self._finished = True
        faults.point("supervisor.end.writing")
        self._recorder.notice(end.severity, end.text, finished)
        self._recorder.sync()
        faults.point("supervisor.end.written")
        self._tell_watchers()
        while (retry_at := self._recorder.retry_at) is not None:
            self._handle_events(retry_at)
            self._recorder.retry(time.monotonic())
            self._tell_watchers()
        if self._stage is not None:
            # Only now: the payload may have left so much that the end would be told too late. If this process is killed
            # meanwhile, for it answers nobody, the agent removes the rest.
            self._stage.remove_shared()


def _seconds(assignment: dispatch.Assignment, field: _Limit) -> float | None:
    """A duration of the assignment; None where it is absent."""
    return float(getattr(assignment, field).ToTimedelta().total_seconds()) if assignment.HasField(field) else None
