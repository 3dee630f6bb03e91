"""The soak in its shortest form: the harness itself, and half a minute of what it does. `make soak` is the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.report import report
from tests.soak.samples import Series
from tests.soak.soak import Plan, run


@pytest.mark.long
@pytest.mark.timeout(420)
def test_nothing_is_wrong_after_half_a_minute_of_churn_and_faults(tmp_path: Path) -> None:
    outcome = run(Plan(25.0, 20261122, tmp_path / "soak", customers=2, onlookers=3), tmp_path / "data")
    assert outcome.ledger.troubles == []
    assert outcome.faults
    assert len(outcome.ledger.orders) == len(outcome.ledger.fates) > 10
    assert outcome.checks >= 2
    measured = {series.subject for series in outcome.samples.lives()}
    assert measured >= {
        "queue",
        *(f"{kind}-{number}" for kind in ("queue", "hub", "credentials", "gateway") for number in (1, 2)),
        "local-1",
        "far-1",
        "postgres",
        "vault",
        "up",
    }
    assert measured >= {"queue.jobs", "queue.log", "credentials.leases", "zygote of local-1"}
    # Too short to tell what grows, but all of it is in the report.
    text = report(outcome, [])
    assert all(f"| {series.subject} | {series.measure} |" in text for series in outcome.verdicts)
    assert Series("queue-1", "RSS") in outcome.verdicts
    assert (tmp_path / "soak" / "samples.csv").read_text().count("\n") > 100
