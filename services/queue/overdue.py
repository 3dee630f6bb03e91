"""What happens to jobs because time has passed: rules, each with what is due by it and what it does to one job.

What is due is a condition for PostgreSQL, which finds it by a partial index of live rows, so that the cost does not
grow with the jobs that have ended. What is done is decided again under the job's lock: a report may have come between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal, not_, or_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import lifecycle, store, wakes
from services.queue.model import Job
from services.queue.states import HELD_BY_AGENT, TERMINAL, Status, StopState
from services.queue.tables import attempts, jobs

BATCH = 500
SEAL_AFTER = timedelta(days=1)
"""This long after its end, and after its agent was heard of it last, the log of a job is sealed as it is."""
HEARD_WITHIN = timedelta(minutes=5)
"""This long after the queue is back, at the most, an agent that lives is heard. Who has watched for as long need not
watch for a heartbeat timeout of a day, and for another one after each restart."""

Time = ColumnElement[datetime]


@dataclass(frozen=True, slots=True)
class Rule:
    """`due` is given the time and since when the sweeper has watched without a gap; so is `act`, with a locked job that
    was due, and it says whether it changed that."""

    name: str
    due: Callable[[Time, Time], ColumnElement[bool]]
    act: Callable[[Job, datetime, datetime], bool]
    topics: tuple[str, ...] = ()
    by: ColumnElement[datetime] | None = None
    """The column whose index has what is due first. None: it is about what may still be at a site."""

    def selection(self, now: Time, watching_since: Time) -> Select[Any]:
        """The jobs that are due."""
        # PostgreSQL, which does not know how many are due, is told the index by the order.
        jobs = live() if self.by is None else store.jobs_to_lock().order_by(self.by)
        return jobs.where(self.due(now, watching_since))

    async def apply(self, connection: AsyncConnection, watch: Callable[[datetime], datetime]) -> int:
        """Do a batch of what is due; how many jobs changed. Jobs that somebody else has in hand are skipped. `watch` is
        told the time, and says since when there was no gap."""
        now = await store.now(connection)
        watching_since = watch(now)
        due = self.selection(literal(now), literal(watching_since)).limit(BATCH)
        found = await store.lock_selected(connection, due, skip_locked=True)
        if not found:
            return 0
        # Between the two, somebody else may have done something to one of them.
        now = await store.now(connection)
        changed = [job for job in found.values() if self.act(job, now, watching_since)]
        await store.save(connection, changed, self.topics)
        return len(changed)


def live() -> Select[Any]:
    """The jobs to lock of whose current attempt something may still be at the site."""
    return store.jobs_to_lock().join(
        attempts,
        and_(
            attempts.c.job_id == jobs.c.job_id,
            attempts.c.number == jobs.c.attempt,
            attempts.c.sealed_at.is_(None),
        ),
    )


def _release_due(now: Time, _: Time) -> ColumnElement[bool]:
    return and_(jobs.c.status == "DEFERRED", jobs.c.not_before <= now)


def _release(job: Job, now: datetime, _: datetime) -> bool:
    lifecycle.release(job, now)
    return True


def _late_due(now: Time, _: Time) -> ColumnElement[bool]:
    return and_(jobs.c.status.in_(["DEFERRED", "WAITING"]), jobs.c.latest_start <= now)


def _held_due(now: Time, _: Time) -> ColumnElement[bool]:
    return and_(jobs.c.status == "DEFERRED", jobs.c.deferral_ends_at <= now)


def _expire(job: Job, now: datetime, _: datetime) -> bool:
    lifecycle.expire(job, now)
    return True


def _unheard_due(now: Time, watching_since: Time) -> ColumnElement[bool]:
    # Silence is vouched for only by who has watched for as long, or for long enough that who lives was heard.
    return and_(_silent(now), watching_since <= now - func.least(jobs.c.heartbeat_timeout, literal(HEARD_WITHIN)))


def _silent(now: Time) -> ColumnElement[bool]:
    return attempts.c.last_heard_at < now - jobs.c.heartbeat_timeout


def _is_silent(job: Job, now: datetime) -> bool:
    return job.attempt is not None and job.attempt.last_heard_at < now - job.heartbeat_timeout


def _silence_due(now: Time, watching_since: Time) -> ColumnElement[bool]:
    return and_(jobs.c.status.in_(sorted(HELD_BY_AGENT)), _unheard_due(now, watching_since))


def _silence(job: Job, now: datetime, _: datetime) -> bool:
    if job.status not in HELD_BY_AGENT or not _is_silent(job, now):
        return False
    lifecycle.silence(job, now)
    return True


def _overrun_due(now: Time, watching_since: Time) -> ColumnElement[bool]:
    # As in `lifecycle.overrun`, which decides under the lock. What it would leave as it is must not be found here: it
    # would be found again by each sweep, before what is behind it.
    late: Time = now - literal(lifecycle.SWEEPER_MARGIN)
    killed: Time = late - literal(lifecycle.KILL_LIMIT) - jobs.c.cancel_grace
    limits = or_(
        and_(jobs.c.status == Status.STARTING, attempts.c.claimed_at < late - jobs.c.start_timeout),
        and_(
            jobs.c.status == Status.PROCESSING_OUTPUT,
            attempts.c.payload_ended_at < late - jobs.c.output_timeout,
        ),
        and_(
            jobs.c.status.in_([Status.RUNNING, Status.CANCEL_REQUESTED]),
            attempts.c.first_process_at < late - jobs.c.run_timeout,
        ),
        and_(
            jobs.c.status == Status.CANCEL_REQUESTED,
            attempts.c.stop_wished_at < killed,
            attempts.c.active_at < killed,
            watching_since < killed,
        ),
    )
    return and_(limits, attempts.c.active_at < late, watching_since < late, not_(_silent(now)))


def _overrun(job: Job, now: datetime, watching_since: datetime) -> bool:
    return not _is_silent(job, now) and lifecycle.overrun(job, now, watching_since)


def _unstopped_due(now: Time, watching_since: Time) -> ColumnElement[bool]:
    # As in `lifecycle.repeat_stop`, see above.
    limit: Time = now - literal(lifecycle.SWEEPER_MARGIN) - literal(lifecycle.KILL_LIMIT) - jobs.c.cancel_grace
    return and_(
        jobs.c.status.in_(sorted(TERMINAL)),
        jobs.c.stop_state == StopState.PENDING,
        func.greatest(jobs.c.completed_at, attempts.c.stop_wished_at, attempts.c.active_at) < limit,
        watching_since < limit,
        not_(_silent(now)),
    )


def _repeat_stop(job: Job, now: datetime, watching_since: datetime) -> bool:
    return not _is_silent(job, now) and lifecycle.repeat_stop(job, now, watching_since)


def _settlement_due(now: Time, watching_since: Time) -> ColumnElement[bool]:
    return and_(
        jobs.c.status.in_(sorted(TERMINAL)),
        jobs.c.stop_state == StopState.PENDING,
        _unheard_due(now, watching_since),
    )


def _settle(job: Job, now: datetime, _: datetime) -> bool:
    if job.stop_state is not StopState.PENDING or not _is_silent(job, now):
        return False
    lifecycle.unheard_stop(job)
    return True


def _seal_due(now: Time, watching_since: Time) -> ColumnElement[bool]:
    """Of jobs that ended long ago and whose agents never came back."""
    long_ago: Time = now - literal(SEAL_AFTER)
    return and_(
        jobs.c.status.in_(sorted(TERMINAL)),
        jobs.c.completed_at < long_ago,
        attempts.c.last_heard_at < long_ago,
        _unheard_due(now, watching_since),
    )


def _seal(job: Job, now: datetime, _: datetime) -> bool:
    attempt = job.attempt
    if attempt is None or not job.live or not _is_silent(job, now) or attempt.last_heard_at >= now - SEAL_AFTER:
        return False
    lifecycle.give_up_log(job, now)
    return True


# In this order: what has come due and is too late already, after an outage, is not released first.
RULES = (
    Rule("late", _late_due, _expire, by=jobs.c.latest_start),
    Rule("held", _held_due, _expire, by=jobs.c.deferral_ends_at),
    Rule("release", _release_due, _release, (wakes.WORK,), by=jobs.c.not_before),
    Rule("silence", _silence_due, _silence),
    Rule("overrun", _overrun_due, _overrun, (wakes.STOP,)),
    Rule("stop", _unstopped_due, _repeat_stop, (wakes.STOP,)),
    Rule("settle", _settlement_due, _settle),
    Rule("seal", _seal_due, _seal),
)
