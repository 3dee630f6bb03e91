"""A sample of the crash matrix (`make test-crash`), on the stack that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.matrix import Bench, Case
from tests.crash.points import Passage
from tests.support.stack import Stack


@pytest.mark.parametrize(
    ("scenario", "phase", "point", "fault", "outcomes"),
    [
        ("job", "start", "credentials.lease.committing", "stop", {"SUCCEEDED"}),
        ("job", "start", "agent.accepted.journalled", "kill:hub", {"SUCCEEDED"}),
        ("job", "start", "agent.spawning.journalled", "kill", {"FAILED SUPERVISOR_LOST, stop CONFIRMED"}),
        ("job", "start", "supervisor.started", "kill:zygote", {"SUCCEEDED"}),
        ("job", "end", "supervisor.end.written", "kill", {"SUCCEEDED"}),
        ("job", "end", "queue.report.committing", "kill:postgres", {"SUCCEEDED"}),
        ("cancel", "stop", "supervisor.term.sent", "kill:agent", {"CANCELED, stop CONFIRMED"}),
        ("abort", "stop", "queue.abort.committed", "kill", {"ABORTED, stop CONFIRMED"}),
    ],
)
def test_whatever_is_killed_the_job_ends_as_promised(
    stack: Stack, tmp_path: Path, scenario: str, phase: str, point: str, fault: str, outcomes: set[str]
) -> None:
    with stack.client() as client:
        bench = Bench(stack, client, tmp_path)
        result = bench.run(Case(((Passage(point, scenario, phase), fault),)))
        assert not result.violation, result.violation
        assert result.outcome in outcomes
        bench.finish()
