"""What can be wrong with a request to the queue, each with its reason (`sis.errors.v1.Reason`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from services.runtime.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
)

_SAID_CHARACTERS = 200
_NAME_CHARACTERS = 40


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _in_words(name: str) -> str:
    return name.replace("_", " ").lower()


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class JobNotFound(NotFound):
    """There is none, or none any more; of one that was deleted it says what it was, by whom, when and why it was
    deleted, while that is known."""

    reason = "JOB_NOT_FOUND"

    def __init__(
        self,
        job_id: int,
        *,
        deleted_by: str = "",
        deleted_at: datetime | None = None,
        reason: str = "",
        display_name: str = "",
        status: str = "",
    ) -> None:
        if deleted_at is None:
            text = f"there is no job {job_id}, or it was deleted"
            metadata = {}
        else:
            time = _utc(deleted_at)
            # The whole reason is in the metadata: in the trailers of an answer there is little room.
            said = _cut(reason, _SAID_CHARACTERS)
            was = f"{_cut(display_name, _NAME_CHARACTERS)}, {_in_words(status)}"
            text = f"job {job_id} ({was}) was deleted by {deleted_by} at {time}" + (f": {said}" if said else "")
            metadata = {"deleted_by": deleted_by, "delete_time": time, "reason": reason}
        super().__init__(f"job_id: {text}; `sis jobs list` shows the jobs", metadata={"job_id": str(job_id)} | metadata)


class IllegalTransition(FailedPrecondition):
    """The rulebook refuses `event` in `status`."""

    reason = "ILLEGAL_TRANSITION"

    def __init__(self, status: str, event: str, job_id: int | None = None) -> None:
        self.status, self.event = status, event
        subject = "the job" if job_id is None else f"job {job_id}"
        super().__init__(
            f"{subject} is {_in_words(status)}, which does not permit {_in_words(event)}{_ADVICE.get(event, '')}",
            subject="job" if job_id is None else f"jobs/{job_id}",
            condition=f"STATUS_{status}",
            metadata={"status": status, "event": event} | ({} if job_id is None else {"job_id": str(job_id)}),
        )


_ADVICE = {
    "DELETE": "; cancel or abort it first",
    "ACTIVATE": "; only a deferred job can be activated",
    "CANCEL": "; abort ends a job that processes its output, a job that has ended needs nothing",
    "ABORT": "; it has ended",
    "RERUN": "; only a job that has ended can be rerun, any can be copied",
}


class ForceRefused(FailedPrecondition):
    """The agent of a job is not known to be gone, so that nothing of it is let go without evidence. `silence` is for
    how many seconds it must not be heard."""

    reason = "FORCE_REFUSED"

    def __init__(self, job_id: int, status: str, silence: float, *, claimed: bool, ended: bool) -> None:
        is_what = f"job {job_id} is {_in_words(status)}"
        if not claimed:
            why = "and no agent has it: abort it without force"
        else:
            wait = f"wait until its agent has been silent for {silence:,.0f} s, its heartbeat timeout"
            why = "and its agent may still " + (
                f"confirm its stop: {wait}" if ended else f"end it: abort it without force, or {wait}"
            )
        super().__init__(
            f"{is_what}, {why}",
            subject=f"jobs/{job_id}",
            condition="AGENT_GONE",
            metadata={"job_id": str(job_id), "status": status},
        )


class JobCountChanged(FailedPrecondition):
    """Not as many jobs match a filter as its caller believes."""

    reason = "JOB_COUNT_CHANGED"

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(
            f"expected_count: {found:,} jobs match the filter, not {expected:,}; nothing was done: look at them again",
            subject="jobs",
            condition="JOB_COUNT",
            metadata={"expected": str(expected), "found": str(found)},
        )


class JobChanged(FailedPrecondition):
    """A job has ceased to match the filter for which it was chosen."""

    reason = "JOB_CHANGED"

    def __init__(self, job_id: int) -> None:
        super().__init__(
            f"job {job_id} does not match the filter any more; nothing was done to it",
            subject=f"jobs/{job_id}",
            condition="JOB_MATCHES",
            metadata={"job_id": str(job_id)},
        )


class RequestIdReused(AlreadyExists):
    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id: {request_id!r} was used for another request; use a new id for a new request",
            violations=[FieldViolation("request_id", "was used for another request; use a new id")],
        )


class PackageNotFound(NotFound):
    """There is none, or none any more; of a version that was deleted it says by whom and when."""

    reason = "PACKAGE_NOT_FOUND"

    def __init__(
        self, name: str, version: str = "", *, deleted_by: str = "", deleted_at: datetime | None = None
    ) -> None:
        wanted = f"{name}@{version}" if version else name
        if deleted_at is None:
            text = f"there is no package {wanted}"
            metadata = {}
        else:
            time = _utc(deleted_at)
            text = f"package {wanted} was deleted by {deleted_by} at {time}"
            metadata = {"deleted_by": deleted_by, "delete_time": time}
        description = f"{text}; `sis packages list` shows the packages"
        super().__init__(
            f"package: {description}", violations=[FieldViolation("package", description)], metadata=metadata
        )


class PackageInUse(FailedPrecondition):
    """Jobs that have not ended need a version; `first` are the first of them."""

    reason = "PACKAGE_IN_USE"

    def __init__(self, name: str, version: str, jobs: int, first: Sequence[int]) -> None:
        numbers = ", ".join(str(job_id) for job_id in first) + (" and others" if jobs > len(first) else "")
        need = "1 job that has not ended needs" if jobs == 1 else f"{jobs:,} jobs that have not ended need"
        end = "let it end, or cancel it" if jobs == 1 else "let them end, or cancel them"
        super().__init__(
            f"package: {need} {name} {version}: {numbers}; {end}, and delete it then",
            subject=f"packages/{name}/versions/{version}",
            condition="NO_JOB_NEEDS_IT",
            metadata={"jobs": str(jobs), "job_ids": ",".join(str(job_id) for job_id in first)},
        )


class OperationNotFound(InvalidArgument):
    reason = "OPERATION_NOT_FOUND"

    def __init__(self, package: str, operation: str, known: Sequence[str]) -> None:
        description = f"package {package} has no operation {operation!r}; it has: {', '.join(known)}"
        super().__init__(f"operation: {description}", violations=[FieldViolation("operation", description)])


class PackageVersionExists(AlreadyExists):
    reason = "PACKAGE_VERSION_EXISTS"

    def __init__(self, name: str, version: str, *, deleted: bool = False) -> None:
        what = "was pushed with other content" + (", and deleted" if deleted else "")
        super().__init__(f"package: {name} {version} {what}; raise `version` in package.yaml")


class InvalidPackage(InvalidArgument):
    reason = "INVALID_PACKAGE"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


class InvalidParameters(InvalidArgument):
    reason = "INVALID_PARAMETER"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


class AgentNotFound(InvalidArgument):
    reason = "AGENT_NOT_FOUND"

    def __init__(self, name: str) -> None:
        description = f"no agent {name!r} has ever been connected; `sis agents list` shows the agents"
        super().__init__(
            f"site_target.agent: {description}", violations=[FieldViolation("site_target.agent", description)]
        )


class ResumeExpired(Aborted):
    reason = "RESUME_EXPIRED"

    def __init__(self) -> None:
        description = "is too old, so that changes after it are not known any more; list again, and watch from there"
        super().__init__(f"resume_token: {description}", violations=[FieldViolation("resume_token", description)])


class StaleEpoch(Aborted):
    reason = "STALE_EPOCH"

    def __init__(self, agent: str) -> None:
        super().__init__(f"a newer stream of agent {agent} was opened; this one is over", metadata={"agent": agent})


class StaleAttempt(Aborted):
    reason = "STALE_ATTEMPT"

    def __init__(self, job_id: int, attempt: int, why: str) -> None:
        super().__init__(
            f"job {job_id}, attempt {attempt}: {why}",
            metadata={"job_id": str(job_id), "attempt": str(attempt)},
        )


class ConflictingFrame(Aborted):
    reason = "CONFLICTING_FRAME"

    def __init__(self, job_id: int, attempt: int, sequence: int) -> None:
        super().__init__(
            f"job {job_id}, attempt {attempt}: frame {sequence} was committed before with other bytes",
            metadata={"job_id": str(job_id), "attempt": str(attempt), "sequence": str(sequence)},
        )


class SequenceGap(Aborted):
    reason = "SEQUENCE_GAP"

    def __init__(self, job_id: int, attempt: int, expected: int) -> None:
        super().__init__(
            f"job {job_id}, attempt {attempt}: frame {expected} comes next",
            metadata={"expected": str(expected)},
        )


class LogSealed(Aborted):
    reason = "LOG_SEALED"

    def __init__(self, job_id: int, attempt: int) -> None:
        super().__init__(f"job {job_id}, attempt {attempt}: the log is sealed, nothing can be appended")


class MalformedFrame(InvalidArgument):
    reason = "MALFORMED_FRAME"

    def __init__(self, job_id: int, attempt: int, why: str) -> None:
        super().__init__(f"job {job_id}, attempt {attempt}: {why}")
