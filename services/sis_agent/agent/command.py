"""Turns an assignment and the manifest of its package into what the payload is started with."""

from __future__ import annotations

from pathlib import Path

from services.sis_agent.agent import payload
from services.sis_agent.agent.payload import Command, StartFailed
from services.sis_agent.agent.supervisor_identity import OUTPUT, PROGRESS, WORK
from sis.packages import arguments, parameters
from sis.packages.manifest import Manifest, Operation
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import job_pb2


def operation_of(assignment: dispatch.Assignment, manifest: Manifest) -> Operation:
    """The operation that the assignment names. Raises StartFailed."""
    try:
        return manifest.operations[assignment.operation]
    except KeyError:
        raise StartFailed(f"the package has no operation {assignment.operation}") from None


def build(
    assignment: dispatch.Assignment, operation: Operation, directory: Path, package_directory: Path, attempt: str
) -> Command:
    """The command line and the environment of the payload. `attempt` marks its processes.

    Raises:
        StartFailed: a parameter is not what the operation takes; the message names each.
    """
    given = {name: _value(value) for name, value in assignment.parameters.items()}
    resolved, problems = parameters.check(operation, given)
    if problems:
        raise StartFailed("; ".join(f"parameter {problem}" for problem in problems))
    work = directory / WORK
    environment = payload.base_environment() | arguments.environment(resolved)
    environment |= {
        "SIS_JOB_ID": str(assignment.attempt.job_id),
        "SIS_ATTEMPT": attempt,
        "SIS_OPERATION": assignment.operation,
        "SIS_PACKAGE_DIR": str(package_directory),
        "SIS_WORK_DIR": str(work),
        "SIS_OUTPUT": str(directory / OUTPUT),
        "SIS_PROGRESS": str(directory / PROGRESS),
    }
    line = arguments.command_line(operation, resolved, package_directory, work)
    return Command(line, environment, work)


def _value(value: job_pb2.ParameterValue) -> str | list[str]:
    return list(value.list.items) if value.WhichOneof("value") == "list" else value.plain
