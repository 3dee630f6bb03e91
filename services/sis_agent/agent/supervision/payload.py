"""Starts the initial process of a payload: forked and set up by hand, so that nothing of it runs outside its tree.

Between fork and exec the child gets its session, its cgroup, its tie to its parent's life, its account and its three
standard streams, and loses everything else. What goes wrong there comes back over a pipe that a successful exec closes.

A payload of another account has the run-as executor between itself and the supervisor: a process that keeps the
agent's identity, forks the payload, and waits for it without reaping it. So the exit status stays with the kernel
until the supervisor, to which an orphan goes, takes it, whatever becomes of the executor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import select
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from setproctitle import getproctitle, setproctitle, setthreadtitle

from services.runtime import faults
from services.sis_agent.agent.linux import process_tree
from services.sis_agent.agent.linux.process_limit import limit_account
from services.sis_agent.agent.linux.process_tree import WAIT_ALL, ProcessTree
from services.sis_agent.agent.supervision import run_as
from services.sis_agent.agent.supervision.run_as import DEFAULT_PATH, Account
from services.sis_agent.agent.supervision.start_failed import RUN_AS_REFUSED, StartFailed

_EXEC_SECONDS: Final = 30.0
_PIPE_BYTES: Final = 64 << 10
_ACCOUNT: Final = "account"
_EXECUTOR: Final = "run-as executor"
_PID: Final = "pid"
IGNORED: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGALRM, signal.SIGUSR1),
    *(signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGIO),
    *(signal.SIGVTALRM, signal.SIGPROF, signal.SIGPWR),
)
"""What a supervisor ignores, Python's own doings among it. Exec would pass it on, so a payload gets it back."""


class ProgramNotFound(StartFailed):
    """The command names a program that is not there."""


class ProgramNotExecutable(StartFailed):
    """The command names something that cannot be executed."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a payload is started with."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    work_directory: Path
    account: Account | None = None
    """Which it has to become; None for the agent's own."""
    standard_input: bytes | None = field(default=None, repr=False)
    """All that it can read there; None for nothing at all."""
    account_limit: int = 0
    """How many processes its account may run, where nothing else limits the payload; 0 for any number."""


@dataclass(frozen=True, slots=True)
class Started:
    """The initial process of a payload and, where there is one, its run-as executor: both the caller's to reap."""

    pid: int
    executor: int | None


@dataclass(frozen=True, slots=True)
class _Streams:
    stdin: int
    stdout: int
    stderr: int


def base_environment() -> dict[str, str]:
    """What every payload has of its environment beside SIS_*: nothing of the agent's own but its PATH."""
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        home = "/"
    return {"PATH": os.environ.get("PATH") or DEFAULT_PATH, "HOME": home, "LANG": "C.UTF-8"}


def start(command: Command, tree: ProcessTree, stdout: int, stderr: int) -> Started:
    """Start the payload in a tree that is empty.

    Raises:
        ProgramNotFound, ProgramNotExecutable, StartFailed: see there. Nothing of it is left.
    """
    supervisor = os.getpid()
    streams = _Streams(_standard_input(command), stdout, stderr)
    reader, writer = os.pipe()  # closed by exec, as all that Python opens
    try:
        if command.account is not None:
            # So that /dev/stdout and its like can be opened, as programs do.
            for descriptor in (stdout, stderr) if command.standard_input is None else astuple(streams):
                os.fchown(descriptor, command.account.uid, command.account.gid)
        child = tree.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise StartFailed(f"no process could be made for the payload: {error.strerror}") from None
    else:
        if child == 0:
            if command.account is None:
                _become_payload(command, supervisor, tree, streams, writer)
            _be_run_as_executor(command, supervisor, tree, streams, writer)
    finally:
        os.close(streams.stdin)
    os.close(writer)
    try:
        report = _Report.read(reader)
    finally:
        os.close(reader)
    if report.failure is None and command.account is None:
        return Started(child, None)
    if report.failure is None and report.payload is not None:
        return Started(report.payload, child)
    _clear(tree)
    raise _failure(report, command)


def _standard_input(command: Command) -> int:
    """Where the payload reads. A pipe holds the whole of it, so nobody has to write while it runs."""
    if command.standard_input is None:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        if len(command.standard_input) > _PIPE_BYTES:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, len(command.standard_input))
        if os.write(writer, command.standard_input) < len(command.standard_input):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
    except OSError as error:
        os.close(reader)
        raise StartFailed(f"what is to be read from standard input does not fit a pipe: {error.strerror}") from None
    finally:
        os.close(writer)
    return reader


def close_all_but(keep: Collection[int]) -> None:
    """Close every descriptor of this process but these and the standard ones."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (a hot path)
        if (descriptor := int(name)) > 2 and descriptor not in keep:
            _close(descriptor)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:  # the one through which the list was read
        return


@dataclass(frozen=True, slots=True)
class _Report:
    """What the children have said of the start."""

    payload: int | None
    """The pid that the run-as executor has told."""
    failure: tuple[str, int] | None
    """The step at which it went wrong, and the errno; None when the payload runs."""

    @classmethod
    def read(cls, reader: int) -> _Report:
        deadline = time.monotonic() + _EXEC_SECONDS
        content = b""
        while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(reader, 1024)
            if not piece:
                break
            content += piece
        else:
            content += b"exec %d\n" % errno.ETIMEDOUT
        payload = failure = None
        for line in content.decode().splitlines():
            step, _, number = line.rpartition(" ")
            if step == _PID:
                payload = int(number)
            else:
                failure = step, int(number)
        return cls(payload, failure)


def _failure(report: _Report, command: Command) -> StartFailed:
    step, code = report.failure or (_EXECUTOR, errno.ECHILD)
    program = command.arguments[0]
    if step == _ACCOUNT and command.account is not None:
        return StartFailed(f"the payload could not become {command.account.name}: {os.strerror(code)}", RUN_AS_REFUSED)
    if step != "exec":
        return StartFailed(f"the payload could not be set up ({step}): {os.strerror(code)}")
    if code in (errno.ENOENT, errno.ENOTDIR):
        if "/" in program and (command.work_directory / program).exists():
            return ProgramNotFound(f"the interpreter that the first line of {program} names was not found")
        return ProgramNotFound(f"the program {program} was not found")
    if code in (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR):
        return ProgramNotExecutable(f"the program {program} cannot be executed: {os.strerror(code)}")
    return StartFailed(f"the program {program} could not be started: {os.strerror(code)}")


def _clear(tree: ProcessTree) -> None:
    """End what was begun, and reap it."""
    tree.kill()
    try:
        while True:
            os.waitpid(-1, WAIT_ALL)
    except ChildProcessError:
        return


def _be_run_as_executor(
    command: Command, supervisor: int, tree: ProcessTree, streams: _Streams, report: int
) -> NoReturn:
    try:
        process_tree.die_with_parent(supervisor)
        tree.enter()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        setproctitle(getproctitle().replace("sis-supervisor", "sis-run-as"))
        setthreadtitle("sis-run-as")
        executor = os.getpid()
        child = os.fork()
        if child == 0:
            _become_payload(command, executor, tree, streams, report)
        os.write(report, f"{_PID} {child}\n".encode())
        # Neither the spool's lock nor the pipes are this process's business.
        close_all_but(())
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    except OSError as error:
        os.write(report, f"{_EXECUTOR} {error.errno}\n".encode())
    finally:
        os._exit(0)


def _become_payload(command: Command, parent: int, tree: ProcessTree, streams: _Streams, report: int) -> NoReturn:
    step = "session"
    try:
        os.setsid()
        step = "process tree"
        process_tree.die_with_parent(parent)
        tree.enter()
        step = "signals"
        signal.set_wakeup_fd(-1)
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "standard streams"
        os.dup2(streams.stdin, 0)
        os.dup2(streams.stdout, 1)
        os.dup2(streams.stderr, 2)
        # All others close with exec: this process inherited none, and Python opens none that stays open.
        if command.account is not None:
            step = _ACCOUNT
            run_as.become(command.account)
            # The tie does not survive the change of account.
            process_tree.die_with_parent(parent)
        step = "process limit"
        if command.account_limit:
            limit_account(command.account_limit)
        step = "working directory"
        os.chdir(command.work_directory)
        os.umask(0o022)
        faults.point("payload.executing")
        step = "exec"
        os.execvpe(command.arguments[0], list(command.arguments), dict(command.environment))  # noqa: S606
    except OSError as error:
        os.write(report, f"{step} {error.errno}\n".encode())
    except BaseException:
        os.write(report, f"{step} {errno.EINVAL}\n".encode())
    finally:
        os._exit(127)
