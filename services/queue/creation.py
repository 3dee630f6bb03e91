"""How jobs come to be: created by somebody, or as the repetition of one that has ended."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from functools import partial
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import credentials, jobs, lifecycle, measures, packages, parameters, store, wakes
from services.queue.errors import AgentNotFound, InvalidParameters, OperationNotFound, RequestIdReused
from services.queue.jobs import JobView
from services.queue.model import Actor
from services.queue.states import Event, Status
from services.queue.tables import JobType
from services.queue.tables import jobs as job_table
from services.runtime import tracing
from services.runtime.database import after_commit
from services.runtime.errors import FieldViolation, InvalidArgument
from sis.packages import parameters as package_parameters
from sis.packages import platforms
from sis.packages.manifest import Operation
from sis.packages.operation import ADMIN, RUN_AS
from sis.packages.values import Given, Value


class Priority(IntEnum):
    """How soon a waiting job is claimed; the numbers are the proto's and the database's."""

    IDLE = 1
    LOW = 2
    NORMAL = 3
    HIGH = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What the administrator of the suite has set for new jobs."""

    deferral: timedelta = timedelta(days=30)
    """How long a job may be held until somebody activates it: the most, and what counts unless it is given."""
    heartbeat_timeout: timedelta = timedelta(seconds=120)
    """What counts unless it is given."""


@dataclass(frozen=True, slots=True)
class CreateJob:
    """A job to be. Exactly one of `group` and `agent` says where."""

    display_name: str
    package_name: str
    package_version: str
    operation: str
    parameters: Mapping[str, Given]
    site_kind: str
    site_name: str
    priority: Priority
    deferral_limit: timedelta | None
    """How long it is held at the most until somebody activates it; None for a job that is not created deferred."""
    not_before: datetime | None
    latest_start: datetime | None
    run_timeout: timedelta | None
    heartbeat_timeout: timedelta
    start_timeout: timedelta
    output_timeout: timedelta
    cancel_grace: timedelta | None
    """None for the operation's own."""
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


async def create(connection: AsyncConnection, command: CreateJob, by: Actor) -> JobView:
    """Put a job on the queue; with a request id that was used for the same request, return the job that it made.

    Raises:
        RequestIdReused, PackageNotFound, OperationNotFound, InvalidParameters, AgentNotFound, InvalidArgument
    """
    existing = await _claim_request_id(connection, by.name, command.request_id, command.fingerprint)
    if existing is not None:
        return await jobs.view(connection, existing)
    package = await packages.find(connection, command.package_name, command.package_version, hold=True)
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
    held = command.deferral_limit is not None
    deferred = held or (command.not_before is not None and command.not_before > now)
    run_timeout = command.run_timeout
    if run_timeout is None and operation.run_timeout:
        run_timeout = timedelta(seconds=operation.run_timeout)
    cancel_grace = command.cancel_grace
    if cancel_grace is None:
        cancel_grace = timedelta(seconds=operation.cancel_grace)
    job = {
        "display_name": command.display_name,
        "type": JobType.PACKAGE,
        "status": Status.DEFERRED if deferred else Status.WAITING,
        "operation": command.operation,
        "package_name": package.name,
        "package_version": package.version,
        "package_digest": package.digest,
        "platforms": package.manifest.platforms,
        "parameters": parameters.to_rows(resolved),
        "credentials": credentials.to_rows(leased),
        "site_kind": command.site_kind,
        "site_name": command.site_name,
        "priority": int(command.priority),
        "not_before": command.not_before if deferred else None,
        "latest_start": command.latest_start,
        "deferral_ends_at": now + command.deferral_limit if command.deferral_limit is not None else None,
        "run_timeout": run_timeout,
        "heartbeat_timeout": command.heartbeat_timeout,
        "start_timeout": command.start_timeout,
        "output_timeout": command.output_timeout,
        "cancel_grace": cancel_grace,
        "labels": dict(command.labels),
        "rerun_of": 0,
    }
    until = "somebody activates it" if held else "its earliest start"
    why = f"held until {until}" if deferred else ""
    return await _insert(connection, job, now, by, command.request_id, why)


_REPEATED = (
    "display_name", "type", "operation", "package_name", "package_version", "package_digest", "platforms", "parameters",
    "credentials", "site_kind", "site_name", "priority", "run_timeout", "heartbeat_timeout", "start_timeout",
    "output_timeout", "cancel_grace", "labels",
)  # fmt: skip


async def rerun(connection: AsyncConnection, job_id: int, request_id: str, by: Actor, reason: str = "") -> JobView:
    """Put a job on the queue that repeats one that has ended, with what that one had when it was created; with a
    request id that was used for the same rerun, return the job that it made.

    Raises:
        RequestIdReused, JobNotFound, AgentNotFound
        PackageNotFound: its package was deleted.
        IllegalTransition: it has not ended.
        InvalidArgument: its agent is of another platform than it was.
    """
    request = f"rerun of job {job_id}" + (f": {reason}" if reason else "")
    existing = await _claim_request_id(connection, by.name, request_id, request.encode())
    if existing is not None:
        return await jobs.view(connection, existing)
    ended = await store.lock_visible(connection, job_id)
    lifecycle.check(ended, Event.RERUN)
    old = (await jobs.view(connection, job_id, contents=True)).job._mapping
    now = await store.now(connection)
    job = {name: old[name] for name in _REPEATED}
    job |= {"status": Status.WAITING, "not_before": None, "latest_start": None, "deferral_ends_at": None}
    job["rerun_of"] = job_id
    await packages.hold(connection, job["package_digest"])
    made = await _insert(connection, job, now, by, request_id, request)
    lifecycle.rerun(ended, now, by, made.job.job_id, reason)
    await store.save(connection, [ended])
    return made


async def _insert(
    connection: AsyncConnection, job: Mapping[str, Any], now: datetime, by: Actor, request_id: str, message: str = ""
) -> JobView:
    """Insert a job, given without what follows from the rest, with the first row of its history. Its package is held.

    Raises:
        AgentNotFound
        PackageNotFound: its package was deleted before it was held.
        InvalidArgument: the agent that it is for is of another platform.
    """
    target = ""
    if job["site_kind"] == "agent":
        target = await _agent_hostname(connection, job)
    waits = job["status"] == Status.WAITING
    trace = tracing.current()
    more = {
        "target": target, "queued_at": now if waits else None, "now": now, "creator": by.name, "origin": by.origin,
        "message": message, "trace_context": "" if trace is None else str(trace),
    }  # fmt: skip
    row = (await connection.execute(_INSERT, {**job, **more})).first()
    if row is None:
        raise await packages.not_found(connection, job["package_name"], job["package_version"])
    if request_id:
        await connection.execute(_REMEMBER_REQUEST, {"caller": by.name, "request_id": request_id, "job_id": row.job_id})
    await wakes.notify(connection, [wakes.job(row.job_id), *([wakes.WORK] if waits else [])])
    after_commit(connection, partial(measures.created, row))
    return JobView(row, None)


_INSERT = (
    text("""
    WITH created AS (
        INSERT INTO queue.jobs (
            display_name, type, status, operation, package_name, package_version, package_digest, parameters,
            site_kind, site_name, target, priority, claim_key, queued_at, not_before, latest_start, run_timeout,
            heartbeat_timeout, start_timeout, output_timeout, cancel_grace, deferral_ends_at, labels, created_at,
            creator, history_sequence, credentials, platforms, rerun_of, trace_context)
        SELECT
            :display_name, :type, :status, :operation, :package_name, :package_version, :package_digest, :parameters,
            :site_kind, :site_name, :target, :priority,
            queue.claim_key(CAST(:queued_at AS timestamptz), CAST(:priority AS smallint)), :queued_at, :not_before,
            :latest_start, :run_timeout, :heartbeat_timeout, :start_timeout, :output_timeout, :cancel_grace,
            :deferral_ends_at, :labels, :now, :creator, 1, :credentials, :platforms, :rerun_of,
            :trace_context
        WHERE EXISTS (SELECT FROM queue.packages WHERE digest = :package_digest)
        RETURNING *
    ), recorded AS (
        INSERT INTO queue.history (job_id, sequence, at, from_status, to_status, event, actor, origin, message, attempt)
        SELECT job_id, 1, created_at, NULL, status, 'CREATE', creator, :origin, :message, 0 FROM created
    )
    SELECT * FROM created
""")
    .bindparams(*(bindparam(name, type_=JSONB) for name in ("parameters", "labels", "credentials", "platforms")))
    .columns(*job_table.columns)
)
_REMEMBER_REQUEST = text(
    "UPDATE queue.request_ids SET job_id = :job_id WHERE caller = :caller AND request_id = :request_id"
)


# One that is there is written as it is: this transaction is acknowledged no sooner than the one that made the job could
# have been. What a primary shows after it has lost its synchronous standby, or has crashed, need not be safe yet.
_CLAIM_REQUEST_ID = text("""
    INSERT INTO queue.request_ids AS known (caller, request_id, fingerprint, job_id, created_at)
    VALUES (:caller, :request_id, :fingerprint, 0, queue.now())
    ON CONFLICT (caller, request_id) DO UPDATE SET fingerprint = known.fingerprint
    RETURNING fingerprint, job_id
""")


async def _claim_request_id(connection: AsyncConnection, caller: str, request_id: str, request: bytes) -> int | None:
    """Take a request id, if there is one, for this transaction (a concurrent retry waits here), or return the job that
    it made. `request` tells one request from another."""
    if not request_id:
        return None
    fingerprint = hmac.digest(caller.encode(), request, hashlib.sha256)
    claimed = {"caller": caller, "request_id": request_id, "fingerprint": fingerprint}
    found = (await connection.execute(_CLAIM_REQUEST_ID, claimed)).one()
    if not hmac.compare_digest(bytes(found.fingerprint), fingerprint):
        raise RequestIdReused(request_id)
    # Of one that was just taken, there is no job yet.
    return int(found.job_id) or None


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


async def _agent_hostname(connection: AsyncConnection, job: Mapping[str, Any]) -> str:
    """Of the agent that a job is for, which can run its package as far as its platform is known."""
    name = job["site_name"]
    found = await connection.execute(
        text("SELECT hostname, platform FROM queue.agent_sessions WHERE agent = :agent"), {"agent": name}
    )
    row = found.first()
    if row is None:
        raise AgentNotFound(name)
    if not platforms.fits(row.platform, job["platforms"]):
        raise InvalidArgument.field(
            "site_target.agent",
            f"agent {name} is a {row.platform} machine, package {job['package_name']} {job['package_version']} is for "
            f"{', '.join(job['platforms'])}: give another agent, or a group",
        )
    return str(row.hostname)
