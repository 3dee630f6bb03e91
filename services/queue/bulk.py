"""One verb for many jobs: each on its own, in a transaction of its own, so that what one is refused keeps none of the
rest."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import creation, jobs, lifecycle, listing, removals
from services.queue.errors import ForceRefused, IllegalTransition, JobChanged, JobCountChanged
from services.queue.jobs import JobView
from services.queue.listing import JobFilter
from services.queue.model import Actor
from services.queue.states import Event, Status, StopState, next_status
from services.queue.tables import attempts
from services.queue.tables import jobs as job_table
from services.queue.wakes import Wakes
from services.runtime.database import Database
from services.runtime.errors import InvalidArgument, SisError, Unavailable

MATCHES = 1_000_000
"""More jobs than these are not chosen by one filter."""
PAGE = 10_000
"""Ids that are read at once."""
LOOKED_AT = 500
"""Jobs that are looked at together where nothing is done to them."""


class Verb(StrEnum):
    """What can be done to many jobs at once."""

    ACTIVATE = "ACTIVATE"
    CANCEL = "CANCEL"
    ABORT = "ABORT"
    DELETE = "DELETE"
    RERUN = "RERUN"


@dataclass(frozen=True, slots=True)
class ApplyVerb:
    """A verb for the jobs with these ids or, where there is a filter, for those that match it.

    `request_id` is for a rerun, `force` for an abort.
    """

    verb: Verb
    job_ids: Sequence[int] = ()
    filter: JobFilter | None = None
    expected_count: int | None = None
    validate_only: bool = False
    reason: str = ""
    request_id: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job: why it was refused, or its row afterwards (the new job's, of a rerun), unless it is deleted
    or nothing was done."""

    job_id: int
    error: SisError | None = None
    job: Row[Any] | None = None


async def apply(database: Database, waker: Wakes, command: ApplyVerb, by: Actor) -> AsyncGenerator[int | Result, None]:
    """Do it: first how many jobs there are, then the result of each, by ascending id.

    Those that match a filter are chosen before anything is done to one of them. A job that has ceased to match when its
    turn comes is refused.

    Raises:
        JobCountChanged, InvalidArgument: before anything is done.
        Unavailable: PostgreSQL cannot be reached, or the server drains; what has a result is done. As safe to repeat as
            the verb.
    """
    chosen = array("q", sorted(command.job_ids)) if command.filter is None else await _choose(database, command)
    yield len(chosen)
    for start in range(0, len(chosen), LOOKED_AT):
        part = chosen[start : start + LOOKED_AT]
        if command.validate_only:
            waker.check()
            for result in await _foresee(database, command, part):
                yield result
            continue
        for job_id in part:
            waker.check()
            yield await _apply(database, command, job_id, by)


async def _choose(database: Database, command: ApplyVerb) -> array[int]:
    """The ids of the jobs that match now; none of a job that is made while they are read."""
    chosen = array("q")
    async with database.begin() as connection:
        highest = (await connection.execute(select(func.max(job_table.c.job_id)))).scalar_one() or 0
        ids = select(job_table.c.job_id).where(job_table.c.job_id <= highest, *_conditions(command))
        while True:
            page = ids.where(job_table.c.job_id > (chosen[-1] if chosen else 0))
            found = (await connection.execute(page.order_by(job_table.c.job_id).limit(PAGE))).scalars().all()
            chosen.extend(found)
            if len(chosen) > MATCHES:
                raise InvalidArgument.field("filter", f"matches more than {MATCHES:,} jobs; narrow it, go on in parts")
            if len(found) < PAGE:
                break
    if command.expected_count is not None and command.expected_count != len(chosen):
        raise JobCountChanged(command.expected_count, len(chosen))
    return chosen


def _conditions(command: ApplyVerb) -> list[ColumnElement[bool]]:
    return [] if command.filter is None else listing.matching(command.filter)


async def _foresee(database: Database, command: ApplyVerb, job_ids: array[int]) -> list[Result]:
    """What would become of these jobs as they are now."""
    columns = [job_table.c[name] for name in ("job_id", "status", "stop_state", "heartbeat_timeout")]
    current = (attempts.c.job_id == job_table.c.job_id) & (attempts.c.number == job_table.c.attempt)
    live = exists().where(current, attempts.c.sealed_at.is_(None)).label("live")
    query = select(*columns, live).where(
        job_table.c.job_id == func.any(job_ids.tolist()), job_table.c.hidden_at.is_(None)
    )
    async with database.begin() as connection:
        found = {row.job_id: row for row in await connection.execute(query)}
        return [
            Result(
                job_id,
                _refusal(found[job_id], command) if job_id in found else await removals.not_found(connection, job_id),
            )
            for job_id in job_ids
        ]


def _refusal(row: Row[*tuple[Any, ...]], command: ApplyVerb) -> SisError | None:
    status = Status(row.status)
    try:
        if command.force:
            stop = StopState(row.stop_state)
            lifecycle.check_force(row.job_id, status, stop, row.heartbeat_timeout, live=row.live)
        else:
            next_status(status, Event(command.verb))
    except IllegalTransition as error:
        return IllegalTransition(error.status, error.event, row.job_id)
    except ForceRefused as error:
        return error
    return None


async def _apply(database: Database, command: ApplyVerb, job_id: int, by: Actor) -> Result:
    try:
        async with database.begin("queue.bulk") as connection:
            if command.filter is not None:
                await _check_matches(connection, command, job_id)
            view = await _do(connection, command, job_id, by)
    except Unavailable:
        raise  # and so it would be for all the rest
    except SisError as error:
        return Result(job_id, error)
    return Result(job_id, None, None if view is None else view.job)


async def _check_matches(connection: AsyncConnection, command: ApplyVerb, job_id: int) -> None:
    """Lock a job that still matches; for a rerun, before which it is not locked, only look at it.

    Raises:
        JobNotFound, JobChanged
    """
    query = select(job_table.c.job_id).where(job_table.c.job_id == job_id, *_conditions(command))
    # A rerun takes its request id before the job, and it is of a job that has ended, which goes on matching.
    if command.verb is not Verb.RERUN:
        query = query.with_for_update()
    if (await connection.execute(query)).first() is None:
        await jobs.get(connection, job_id)
        raise JobChanged(job_id)


async def _do(connection: AsyncConnection, command: ApplyVerb, job_id: int, by: Actor) -> JobView | None:
    match command.verb:
        case Verb.ACTIVATE:
            return await jobs.activate(connection, job_id, by, command.reason)
        case Verb.CANCEL:
            return await jobs.cancel(connection, job_id, by, command.reason)
        case Verb.ABORT:
            return await jobs.abort(connection, job_id, by, command.reason, force=command.force)
        case Verb.DELETE:
            await jobs.delete(connection, job_id, by, command.reason)
            return None
        case Verb.RERUN:
            request_id = f"{command.request_id}.{job_id}" if command.request_id else ""
            return await creation.rerun(connection, job_id, request_id, by, command.reason)
