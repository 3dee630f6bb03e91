"""The one error tree of the services, and its only mapping to `grpc.Status` (AIP-193).

    SisError
     ├─ InvalidArgument      a field is wrong; names each one
     ├─ Unauthenticated      no proof of who calls
     ├─ PermissionDenied     the caller may not do this
     ├─ NotFound             what the request names is not there
     ├─ AlreadyExists        what the request makes is there already
     ├─ FailedPrecondition   the state of the thing does not permit it; names what must change
     ├─ Aborted              superseded by somebody else's later action
     ├─ ResourceExhausted    too much at once; says when to try again
     ├─ DeadlineExceeded     no answer in time
     ├─ Unavailable          a part that is needed does not answer; says when to try again
     └─ Internal             a fault of the server; the log explains it

Operations raise these (or a service's own subclasses, which fix the reason); the interceptor chain converts them
once. A message is one sentence that names the field or thing and says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "sis"

# A status travels in HTTP/2 trailers, of which many clients take no more than 8 KiB, the message twice and in base64.
_MESSAGE_CHARACTERS = 800
_VIOLATIONS_CHARACTERS = 3_000


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request (`filter.types[0]`) and what to do about it."""

    field: str
    description: str


class SisError(Exception):
    """A refusal that a caller can understand. Subclasses say which code; `reason` is a name of `sis.errors.v1.Reason`
    without its prefix."""

    code: ClassVar[int] = code_pb2.UNKNOWN
    reason: str = "INTERNAL"
    answered: bool = True
    """False: it is of a call to another process, which said nothing of the kind; the connection broke, for example."""
    planned: ClassVar[bool] = False
    """Whether the server means calls to end so, to be made again: no measurement counts it as a failure."""

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message if len(message) <= _MESSAGE_CHARACTERS else message[: _MESSAGE_CHARACTERS - 1] + "…"
        self.reason = reason or self.reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after

    def details(self) -> list[message.Message]:
        """The typed details of the status, ErrorInfo first."""
        found: list[message.Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]
        if self.violations:
            found.append(error_details_pb2.BadRequest(field_violations=_bounded(self.violations)))
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after * 1000))
            found.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return found


class InvalidArgument(SisError):
    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    @classmethod
    def field(cls, name: str, description: str) -> InvalidArgument:
        """The refusal of one field."""
        return cls.fields([FieldViolation(name, description)])

    @classmethod
    def fields(cls, violations: Sequence[FieldViolation]) -> InvalidArgument:
        """The refusal of several fields at once."""
        return cls("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


class Unauthenticated(SisError):
    code = code_pb2.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(SisError):
    code = code_pb2.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class NotFound(SisError):
    code = code_pb2.NOT_FOUND


class AlreadyExists(SisError):
    code = code_pb2.ALREADY_EXISTS


class FailedPrecondition(SisError):
    """`subject` is the thing, `condition` the machine's word for what does not hold."""

    code = code_pb2.FAILED_PRECONDITION

    def __init__(
        self, message: str, *, subject: str, condition: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.subject = subject
        self.condition = condition

    def details(self) -> list[message.Message]:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=self.condition, subject=self.subject, description=self.message
        )
        return [*super().details(), error_details_pb2.PreconditionFailure(violations=[violation])]


class Aborted(SisError):
    code = code_pb2.ABORTED


class ResourceExhausted(SisError):
    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class DeadlineExceeded(SisError):
    code = code_pb2.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unavailable(SisError):
    code = code_pb2.UNAVAILABLE
    reason = "DEPENDENCY_UNAVAILABLE"


class Internal(SisError):
    code = code_pb2.INTERNAL
    reason = "INTERNAL"


def _bounded(violations: Sequence[FieldViolation]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    found: list[error_details_pb2.BadRequest.FieldViolation] = []
    room = _VIOLATIONS_CHARACTERS
    for number, violation in enumerate(violations):
        room -= len(violation.field) + len(violation.description)
        if room < 0 and found:
            more = f"{len(violations) - number} more fields are wrong; mend these first"
            found.append(error_details_pb2.BadRequest.FieldViolation(field="", description=more))
            break
        found.append(
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field[:200], description=violation.description[:1_000]
            )
        )
    return found


def to_status(error: SisError) -> status_pb2.Status:
    """The `google.rpc.Status` of an error."""
    status = status_pb2.Status(code=error.code, message=error.message)
    for detail in error.details():
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
