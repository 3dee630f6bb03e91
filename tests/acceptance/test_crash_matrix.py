"""A sample of the crash matrix (`make test-crash`): processes killed and stopped, links cut, two faults together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.matrix import Bench, Case
from tests.support.linked_stack import LinkedStack

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench as that of the whole matrix, which judges all cases together in the end."""
    directory: Path = tmp_path_factory.mktemp("crash")
    stack = LinkedStack(directory / "data")
    try:
        stack.up()
        with stack.client() as client:
            found = Bench(stack, client, directory / "cases")
            yield found
            found.finish()
    finally:
        stack.close()


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        ("job/start credentials.lease.committing stop", "SUCCEEDED"),
        ("job/start agent.accepted.journalled kill:hub", "SUCCEEDED"),
        ("job/start agent.spawning.journalled kill", "FAILED SUPERVISOR_LOST, stop CONFIRMED"),
        ("job/end queue.report.committing kill:postgres", "SUCCEEDED"),
        ("job/end agent.frames.sending stop:queue", "SUCCEEDED"),
        ("cancel/stop supervisor.term.sent kill:agent", "CANCELED, stop CONFIRMED"),
        ("abort/stop queue.abort.committed kill", "ABORTED, stop CONFIRMED"),
        ("job/start agent.accepted.journalled kill:hub + job/end supervisor.reaped cut:queue-postgres", "SUCCEEDED"),
    ],
)
def test_whatever_is_struck_the_job_ends_as_promised(bench: Bench, case: str, outcome: str) -> None:
    result = bench.run(Case.parse(case))
    assert not result.violation, result.violation
    assert result.told == outcome  # and somebody was struck
