"""How an attempt has ended, by what is known of it: the one place that decides it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.sis_agent.agent.linux import processes
from sis.queue.v1 import frame_pb2 as pb


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known at the end of an attempt whose payload was started."""

    exit_code: int | None
    """Of the initial process: minus the number of a signal that ended it; None when it was never reaped."""
    cause: pb.StopKind.ValueType | None
    """The first stop that was begun before the initial process was reaped."""
    tree_empty: bool
    output_problems: Sequence[str] = ()
    missing_outputs: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the last frame says."""

    outcome: pb.Outcome.ValueType
    failure_reason: str
    text: str

    @property
    def severity(self) -> pb.Severity.ValueType:
        good = self.outcome in (pb.OUTCOME_SUCCEEDED, pb.OUTCOME_STOPPED)
        return pb.SEVERITY_INFO if good else pb.SEVERITY_ERROR


def judge(ending: Ending) -> Verdict:
    """The verdict. A stop comes before what the payload made of it, and an empty tree before both."""
    if ending.cause == pb.STOP_KIND_TIME_OUT:
        left = "" if ending.tree_empty else "; processes of it are still there"
        return Verdict(pb.OUTCOME_TIMED_OUT, "RUN_TIMEOUT", f"Ended at its run timeout{left}")
    if not ending.tree_empty:
        return _failed("STOP_UNCONFIRMED", "processes of the job could not be ended; the evidence names them")
    if ending.cause is not None:
        return Verdict(pb.OUTCOME_STOPPED, "", "The job was stopped; no process of it is left")
    if ending.exit_code is None:
        return _failed("AGENT_ERROR", "the end of the payload was not seen")
    if ending.exit_code < 0:
        return _failed("SIGNAL", f"the payload was ended by signal {processes.signal_name(-ending.exit_code)}")
    if ending.exit_code > 0:
        return _failed("EXIT_CODE", f"the payload ended with exit code {ending.exit_code}")
    if ending.output_problems:
        return _failed("OUTPUT_INVALID", "; ".join(ending.output_problems))
    if ending.missing_outputs:
        names = ", ".join(ending.missing_outputs)
        return _failed("OUTPUT_MISSING", f"the payload did not give the required output {names}")
    return Verdict(pb.OUTCOME_SUCCEEDED, "", "Executed successfully")


def _failed(reason: str, text: str) -> Verdict:
    return Verdict(pb.OUTCOME_FAILED, reason, f"Failed: {text}")
