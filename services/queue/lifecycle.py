"""What each event does to a job. Pure: no clock, no storage.

Every change of a status goes through `apply`, which asks the rulebook (`states`) and writes the history. `store`
loads a `Job` under lock and saves what changed. Times are the database's (`queue.now()`).
"""

from __future__ import annotations

import socket
from datetime import datetime, timedelta

from services.queue.errors import ForceRefused, IllegalTransition, StaleAttempt
from services.queue.frames import StopKind
from services.queue.model import Actor, Attempt, HistoryEntry, Job, LeaseRefusal, LogVerdict, WaitReason
from services.queue.states import HELD_BY_AGENT, TERMINAL, Event, Status, StopState, next_status

KILL_LIMIT = timedelta(seconds=30)
SWEEPER_MARGIN = timedelta(seconds=30)
"""The agent keeps the limits; the sweeper steps in this much later, for an agent that is heard but does not act."""
NO_OP_ROWS = 1_000
"""In a history longer than this, nobody in a loop can add a row by what changes nothing, and so fill the database."""
_OF_PEOPLE = {Event.ACTIVATE, Event.CANCEL, Event.ABORT}
_REPEATABLE = _OF_PEOPLE | {Event.SILENCE, Event.FIRST_PROCESS, Event.PAYLOAD_ENDED, Event.RUN_TIMEOUT}
"""What may come any number of times to the same job: from people, the clock, the site. In a status that it leaves as it
is, it changes nothing, but for the first cancel of a job of which nothing is heard."""
STEEP_TRIES, STEEP_LIMIT = 10, timedelta(minutes=1)
RETRY_GROWTH, RETRY_LIMIT = 1.1, timedelta(minutes=10)
"""The delay before the next try doubles up to the first limit; after that many tries it grows by this factor up to the
last one, so that what is away for long adds few attempts and little history to each job that waits for it."""
RETRY_SPREAD = 0.1
"""Jobs that were refused together come back apart: by up to this share of their delay."""
RESTORED_DEFERRAL = timedelta(days=30)
"""What a restore holds expires when nobody has decided by then."""
SWEEPER = Actor("sweeper", socket.gethostname())


def check(job: Job, event: Event) -> Status:
    """The status that an event would leave the job in.

    Raises:
        IllegalTransition: the rulebook refuses.
    """
    try:
        canceled = job.cancel_requested_at is not None
        return next_status(job.status, event, accepted=job.accepted, cancel_recorded=canceled)
    except IllegalTransition as error:
        raise IllegalTransition(error.status, error.event, job.job_id) from None


def apply(job: Job, event: Event, now: datetime, by: Actor, message: str = "") -> bool:
    """Move the job as the rulebook says and record it; True when the status changed.

    Raises:
        IllegalTransition: the rulebook refuses; nothing was changed.
    """
    to = check(job, event)
    moved = to is not job.status
    _record(job, event, to, now, by, message)
    job.status = to
    if moved:
        job.retry_at, job.wait_reason, job.wait_message = None, None, ""
    if moved and to in TERMINAL:
        job.completed_at = now
    return moved


def note(job: Job, event: Event, now: datetime, by: Actor, message: str = "") -> bool:
    """As `apply`, of an event from the site: where the rulebook refuses it, it is recorded as ignored."""
    try:
        return apply(job, event, now, by, message)
    except IllegalTransition:
        _record(job, event, job.status, now, by, f"ignored: {message}" if message else "ignored")
        return False


def _record(job: Job, event: Event, to: Status, now: datetime, by: Actor, message: str) -> None:
    first = event is Event.CANCEL and job.status is Status.AWOL and job.cancel_requested_at is None
    if to is job.status and event in _REPEATABLE and not first and job.history_sequence >= NO_OP_ROWS:
        return
    job.history_sequence += 1
    job.new_history.append(
        HistoryEntry(job.history_sequence, now, job.status, to, event, by.name, by.origin, message, job.attempt_number)
    )


# What people ask for.


def activate(job: Job, now: datetime, by: Actor, reason: str = "") -> bool:
    """Release a deferred job now, whatever its earliest start."""
    if not apply(job, Event.ACTIVATE, now, by, reason):
        return False
    job.queued_at, job.not_before, job.deferral_ends_at = now, None, None
    return True


def cancel(job: Job, now: datetime, by: Actor, reason: str) -> None:
    """End the job gracefully, or note the wish where an agent has to do it."""
    if apply(job, Event.CANCEL, now, by, reason) or job.status is Status.AWOL:
        job.cancel_requested_at = job.cancel_requested_at or now
        if job.status in (Status.CANCEL_REQUESTED, Status.AWOL):
            _wish(job, StopKind.CANCEL, now, reason or f"canceled by {by.name}")


def abort(job: Job, now: datetime, by: Actor, reason: str) -> None:
    """End the job by force: the status at once, the stop when there is evidence."""
    unheard = job.status is Status.AWOL
    if apply(job, Event.ABORT, now, by, reason):
        job.status_message = reason or f"aborted by {by.name}"
        _stop_by_force(job, now, job.status_message, unheard=unheard)


def force(job: Job, now: datetime, by: Actor, reason: str) -> None:
    """Let go, without evidence, of all that a job holds whose agent is gone. One that has ended and holds nothing any
    more stays as it is.

    Raises:
        ForceRefused
    """
    check_force(job.job_id, job.status, job.stop_state, job.heartbeat_timeout, live=job.live)
    if not job.live:
        return
    if apply(job, Event.FORCE, now, by, reason):
        job.status_message = reason or f"aborted by {by.name} by force"
    attempt = _current(job)
    attempt.lost, attempt.sealed_at, attempt.verdict = True, now, LogVerdict.GAPPED
    unheard_stop(job)


def given_up(status: Status, stop: StopState) -> bool:
    """Whether nobody can be expected any more to tell how a job ends: what it still holds can be let go of by force."""
    return status is Status.AWOL or stop is StopState.UNCONFIRMED


def check_force(job_id: int, status: Status, stop: StopState, silence: timedelta, *, live: bool) -> None:
    """Raise ForceRefused where the agent of a job may still tell how it ends, or none has it; `live` as in `Job`."""
    ended = status in TERMINAL
    if not (given_up(status, stop) if live else ended):
        raise ForceRefused(job_id, status, silence.total_seconds(), claimed=live, ended=ended)


def delete(job: Job, now: datetime, by: Actor, reason: str = "") -> None:
    """Hide the job for good, ending it where it has not started or nobody knows of it."""
    unheard = job.status is Status.AWOL
    moved = apply(job, Event.DELETE, now, by, reason)
    job.hidden_at = now
    if moved and unheard:
        _stop_by_force(job, now, f"deleted by {by.name}", unheard=True)


def rerun(job: Job, now: datetime, by: Actor, new_job_id: int, reason: str = "") -> None:
    """Note that a new job repeats this one, which has ended."""
    apply(job, Event.RERUN, now, by, f"as job {new_job_id}" + (f": {reason}" if reason else ""))


def _wish(job: Job, kind: StopKind, now: datetime, reason: str) -> None:
    attempt = job.attempt
    if attempt is None or attempt.sealed_at is not None or attempt.stop_wish is StopKind.ABORT:
        return
    if attempt.stop_wish is not kind:
        attempt.stop_wish, attempt.stop_reason, attempt.stop_wished_at = kind, reason, now


def _stop_by_force(job: Job, now: datetime, reason: str, *, unheard: bool = False) -> None:
    if job.live:
        job.stop_state = StopState.UNCONFIRMED if unheard else StopState.PENDING
        _wish(job, StopKind.ABORT, now, reason)


# What the clock does, through the sweeper.


def release(job: Job, now: datetime) -> None:
    """The earliest start of a deferred job has come."""
    apply(job, Event.RELEASE, now, SWEEPER, "its earliest start has come")
    job.queued_at = now


def expire(job: Job, now: datetime) -> None:
    """The latest start of a job that nobody claimed has passed, or the limit of a deferral that nobody ended."""
    held_until = job.deferral_ends_at if job.status is Status.DEFERRED else None
    waited = f"; it waited: {job.wait_message}" if job.wait_message else ""
    if held_until is not None and (job.latest_start is None or held_until <= job.latest_start):
        apply(job, Event.EXPIRE, now, SWEEPER, "the limit of its deferral has passed")
        job.failure_reason, job.status_message = "DEFERRAL_LIMIT", "nobody activated it before its deferral ended"
    else:
        apply(job, Event.EXPIRE, now, SWEEPER, "its latest start has passed")
        job.failure_reason, job.status_message = "LATEST_START", f"it was not started by its latest start{waited}"


def silence(job: Job, now: datetime) -> None:
    """Its agent was not heard of for longer than the heartbeat timeout: nobody knows whether it runs."""
    seconds = int(job.heartbeat_timeout.total_seconds())
    apply(job, Event.SILENCE, now, SWEEPER, f"agent {job.agent} has said nothing of it for {seconds} s")
    _end_if_hidden(job, now, SWEEPER)


def _end_if_hidden(job: Job, now: datetime, by: Actor) -> None:
    """Nobody can end a deleted job that has become AWOL, since to people it is gone: do it for them."""
    if job.status is Status.AWOL and job.hidden_at is not None:
        apply(job, Event.DELETE, now, by, "it was deleted before")
        _stop_by_force(job, now, "deleted", unheard=True)


def unheard_stop(job: Job) -> None:
    """A stop is pending and its agent is silent: nobody can confirm it, until it is heard again (`reopen_stop`)."""
    job.stop_state = StopState.UNCONFIRMED


def reopen_stop(job: Job, now: datetime) -> bool:
    """The agent of a job is heard of it; True where the job has ended and nobody could confirm its stop: now its agent
    may do that after all."""
    attempt = job.attempt
    if attempt is None or attempt.lost or not job.live or job.status not in TERMINAL:
        return False
    if job.stop_state is not StopState.UNCONFIRMED:
        return False
    job.stop_state, attempt.last_heard_at = StopState.PENDING, now
    return True


def give_up_log(job: Job, now: datetime) -> None:
    """Nobody waits for the end of the log any longer: seal it as it is."""
    attempt = _current(job)
    attempt.sealed_at, attempt.verdict = now, LogVerdict.GAPPED
    if job.stop_state is StopState.PENDING:
        unheard_stop(job)


def overrun(job: Job, now: datetime, watching_since: datetime) -> bool:
    """End a job whose agent is heard but keeps a limit no longer; True when one had passed.

    An agent that has just come back, or that is still handing in what it has, may be about to report an end that came
    in time; nor does a sweeper know what it would have been told before it began to watch.
    """
    attempt = job.attempt
    if attempt is None:
        return False
    caught_up = max(attempt.active_at, watching_since)
    due: datetime | None = None
    match job.status:
        case Status.STARTING:
            due = attempt.claimed_at + job.start_timeout
            event, reason, text = Event.START_LIMIT, "START_TIMEOUT", "it was not started in time"
        case Status.PROCESSING_OUTPUT if attempt.payload_ended_at is not None:
            due = attempt.payload_ended_at + job.output_timeout
            event, reason, text = Event.OUTPUT_LIMIT, "OUTPUT_TIMEOUT", "its output was not processed in time"
        case Status.CANCEL_REQUESTED if attempt.stop_wished_at is not None:
            due = max(attempt.stop_wished_at, caught_up) + job.cancel_grace + KILL_LIMIT
            text = "its agent did not confirm the stop in time"
            event, reason = Event.STOP_LIMIT, "STOP_UNCONFIRMED"
    running = job.status in (Status.RUNNING, Status.CANCEL_REQUESTED)
    if running and job.run_timeout is not None and attempt.first_process_at is not None:
        ends = attempt.first_process_at + job.run_timeout
        if due is None or ends < due:
            due, event, reason, text = ends, Event.RUN_TIMEOUT, "RUN_TIMEOUT", "it ran past its run timeout"
    if due is None or now <= max(due, caught_up) + SWEEPER_MARGIN:
        return False
    apply(job, event, now, SWEEPER, text)
    job.failure_reason, job.status_message = reason, text
    _stop_by_force(job, now, text)
    return True


def repeat_stop(job: Job, now: datetime, watching_since: datetime) -> bool:
    """Ask for the stop of a job that has ended again, and by force, where its agent is heard but does not tell how the
    stop went; True when that was due.

    A supervisor can hang after it has begun to stop, whoever asked it to; what it does not take, its agent kills.
    """
    attempt = job.attempt
    if attempt is None or not job.live or job.stop_state is not StopState.PENDING or job.completed_at is None:
        return False
    asked = max(job.completed_at, attempt.stop_wished_at or job.completed_at, attempt.active_at, watching_since)
    if now <= asked + job.cancel_grace + KILL_LIMIT + SWEEPER_MARGIN:
        return False
    attempt.stop_wish, attempt.stop_wished_at, attempt.stop_begun = StopKind.ABORT, now, None
    attempt.stop_reason = attempt.stop_reason or "its agent did not confirm the stop in time"
    return True


# What happens between claim and acceptance.


def accept(job: Job, now: datetime, by: Actor) -> None:
    """The agent has the attempt in its journal.

    Raises:
        StaleAttempt: the job was stopped before the acceptance came. As an attempt starts only once its acceptance is
            committed, this proves that it never will: the stop is settled with it.
    """
    attempt = _current(job)
    if attempt.accepted_at is not None:
        return
    if job.status is Status.STARTING:
        apply(job, Event.ACCEPT, now, by, "it is in its agent's journal")
        attempt.accepted_at = attempt.last_heard_at = now
        return
    if attempt.sealed_at is None:
        never_started(job, now, by, "it was stopped before its agent accepted it")
    raise StaleAttempt(job.job_id, attempt.number, "it was stopped before it was accepted; forget it")


def never_started(job: Job, now: datetime, by: Actor, why: str) -> None:
    """It is proven that the current attempt never started and never will: give it back, or settle its stop."""
    _give_back(job, Event.GIVE_BACK, now, by, why)
    if job.status is Status.WAITING and job.attempt_number > 1:
        # Many in a row come slower and slower; the first one costs nothing.
        job.retry_at, job.wait_message = now + _backoff(job.attempt_number), why


def declined(job: Job, now: datetime, by: Actor, reason: str) -> None:
    """The journal of its agent says that the current attempt never started and never will."""
    never_started(job, now, by, f"declined: {reason}")
    if job.status is Status.WAITING:
        job.wait_reason, job.wait_message = WaitReason.DECLINED, f"{by.name} declined it: {reason}"


def lease_refused(job: Job, now: datetime, by: Actor, refusal: LeaseRefusal) -> None:
    """The current attempt got no leases, so it was not delivered: it waits for its next one, or fails for good.

    The next one comes after 1, 2, 4 … 60 s, from the eleventh try on slower and slower, up to 10 minutes; later where
    the refusal asks for that, by a minute at the most.

    One that was delivered before, and whose acceptance is under way, does not start either: its acceptance is refused.
    """
    why = f"{refusal.reason}: {refusal.message}"
    if job.status is Status.AWOL:
        # Nobody looked for it meanwhile. That it was not delivered proves what a homecoming does.
        _give_back(job, Event.GIVE_BACK, now, by, why)
    else:
        _give_back(job, Event.LEASE_REFUSED, now, by, why)
    if job.status is not Status.WAITING:
        return
    if refusal.permanent:
        apply(job, Event.UNRUNNABLE, now, by, why)
        job.failure_reason, job.status_message = refusal.reason, refusal.message
        return
    delay = max(min(refusal.retry_after, STEEP_LIMIT), _backoff(job.attempt_number))
    # By the golden ratio the ids, however few of them, are spread evenly.
    job.retry_at = now + delay * (1 + RETRY_SPREAD * (job.job_id * 0.6180339887498949 % 1))
    job.wait_reason, job.wait_message = WaitReason(refusal.reason.value), refusal.message


def _give_back(job: Job, event: Event, now: datetime, by: Actor, why: str) -> None:
    attempt = _current(job)
    if job.status in HELD_BY_AGENT or job.status is Status.AWOL:
        apply(job, event, now, by, why)
    attempt.sealed_at, attempt.verdict = now, LogVerdict.COMPLETE
    if job.status is Status.WAITING:
        job.agent = ""
    elif job.stop_state is not StopState.NONE:
        job.stop_state = StopState.CONFIRMED


def _backoff(number: int) -> timedelta:
    if number <= STEEP_TRIES:
        return min(timedelta(seconds=2 ** (number - 1)), STEEP_LIMIT)
    # Bounded before it is raised: a float of 1.1^10,000 does not exist.
    return min(STEEP_LIMIT * RETRY_GROWTH ** min(number - STEEP_TRIES, 100), RETRY_LIMIT)


def journal_lost(job: Job, now: datetime, by: Actor) -> None:
    """Its agent is back and cannot know of it any more: nobody ever will."""
    attempt = _current(job)
    if attempt.lost:
        return
    if job.status in HELD_BY_AGENT or job.status is Status.AWOL:
        apply(job, Event.JOURNAL_LOST, now, by, "JOURNAL_LOST: the agent returned without its journal of it")
        job.status_message = "its agent returned without its journal of it"
        _end_if_hidden(job, now, by)
    elif job.stop_state is StopState.PENDING:
        job.stop_state = StopState.UNCONFIRMED
    attempt.lost = True


def come_back(job: Job, now: datetime, by: Actor) -> None:
    """The agent of an AWOL job is heard of it again, under the same attempt: back to what its journal has proven.

    Raises:
        StaleAttempt: the attempt was lost for good.
    """
    attempt = _current(job)
    if attempt.lost:
        raise StaleAttempt(job.job_id, attempt.number, "its journal was lost; end what is left of it")
    if job.cancel_requested_at is not None:
        event = Event.RETURN_CANCEL_REQUESTED
    elif attempt.payload_ended_at is not None:
        event = Event.RETURN_PROCESSING_OUTPUT
    elif attempt.first_process_at is not None:
        event = Event.RETURN_RUNNING
    else:
        event = Event.RETURN_STARTING
    apply(job, event, now, by, f"agent {job.agent} is back")
    attempt.active_at = attempt.last_heard_at = now


# After the database was restored from a backup.


def restored(job: Job, now: datetime, by: Actor) -> None:
    """What was done to the job since the backup is not known here any more. What waited is held for people, since it
    may have run. An attempt that was not accepted may have been since, so that nothing proves that it never started."""
    moved = apply(job, Event.RESTORE, now, by, "the database was restored from a backup; what came after it is lost")
    if job.status is Status.DEFERRED and job.wait_reason is not WaitReason.HELD:
        earliest = f"; its earliest start was {job.not_before:%Y-%m-%d %H:%M} UTC" if job.not_before else ""
        if moved or job.not_before is not None:
            job.queued_at, job.not_before, job.deferral_ends_at = None, None, now + RESTORED_DEFERRAL
        job.wait_reason = WaitReason.HELD
        job.wait_message = f"the database was restored from a backup, and it may have run since{earliest}"
    if (attempt := job.attempt) is not None and attempt.sealed_at is None:
        attempt.accepted_at = attempt.accepted_at or now
        # The agent has the whole heartbeat timeout to come home.
        attempt.last_heard_at = now


def adopted(job: Job, attempt: Attempt, now: datetime, by: Actor) -> None:
    """An agent has an attempt in hand that was claimed after the backup from which the database was restored: it is
    the current one again. `attempt` is known by its agent's word alone, and accepted."""
    job.agent, job.attempt, job.attempt_number = attempt.agent, attempt, attempt.number
    apply(job, Event.ADOPT, now, by, f"agent {attempt.agent} has it in hand since before the restore")
    job.deferral_ends_at = None


def _current(job: Job) -> Attempt:
    if job.attempt is None:
        raise StaleAttempt(job.job_id, job.attempt_number, "it was never claimed")
    return job.attempt
