"""What the frames of an attempt do to its job. Pure, as `lifecycle`, whose other half it is: the agent's half.

The log always takes a frame that is in sequence. The fact in it moves the job where the rulebook permits; where it
does not, the fact stays evidence and the history says so, so that no report can wedge a job.
"""

from __future__ import annotations

from datetime import datetime

from services.queue.errors import LogSealed, SequenceGap, StaleAttempt
from services.queue.frames import (
    Fact,
    Finished,
    Frame,
    Outcome,
    PayloadEnded,
    ProcessExited,
    ProcessSignalled,
    ProcessStarted,
    Progress,
    StopBegun,
    StopKind,
    extend_digest,
)
from services.queue.lifecycle import SWEEPER_MARGIN, apply, note
from services.queue.model import Actor, Attempt, Job, LogVerdict
from services.queue.states import TERMINAL, Event, Status, StopState

PROCESSES = 1_000
"""More processes than this are counted by the supervisor, not named."""

SIGNALS = 10
"""So many are kept for each process; a supervisor sends two."""

_EXECUTOR = "PROCESS_ROLE_PACKAGE_EXECUTOR"

_FINISH = {
    Outcome.SUCCEEDED: Event.FINISH_SUCCEEDED,
    Outcome.FAILED: Event.FINISH_FAILED,
    Outcome.STOPPED: Event.FINISH_STOPPED,
    Outcome.TIMED_OUT: Event.RUN_TIMEOUT,
}


def append(job: Job, frame: Frame, now: datetime, by: Actor) -> None:
    """Add the next frame to the log of the current attempt and let its fact act.

    Raises:
        StaleAttempt: the acceptance was never committed, so nothing may have started.
        LogSealed: the last frame was committed before.
        SequenceGap: a frame is missing before this one.
    """
    attempt = job.attempt
    if attempt is None or attempt.accepted_at is None:
        raise StaleAttempt(job.job_id, job.attempt_number, "it was not accepted")
    if attempt.sealed_at is not None:
        raise LogSealed(job.job_id, attempt.number)
    if frame.sequence != attempt.sequence + 1:
        raise SequenceGap(job.job_id, attempt.number, attempt.sequence + 1)
    digest_before = attempt.digest
    attempt.sequence = frame.sequence
    attempt.digest = extend_digest(digest_before, frame.body)
    attempt.output_bytes += frame.output_bytes
    attempt.last_heard_at = now
    if frame.at < now - SWEEPER_MARGIN:
        attempt.active_at = now  # it is still handing in what was written while it could not be heard
    if frame.fact is not None:
        _learn(job, attempt, frame.fact, frame.at, digest_before, now, by)


def _learn(
    job: Job, attempt: Attempt, fact: Fact, at: datetime, digest_before: bytes, now: datetime, by: Actor
) -> None:
    match fact:
        case ProcessStarted():
            if len(attempt.processes) < PROCESSES:
                attempt.processes.append(fact.process)
                attempt.processes_changed = True
            if fact.payload and attempt.first_process_at is None:
                attempt.first_process_at = now
                job.started_at = job.started_at or now
                note(job, Event.FIRST_PROCESS, now, by, f"payload process {fact.pid}")
        case ProcessSignalled():
            for process in _running(attempt, fact.pid):
                signals, times = process.setdefault("signals", []), process.setdefault("signalTimes", [])
                if isinstance(signals, list) and isinstance(times, list) and len(signals) < SIGNALS:
                    # Of one that was signalled before a release that keeps times, none is another's.
                    if len(times) == len(signals):
                        times.append(at.isoformat())
                    signals.append(fact.signal)
                    attempt.processes_changed = True
        case ProcessExited():
            for process in _running(attempt, fact.pid):
                process["ended"] = attempt.processes_changed = True
                if fact.exit_code is not None:
                    process["exitCode"] = fact.exit_code
                if fact.signal:
                    process["endSignal"] = fact.signal
        case Progress():
            job.progress_percent, job.progress_text = fact.percent, fact.text
        case PayloadEnded():
            attempt.payload_ended_at = attempt.payload_ended_at or now
            job.result_code = fact.exit_code
            how = "by a signal" if fact.exit_code is None else f"with exit code {fact.exit_code}"
            note(job, Event.PAYLOAD_ENDED, now, by, f"its payload ended {how}")
        case StopBegun():
            attempt.stop_begun = fact.kind
            if fact.kind is StopKind.TIME_OUT and note(job, Event.RUN_TIMEOUT, now, by, fact.reason):
                job.stop_state = StopState.PENDING
                job.failure_reason, job.status_message = "RUN_TIMEOUT", fact.reason
        case Finished():
            _finish(job, attempt, fact, digest_before, now, by)


def _running(attempt: Attempt, pid: int) -> list[dict[str, object]]:
    """The youngest process with this id that is not known to have ended, if there is one."""
    found = [p for p in attempt.processes if p.get("pid") == str(pid) and not p.get("ended")]
    return found[-1:]


def _finish(job: Job, attempt: Attempt, fact: Finished, digest_before: bytes, now: datetime, by: Actor) -> None:
    ended_before = job.status in TERMINAL
    unasked = fact.outcome is Outcome.STOPPED and job.status is not Status.CANCEL_REQUESTED
    if note(job, _FINISH[fact.outcome], now, by, fact.message) and not ended_before:
        job.failure_reason = "STOPPED_AT_SITE" if unasked else fact.failure_reason
        job.status_message = fact.message
    if job.status not in TERMINAL:
        # The attempt is sealed below and nobody looks at it again, so the job must end with it, whatever was left out.
        apply(job, Event.FINISH_FAILED, now, by, "its end does not follow from what was reported before")
        job.failure_reason, job.status_message = fact.failure_reason or "OUT_OF_ORDER", fact.message
    if not ended_before:
        job.result_code = fact.result_code if fact.result_code is not None else job.result_code
        job.outputs = fact.outputs
    for process in attempt.processes:
        if process.get("role") == _EXECUTOR:
            # The supervisor ends with its last frame, and nobody is left to say so.
            process["ended"] = attempt.processes_changed = True
    attempt.evidence = fact.evidence
    attempt.discarded_bytes = fact.discarded_bytes
    job.stop_state = StopState.CONFIRMED if fact.tree_empty else StopState.UNCONFIRMED
    attempt.sealed_at = now
    if fact.digest != digest_before or fact.output_cut:
        # The site logged something else than what arrived here, or nobody knows what its supervisor had still to read:
        # say so, rather than call the log complete.
        attempt.verdict = LogVerdict.GAPPED
    else:
        attempt.verdict = LogVerdict.TRUNCATED if fact.discarded_bytes else LogVerdict.COMPLETE
