"""What people and programs do with jobs: create, get, list, and the verbs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from sqlalchemy import (
    Row,
    bindparam,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import credentials, lifecycle, packages, store, wakes
from services.queue.errors import (
    AgentNotFound,
    InvalidParameters,
    JobNotFound,
    OperationNotFound,
    RequestIdReused,
)
from services.queue.model import Actor, HistoryEntry
from services.queue.states import Status
from services.queue.tables import JobType, attempts, history, jobs
from services.runtime.errors import FieldViolation, InvalidArgument
from sis.packages import parameters as package_parameters
from sis.packages.manifest import Operation
from sis.packages.operation import ADMIN, RUN_AS
from sis.packages.values import Value


class Priority(IntEnum):
    """How soon a waiting job is claimed; the numbers are the proto's and the database's."""

    IDLE = 1
    LOW = 2
    NORMAL = 3
    HIGH = 4


@dataclass(frozen=True, slots=True)
class CreateJob:
    """A job to be. Exactly one of `group` and `agent` says where."""

    display_name: str
    package_name: str
    package_version: str
    operation: str
    parameters: Mapping[str, str | list[str]]
    site_kind: str
    site_name: str
    priority: Priority
    deferred: bool
    not_before: datetime | None
    latest_start: datetime | None
    run_timeout: timedelta | None
    heartbeat_timeout: timedelta
    labels: Mapping[str, str]
    request_id: str
    fingerprint: bytes
    """Of the request, so that a reused id is told from a retry."""
    admin: str = ""
    """The name of a credential, "" for none, as …"""
    run_as: str = ""
    credentials: Mapping[str, str] = field(default_factory=dict)
    """… those of the references of the operation …"""
    parameter_credentials: Mapping[str, str] = field(default_factory=dict)
    """… and those of its sensitive inputs."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it is shown: its row, and the row of its current attempt, if it has one."""

    job: Row[Any]
    attempt: Row[Any] | None


async def create(connection: AsyncConnection, command: CreateJob, by: Actor) -> JobView:
    """Put a job on the queue; with a request id that was used for the same request, return the job that it made.

    Raises:
        RequestIdReused, PackageNotFound, OperationNotFound, InvalidParameters, AgentNotFound, InvalidArgument
    """
    if command.request_id:
        fingerprint = hmac.digest(by.name.encode(), command.fingerprint, hashlib.sha256)
        existing = await _claim_request_id(connection, by.name, command.request_id, fingerprint)
        if existing is not None:
            return await _view(connection, existing, hidden=True)
    package = await packages.find(connection, command.package_name, command.package_version)
    operation = package.manifest.operations.get(command.operation)
    if operation is None:
        known = sorted(package.manifest.operations)
        raise OperationNotFound(f"{package.name} {package.version}", command.operation, known)
    resolved = _check(operation, command)
    leased = credentials.uses(
        operation,
        admin=command.admin,
        run_as=command.run_as,
        references=command.credentials,
        parameters=command.parameter_credentials,
    )
    now = await store.now(connection)
    _check_times(command, now)
    target = ""
    if command.site_kind == "agent":
        target = await _agent_hostname(connection, command.site_name)
    deferred = command.deferred or (command.not_before is not None and command.not_before > now)
    run_timeout = command.run_timeout
    if run_timeout is None and operation.run_timeout:
        run_timeout = timedelta(seconds=operation.run_timeout)
    row = (
        await connection.execute(
            _CREATE,
            {
                "display_name": command.display_name,
                "type": JobType.PACKAGE,
                "status": Status.DEFERRED if deferred else Status.WAITING,
                "operation": command.operation,
                "package_name": package.name,
                "package_version": package.version,
                "package_digest": package.digest,
                "parameters": resolved,
                "credentials": credentials.to_rows(leased),
                "site_kind": command.site_kind,
                "site_name": command.site_name,
                "target": target,
                "priority": int(command.priority),
                "queued_at": None if deferred else now,
                "not_before": command.not_before if deferred else None,
                "latest_start": command.latest_start,
                "run_timeout": run_timeout,
                "heartbeat_timeout": command.heartbeat_timeout,
                "labels": dict(command.labels),
                "now": now,
                "creator": by.name,
                "origin": by.origin,
            },
        )
    ).one()
    if command.request_id:
        await connection.execute(
            _REMEMBER_REQUEST, {"caller": by.name, "request_id": command.request_id, "job_id": row.job_id}
        )
    if not deferred:
        await wakes.notify(connection, [wakes.WORK])
    return JobView(row, None)


_CREATE = (
    text("""
    WITH created AS (
        INSERT INTO queue.jobs (
            display_name, type, status, operation, package_name, package_version, package_digest, parameters,
            site_kind, site_name, target, priority, claim_key, queued_at, not_before, latest_start, run_timeout,
            heartbeat_timeout, labels, created_at, creator, history_sequence, credentials)
        VALUES (
            :display_name, :type, :status, :operation, :package_name, :package_version, :package_digest, :parameters,
            :site_kind, :site_name, :target, :priority,
            queue.claim_key(CAST(:queued_at AS timestamptz), CAST(:priority AS smallint)), :queued_at, :not_before,
            :latest_start, :run_timeout, :heartbeat_timeout, :labels, :now, :creator, 1, :credentials)
        RETURNING *
    ), recorded AS (
        INSERT INTO queue.history (job_id, sequence, at, from_status, to_status, event, actor, origin, message, attempt)
        SELECT job_id, 1, created_at, NULL, status, 'CREATE', creator, :origin, '', 0 FROM created
    )
    SELECT * FROM created
""")
    .bindparams(*(bindparam(name, type_=JSONB) for name in ("parameters", "labels", "credentials")))
    .columns(*jobs.columns)
)
_REMEMBER_REQUEST = text(
    "UPDATE queue.request_ids SET job_id = :job_id WHERE caller = :caller AND request_id = :request_id"
)


async def _claim_request_id(
    connection: AsyncConnection, caller: str, request_id: str, fingerprint: bytes
) -> int | None:
    """Take a request id for this transaction (a concurrent retry waits here), or return the job that it made."""
    taken = await connection.execute(
        text("""
            INSERT INTO queue.request_ids (caller, request_id, fingerprint, job_id, created_at)
            VALUES (:caller, :request_id, :fingerprint, 0, queue.now())
            ON CONFLICT (caller, request_id) DO NOTHING RETURNING 1
        """),
        {"caller": caller, "request_id": request_id, "fingerprint": fingerprint},
    )
    if taken.first() is not None:
        return None
    found = (
        await connection.execute(
            text(
                "SELECT fingerprint, job_id FROM queue.request_ids WHERE caller = :caller AND request_id = :request_id"
            ),
            {"caller": caller, "request_id": request_id},
        )
    ).one()
    if not hmac.compare_digest(bytes(found.fingerprint), fingerprint):
        raise RequestIdReused(request_id)
    return int(found.job_id)


def _check(operation: Operation, command: CreateJob) -> dict[str, Value]:
    """The parameters as the operation takes them."""
    resolved, problems = package_parameters.check(operation, command.parameters, command.parameter_credentials)
    wrong = [FieldViolation(f"parameters.{p.path}", p.message) for p in problems]
    for problem in package_parameters.check_credentials(
        operation, command.credentials, admin=command.admin, run_as=command.run_as
    ):
        # The accounts of the job are fields of their own; in the map they are the mistake itself.
        account = problem.path in (ADMIN, RUN_AS) and problem.path not in command.credentials
        wrong.append(FieldViolation(problem.path if account else f"credentials.{problem.path}", problem.message))
    if wrong:
        raise InvalidParameters(wrong)
    return resolved


def _check_times(command: CreateJob, now: datetime) -> None:
    if command.latest_start is not None and command.latest_start <= now:
        raise InvalidArgument.field("latest_start", "has passed; give a later time")
    if command.latest_start and command.not_before and command.latest_start <= command.not_before:
        raise InvalidArgument.field("latest_start", "must be after not_before")


async def _agent_hostname(connection: AsyncConnection, name: str) -> str:
    found = await connection.execute(
        text("SELECT hostname FROM queue.agent_sessions WHERE agent = :agent"), {"agent": name}
    )
    row = found.first()
    if row is None:
        raise AgentNotFound(name)
    return str(row.hostname)


async def get(connection: AsyncConnection, job_id: int) -> JobView:
    """One job, whole.

    Raises:
        JobNotFound
    """
    return await _view(connection, job_id)


async def _view(connection: AsyncConnection, job_id: int, *, hidden: bool = False) -> JobView:
    job = (await connection.execute(select(jobs).where(jobs.c.job_id == job_id))).first()
    if job is None or (job.hidden_at is not None and not hidden):
        raise JobNotFound(job_id)
    query = select(attempts).where(attempts.c.job_id == job_id, attempts.c.number == job.attempt)
    return JobView(job, (await connection.execute(query)).first())


HISTORY_ROWS = 10_000
"""More rows of a history than this are not read at once."""


async def activate(connection: AsyncConnection, job_id: int, by: Actor) -> JobView:
    """Release a deferred job now. Repeating it returns the job unchanged, so callers may retry.

    Raises:
        JobNotFound, IllegalTransition
    """
    job = await store.lock_visible(connection, job_id)
    released = lifecycle.activate(job, await store.now(connection), by)
    await store.save(connection, [job], [wakes.WORK] if released else [])
    return await _view(connection, job_id)


async def cancel(connection: AsyncConnection, job_id: int, by: Actor, reason: str) -> JobView:
    """End a job gracefully. Repeating it returns the job as it is, so callers may retry.

    Raises:
        JobNotFound
        IllegalTransition: the job has ended or is processing its output.
    """
    job = await store.lock_visible(connection, job_id)
    lifecycle.cancel(job, await store.now(connection), by, reason)
    await store.save(connection, [job], [wakes.STOP])
    return await _view(connection, job_id)


async def abort(connection: AsyncConnection, job_id: int, by: Actor, reason: str) -> JobView:
    """End a job by force. Repeating it returns the job as it is, so callers may retry.

    Raises:
        JobNotFound
        IllegalTransition: the job has ended.
    """
    job = await store.lock_visible(connection, job_id)
    lifecycle.abort(job, await store.now(connection), by, reason)
    await store.save(connection, [job], [wakes.STOP])
    return await _view(connection, job_id)


async def delete(connection: AsyncConnection, job_id: int, by: Actor) -> None:
    """Hide a job for good; the sweeper purges it when its stop is settled.

    Raises:
        JobNotFound: also the second time.
        IllegalTransition: an agent has it.
    """
    job = await store.lock_visible(connection, job_id)
    lifecycle.delete(job, await store.now(connection), by)
    await store.save(connection, [job], [wakes.STOP])


async def history_page(connection: AsyncConnection, job_id: int, after: int, limit: int) -> list[HistoryEntry]:
    """The history of a job behind a sequence, oldest first.

    Raises:
        JobNotFound
    """
    await get(connection, job_id)
    return await history_after(connection, job_id, after, limit)


async def history_after(connection: AsyncConnection, job_id: int, after: int, limit: int) -> list[HistoryEntry]:
    """As `history_page`, of a job that is known to be there."""
    query = select(history).where(history.c.job_id == job_id, history.c.sequence > after)
    rows = await connection.execute(query.order_by(history.c.sequence).limit(limit))
    return [
        HistoryEntry(
            r.sequence, r.at, Status(r.from_status) if r.from_status else None, Status(r.to_status), r.event, r.actor,
            r.origin, r.message, r.attempt,
        )
        for r in rows
    ]  # fmt: skip
