"""Starts the initial process of a payload: forked and set up by hand, so that nothing of it runs outside its tree.

Between fork and exec the child gets its session, its cgroup, its tie to the supervisor's life and its three standard
streams, and loses everything else. What goes wrong there comes back over a pipe that a successful exec closes.
"""

from __future__ import annotations

import errno
import os
import pwd
import select
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from services.sis_agent.agent import process_tree
from services.sis_agent.agent.process_tree import ProcessTree

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EXEC_SECONDS: Final = 30.0
IGNORED: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGALRM, signal.SIGUSR1),
    *(signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGIO),
    *(signal.SIGVTALRM, signal.SIGPROF, signal.SIGPWR),
)
"""What a supervisor ignores, Python's own doings among it. Exec would pass it on, so a payload gets it back."""


class StartFailed(Exception):
    """The payload could not be started; the message says why and nothing of it runs."""


class ProgramNotFound(StartFailed):
    """The command names a program that is not there."""


class ProgramNotExecutable(StartFailed):
    """The command names something that cannot be executed."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a payload is started with."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    work_directory: Path


def base_environment() -> dict[str, str]:
    """What every payload has of its environment beside SIS_*: nothing of the agent's own but its PATH."""
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        home = "/"
    return {"PATH": os.environ.get("PATH") or DEFAULT_PATH, "HOME": home, "LANG": "C.UTF-8"}


def start(command: Command, tree: ProcessTree, stdout: int, stderr: int) -> int:
    """Start the payload and return the pid of its initial process, a child that the caller reaps.

    Raises:
        ProgramNotFound, ProgramNotExecutable, StartFailed: see there. The child is reaped.
    """
    reader, writer = os.pipe()  # closed by exec, as all that Python opens
    supervisor = os.getpid()
    try:
        pid = tree.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise StartFailed(f"no process could be made for the payload: {error.strerror}") from None
    if pid == 0:
        _become_payload(command, tree, supervisor, stdout, stderr, writer)
    os.close(writer)
    try:
        report = _report(reader)
    finally:
        os.close(reader)
    if report is None:
        return pid
    os.kill(pid, signal.SIGKILL)  # a child that is not reaped: the pid is its own
    os.waitpid(pid, 0)
    raise _failure(report, command)


def _report(reader: int) -> bytes | None:
    """What the child says went wrong; None when it has become the payload."""
    if not select.select([reader], [], [], _EXEC_SECONDS)[0]:
        return f"exec {errno.ETIMEDOUT}".encode()
    return os.read(reader, 1024) or None


def _failure(report: bytes, command: Command) -> StartFailed:
    step, _, number = report.decode().partition(" ")
    code = int(number)
    program = command.arguments[0]
    if step != "exec":
        return StartFailed(f"the payload could not be set up ({step}): {os.strerror(code)}")
    if code in (errno.ENOENT, errno.ENOTDIR):
        if "/" in program and (command.work_directory / program).exists():
            return ProgramNotFound(f"the interpreter that the first line of {program} names was not found")
        return ProgramNotFound(f"the program {program} was not found")
    if code in (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR):
        return ProgramNotExecutable(f"the program {program} cannot be executed: {os.strerror(code)}")
    return StartFailed(f"the program {program} could not be started: {os.strerror(code)}")


def _become_payload(
    command: Command, tree: ProcessTree, supervisor: int, stdout: int, stderr: int, report: int
) -> NoReturn:
    step = "session"
    try:
        os.setsid()
        step = "process tree"
        process_tree.die_with_parent(supervisor)
        tree.enter()
        step = "signals"
        signal.set_wakeup_fd(-1)
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "standard streams"
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        # All others close with exec: this process inherited none, and Python opens none that stays open.
        step = "working directory"
        os.chdir(command.work_directory)
        os.umask(0o022)
        step = "exec"
        os.execvpe(command.arguments[0], list(command.arguments), dict(command.environment))  # noqa: S606
    except OSError as error:
        os.write(report, f"{step} {error.errno}".encode())
    except BaseException:
        os.write(report, f"{step} {errno.EINVAL}".encode())
    finally:
        os._exit(127)
