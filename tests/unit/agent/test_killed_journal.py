"""An agent that is killed while it begins its journal or writes it anew: what it was told is durable is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.sis_agent.agent.journal import Journal
from tests.support.fault_points import FaultPoints

POINTS = ("agent.journal.syncing", "agent.journal.synced")

CREATES = """
import sys
from pathlib import Path
from services.sis_agent.agent.journal import Journal
Journal.open_or_create(Path(sys.argv[1]), lambda: print("begins", flush=True))
"""
COMPACTS = """
import itertools, sys
from pathlib import Path
from services.sis_agent.agent import journal as module
from services.sis_agent.agent.attempts import AttemptKey
from services.sis_agent.agent.journal import Journal, Step
module.COMPACTION_BYTES = 4_000
journal = Journal.open(Path(sys.argv[1]))
journal._compact_at = module.COMPACTION_BYTES
for number in itertools.count(1):
    journal.append(Step.ACCEPTED, [AttemptKey(7, number)])
    print(number, flush=True)
"""


def killed(program: str, path: Path, faults: FaultPoints, point: str) -> list[str]:
    """Run it until it is killed at the point; what it has printed."""
    faults.arm(point)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, **faults.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    return done.stdout.split()


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_begins_it_begins_again_or_goes_on(tmp_path: Path, point: str) -> None:
    path, faults = tmp_path / "journal", FaultPoints(tmp_path / "faults")
    assert killed(CREATES, path, faults, point) == ["begins"]
    again: list[bool] = []
    journal = Journal.open_or_create(path, lambda: again.append(True))
    # Once it can be seen, it is the agent's journal, and the server may have heard of it.
    assert again == ([] if point.endswith("synced") else [True])
    assert (journal.record_number, dict(journal.entries)) == (1, {})
    journal.close()


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_is_compacted_no_record_is_lost(tmp_path: Path, point: str) -> None:
    path, faults = tmp_path / "journal", FaultPoints(tmp_path / "faults")
    before = Journal.create(path)
    before.close()
    told = [int(number) for number in killed(COMPACTS, path, faults, point)]
    after = Journal.open(path)
    assert len(told) > 10 and told == list(range(1, len(told) + 1))
    # The one that was compacted after was durable before, too.
    assert {key.number for key in after.entries} == {*told, len(told) + 1}
    assert (after.journal_id, after.record_number) == (before.journal_id, len(told) + 2)
    after.close()
