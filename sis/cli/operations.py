"""The values of a job against what its package declares, before they are sent: the rules of the queue, and its words.

So a secret that somebody gives as a plain value never leaves the machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sis.client import ApiError, Violation
from sis.packages import parameters, values
from sis.packages.operation import Input, Operation
from sis.packages.values import Given, InputType
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from sis.queue.v1 import package_service_pb2 as package_pb

_TYPES = frozenset(InputType)


def check(package: package_pb.Package, request: pb.CreateJobRequest, typed: Collection[str] = ()) -> None:
    """Check the values of a request; `typed` are the inputs whose secrets are to be asked for. Inputs of a type that
    this program is too old to know are left to the queue.

    Raises:
        ApiError: as the queue would refuse the request.
    """
    declared = next((each for each in package.operations if each.name == request.operation), None)
    if declared is None:
        known = ", ".join(sorted(each.name for each in package.operations))
        problem = f"package {package.name} {package.version} has no operation {request.operation!r}; it has: {known}"
        raise _refusal("OPERATION_NOT_FOUND", [Violation("operation", problem)])
    # What is a secret is known of any type.
    unknown = {each.name for each in declared.inputs if each.type not in _TYPES and not each.sensitive}
    given = {name: value for name, value in request.parameters.items() if name not in unknown}
    by_credential = {*typed, *(name for name, value in given.items() if value.HasField("credential_ref"))}
    plain = {name: value_of(value) for name, value in given.items() if name not in by_credential}
    operation = Operation.model_construct(
        command=[],  # which plays no part here
        inputs={each.name: declared_input(each) for each in declared.inputs if each.name not in unknown},
    )
    _, problems = parameters.check(operation, plain, by_credential - unknown)
    files = {each.name for each in declared.inputs if each.type == InputType.FILE}
    if problems:
        hints = {each.path: f" (--param-file {each.path}=PATH)" for each in problems if each.path in files}
        raise _refusal(
            "INVALID_PARAMETER",
            [Violation(f"parameters.{each.path}", each.message + hints.get(each.path, "")) for each in problems],
        )


def _refusal(reason: str, violations: Iterable[Violation]) -> ApiError:
    found = tuple(violations)
    message = "; ".join(f"{each.field}: {each.description}" for each in found)
    return ApiError("INVALID_ARGUMENT", message, reason=reason, violations=found)


def declared_input(declared: package_pb.Input) -> Input:
    """The input as the package has it, which was checked when that was pushed; the type of a secret plays no part.
    Raises ValueError for a type that this program is too old to know."""
    return Input.model_construct(
        type=InputType.STRING if declared.sensitive else InputType(declared.type),
        hint=declared.hint,
        required=declared.required,
        sensitive=declared.sensitive,
        choices=list(declared.choices),
        pattern=declared.pattern,
        default=declared.default_value if declared.HasField("default_value") else None,
    )


def value_of(value: job_pb2.ParameterValue) -> Given:
    """A value that is no credential, as the rules of packages take it."""
    match value.WhichOneof("value"):
        case "list":
            return list(value.list.items)
        case "file":
            return values.File(value.file.name, value.file.content)
        case _:
            return value.plain
