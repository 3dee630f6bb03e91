"""Does what is due by the clock, and nobody else did: the rules of `overdue`, and what `purge` removes.

Every replica sweeps; rows that another one has in hand are skipped, so they share the work. A sweep asks in one
statement what is due, over partial indexes of live rows, and then does no more than that: its cost does not grow with
the jobs that have ended.

Silence is judged only by a sweeper that has itself watched for as long: after its start, or after a gap in its view of
the database, it waits one full heartbeat timeout before it calls anybody's job AWOL.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Executable, Row, Select, func, literal, literal_column, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import overdue, purge
from services.queue.overdue import RULES, Rule
from services.queue.tables import jobs
from services.runtime.database import Database
from services.runtime.dependencies import Complaints
from services.runtime.errors import SisError

INTERVAL_SECONDS = 1.0
GAP = timedelta(seconds=30)
"""A sweeper that has not seen the database for this long begins to watch anew. The shortest heartbeat timeout is longer
by more than a beat, so that a shorter gap makes nobody AWOL."""

_log = logging.getLogger("sweeper")


class Sweeper:
    """The sweeper of one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watching_since: datetime | None = None
        self._last: datetime | None = None
        self._purge = purge.Purge(database)
        self._complaints = Complaints(_log, "nothing is swept")

    async def run(self) -> None:
        """Sweep for ever. A sweep that fails is tried again; it leaves nothing half done."""
        while True:
            try:
                busy = await self.sweep()
            except SisError as error:
                self._complaints.note(error)
                busy = False
            else:
                self._complaints.over()
            if not busy:
                await asyncio.sleep(INTERVAL_SECONDS)

    async def sweep(self) -> bool:
        """Do once what is due by each rule; True when some batch was full, so that there may be more to do at once."""
        async with self._database.begin() as connection:
            due = (await connection.execute(_what_is_due(self._watching_since))).one()
        since = self._watch(due.now)
        return any([await self._apply(name, act) for name, act in self._acts(due, since)])

    def _watch(self, now: datetime) -> datetime:
        """Since when there was no gap."""
        since = self._watching_since
        if since is None or self._last is None or now - self._last > GAP or now < self._last:
            since = now
        self._watching_since, self._last = since, now
        return since

    def _acts(self, due: Row[Any], since: datetime) -> list[tuple[str, Callable[[], Awaitable[bool]]]]:
        rules = [rule for rule in RULES if (due.live if rule.by is None else due._mapping[rule.name])]
        acts = [(rule.name, self._rule(rule, since)) for rule in rules]
        if due.purge:
            acts.append(("purge", self._purge.step))
        if due.request_ids:
            acts.append(("request ids", self._transaction(purge.forget_request_ids)))
        if due.removals:
            acts.append(("removals", self._transaction(purge.forget_removals)))
        return acts

    def _rule(self, rule: Rule, since: datetime) -> Callable[[], Awaitable[bool]]:
        async def act(connection: AsyncConnection) -> bool:
            return await rule.apply(connection, since) >= overdue.BATCH

        return self._transaction(act)

    def _transaction(self, act: Callable[[AsyncConnection], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
        async def whole() -> bool:
            async with self._database.begin("queue.sweep") as connection:
                return await act(connection)

        return whole

    async def _apply(self, name: str, act: Callable[[], Awaitable[bool]]) -> bool:
        """Do what is due by one rule; one that fails is tried again with the next sweep, and keeps none of the
        others."""
        try:
            return await act()
        except SisError as error:
            self._complaints.note(error)
        except DBAPIError:
            _log.exception("the rule %s failed", name)
        return False


def _what_is_due(watching_since: datetime | None) -> Executable:
    """The time, and whether there is anything to do: by each rule, and by one of those of what is live at the sites,
    all of which are looked for in one reading."""
    now = select(func.queue.now(type_=jobs.c.created_at.type)).scalar_subquery()
    since = now if watching_since is None else literal(watching_since)
    live = or_(*(rule.due(now, since) for rule in RULES if rule.by is None))
    return select(
        now.label("now"),
        *(_any(rule.selection(now, since)).label(rule.name) for rule in RULES if rule.by is not None),
        overdue.live().where(live).exists().label("live"),
        _any(purge.jobs_due(now)).label("purge"),
        _any(purge.request_ids_due(now)).label("request_ids"),
        _any(purge.removals_due(now)).label("removals"),
    )


def _any(selection: Select[Any]) -> ColumnElement[bool]:
    """Whether there is any, in the order of the selection: an EXISTS would lose that, and with it the index."""
    return selection.with_only_columns(literal_column("1")).limit(1).scalar_subquery().is_not(None)
