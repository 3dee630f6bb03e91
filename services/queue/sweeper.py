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
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Executable, Row, Select, func, literal, literal_column, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import overdue, purge, store
from services.queue.overdue import RULES, Rule
from services.queue.tables import jobs
from services.runtime.database import Database
from services.runtime.dependencies import Complaints
from services.runtime.errors import DeadlineExceeded, Internal, SisError

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
        self._troubles = _Troubles()
        self._swept = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """For how long nothing was swept."""
        return time.monotonic() - self._swept

    async def run(self) -> None:
        """Sweep for ever. What fails is tried again with the next sweep; it leaves nothing half done."""
        while True:
            try:
                busy = await self.sweep()
            except (SisError, DBAPIError) as error:
                self._troubles.note(_EVERYTHING, error)
                busy = False
            if not busy:
                await asyncio.sleep(INTERVAL_SECONDS)

    async def sweep(self) -> bool:
        """Do once what is due by each rule; True when some batch was full, so that there may be more to do at once.

        Raises:
            SisError, DBAPIError: not even the time could be asked; nothing was done.
        """
        self._troubles.begin()
        due = await self._look()
        busy = [await self._apply(name, act) for name, act in self._acts(due)]
        self._troubles.end()
        self._swept = time.monotonic()
        return any(busy)

    async def _look(self) -> Row[Any] | None:
        """What is due; None where that could not be found in one statement: whatever it is that fails or takes too
        long, the rest has to be swept."""
        try:
            async with self._database.begin() as connection:
                due = (await connection.execute(_what_is_due(self._watching_since, self._purge.reached))).one()
                self._watch(due.now)
                return due
        except (DeadlineExceeded, DBAPIError) as error:
            trouble = error
        async with self._database.begin() as connection:
            self._watch(await store.now(connection))
        self._troubles.note(_LOOK, trouble)
        return None

    def _watch(self, now: datetime) -> datetime:
        """Since when there was no gap."""
        since = self._watching_since
        if since is None or self._last is None or now - self._last > GAP or now < self._last:
            since = now
        self._watching_since, self._last = since, now
        return since

    def _acts(self, due: Row[Any] | None) -> list[tuple[str, Callable[[], Awaitable[bool]]]]:
        """What there is to do; everything where it is not known what is due."""

        def is_due(name: str) -> bool:
            return due is None or bool(due._mapping[name])

        rules = [rule for rule in RULES if is_due("live" if rule.by is None else rule.name)]
        acts = [(f"the rule {rule.name}", self._rule(rule)) for rule in rules]
        # Where it has got somewhere, it still has to look at what it has passed over.
        if is_due("purge") or self._purge.reached is not None:
            acts.append(("the purge", self._purge.step))
        if is_due("request_ids"):
            acts.append(("the removal of request ids", self._transaction(purge.forget_request_ids)))
        if is_due("removals"):
            acts.append(("the removal of records of removals", self._transaction(purge.forget_removals)))
        return acts

    def _rule(self, rule: Rule) -> Callable[[], Awaitable[bool]]:
        async def act(connection: AsyncConnection) -> bool:
            return await rule.apply(connection, self._watch) >= overdue.BATCH

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
        except (SisError, DBAPIError) as error:
            self._troubles.note(f"not swept by {name}", error)
        return False


_EVERYTHING = "nothing is swept"
_LOOK = "what is due is not found at once, and is looked for by each rule"


class _Troubles:
    """Logs of each part of a sweep when it begins to fail, when it fails for another reason, and when it is over."""

    def __init__(self) -> None:
        self._complaints: dict[str, Complaints] = {}
        self._failed: set[str] = set()

    def begin(self) -> None:
        """A sweep begins."""
        self._failed.clear()

    def note(self, what: str, error: SisError | DBAPIError) -> None:
        """A part of the sweep has failed; `what` says what that means."""
        self._failed.add(what)
        if isinstance(error, DBAPIError):
            # A fault of this program, or of the schema.
            error = Internal(f"{type(error.orig).__name__}: {error.orig}".partition("\n")[0])
        self._complaints.setdefault(what, Complaints(_log, what)).note(error)

    def end(self) -> None:
        """The sweep has come to its end: what has not failed in it is well."""
        for what in [what for what in self._complaints if what not in self._failed]:
            self._complaints.pop(what).over()


def _what_is_due(watching_since: datetime | None, purged_until: datetime | None) -> Executable:
    """The time, and whether there is anything to do: by each rule, and by one of those of what is live at the sites,
    all of which are looked for in one reading."""
    now = select(func.queue.now(type_=jobs.c.created_at.type)).scalar_subquery()
    since = now if watching_since is None else literal(watching_since)
    live = or_(*(rule.due(now, since) for rule in RULES if rule.by is None))
    return select(
        now.label("now"),
        *(_any(rule.selection(now, since)).label(rule.name) for rule in RULES if rule.by is not None),
        overdue.live().where(live).exists().label("live"),
        _any(purge.jobs_due(now, purged_until)).label("purge"),
        _any(purge.request_ids_due(now)).label("request_ids"),
        _any(purge.removals_due(now)).label("removals"),
    )


def _any(selection: Select[Any]) -> ColumnElement[bool]:
    """Whether there is any, in the order of the selection: an EXISTS would lose that, and with it the index."""
    return selection.with_only_columns(literal_column("1")).limit(1).scalar_subquery().is_not(None)
