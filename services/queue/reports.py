"""What agents report of their attempts, committed in groups.

One transaction takes a whole batch: sessions are shared, jobs locked, every report applied in memory, and what
changed is written in a handful of statements. A report that is refused touches nothing and fails alone. Should the
database refuse the batch for the sake of one report, the batch is halved until that one stands alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import evidence, lifecycle, measures, sessions, store, wakes
from services.queue.errors import ConflictingFrame, MalformedFrame, StaleAttempt, StaleEpoch
from services.queue.frames import Frame
from services.queue.model import Actor, Job, LeaseRefusal
from services.queue.sessions import AttemptKey, Machines, Session
from services.queue.states import Status
from services.runtime.database import Database, after_commit, is_of_data
from services.runtime.errors import SisError, Unavailable

_log = logging.getLogger("reports")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The attempt is in the agent's journal."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The agent's journal says that the attempt never started and never will."""

    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent says of one attempt, or its hub, when it has no leases for it. Frames are in sequence."""

    session: Session
    attempt: AttemptKey
    content: Accepted | Declined | LeaseRefusal | tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The answer: what is committed of the attempt, and what was refused of the report."""

    acknowledged_sequence: int = 0
    sealed: bool = False
    error: SisError | None = None


async def commit(database: Database, reports: Sequence[Report]) -> list[Result]:
    """Commit a batch; one result for each report, in order. Committing again what is committed acknowledges it.

    Raises:
        Unavailable: PostgreSQL cannot be reached; nothing of the batch is acknowledged.
    """
    try:
        async with database.begin("queue.report") as connection:
            return await _apply(connection, reports)
    except DBAPIError as error:
        if len(reports) > 1:
            middle = len(reports) // 2
            return [*await commit(database, reports[:middle]), *await commit(database, reports[middle:])]
        key = reports[0].attempt
        _log.error("job %d attempt %d: the database refused its report", key.job_id, key.number, exc_info=error)
        if is_of_data(error):
            return [Result(error=MalformedFrame(key.job_id, key.number, "the database cannot take it"))]
        # The attempt is well: what is damaged is here, and will be mended.
        return [Result(error=Unavailable("the database failed; its operators find why in the log", retry_after=5.0))]


async def _apply(connection: AsyncConnection, reports: Sequence[Report]) -> list[Result]:
    current, now = await sessions.share(connection, {r.session for r in reports})
    jobs = await store.lock(connection, {r.attempt.job_id for r in reports if r.session in current})
    batch = _Batch(connection, jobs, current, now)
    results = [
        await batch.take(r) if r.session in current else Result(error=StaleEpoch(r.session.agent)) for r in reports
    ]
    await batch.flush()
    return results


class _Batch:
    """The reports of one transaction, applied to locked jobs in memory."""

    def __init__(
        self, connection: AsyncConnection, jobs: dict[int, Job], current: Mapping[Session, Machines], now: datetime
    ) -> None:
        self._connection = connection
        self._jobs = jobs
        self._current = current
        self._changed: dict[int, Job] = {}
        self._frames: list[tuple[int, int, int, Frame]] = []
        # One for the batch: what is committed together happens at one time.
        self._now = store.since_locked(now, jobs.values())
        self._work = False

    async def take(self, report: Report) -> Result:
        """Apply one report; what it raises is its answer, and no other report's."""
        job = self._jobs.get(report.attempt.job_id)
        try:
            await self._act(self._own(job, report), report)
        except SisError as error:
            return replace(self._result(job, report.attempt), error=error)
        return self._result(job, report.attempt)

    def _own(self, job: Job | None, report: Report) -> Job:
        key = report.attempt
        if job is None:
            raise StaleAttempt(key.job_id, key.number, "there is no such job any more; forget it")
        if job.attempt is None or job.attempt.number != key.number or job.attempt.agent != report.session.agent:
            # Kept aside for whoever looks into it: what a superseded attempt, or another agent, had to say.
            _log.warning(
                "stale report: job %d attempt %d from agent %s: %.2000r",
                key.job_id, key.number, report.session.agent, report.content,
            )  # fmt: skip
            raise StaleAttempt(key.job_id, key.number, "it is not this agent's current attempt; forget it")
        if job.attempt.lost:
            raise StaleAttempt(key.job_id, key.number, "it was given up for lost; end what is left of it")
        return job

    async def _act(self, job: Job, report: Report) -> None:
        now = self._now
        machines = self._current[report.session]
        by = Actor(f"agent {report.session.agent}", machines.agent)
        attempt = job.attempt
        assert attempt is not None
        never_started = isinstance(report.content, Declined | LeaseRefusal)
        if job.status is Status.AWOL and attempt.sealed_at is None and not never_started:
            self._changed[job.job_id] = job
            lifecycle.come_back(job, now, by)
        elif not never_started and lifecycle.reopen_stop(job, now):
            self._changed[job.job_id] = job
        match report.content:
            case Accepted():
                self._changed[job.job_id] = job
                lifecycle.accept(job, now, by)
            case Declined() | LeaseRefusal() as why:
                if attempt.accepted_at is not None:
                    raise StaleAttempt(job.job_id, attempt.number, "it was accepted before, so it may have started")
                if attempt.sealed_at is None:
                    self._changed[job.job_id] = job
                    if isinstance(why, Declined):
                        lifecycle.declined(job, now, by, why.reason)
                    else:
                        hub = Actor(f"hub of agent {report.session.agent}", machines.hub)
                        lifecycle.lease_refused(job, now, hub, why)
                    self._work = self._work or (job.status is Status.WAITING and job.retry_at is None)
            case frames:
                await self._append(job, frames, by)

    async def _append(self, job: Job, frames: Sequence[Frame], by: Actor) -> None:
        attempt = job.attempt
        assert attempt is not None
        again = [f for f in frames if f.sequence <= attempt.sequence]
        if again:
            await self._compare(job.job_id, attempt.number, again)
        for frame in frames[len(again) :]:
            output_bytes = attempt.output_bytes
            evidence.append(job, frame, self._now, by)
            self._changed[job.job_id] = job
            self._frames.append((job.job_id, attempt.number, output_bytes, frame))

    async def _compare(self, job_id: int, number: int, again: Sequence[Frame]) -> None:
        """Same bytes twice are acknowledged, other bytes at the same sequence refused."""
        pending = {f.sequence: f.body for j, n, _, f in self._frames if (j, n) == (job_id, number)}
        committed = await store.committed_bodies(
            self._connection, job_id, number, again[0].sequence, again[-1].sequence
        )
        for frame in again:
            before = committed.get(frame.sequence, pending.get(frame.sequence))
            if before is not None and before != frame.body:
                _log.error("job %d attempt %d: frame %d came again with other bytes", job_id, number, frame.sequence)
                raise ConflictingFrame(job_id, number, frame.sequence)

    def _result(self, job: Job | None, key: AttemptKey) -> Result:
        if job is None or job.attempt is None or job.attempt.number != key.number:
            return Result()
        return Result(job.attempt.sequence, job.attempt.sealed_at is not None)

    async def flush(self) -> None:
        """Write what changed and wake whoever waits for it."""
        await store.insert_frames(self._connection, self._frames)
        written = sum(len(frame.body) for *_, frame in self._frames)
        after_commit(self._connection, partial(measures.LOG.add, written))
        measures.link(self._changed.values())
        await store.save(self._connection, self._changed.values(), [wakes.WORK] if self._work else [])
