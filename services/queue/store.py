"""Loads jobs under lock, saves what changed. All that is decided about a job, its attempts and its history after its
creation is written here, and its log. What goes past it is one statement for many, and decides nothing about one:
`dispatch` claims, `sessions` notes who was heard, `purge` removes.

Locks are taken in one order everywhere: agent session, then jobs by ascending id; an attempt is guarded by its job.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection as DriverConnection
from sqlalchemy import Row, Select, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import measures, removals, wakes
from services.queue.frames import Frame, StopKind
from services.queue.model import Attempt, HistoryEntry, Job, LogVerdict, WaitReason
from services.queue.states import Status, StopState
from services.queue.tables import attempts, jobs
from services.runtime.database import after_commit

_JOB_COLUMNS = tuple(
    jobs.c[name]
    for name in (
        "job_id", "status", "agent", "queued_at", "not_before", "latest_start", "deferral_ends_at", "run_timeout",
        "heartbeat_timeout", "start_timeout", "output_timeout", "cancel_grace", "started_at", "completed_at",
        "cancel_requested_at", "stop_state", "retry_at", "hidden_at", "result_code", "failure_reason", "status_message",
        "outputs", "progress_percent", "progress_text", "history_sequence", "wait_reason", "wait_message",
    )
)  # fmt: skip


async def now(connection: AsyncConnection) -> datetime:
    """The time by which everything here is judged; tests replace `queue.now()`."""
    return (await connection.execute(select(func.queue.now()))).scalar_one()


def since_locked(now: datetime, found: Iterable[Job]) -> datetime:
    """A time for what is done to these jobs, which are locked, if `now` was read before they were: histories go on in
    the order of time, and whoever held one of them meanwhile has recorded what they did later than `now`."""
    return max([now, *(job.locked_at for job in found if job.locked_at is not None)])


async def lock(connection: AsyncConnection, job_ids: Collection[int], *, skip_locked: bool = False) -> dict[int, Job]:
    """The jobs with these ids that exist, hidden ones too, each locked until the transaction ends."""
    selection = select(*_LOCKED).where(jobs.c.job_id == func.any(list(job_ids)))
    return await lock_selected(connection, selection, skip_locked=skip_locked)


async def lock_visible(connection: AsyncConnection, job_id: int) -> Job:
    """One job, locked.

    Raises:
        errors.JobNotFound: there is none with this id, or it was deleted.
    """
    job = (await lock(connection, [job_id])).get(job_id)
    if job is None or job.hidden_at is not None:
        raise await removals.not_found(connection, job_id)
    return job


_LOCKED = (
    *_JOB_COLUMNS,
    jobs.c.attempt,
    (func.jsonb_array_length(jobs.c.credentials) > 0).label("with_credentials"),
    jobs.c.type,
    jobs.c.trace_context,
)


def jobs_to_lock() -> Select[Any]:
    """A selection of jobs for `lock_selected`, to which the caller adds its conditions."""
    return select(*_LOCKED)


async def lock_selected(
    connection: AsyncConnection, selection: Select[Any], *, skip_locked: bool = False
) -> dict[int, Job]:
    """The jobs of a `jobs_to_lock()` selection, locked in order of their ids; where locked ones are skipped, in any, as
    nobody waits: an order would have PostgreSQL walk all ids for the sake of a limit."""
    ordered = selection if skip_locked else selection.order_by(jobs.c.job_id)
    rows = (await connection.execute(ordered.with_for_update(of=jobs, skip_locked=skip_locked))).all()
    claimed = [row.job_id for row in rows if row.attempt]
    # Read apart, after the locks are held: a join would show the attempt as it was before we waited for the lock.
    found: dict[int, Row[Any]] = {}
    if claimed:
        query = select(attempts, func.queue.now().label("locked_at")).join(
            jobs, (jobs.c.job_id == attempts.c.job_id) & (jobs.c.attempt == attempts.c.number)
        )
        for row in await connection.execute(query.where(attempts.c.job_id == func.any(claimed))):
            found[row.job_id] = row
    return {row.job_id: _job(row, found.get(row.job_id)) for row in rows}


def _job(row: Row[Any], attempt: Row[Any] | None) -> Job:
    values = dict(row._mapping)
    values["status"] = Status(row.status)
    values["stop_state"] = StopState(row.stop_state)
    values["wait_reason"] = WaitReason(row.wait_reason) if row.wait_reason else None
    values["attempt_number"] = values.pop("attempt")
    job = Job(**values, attempt=None if attempt is None else _attempt(attempt))
    job.locked_at = None if attempt is None else attempt.locked_at
    _remember(job)
    return job


def _remember(job: Job) -> None:
    job.stored, job.stored_lease_end, job.stored_live = _job_row(job), job.lease_end, job.live


def _attempt(row: Row[Any]) -> Attempt:
    values = dict(row._mapping)
    del values["job_id"], values["locked_at"]
    values["stop_wish"] = StopKind(row.stop_wish) if row.stop_wish else None
    values["stop_begun"] = StopKind(row.stop_begun) if row.stop_begun else None
    values["verdict"] = LogVerdict(row.verdict)
    return Attempt(**values)


_SAVE = text("""
    WITH saved_jobs AS (
        UPDATE queue.jobs AS j SET
            status = r.status, agent = r.agent,
            target = CASE WHEN r.agent = '' AND j.site_kind = 'group' THEN '' ELSE j.target END,
            queued_at = r.queued_at, not_before = r.not_before, deferral_ends_at = r.deferral_ends_at,
            retry_at = r.retry_at, started_at = r.started_at, completed_at = r.completed_at,
            cancel_requested_at = r.cancel_requested_at, stop_state = r.stop_state, hidden_at = r.hidden_at,
            result_code = r.result_code, failure_reason = r.failure_reason, status_message = r.status_message,
            outputs = r.outputs, progress_percent = r.progress_percent, progress_text = r.progress_text,
            history_sequence = r.history_sequence, revision = j.revision + 1,
            wait_reason = r.wait_reason, wait_message = r.wait_message,
            claim_key = queue.claim_key(r.queued_at, j.priority)
        FROM jsonb_to_recordset(CAST(:jobs AS jsonb)) AS r(
            job_id bigint, status text, agent text, queued_at timestamptz, not_before timestamptz,
            deferral_ends_at timestamptz,
            retry_at timestamptz, started_at timestamptz, completed_at timestamptz,
            cancel_requested_at timestamptz, stop_state text, hidden_at timestamptz,
            result_code integer, failure_reason text, status_message text,
            outputs jsonb, progress_percent smallint, progress_text text, history_sequence integer,
            wait_reason text, wait_message text)
        WHERE j.job_id = r.job_id
    ), saved_attempts AS (
        UPDATE queue.attempts AS a SET
            last_heard_at = greatest(a.last_heard_at, r.last_heard_at), accepted_at = r.accepted_at,
            first_process_at = r.first_process_at, payload_ended_at = r.payload_ended_at,
            sequence = r.sequence, digest = decode(r.digest, 'hex'), output_bytes = r.output_bytes,
            discarded_bytes = r.discarded_bytes, stop_wish = r.stop_wish, stop_reason = r.stop_reason,
            stop_wished_at = r.stop_wished_at, stop_begun = r.stop_begun, lost = r.lost, sealed_at = r.sealed_at,
            verdict = r.verdict, processes = coalesce(r.processes, a.processes), evidence = r.evidence,
            active_at = r.active_at
        FROM jsonb_to_recordset(CAST(:attempts AS jsonb)) AS r(
            job_id bigint, number integer, last_heard_at timestamptz, accepted_at timestamptz,
            first_process_at timestamptz, payload_ended_at timestamptz, sequence bigint, digest text,
            output_bytes bigint, discarded_bytes bigint, stop_wish text, stop_reason text,
            stop_wished_at timestamptz, stop_begun text, lost boolean, sealed_at timestamptz,
            verdict text, processes jsonb, evidence jsonb, active_at timestamptz)
        WHERE a.job_id = r.job_id AND a.number = r.number
    ), saved_history AS (
        INSERT INTO queue.history
            (job_id, sequence, at, from_status, to_status, event, actor, origin, message, attempt)
        SELECT * FROM jsonb_to_recordset(CAST(:history AS jsonb)) AS r(
            job_id bigint, sequence integer, at timestamptz, from_status text, to_status text, event text,
            actor text, origin text, message text, attempt integer)
    ), saved_lease_ends AS (
        -- Inserted by ascending id, as the acknowledgement deletes them.
        INSERT INTO queue.lease_ends (job_id, attempt, job_over, created_at)
        SELECT r.*, queue.now()
        FROM jsonb_to_recordset(CAST(:lease_ends AS jsonb)) AS r(job_id bigint, attempt integer, job_over boolean)
        ON CONFLICT (job_id, attempt) DO UPDATE SET job_over = true, handed_at = NULL
        WHERE excluded.job_over AND NOT lease_ends.job_over
    )
    SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload
""")


async def save(connection: AsyncConnection, changed: Iterable[Job], topics: Iterable[str] = ()) -> None:
    """Write jobs that `lock` gave, their attempts and their new history, and wake whoever waits for them or for one
    of the topics once the transaction commits: one statement for any number.

    A job whose log alone went on keeps its row, and so its revision: that is what most reports are. Leases that end
    with what changed are put into the outbox `lease_ends`.
    """
    touched = list(changed)
    if not touched:
        return
    lease_ends = [
        asdict(job.lease_end)
        for job in sorted(touched, key=lambda job: job.job_id)
        if job.lease_end is not None and job.lease_end != job.stored_lease_end
    ]
    woken = [*topics, *(wakes.job(job.job_id) for job in touched), *([wakes.LEASES] if lease_ends else ())]
    await connection.execute(
        _SAVE,
        {
            "jobs": _json([_job_row(job) for job in touched if _differs(job)]),
            "attempts": _json([_attempt_row(job.job_id, job.attempt) for job in touched if job.attempt is not None]),
            "history": _json([_history_row(job.job_id, entry) for job in touched for entry in job.new_history]),
            "lease_ends": _json(lease_ends),
            "channel": wakes.CHANNEL,
            "payloads": wakes.payloads(woken),
        },
    )
    after_commit(connection, measures.Changes(touched).tell)
    for job in touched:
        job.new_history.clear()
        _remember(job)
        if job.attempt is not None:
            job.attempt.processes_changed = False


def _differs(job: Job) -> bool:
    return _job_row(job) != job.stored or (job.attempt is not None and job.attempt.processes_changed)


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(rows, default=_plain)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no place in a row")


def _job_row(job: Job) -> dict[str, Any]:
    return {column.name: getattr(job, column.name) for column in _JOB_COLUMNS if column.name not in _FIXED}


_FIXED = frozenset(
    {"run_timeout", "heartbeat_timeout", "start_timeout", "output_timeout", "cancel_grace", "latest_start"}
)


def _attempt_row(job_id: int, attempt: Attempt) -> dict[str, Any]:
    row = {"job_id": job_id} | {name: getattr(attempt, name) for name in _ATTEMPT_FIELDS}
    if not attempt.processes_changed:
        row["processes"] = None  # there may be a thousand of them
    return row


_ATTEMPT_FIELDS = tuple(name for name in Attempt.__slots__ if name != "processes_changed")


def _history_row(job_id: int, entry: HistoryEntry) -> dict[str, Any]:
    return {"job_id": job_id} | {name: getattr(entry, name) for name in HistoryEntry.__slots__}


async def insert_frames(connection: AsyncConnection, rows: Sequence[tuple[int, int, int, Frame]]) -> None:
    """Append frames, given as (job id, attempt, bytes of output before it, frame), to the log in one COPY."""
    if not rows:
        return
    driver = (await connection.get_raw_connection()).driver_connection
    assert isinstance(driver, DriverConnection)
    columns = "job_id, attempt, output_offset, sequence, channel, severity, at, body"
    async with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY queue.log ({columns}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(["int8", "int4", "int8", "int8", "int2", "int2", "timestamptz", "bytea"])
        for *key, frame in rows:
            await copy.write_row((*key, frame.sequence, frame.channel, frame.severity, frame.at, frame.body))


async def committed_bodies(
    connection: AsyncConnection, job_id: int, attempt: int, first: int, last: int
) -> dict[int, bytes]:
    """The bytes of committed frames of one attempt, by sequence."""
    query = text(
        "SELECT sequence, body FROM queue.log WHERE job_id = :job_id AND attempt = :attempt"
        " AND sequence BETWEEN :first AND :last"
    ).bindparams(bindparam("job_id"), bindparam("attempt"))
    found = await connection.execute(query, {"job_id": job_id, "attempt": attempt, "first": first, "last": last})
    return {row.sequence: bytes(row.body) for row in found}
