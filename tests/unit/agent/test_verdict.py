"""How an attempt has ended, by what is known of it."""

from __future__ import annotations

import pytest

from services.sis_agent.agent.supervision.verdict import Ending, judge
from sis.queue.v1 import frame_pb2 as pb

CANCEL, ABORT, TIME_OUT = pb.STOP_KIND_CANCEL, pb.STOP_KIND_ABORT, pb.STOP_KIND_TIME_OUT


@pytest.mark.parametrize(
    ("ending", "outcome", "reason"),
    [
        (Ending(0, None, True), pb.OUTCOME_SUCCEEDED, ""),
        (Ending(1, None, True), pb.OUTCOME_FAILED, "EXIT_CODE"),
        (Ending(-9, None, True), pb.OUTCOME_FAILED, "SIGNAL"),
        (Ending(0, None, True, ["bad"]), pb.OUTCOME_FAILED, "OUTPUT_INVALID"),
        (Ending(0, None, True, [], ["a"]), pb.OUTCOME_FAILED, "OUTPUT_MISSING"),
        (Ending(1, None, True, ["bad"], ["a"]), pb.OUTCOME_FAILED, "EXIT_CODE"),
        (Ending(0, None, False), pb.OUTCOME_FAILED, "STOP_UNCONFIRMED"),
        (Ending(0, CANCEL, True), pb.OUTCOME_STOPPED, ""),
        (Ending(-15, CANCEL, True), pb.OUTCOME_STOPPED, ""),
        (Ending(-9, ABORT, True), pb.OUTCOME_STOPPED, ""),
        (Ending(None, CANCEL, False), pb.OUTCOME_FAILED, "STOP_UNCONFIRMED"),
        (Ending(-9, TIME_OUT, True), pb.OUTCOME_TIMED_OUT, "RUN_TIMEOUT"),
        (Ending(None, TIME_OUT, False), pb.OUTCOME_TIMED_OUT, "RUN_TIMEOUT"),
    ],
)
def test_verdicts(ending: Ending, outcome: pb.Outcome.ValueType, reason: str) -> None:
    verdict = judge(ending)
    assert (verdict.outcome, verdict.failure_reason) == (outcome, reason)
    assert verdict.text
    assert (verdict.severity == pb.SEVERITY_ERROR) == (outcome in (pb.OUTCOME_FAILED, pb.OUTCOME_TIMED_OUT))
