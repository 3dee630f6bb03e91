"""`sis packages test`: runs one operation of a package on this machine as an agent would, and shows it as a job.

The agent's part is a process of its own, which this program talks to over pipes: see
`services.sis_agent.agent.rehearsal`.
"""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, Final

import typer

from sis.cli import failures, operations, requests, terminal
from sis.cli.details import output_table
from sis.cli.monitor import MonitorView, verdict
from sis.cli.requests import JobOptions
from sis.packages import archive, parameters
from sis.packages.archive import InvalidArchive
from sis.packages.manifest import FILE_NAME, InvalidManifest, Manifest, Operation
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2, job_pb2
from sis.queue.v1 import job_service_pb2 as pb

_NEEDED: Final = ("ahocorasick_rs", "cryptography", "pydantic_settings", "setproctitle")
_LENGTH: Final = struct.Struct(">I")
_STATUSES: Final = {
    frame_pb2.OUTCOME_SUCCEEDED: job_pb2.JOB_STATUS_SUCCEEDED,
    frame_pb2.OUTCOME_STOPPED: job_pb2.JOB_STATUS_CANCELED,
    frame_pb2.OUTCOME_TIMED_OUT: job_pb2.JOB_STATUS_TIMED_OUT,
}


def test(directory: Path, operation: str, options: JobOptions, *, json: bool) -> None:
    """Run an operation and show it; exit 0 on Success, 1 otherwise, 130 when it was interrupted."""
    request = requests.job(options)
    manifest = _manifest(directory)
    declared = _operation(manifest, operation)
    _check(declared, request)
    _need_agent()
    assignment = dispatch.Assignment(
        attempt=dispatch.Attempt(number=1),
        display_name=f"{manifest.name} {operation}",
        operation=operation,
        parameters=request.parameters,
        log_cap_bytes=1 << 30,  # as every job has it from the queue
    )
    assignment.run_timeout.FromSeconds(declared.run_timeout)
    assignment.cancel_grace.FromSeconds(declared.cancel_grace)
    if request.HasField("run_timeout"):
        assignment.run_timeout.CopyFrom(request.run_timeout)
    job = job_pb2.Job(
        display_name=assignment.display_name,
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name=manifest.name, version=manifest.version),
        operation=operation,
        status=job_pb2.JOB_STATUS_STARTING,
    )
    with _running(directory, assignment) as agent:
        (_show_lines if json else _show)(agent, job)
    if not job.HasField("complete_time"):
        raise typer.Exit(1)  # it has said why
    if job.status == job_pb2.JOB_STATUS_CANCELED:
        raise typer.Exit(130)
    if job.status != job_pb2.JOB_STATUS_SUCCEEDED:
        raise typer.Exit(1)


def _manifest(directory: Path) -> Manifest:
    try:
        return archive.read_manifest(archive.pack(directory))
    except InvalidManifest as error:
        for problem in error.problems:
            failures.say(f"{directory / FILE_NAME}: {problem}")
    except InvalidArchive as error:
        failures.say(str(error))
    raise typer.Exit(1)


def _operation(manifest: Manifest, name: str) -> Operation:
    if name not in manifest.operations:
        failures.say(
            f"{manifest.name} {manifest.version} has no operation {name}; it has: {', '.join(manifest.operations)}"
        )
        raise typer.Exit(1)
    return manifest.operations[name]


def _check(declared: Operation, request: pb.CreateJobRequest) -> None:
    """Exit 1 where the operation cannot run with these values, after every reason."""
    secret = [
        f"the sensitive input {name}" for name, each in declared.inputs.items() if each.sensitive and each.required
    ]
    secret += [f"the credential {name}" for name, each in declared.credentials.items() if each.required]
    for each in secret:
        failures.say(f"it requires {each}, which there is in the KeySafe alone: push the package and create a job")
    given = {name: operations.value_of(value) for name, value in request.parameters.items()}
    sensitive = {name for name, each in declared.inputs.items() if each.sensitive and each.required}
    _, problems = parameters.check(declared, given, sensitive - given.keys())
    for problem in problems:
        failures.say(f"parameter {problem}")
    if secret or problems:
        raise typer.Exit(1)


def _need_agent() -> None:
    if sys.platform != "linux":
        failures.say(f"payloads run on linux alone, and this is {sys.platform}")
        raise typer.Exit(1)
    for name in _NEEDED:
        if find_spec(name) is None:
            failures.say(f"this needs {name}; run `make setup`, or install the wheel of SIS with the extra agent")
            raise typer.Exit(1)


@contextmanager
def _running(directory: Path, assignment: dispatch.Assignment) -> Iterator[IO[bytes]]:
    """The output of an agent that runs the assignment. An interrupt asks the payload to end, another one ends it; so
    does the end of this process."""
    command = [sys.executable, "-P", "-m", "services.sis_agent.agent.rehearsal", str(directory.absolute())]
    # A session of its own: the terminal interrupts this process alone.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin = process.stdin

        def interrupted(_: int, __: FrameType | None) -> None:
            if stdin.closed:
                process.terminate()
            stdin.close()

        content = assignment.SerializeToString()
        before = signal.getsignal(signal.SIGINT)
        try:
            with suppress(BrokenPipeError):  # it has said why
                stdin.write(_LENGTH.pack(len(content)) + content)
                stdin.flush()
            signal.signal(signal.SIGINT, interrupted)
            yield process.stdout
        finally:
            signal.signal(signal.SIGINT, before)
            with suppress(BrokenPipeError):
                stdin.close()


def _frames(agent: IO[bytes]) -> Iterator[frame_pb2.Frame]:
    while len(header := agent.read(_LENGTH.size)) == _LENGTH.size:
        yield frame_pb2.Frame.FromString(agent.read(_LENGTH.unpack(header)[0]))


def _responses(agent: IO[bytes], job: job_pb2.Job) -> Iterator[pb.MonitorJobResponse]:
    """As the monitor of a job gives them; `job` is brought up to date."""
    yield pb.MonitorJobResponse(job=job)
    for frame in _frames(agent):
        yield pb.MonitorJobResponse(frames=pb.AttemptFrames(attempt=1, frames=[frame]))
        if _follow(job, frame):
            yield pb.MonitorJobResponse(job=job)


def _follow(job: job_pb2.Job, frame: frame_pb2.Frame) -> bool:
    """Change the job by what a frame says, as the queue would; whether it says something of it."""
    notice = frame.notice
    match notice.WhichOneof("fact"):
        case "process_started" if notice.process_started.process.role == job_pb2.PROCESS_ROLE_PAYLOAD:
            job.status = job_pb2.JOB_STATUS_RUNNING
            job.start_time.CopyFrom(frame.time)
        case "progress":
            job.progress_percent, job.progress_text = notice.progress.percent, notice.progress.text
        case "payload_ended":
            job.status = job_pb2.JOB_STATUS_PROCESSING_OUTPUT
        case "stop_begun":
            job.status = job_pb2.JOB_STATUS_CANCEL_REQUESTED
        case "finished":
            _finish(job, notice)
            job.complete_time.CopyFrom(frame.time)
        case _:
            return False
    return True


def _finish(job: job_pb2.Job, notice: frame_pb2.Notice) -> None:
    finished = notice.finished
    job.status = _STATUSES.get(finished.outcome, job_pb2.JOB_STATUS_FAILED)
    job.failure_reason = finished.failure_reason
    job.status_message = notice.text.removeprefix("Failed: ")
    job.outputs.extend(finished.outputs)
    if finished.HasField("result_code"):
        job.result_code = finished.result_code


def _show_lines(agent: IO[bytes], job: job_pb2.Job) -> None:
    for response in _responses(agent, job):
        print(terminal.line(response), flush=True)


def _show(agent: IO[bytes], job: job_pb2.Job) -> None:
    out = terminal.console()
    with MonitorView(out, "Ctrl-C stops it") as view:
        for response in _responses(agent, job):
            view.show(response)
    if job.outputs:
        terminal.section(out, "Outputs", output_table(out, job.outputs))
    if job.HasField("complete_time"):
        out.print(verdict(job, "Test"))
