"""Turns an assignment, the manifest of its package and its leases into what the payload is started with."""

from __future__ import annotations

import sys
from typing import Final

from services.sis_agent.agent.supervision import delivery, payload, run_as
from services.sis_agent.agent.supervision.leases import Leases
from services.sis_agent.agent.supervision.payload import Command
from services.sis_agent.agent.supervision.private_directory import OUTPUT, PROGRESS
from services.sis_agent.agent.supervision.run_as import Account
from services.sis_agent.agent.supervision.stage import Stage
from services.sis_agent.agent.supervision.start_failed import LEASE_UNREADABLE, PLATFORM_UNSUPPORTED, StartFailed
from services.sis_agent.agent.trace_contexts import contexts_of
from sis.packages import arguments, parameters, platforms
from sis.packages.manifest import Manifest
from sis.packages.operation import Operation
from sis.packages.values import File, Given
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import job_pb2

PLATFORM: Final = platforms.name(sys.platform)
"""That of this agent, in the words of manifests."""


def operation_of(assignment: dispatch.Assignment, manifest: Manifest) -> Operation:
    """The operation that the assignment names. Raises StartFailed, also where the package is not for this platform."""
    if PLATFORM not in manifest.platforms:
        wanted = " or ".join(manifest.platforms)
        text = f"the package runs on {wanted}, this agent on {PLATFORM}: give the job to an agent of another platform"
        raise StartFailed(text, PLATFORM_UNSUPPORTED)
    try:
        return manifest.operations[assignment.operation]
    except KeyError:
        raise StartFailed(f"the package has no operation {assignment.operation}") from None


def build(
    assignment: dispatch.Assignment,
    operation: Operation,
    leases: Leases,
    stage: Stage,
    account: Account | None,
    attempt: str,
) -> Command:
    """The command line, the environment and the standard input of the payload, whose secrets and files are in their
    places then. `attempt` marks its processes.

    Raises:
        StartFailed: a parameter or a credential is not what the operation takes; the message names each.
        OSError: a file cannot be written.
    """
    refs = {name for name, value in assignment.parameters.items() if value.WhichOneof("value") == "credential_ref"}
    given = {name: _value(value) for name, value in assignment.parameters.items() if name not in refs}
    resolved, problems = parameters.check(operation, given, refs)
    if problems:
        raise StartFailed("; ".join(f"parameter {problem}" for problem in problems))
    secrets = delivery.sensitive_inputs(operation, leases)
    if missing := refs - secrets.keys():
        raise StartFailed(f"the assignment has no lease for parameter {', '.join(sorted(missing))}", LEASE_UNREADABLE)
    delivered = delivery.deliver(operation, leases, stage.private)
    environment = payload.base_environment() if account is None else run_as.environment(account)
    values = arguments.with_paths(resolved, stage.private.write_input)
    environment |= arguments.environment(values, secrets) | delivered.environment
    environment |= {
        "SIS_JOB_ID": str(assignment.attempt.job_id),
        "SIS_ATTEMPT": attempt,
        "SIS_OPERATION": assignment.operation,
        "SIS_PACKAGE_DIR": str(stage.package),
        "SIS_WORK_DIR": str(stage.work),
        "SIS_OUTPUT": str(stage.private.path / OUTPUT),
        "SIS_PROGRESS": str(stage.private.path / PROGRESS),
    }
    if (contexts := contexts_of(assignment)) is not None:
        environment["TRACEPARENT"] = str(contexts.payload)
    line = arguments.command_line(operation, values, stage.package, stage.work)
    return Command(line, environment, stage.work, account, delivered.standard_input)


def _value(value: job_pb2.ParameterValue) -> Given:
    match value.WhichOneof("value"):
        case "list":
            return list(value.list.items)
        case "file":
            return File(value.file.name, value.file.content)
        case _:
            return value.plain
