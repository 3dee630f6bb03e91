"""What people and programs do with jobs: create, get, list, and the verbs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    String,
    Text,
    and_,
    bindparam,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle, packages, store, wakes
from services.queue.errors import (
    AgentNotFound,
    InvalidParameters,
    JobNotFound,
    OperationNotFound,
    RequestIdReused,
)
from services.queue.lifecycle import Actor, HistoryEntry
from services.queue.states import RUN_STATES, RunState, Status
from services.queue.tables import JobType, attempts, history, jobs
from services.runtime import paging
from services.runtime.errors import FieldViolation, InvalidArgument
from sis.packages import parameters as package_parameters


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
    resolved, problems = package_parameters.check(operation, command.parameters)
    if problems:
        raise InvalidParameters([FieldViolation(f"parameters.{p.path}", p.message) for p in problems])
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
            heartbeat_timeout, labels, created_at, creator, history_sequence)
        VALUES (
            :display_name, :type, :status, :operation, :package_name, :package_version, :package_digest, :parameters,
            :site_kind, :site_name, :target, :priority,
            queue.claim_key(CAST(:queued_at AS timestamptz), CAST(:priority AS smallint)), :queued_at, :not_before,
            :latest_start, :run_timeout, :heartbeat_timeout, :labels, :now, :creator, 1)
        RETURNING *
    ), recorded AS (
        INSERT INTO queue.history (job_id, sequence, at, from_status, to_status, event, actor, origin, message, attempt)
        SELECT job_id, 1, created_at, NULL, status, 'CREATE', creator, :origin, '', 0 FROM created
    )
    SELECT * FROM created
""")
    .bindparams(bindparam("parameters", type_=JSONB), bindparam("labels", type_=JSONB))
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


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; the conditions are joined by AND, the values of one by OR."""

    types: Sequence[JobType] = ()
    run_states: Sequence[RunState] = ()
    statuses: Sequence[Status] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class ListJobs:
    """A page of jobs. `request` is what the page token is bound to."""

    filter: JobFilter
    page_size: int
    page_token: str
    order_by: str
    descending: bool
    request: bytes


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page, and how many jobs match on all of them."""

    jobs: list[Row[Any]]
    next_page_token: str
    total: int


_NEVER = literal("infinity").cast(jobs.c.started_at.type)
ORDERS: dict[str, ColumnElement[Any]] = {
    "job_id": jobs.c.job_id,
    "display_name": jobs.c.display_name.collate("C"),
    "type": jobs.c.type,
    "status": jobs.c.status,
    "create_time": jobs.c.created_at,
    "start_time": func.coalesce(jobs.c.started_at, _NEVER),
    "complete_time": func.coalesce(jobs.c.completed_at, _NEVER),
}
"""What a list can be ordered by; a job that has no such time yet counts as later than all that have."""

HISTORY_ROWS = 10_000
"""More rows of a history than this are not read at once."""

_LISTED = [c for c in jobs.columns if c.name not in ("parameters", "outputs")]


async def list_page(connection: AsyncConnection, query: ListJobs) -> JobPage:
    """A page of the jobs that match, by keyset.

    Raises:
        InvalidToken
    """
    conditions = matching(query.filter)
    key = ORDERS[query.order_by].cast(String)
    by_id = query.order_by == "job_id"
    selection: Select[Any] = select(*_LISTED, key.label("order_key")).where(*conditions)
    if query.page_token:
        last_key, last_id = paging.decode(query.page_token, query.request, "page_token", (str, int))
        selection = selection.where(_after(query, str(last_key), last_id, by_id=by_id))
    order = ORDERS[query.order_by]
    ordering = [jobs.c.job_id] if by_id else [order, jobs.c.job_id]
    selection = selection.order_by(*(c.desc() if query.descending else c.asc() for c in ordering))
    try:
        rows = (await connection.execute(selection.limit(query.page_size + 1))).all()
    except DataError:  # a position that was made up, and is none in this column
        raise paging.InvalidToken("page_token") from None
    total = (await connection.execute(select(func.count()).select_from(jobs).where(*conditions))).scalar_one()
    page = list(rows[: query.page_size])
    token = ""
    if len(rows) > query.page_size:
        token = paging.encode([page[-1].order_key, page[-1].job_id], query.request)
    return JobPage(page, token, total)


def _after(query: ListJobs, last_key: str, last_id: object, *, by_id: bool) -> ColumnElement[bool]:
    order = ORDERS[query.order_by]
    beyond_id = jobs.c.job_id < last_id if query.descending else jobs.c.job_id > last_id
    if by_id:
        return beyond_id
    key = literal(last_key).cast(order.type)
    beyond = order < key if query.descending else order > key
    return or_(beyond, and_(order == key, beyond_id))


def matching(wanted: JobFilter) -> list[ColumnElement[bool]]:
    """The conditions of a filter; deleted jobs match none."""
    conditions: list[ColumnElement[bool]] = [jobs.c.hidden_at.is_(None)]
    if wanted.types:
        conditions.append(jobs.c.type.in_([t.value for t in wanted.types]))
    if wanted.run_states:
        statuses = set().union(*(RUN_STATES[s] for s in wanted.run_states))
        conditions.append(jobs.c.status.in_(sorted(statuses)))
    if wanted.statuses:
        conditions.append(jobs.c.status.in_([s.value for s in wanted.statuses]))
    if wanted.text:
        # The very expression of the trigram index. No text holds a line break, so none is found across two columns.
        line_break: ColumnElement[str] = literal_column(r"E'\n'", Text)
        searched = jobs.c.display_name + line_break + jobs.c.operation + line_break + jobs.c.target
        conditions.append(searched.icontains(wanted.text, autoescape=True))
    return conditions


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
