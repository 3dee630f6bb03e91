"""The judge of the matrix finds what is wrong, whatever was done to the job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from sis.client import Client
from tests.crash import outcomes
from tests.crash.points import Passage
from tests.crash.scenarios import SCENARIOS, SECRET, Scenario
from tests.crash.strikes import Strike
from tests.support.frames import Spool
from tests.support.promises import Record
from tests.support.stack import Stack
from tests.unit.support.chronicle import Chronicle


class Case:
    """A scenario whose payload was up, and what the database has of its job."""

    def __init__(self, directory: Path, name: str = "cancel") -> None:
        self.stack = Stack(directory / "data")
        self.scenario: Scenario = SCENARIOS[name](self.stack, cast("Client", None), directory / "case")
        (self.scenario.directory / "up").touch()
        self.job_id = self.scenario.job_id = 7
        self.status, self.reason, self.stop = self.scenario.STATUS, self.scenario.REASON, self.scenario.STOP
        self.output, self.verdict = self.scenario.FIRST, "COMPLETE"
        self.struck: list[Strike] = []

    def strike(self, point: str, fault: str, *, phase: str = "stop", hit: bool = True, victim: str = "") -> None:
        """This was done."""
        strike = Strike(self.stack, Passage(point, self._name, phase), fault)
        strike.passed, strike.hit, strike.victim = True, hit, victim
        self.struck.append(strike)

    @property
    def _name(self) -> str:
        return next(name for name, of in SCENARIOS.items() if of is type(self.scenario))

    def record(self) -> Record:
        chronicle, spool = Chronicle(), Spool()
        key = chronicle.claim(chronicle.create(self.job_id))
        chronicle.accept(key)
        if self.output:
            spool.output(self.output)
        chronicle.store(key, spool)
        chronicle.seal(key, self.verdict, stop=self.stop, tree_empty=True)
        chronicle.jobs[self.job_id] |= {"status": self.status, "failure_reason": self.reason}
        return chronicle.record()

    def judge(self) -> None:
        record = self.record()
        job = record.jobs[self.job_id]
        outcomes.check_end(self.scenario, job, self.struck)
        outcomes.check_output(self.scenario, record, job, self.struck)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A canceled job that is as promised; nothing of it was killed."""
    found = Case(tmp_path)
    found.strike("supervisor.term.sent", "kill:agent", victim="agent")
    found.judge()
    return found


def test_a_stopped_job_has_all_that_it_has_printed(case: Case) -> None:
    case.output = case.output[:-8]
    with pytest.raises(AssertionError, match="was printed"):
        case.judge()


def test_its_log_is_whole(case: Case) -> None:
    for verdict in ("GAPPED", "TRUNCATED", "OPEN"):
        case.verdict = verdict
        with pytest.raises(AssertionError, match=f"the log is {verdict}"):
            case.judge()


def test_it_has_nothing_else(case: Case) -> None:
    for other in (case.output + b"line 21\n", b"line 1\n" + case.output, SECRET):
        case.output = other
        with pytest.raises(AssertionError, match=r"was printed|not what the payload wrote"):
            case.judge()


def test_what_was_shown_of_a_lost_one_is_there(tmp_path: Path) -> None:
    lost = Case(tmp_path, "lost")
    lost.strike("agent.kill.sent", "kill:hub", phase="loss", victim="hub")
    lost.output = b"line 1\nli"
    lost.judge()
    lost.scenario.shown[lost.job_id] = b"line 1\nline 2\n"
    with pytest.raises(AssertionError, match="was printed"):
        lost.judge()
    lost.scenario.shown.clear()
    lost.verdict = "GAPPED"
    lost.judge()
    lost.verdict = "TRUNCATED"
    with pytest.raises(AssertionError, match="the log is TRUNCATED"):
        lost.judge()


def test_a_payload_that_was_not_up_has_printed_what_it_may_have(case: Case) -> None:
    (case.scenario.directory / "up").unlink()
    for output in (b"", b"line 1\n", case.scenario.FIRST):
        case.output = output
        case.judge()


@pytest.mark.parametrize(
    ("strikes", "permitted"),
    [
        ([("agent.accepted.journalled", "kill:supervisor", True, "supervisor")], True),
        ([("agent.accepted.journalled", "kill:supervisor", True, "spare")], False),
        ([("agent.accepted.journalled", "kill:supervisor", False, "")], False),
        ([("zygote.handed", "kill:supervisor", True, "spare")], True),
        ([("zygote.handed", "kill:guardian", True, "spare")], True),
        ([("agent.spool.synced", "kill", True, "agent")], True),
        ([("zygote.asked", "kill:guardian", True, "spare")], False),
        ([("agent.spawning.journalled", "kill:agent", True, "agent")], True),
        ([("agent.spawning.journalled", "kill:agent", False, "")], False),
        ([("agent.accepted.journalled", "kill:agent", True, "agent")], False),
        ([("agent.accepted.journalled", "hang:guardian", True, "")], True),
        ([("agent.accepted.journalled", "hang:guardian", False, "")], False),
        ([("agent.accepted.journalled", "hang:queue", True, "")], False),
        # Of two, the one may hold the other back until the start is under way.
        ([("hub.claimed", "kill:agent", True, "agent"), ("hub.leased", "stop", True, "")], True),
        ([("hub.claimed", "kill:agent", False, ""), ("hub.leased", "stop", True, "")], False),
    ],
)
def test_only_who_was_struck_can_have_been_lost(
    tmp_path: Path, strikes: Sequence[tuple[str, str, bool, str]], permitted: bool
) -> None:
    case = Case(tmp_path, "job")
    for point, fault, hit, victim in strikes:
        case.strike(point, fault, phase="start", hit=hit, victim=victim)
    case.status, case.reason, case.output = "FAILED", "SUPERVISOR_LOST", b""
    if permitted:
        case.judge()
    else:
        with pytest.raises(AssertionError, match="SUPERVISOR_LOST"):
            case.judge()


def test_what_goes_on_beside_a_start_is_none_in_another_phase(tmp_path: Path) -> None:
    case = Case(tmp_path, "job")
    case.strike("agent.spool.synced", "kill", phase="end", victim="agent")
    case.status, case.reason = "FAILED", "SUPERVISOR_LOST"
    with pytest.raises(AssertionError, match="SUPERVISOR_LOST"):
        case.judge()


def test_a_hang_in_a_phase_that_starts_nothing_loses_nothing(case: Case) -> None:
    case.strike("supervisor.term.sent", "hang:supervisor")
    case.judge()
    case.status, case.reason = "FAILED", "SUPERVISOR_LOST"
    with pytest.raises(AssertionError, match="SUPERVISOR_LOST"):
        case.judge()


def test_an_unconfirmed_stop_takes_the_loss_of_all_who_could_know(case: Case) -> None:
    case.stop = "UNCONFIRMED"
    case.strike("supervisor.term.sent", "kill:guardian", victim="guardian")
    with pytest.raises(AssertionError, match="UNCONFIRMED"):
        case.judge()
    case.strike("supervisor.term.sent", "kill:supervisor", victim="")
    with pytest.raises(AssertionError, match="UNCONFIRMED"):
        case.judge()
    case.struck[-1].victim = "supervisor"
    case.judge()


def test_a_supervisor_that_takes_its_order_dies_with_its_guardian(tmp_path: Path) -> None:
    case = Case(tmp_path, "job")
    case.status, case.reason, case.output = "FAILED", "SUPERVISOR_LOST", b""
    case.stop = "UNCONFIRMED"
    case.strike("zygote.handed", "kill:guardian", phase="start", victim="guardian")
    case.judge()
    case.status, case.reason, case.output = "SUCCEEDED", "", b"one\ntwo\n"
    with pytest.raises(AssertionError, match="UNCONFIRMED"):
        case.judge()
    case.status, case.reason, case.output = "FAILED", "SUPERVISOR_LOST", b""
    case.struck[-1].victim = "zygote"
    with pytest.raises(AssertionError, match="UNCONFIRMED"):
        case.judge()
