"""What is measured of jobs, and the spans that the queue records of them: of what has been committed, and nothing else.

A job is one trace, whoever created it: each span of it is below the one of its creation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row

from services.queue.model import Job
from services.queue.states import TERMINAL, Event, Status
from services.runtime import metrics, tracing
from services.runtime.tracing import Attribute, Attributes
from sis.trace_context import TraceContext

TRANSITIONS: Final = metrics.Count(
    "sis.job.transitions", "{transition}", "Moves of jobs from one status to another, by the status and the event."
)
WAIT: Final = metrics.Duration("sis.job.wait.duration", "From the queueing of a job to its claim.", bounds=metrics.LONG)
START: Final = metrics.Duration("sis.job.start.duration", "From the claim of a job to its first process.")
RUN: Final = metrics.Duration(
    "sis.job.run.duration", "From the first process of a job to its end, by the status.", bounds=metrics.LONG
)
LOG: Final = metrics.Count("sis.log.written", "By", "Bytes of frames that were committed to logs.")


def created(job: Row[Any]) -> None:
    """A job was created."""
    about = {Attribute.JOB_TYPE: job.type, Attribute.JOB_STATUS: job.status, Attribute.JOB_EVENT: "CREATE"}
    TRANSITIONS.add(1, about)


def claimed(rows: Iterable[Row[Any]], at: datetime) -> None:
    """Jobs were claimed, given as rows with id, attempt, type, time of queueing and trace context."""
    for row in rows:
        about = {Attribute.JOB_TYPE: row.type, Attribute.JOB_STATUS: Status.STARTING, Attribute.JOB_EVENT: Event.CLAIM}
        TRANSITIONS.add(1, about)
        queued_at: datetime = row.queued_at or at
        WAIT.record(max(0.0, (at - queued_at).total_seconds()), {Attribute.JOB_TYPE: row.type})
        if tracing.records() and (context := TraceContext.parse(row.trace_context)):
            of = _about(row.job_id, row.attempt, row.type)
            tracing.record("job wait", context, queued_at.timestamp(), at.timestamp(), of)


@dataclass(frozen=True, slots=True)
class _Seal:
    context: TraceContext
    began: datetime
    ended: datetime
    about: Attributes


class Changes:
    """What a transaction has changed of jobs: found before it is written, told once it is committed."""

    def __init__(self, changed: Iterable[Job]) -> None:
        self._moves: list[Attributes] = []
        self._starts: list[tuple[float, Attributes]] = []
        self._runs: list[tuple[float, Attributes]] = []
        self._seals: list[_Seal] = []
        for job in changed:
            self._find(job)

    def _find(self, job: Job) -> None:
        kind: Attributes = {Attribute.JOB_TYPE: job.type}
        for entry in job.new_history:
            if entry.from_status is not entry.to_status:
                self._moves.append({**kind, Attribute.JOB_STATUS: entry.to_status, Attribute.JOB_EVENT: entry.event})
        attempt = job.attempt
        if attempt is None:
            return
        if job.started_at is not None and job.stored.get("started_at") is None:
            self._starts.append(((job.started_at - attempt.claimed_at).total_seconds(), kind))
        if job.status in TERMINAL and job.started_at and job.completed_at and job.stored.get("completed_at") is None:
            seconds = (job.completed_at - job.started_at).total_seconds()
            self._runs.append((seconds, {**kind, Attribute.JOB_STATUS: job.status}))
        sealed = attempt.sealed_at if job.stored_live else None
        if sealed and attempt.accepted_at and tracing.records() and (context := TraceContext.parse(job.trace_context)):
            about = {**_about(job.job_id, attempt.number, job.type), Attribute.JOB_STATUS: job.status}
            self._seals.append(_Seal(context, attempt.payload_ended_at or sealed, sealed, about))

    def tell(self) -> None:
        """They are committed."""
        for about in self._moves:
            TRANSITIONS.add(1, about)
        for seconds, about in self._starts:
            START.record(seconds, about)
        for seconds, about in self._runs:
            RUN.record(seconds, about)
        for seal in self._seals:
            tracing.record("job seal", seal.context, seal.began.timestamp(), seal.ended.timestamp(), seal.about)


def link(changed: Iterable[Job]) -> None:
    """Have the call that is served name the traces of the jobs that it reports of: it is in none of them, for it
    brings what many have to say."""
    if tracing.records():
        tracing.link(TraceContext.parse(job.trace_context) for job in changed)


def _about(job_id: int, attempt: int, kind: str) -> dict[Attribute, str | int]:
    return {Attribute.JOB_ID: job_id, Attribute.JOB_ATTEMPT: attempt, Attribute.JOB_TYPE: kind}
