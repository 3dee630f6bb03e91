"""A job and its attempts as `lifecycle` and `evidence` change them: the types alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from services.queue.frames import DIGEST_START, StopKind
from services.queue.states import TERMINAL, Status, StopState


class LogVerdict(StrEnum):
    """How complete a log is."""

    OPEN = "OPEN"
    COMPLETE = "COMPLETE"
    TRUNCATED = "TRUNCATED"
    GAPPED = "GAPPED"


class WaitReason(StrEnum):
    """What keeps a job. Those before HELD are noted with the job, where something other than a free slot keeps it, and
    HELD where a restore of the database does; the others are found when somebody asks (`explanations`)."""

    VAULT_SEALED = "VAULT_SEALED"
    VAULT_UNREACHABLE = "VAULT_UNREACHABLE"
    VAULT_SLOW = "VAULT_SLOW"
    VAULT_FORBIDDEN = "VAULT_FORBIDDEN"
    VAULT_RATE_LIMITED = "VAULT_RATE_LIMITED"
    VAULT_FAILED = "VAULT_FAILED"
    CREDENTIALS_UNREACHABLE = "CREDENTIALS_UNREACHABLE"
    AGENT_UNKNOWN = "AGENT_UNKNOWN"
    DECLINED = "DECLINED"
    HELD = "HELD"
    NOT_BEFORE = "NOT_BEFORE"
    NO_AGENT_KNOWN = "NO_AGENT_KNOWN"
    NO_AGENT_ONLINE = "NO_AGENT_ONLINE"
    AGENTS_DRAINING = "AGENTS_DRAINING"
    AT_CAPACITY = "AT_CAPACITY"
    JOBS_AHEAD = "JOBS_AHEAD"
    NOTHING = "NOTHING"
    NO_AGENT_FITS = "NO_AGENT_FITS"


class RefusalReason(StrEnum):
    """Why an attempt got no leases."""

    VAULT_SEALED = "VAULT_SEALED"
    VAULT_UNREACHABLE = "VAULT_UNREACHABLE"
    VAULT_SLOW = "VAULT_SLOW"
    VAULT_FORBIDDEN = "VAULT_FORBIDDEN"
    VAULT_RATE_LIMITED = "VAULT_RATE_LIMITED"
    VAULT_FAILED = "VAULT_FAILED"
    CREDENTIALS_UNREACHABLE = "CREDENTIALS_UNREACHABLE"
    AGENT_UNKNOWN = "AGENT_UNKNOWN"
    CREDENTIAL_NOT_FOUND = "CREDENTIAL_NOT_FOUND"
    CREDENTIAL_UNSUITABLE = "CREDENTIAL_UNSUITABLE"
    CREDENTIAL_VALUE_MISSING = "CREDENTIAL_VALUE_MISSING"
    ATTEMPT_ENDED = "ATTEMPT_ENDED"
    """Never said to the queue: it is the queue that ends attempts."""


FOR_GOOD = frozenset(
    {
        RefusalReason.CREDENTIAL_NOT_FOUND,
        RefusalReason.CREDENTIAL_UNSUITABLE,
        RefusalReason.CREDENTIAL_VALUE_MISSING,
    }
)
"""Refusals that no retry helps; the failure reasons of their jobs."""


@dataclass(frozen=True, slots=True)
class LeaseRefusal:
    """The leases of an attempt were refused: for good, or to be asked for again after `retry_after` at the earliest."""

    reason: RefusalReason
    message: str
    permanent: bool = False
    retry_after: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """The leases of an attempt are to end. `job_over` says that no attempt follows, attempt 0 that there was none."""

    job_id: int
    attempt: int
    job_over: bool


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and from which machine."""

    name: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One row of a job's history; `from_status == to_status` where something was recorded and nothing moved."""

    sequence: int
    at: datetime
    from_status: Status | None
    to_status: Status
    event: str
    actor: str
    origin: str
    message: str
    attempt: int


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One claim of a job, and everything its agent has proven so far."""

    number: int
    agent: str
    epoch: int
    journal_id: str
    claimed_at: datetime
    last_heard_at: datetime
    # When its agent last began a session with it, or handed in something old: right after, it is still catching up.
    active_at: datetime
    accepted_at: datetime | None = None
    first_process_at: datetime | None = None
    payload_ended_at: datetime | None = None
    sequence: int = 0
    digest: bytes = DIGEST_START
    output_bytes: int = 0
    discarded_bytes: int = 0
    stop_wish: StopKind | None = None
    stop_reason: str = ""
    stop_wished_at: datetime | None = None
    stop_begun: StopKind | None = None
    lost: bool = False
    sealed_at: datetime | None = None
    verdict: LogVerdict = LogVerdict.OPEN
    processes: list[dict[str, object]] = field(default_factory=list)
    evidence: dict[str, object] | None = None
    # Whether `processes` is to be saved.
    processes_changed: bool = False


@dataclass(slots=True, kw_only=True)
class Job:
    """The part of a job that transitions touch. `attempt` is the current one, None before the first claim."""

    job_id: int
    status: Status
    attempt_number: int
    agent: str
    queued_at: datetime | None
    not_before: datetime | None
    latest_start: datetime | None
    deferral_ends_at: datetime | None
    run_timeout: timedelta | None
    heartbeat_timeout: timedelta
    start_timeout: timedelta
    output_timeout: timedelta
    cancel_grace: timedelta
    started_at: datetime | None
    completed_at: datetime | None
    cancel_requested_at: datetime | None
    stop_state: StopState
    retry_at: datetime | None
    hidden_at: datetime | None
    result_code: int | None
    failure_reason: str
    status_message: str
    outputs: dict[str, str]
    progress_percent: int
    progress_text: str
    history_sequence: int
    attempt: Attempt | None
    # Whether it names credentials, so that its attempts take leases.
    with_credentials: bool = False
    type: str = ""
    # The trace that it is part of; "" for none.
    trace_context: str = ""
    wait_reason: WaitReason | None = None
    # "" where nothing but a free slot keeps it.
    wait_message: str = ""
    # A time at which it was locked, of one that was ever claimed: what others did to it is recorded before that.
    locked_at: datetime | None = None
    new_history: list[HistoryEntry] = field(default_factory=list)
    # The row, and the end of leases, as they were loaded, for `store` to tell what changed.
    stored: dict[str, object] = field(default_factory=dict)
    stored_lease_end: LeaseEnd | None = None
    stored_live: bool = False

    @property
    def accepted(self) -> bool:
        """Whether an acceptance of the current attempt was ever committed."""
        return self.attempt is not None and self.attempt.accepted_at is not None

    @property
    def live(self) -> bool:
        """Whether something of the current attempt may still be at its site."""
        return self.attempt is not None and self.attempt.sealed_at is None

    @property
    def lease_end(self) -> LeaseEnd | None:
        """What is to be said of its leases, as it stands: they last for as long as something may be at the site."""
        over = self.status in TERMINAL
        if not self.with_credentials or self.live or (self.attempt is None and not over):
            return None
        return LeaseEnd(self.job_id, self.attempt_number, over)
