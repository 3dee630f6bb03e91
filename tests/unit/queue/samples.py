"""Jobs in any state, as `lifecycle` and `evidence` take them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.queue.model import Actor, Attempt, Job
from services.queue.states import Status, StopState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALICE = Actor("alice", "10.0.0.1")
AGENT = Actor("agent a-1")


def attempt(**changes: Any) -> Attempt:
    values: dict[str, Any] = {
        "number": 1, "agent": "a-1", "epoch": 1, "journal_id": "journal", "claimed_at": NOW, "last_heard_at": NOW,
        "active_at": NOW,
    }  # fmt: skip
    return Attempt(**(values | changes))


def job(status: Status, current: Attempt | None = None, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "job_id": 7, "status": status, "attempt_number": current.number if current else 0,
        "agent": current.agent if current else "", "queued_at": NOW, "not_before": None, "latest_start": None,
        "run_timeout": None, "heartbeat_timeout": timedelta(seconds=120), "deferral_ends_at": None,
        "start_timeout": timedelta(minutes=5), "output_timeout": timedelta(seconds=60),
        "cancel_grace": timedelta(seconds=10), "started_at": None, "completed_at": None,
        "cancel_requested_at": None, "stop_state": StopState.NONE, "retry_at": None, "hidden_at": None,
        "result_code": None, "failure_reason": "", "status_message": "", "outputs": {}, "progress_percent": 0,
        "progress_text": "", "history_sequence": 0, "attempt": current,
    }  # fmt: skip
    return Job(**(values | changes))


def starting(**changes: Any) -> Job:
    """Claimed and not accepted."""
    return job(Status.STARTING, attempt(**changes))


def running(**changes: Any) -> Job:
    """Its first process was seen."""
    return job(Status.RUNNING, attempt(accepted_at=NOW, first_process_at=NOW, **changes), started_at=NOW)


def events(of: Job) -> list[tuple[str, str | None, str]]:
    """What was added to its history: (event, from, to)."""
    return [(e.event, e.from_status, e.to_status) for e in of.new_history]
