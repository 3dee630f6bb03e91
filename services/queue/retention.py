"""Retention: jobs that ended long ago, or before so many others, are exported to a file, if one is wanted, and deleted.

To delete is to hide, as when a person does it: whoever watches a list sees the job go, and `purge` removes it a quarter
of an hour later. What was deleted, by which rule, and into which file it went is left in `removals`.

A file is on disk under its name before the deletion of its jobs commits. So what is between the two, when the process
dies, is exported twice and never lost; and what cannot be exported is not deleted.

Every replica works. A batch is one transaction, which holds an advisory lock on each of its jobs, so that no replica
exports what another one has in hand. It changes nothing and locks no row until the file is there, so that meanwhile it
is in nobody's way, nor has it a transaction id, which would hold back the watches of lists.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from sqlalchemy import text, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import exports, lifecycle, removals, store
from services.queue.errors import JobNotFound
from services.queue.export_files import ExportFile, remove_leftovers
from services.queue.exports import Part, Position
from services.queue.jobs import JobView
from services.queue.model import Actor
from services.queue.states import TERMINAL
from services.queue.tables import jobs
from services.runtime import faults
from services.runtime.backoff import Backoff
from services.runtime.database import Database
from services.runtime.errors import SisError

INTERVAL_SECONDS = 60.0
BATCH = 100
"""Jobs of one transaction, and of one file."""
LOOKED_AT = 300
"""Jobs among which a batch is looked for: some may have to wait."""
COUNTED = 20_000
"""Jobs that are counted at once."""
BATCH_SECONDS = 20.0
"""After this long no further job is begun."""
JOB_SECONDS = 900.0
"""A batch that takes this much longer is given up: a gigabyte takes a minute."""
FILE_SECONDS = 45.0
"""What is done to the directory itself is given up after so long."""
DISCARD_SECONDS = 5.0
"""For so long it is waited for that a file is discarded."""
KEEP_ALIVE_SECONDS = 10.0
RETENTION = Actor("retention", socket.gethostname())

_log = logging.getLogger("retention")


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept: jobs that ended no longer ago than `age`, and `count` of them at the most; None is no bound."""

    age: timedelta | None = None
    count: int | None = None


_Place = tuple[datetime, int]
"""Of a job among those that have ended: when it did, and its id."""
_START: _Place = datetime(1, 1, 2, tzinfo=UTC), 0
_END: _Place = datetime(9999, 12, 30, tzinfo=UTC), 0


@dataclass(slots=True)
class _Pass:
    """One look at everything that ended before a place by one of the rules, from the oldest on."""

    by_age: _Place
    by_count: _Place
    after: _Place = _START

    @property
    def until(self) -> _Place:
        return max(self.by_age, self.by_count)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Jobs to delete, by the revision that was seen last, of so many that were looked at; and their file."""

    revisions: Mapping[int, int]
    tried: int
    export: str = ""


class _UnreadableError(Exception):
    """A job that cannot be written as JSON, or of which something is not there."""


_Values = TypeVarTuple("_Values")
_Result = TypeVar("_Result")


class Retention:
    """The retention of one process. `directory` is where the exports go; None deletes without. `to_line` writes a part
    of an export as a line. It takes one connection at a time, for as long as an export takes.
    """

    def __init__(
        self, database: Database, rules: Rules, directory: Path | None, to_line: Callable[[Part], bytes]
    ) -> None:
        self._database = database
        self._rules = rules
        self._directory = directory
        self._to_line = to_line
        # Of its own and only one, in which all that is done to the directory has its turn: where that hangs, it is the
        # only thing that hangs.
        self._thread = ThreadPoolExecutor(1, "retention")
        self._pass: _Pass | None = None
        # Kept, as they cannot be exported.
        self._unreadable: set[int] = set()
        self._trouble = ""

    async def run(self) -> None:
        """Work for ever. What fails is tried again, slower and slower, and nothing is deleted meanwhile."""
        backoff = Backoff(initial=5.0, maximum=600.0)
        while True:
            try:
                more = await self.step()
            except (OSError, SisError, DBAPIError) as error:
                self._say(self._explained(error))
                await asyncio.sleep(backoff.next_delay())
                continue
            self._say("")
            backoff.reset()
            if not more:
                await asyncio.sleep(INTERVAL_SECONDS)

    def _explained(self, error: Exception) -> str:
        if isinstance(error, OSError):
            return (
                f"ended jobs are not deleted, as they cannot be exported to {self._directory}:"
                f" {error.strerror or 'it takes too long'}; make room there, or see to it that it can be written"
            )
        return f"ended jobs are not deleted: {error}"

    def _say(self, trouble: str) -> None:
        """Log what is wrong when it changes."""
        if trouble and trouble != self._trouble:
            _log.error("%s", trouble)
        elif self._trouble and not trouble:
            _log.info("ended jobs are deleted again")
        self._trouble = trouble

    async def step(self) -> bool:
        """Export and delete one batch; True when there may be more at once.

        Raises:
            OSError: the export cannot be written; nothing was deleted.
        """
        if self._pass is None:
            if self._directory is not None:
                async with asyncio.timeout(FILE_SECONDS):
                    await self._in_thread(remove_leftovers, self._directory)
            self._pass = await self._begin()
        current = self._pass
        async with self._database.begin("queue.retention") as connection:
            after, until = current.after, current.until
            values = {"after": after[0], "after_id": after[1], "until": until[0], "until_id": until[1]}
            page = (await connection.execute(_PAGE, values)).all()
            settled = [row.job_id for row in page if row.settled and row.job_id not in self._unreadable]
            held = await _hold(connection, settled)
            rows = [row for row in page if row.job_id in held]
            batch = _Batch({row.job_id: row.revision for row in rows}, len(rows))
            if rows and self._directory is not None:
                batch = await self._export(connection, self._directory, list(batch.revisions))
                faults.point("queue.retention.exported")
            await self._delete(connection, current, batch)
        # Where the batch was full, or took its time, the rest of the page comes next.
        whole = len(rows) < BATCH and batch.tried == len(rows)
        if seen := page if whole else rows[: batch.tried]:
            current.after = seen[-1].completed_at, seen[-1].job_id
        if whole and len(page) < LOOKED_AT:
            self._pass = None
        return self._pass is not None

    async def _begin(self) -> _Pass:
        async with self._database.begin() as connection:
            now = await store.now(connection)
        by_age = _START if self._rules.age is None else (now - self._rules.age, 0)
        by_count = _START if self._rules.count is None else await self._newest(self._rules.count)
        return _Pass(by_age, by_count)

    async def _newest(self, count: int) -> _Place:
        """The place of the last of this many that ended last."""
        place = _END
        while count:
            part = min(count, COUNTED)
            values = {"at": place[0], "job_id": place[1], "skipped": part - 1}
            async with self._database.begin() as connection:
                row = (await connection.execute(_EARLIER, values)).first()
            if row is None:
                return _START
            place = row.completed_at, row.job_id
            count -= part
        return place

    async def _export(self, connection: AsyncConnection, directory: Path, job_ids: Sequence[int]) -> _Batch:
        """Export these jobs to a file, as many as there is time for."""
        clock = asyncio.get_running_loop().time
        ends = clock() + BATCH_SECONDS
        revisions: dict[int, int] = {}
        tried = 0
        async with asyncio.timeout(FILE_SECONDS):
            file = await self._aside(connection, ExportFile, directory)
        try:
            async with asyncio.timeout(BATCH_SECONDS + JOB_SECONDS):
                for job_id in job_ids:
                    if tried and clock() >= ends:
                        break
                    tried += 1
                    try:
                        revision = await self._write(connection, file, job_id)
                    except _UnreadableError:
                        _log.exception("job %d cannot be exported, so it is kept", job_id)
                        self._unreadable.add(job_id)
                    else:
                        if revision is not None:
                            revisions[job_id] = revision
                faults.point("queue.retention.written")
                if not revisions:
                    await self._discard(file)
                    return _Batch({}, tried)
                name = await self._aside(connection, file.finish, min(revisions), max(revisions))
        except BaseException:
            await self._discard(file)
            raise
        return _Batch(revisions, tried, name)

    async def _write(self, connection: AsyncConnection, file: ExportFile, job_id: int) -> int | None:
        """Write a job; which revision of it, None where there is no such job any more."""

        def write(part: Part) -> None:
            try:
                line = self._to_line(part)
            except Exception as error:
                raise _UnreadableError from error
            file.write(line)

        revision: int | None = None
        parts = exports.parts(lambda: nullcontext(connection), Position(job_id, job_id), include_logs=True)
        try:
            async for part in parts:
                if isinstance(part.content, JobView):
                    revision = part.content.job.revision
                await self._aside(connection, write, part)
        except JobNotFound as error:
            # Purged meanwhile, after somebody else had deleted it.
            raise _UnreadableError from error
        return revision

    async def _discard(self, file: ExportFile) -> None:
        """Remove what there is of a file. Where the directory hangs, that is left to the thread."""
        await asyncio.wait([self._in_thread(file.discard)], timeout=DISCARD_SECONDS)

    async def _aside(
        self, connection: AsyncConnection, act: Callable[[*_Values], _Result], *values: *_Values
    ) -> _Result:
        """Do what blocks in the thread; meanwhile the transaction is kept alive."""
        result = self._in_thread(act, *values)
        try:
            while not (await asyncio.wait([result], timeout=KEEP_ALIVE_SECONDS))[0]:
                await connection.execute(text("SELECT 1"))
            return await result
        finally:
            result.cancel()

    def _in_thread(self, act: Callable[[*_Values], _Result], *values: *_Values) -> asyncio.Future[_Result]:
        return asyncio.get_running_loop().run_in_executor(self._thread, act, *values)

    async def _delete(self, connection: AsyncConnection, current: _Pass, batch: _Batch) -> None:
        """Delete those that are still as they were exported, and that nobody else has in hand."""
        if not batch.revisions:
            return
        same = tuple_(jobs.c.job_id, jobs.c.revision).in_(list(batch.revisions.items()))
        due = store.jobs_to_lock().where(same, jobs.c.hidden_at.is_(None))
        found = await store.lock_selected(connection, due, skip_locked=True)
        now = await store.now(connection)
        by_reason: defaultdict[str, list[int]] = defaultdict(list)
        for job in found.values():
            assert job.completed_at is not None
            reason = self._reason(by_age=(job.completed_at, job.job_id) < current.by_age)
            lifecycle.delete(job, now, RETENTION, reason)
            by_reason[reason].append(job.job_id)
        await store.save(connection, found.values())
        for reason, job_ids in by_reason.items():
            await removals.note(connection, job_ids, RETENTION, reason, batch.export)

    def _reason(self, *, by_age: bool) -> str:
        if by_age and self._rules.age is not None:
            return f"it had ended more than {self._rules.age / timedelta(days=1):g} days ago"
        return f"{self._rules.count} jobs had ended after it"


async def _hold(connection: AsyncConnection, job_ids: Sequence[int]) -> frozenset[int]:
    """Those of these jobs, a batch at the most, that no other retention has in hand until it ends its transaction."""
    values = {"space": _SPACE, "job_ids": list(job_ids), "rows": BATCH}
    return frozenset((await connection.execute(_HOLD, values)).scalars())


# By the index of the jobs that have ended. All that is said of one is final, but for its revision.
_PAGE = text("""
    SELECT job_id, completed_at, revision,
        status = ANY(:terminal) AND stop_state <> 'PENDING'
        AND NOT EXISTS (
            SELECT FROM queue.attempts a
            WHERE a.job_id = jobs.job_id AND a.number = jobs.attempt AND a.sealed_at IS NULL)
        AND NOT EXISTS (SELECT FROM queue.lease_ends e WHERE e.job_id = jobs.job_id) AS settled
    FROM queue.jobs
    WHERE completed_at IS NOT NULL AND hidden_at IS NULL
        AND (completed_at, job_id) > (:after, :after_id) AND (completed_at, job_id) < (:until, :until_id)
    ORDER BY completed_at, job_id LIMIT :rows
""").bindparams(terminal=sorted(TERMINAL), rows=LOOKED_AT)

_EARLIER = text("""
    SELECT completed_at, job_id FROM queue.jobs
    WHERE completed_at IS NOT NULL AND hidden_at IS NULL AND (completed_at, job_id) < (:at, :job_id)
    ORDER BY completed_at DESC, job_id DESC OFFSET :skipped LIMIT 1
""")

_SPACE = 0x5349_5352
"""Of the advisory locks of retention, beside those of others."""
_HOLD = text("""
    SELECT job_id FROM unnest(CAST(:job_ids AS bigint[])) AS settled(job_id)
    WHERE pg_try_advisory_xact_lock(:space, CAST(job_id % 2147483647 AS int)) LIMIT :rows
""")
