"""Lists of jobs: filters, orders, pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, String, Text, and_, func, literal, literal_column, or_, select
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue.states import RUN_STATES, RunState, Status
from services.queue.tables import JobType, jobs
from services.runtime import paging


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; the conditions are joined by AND, the values of one by OR."""

    types: Sequence[JobType] = ()
    run_states: Sequence[RunState] = ()
    statuses: Sequence[Status] = ()
    text: str = ""
    complete_time_before: datetime | None = None


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
    "target": jobs.c.target.collate("C"),
    "create_time": jobs.c.created_at,
    "start_time": func.coalesce(jobs.c.started_at, _NEVER),
    "complete_time": func.coalesce(jobs.c.completed_at, _NEVER),
}
"""What a list can be ordered by; a job that has no such time yet counts as later than all that have."""

_PAGE_BYTES = 8 << 20
"""What the texts of a page may have, which is half of what a message can be. Most pages have a hundredth."""

LISTED = [c for c in jobs.columns if c.name not in ("parameters", "outputs")]
"""What a list has of a job."""


async def list_page(connection: AsyncConnection, query: ListJobs) -> JobPage:
    """A page of the jobs that match, by keyset.

    Raises:
        InvalidToken
    """
    conditions = matching(query.filter)
    key = ORDERS[query.order_by].cast(String)
    by_id = query.order_by == "job_id"
    selection: Select[Any] = select(*LISTED, key.label("order_key")).where(*conditions)
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
    page = list(rows[: _fitting(rows[: query.page_size])])
    token = ""
    if len(rows) > len(page):
        token = paging.encode([page[-1].order_key, page[-1].job_id], query.request)
    return JobPage(page, token, total)


def _fitting(rows: Sequence[Row[Any]]) -> int:
    """How many of the rows fit into one page, the first in any case."""
    size = 0
    for number, row in enumerate(rows):
        texts = (*row.labels, *row.labels.values(), row.display_name, row.status_message, row.wait_message)
        size += sum(len(each.encode()) for each in texts if each)
        if size > _PAGE_BYTES and number:
            return number
    return len(rows)


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
    if wanted.complete_time_before is not None:
        conditions.append(jobs.c.completed_at < wanted.complete_time_before)
    if wanted.text:
        # The very expression of the trigram index. No text holds a line break, so none is found across two columns.
        line_break: ColumnElement[str] = literal_column(r"E'\n'", Text)
        searched = jobs.c.display_name + line_break + jobs.c.operation + line_break + jobs.c.target
        conditions.append(searched.icontains(wanted.text, autoescape=True))
    return conditions
