"""What the ledger takes for a trouble, and what it excuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.queue.states import Status
from tests.soak.ledger import Ledger, Order
from tests.support.frames import Spool
from tests.support.promises import Record

KEY = 1, 1
NOW = datetime.now(UTC)
SECOND = timedelta(seconds=1)


def record(status: str = "SUCCEEDED", *, message: str = "", verdict: str = "COMPLETE", written: bytes = b"x") -> Record:
    """Of a job that was accepted a second before now, and ended a second after it."""
    spool = Spool()
    spool.output(written)
    rows = [{"sequence": n, "body": body} for n, body in enumerate(spool.bodies, 1)]
    job: dict[str, Any] = {
        "status": status,
        "attempt": 1,
        "failure_reason": "",
        "status_message": message,
        "completed_at": NOW + SECOND,
    }
    attempt = {
        "verdict": verdict,
        "output_bytes": len(written),
        "agent": "local-1",
        "accepted_at": NOW - SECOND,
    }
    return Record(NOW, {1: job}, {KEY: attempt}, {}, {KEY: rows})


@pytest.fixture
def ledger() -> Ledger:
    found = Ledger()
    found.ordered(1, Order("short", frozenset({Status.SUCCEEDED}), written=b"x"))
    return found


def test_a_job_that_ended_as_it_should_is_none(ledger: Ledger) -> None:
    ledger.settle(record())
    ledger.close()
    assert ledger.troubles == []


def test_a_log_with_other_bytes_is_a_trouble(ledger: Ledger) -> None:
    ledger.settle(record(written=b"y"))
    assert ledger.troubles == ["job 1 (short): its log is not what it wrote"]


@pytest.mark.parametrize("verdict", ["GAPPED", "TRUNCATED", "OPEN"])
def test_a_success_without_its_whole_log_is_a_trouble(ledger: Ledger, verdict: str) -> None:
    ledger.settle(record(verdict=verdict))
    assert ledger.troubles == [f"job 1 (short): its log is {verdict}"]


def test_a_killed_supervisor_excuses_its_job(ledger: Ledger) -> None:
    ledger.bereaved(KEY)
    ledger.settle(record(verdict="GAPPED"))
    ledger.settle(record())
    ledger.fates.clear()
    ledger.settle(record("FAILED", message="Failed: the supervisor of this job was lost"))
    assert ledger.troubles == []


@pytest.mark.parametrize(
    ("agent", "at", "excused"),
    [
        ("local-1", NOW, True),
        ("local-2", NOW, False),
        ("local-1", NOW - 2 * SECOND, False),
        ("local-1", NOW + 2 * SECOND, False),
    ],
)
def test_a_job_that_never_began_is_excused_by_a_kill_of_its_own_site(
    ledger: Ledger, agent: str, at: datetime, excused: bool
) -> None:
    ledger.kills.append((agent, at))
    ledger.settle(record("FAILED", message="Failed: no supervisor was started for this job"))
    assert (ledger.troubles == []) == excused


def test_a_kill_of_its_site_excuses_nothing_else(ledger: Ledger) -> None:
    ledger.kills.append(("local-1", NOW))
    ledger.settle(record("FAILED", message="Failed: the payload ended with exit code 1"))
    assert len(ledger.troubles) == 1


def test_a_job_that_nobody_saw_end_is_a_trouble(ledger: Ledger) -> None:
    ledger.close()
    assert ledger.troubles == ["job 1 (short) is gone, and nobody saw its end"]
