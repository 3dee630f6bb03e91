"""Cases, one after the other on one stack, and the table of what became of each."""

from __future__ import annotations

import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sis.client import Client, ClientError
from tests.crash import outcomes
from tests.crash.points import Passage, passages
from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.strikes import LINKS, PROCESSES, NotPassed, Strike
from tests.support.stack import Stack

SELF: Final = ("kill", "stop")
OTHERS: Final = tuple(f"kill:{process}" for process in PROCESSES)
FAULTS: Final = (*SELF, *OTHERS)
"""The columns of the table."""
MORE: Final = (
    *(f"{kind}:{process}" for kind in ("stop", "hang") for process in PROCESSES),
    *(f"{kind}:{link}" for kind in ("cut", "hole", "lapse") for link in LINKS),
)
"""What the samples of two faults are drawn from as well."""
HEALTHY_SECONDS: Final = 60.0
LATE_SECONDS: Final = 2.0
"""For so long after the end of a job the second of two moments may be reached."""
LEASE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a scenario, and what is done to it."""

    struck: tuple[tuple[Passage, str], ...]

    @property
    def scenario(self) -> str:
        return self.struck[0][0].scenario

    def __str__(self) -> str:
        return " + ".join(f"{passage} {fault}" for passage, fault in self.struck)


@dataclass(slots=True)
class Result:
    """What became of a case. `violation` says what was not as promised; "" where all was."""

    case: Case
    outcome: str
    seconds: float
    violation: str = ""


def alone() -> list[Case]:
    """Every moment with every fault of a process."""
    return [
        Case(((passage, fault),))
        for passage in passages()
        for fault in FAULTS
        # To kill another one is something else than to kill oneself.
        if fault != f"kill:{passage.process}"
    ]


def more() -> list[Case]:
    """Every moment with another process stopped, and with every link cut or silent for a while."""
    return [Case(((passage, fault),)) for passage in passages() for fault in MORE]


def pairs(seed: int, count: int) -> list[Case]:
    """Samples of two moments of one scenario with a fault each."""
    chance = random.Random(seed)
    by_scenario: dict[str, list[Passage]] = {}
    for passage in passages():
        by_scenario.setdefault(passage.scenario, []).append(passage)
    names = [name for name, found in by_scenario.items() if len(found) > 1]
    weights = [len(by_scenario[name]) for name in names]
    cases = []
    for _ in range(count):
        first, second = sorted(
            chance.sample(by_scenario[chance.choices(names, weights)[0]], 2), key=list(passages()).index
        )
        cases.append(Case(((first, chance.choice(FAULTS + MORE)), (second, chance.choice(FAULTS + MORE)))))
    return cases


@dataclass
class Matrix:
    """Runs cases on a stack that stays up, and on a fresh one after a violation."""

    fresh: Callable[[], Stack]
    say: Callable[[str], None]
    results: list[Result] = field(default_factory=list)

    def run(self, cases: Iterable[Case], deadline: float = float("inf")) -> None:
        """Run them, or those that can be begun before the deadline (by the monotonic clock)."""
        waiting = deque(cases)
        while waiting and time.monotonic() < deadline:
            stack = self.fresh()
            try:
                with stack.client() as client:
                    bench = Bench(stack, client, stack.data.with_name("cases"))
                    while waiting and time.monotonic() < deadline:
                        result = bench.run(waiting.popleft())
                        self.results.append(result)
                        self.say(f"{result.seconds:5.1f} s  {result.case}  ->  {result.outcome}")
                        if result.violation:
                            self.say(result.violation)
                            break
                    else:
                        bench.finish()
            except AssertionError as error:
                self.results.append(Result(Case(()), "VIOLATION", 0.0, str(error)))
                self.say(str(error))
            finally:
                stack.close()

    @property
    def violations(self) -> list[Result]:
        return [result for result in self.results if result.violation]

    def table(self) -> Iterator[str]:
        """Markdown: the moments and the faults, then the pairs."""
        single = {result.case.struck[0]: result for result in self.results if len(result.case.struck) == 1}
        columns = [fault for fault in FAULTS + MORE if any(fault == done for _, done in single)]
        if single:
            yield "| moment | " + " | ".join(columns) + " |"
            yield "|---" * (len(columns) + 1) + "|"
            for passage in passages():
                cells = [single.get((passage, fault)) for fault in columns]
                if any(cells):
                    told = " | ".join(cell.outcome if cell else "" for cell in cells)
                    yield f"| {passage.scenario}: {passage.point} | {told} |"
            yield ""
        double = [result for result in self.results if len(result.case.struck) == 2]
        if double:
            yield "| scenario | first | second | outcome |"
            yield "|---|---|---|---|"
            for result in double:
                told = " | ".join(f"{passage.point} {fault}" for passage, fault in result.case.struck)
                yield f"| {result.case.scenario} | {told} | {result.outcome} |"


class Bench:
    """A stack on which case after case is run."""

    def __init__(self, stack: Stack, client: Client, directory: Path) -> None:
        """What the payloads tell goes into `directory`."""
        self._stack = stack
        self._client = client
        self._directory = directory
        self._number = 0
        self._leased: deque[tuple[float, Scenario]] = deque()

    def run(self, case: Case) -> Result:
        """Run a case, and leave the stack healthy."""
        began = time.monotonic()
        self._number += 1
        scenario = SCENARIOS[case.scenario](self._stack, self._client, self._directory / f"{self._number}")
        struck = [Strike(self._stack, passage, fault) for passage, fault in case.struck]
        try:
            self._play(scenario, struck)
            outcome = outcomes.judge(scenario, struck)
            if missed := [strike.passage.point for strike in struck if not strike.passed]:
                outcome += f" ({', '.join(missed)} not reached)"
            self._leased.append((time.monotonic() + LEASE_SECONDS, scenario))
            self._check_leases()
            violation = ""
        except (AssertionError, ClientError, OSError) as error:
            outcome = "VIOLATION"
            violation = self._told(case, scenario, error)
        finally:
            self._stack.faults.clear()
        return Result(case, outcome, time.monotonic() - began, violation)

    def _play(self, scenario: Scenario, struck: list[Strike]) -> None:
        try:
            for phase in scenario.PHASES:
                for strike in struck:
                    if strike.passage.phase == phase:
                        strike.arm()
                getattr(scenario, phase)()
            scenario.settle()
            # What follows the end of a job is a moment too; of two faults, one may have made the other impossible.
            for strike in struck:
                strike.join(0 if len(struck) == 1 else LATE_SECONDS)
                strike.finish(needed=len(struck) == 1)
            self._stack.wait_healthy(HEALTHY_SECONDS)
        except BaseException:
            for strike in struck:
                if strike.ident is not None:
                    with contextlib.suppress(NotPassed):
                        strike.finish(needed=False)
            raise

    def _check_leases(self, *, all_of_them: bool = False) -> None:
        while self._leased and (all_of_them or self._leased[0][0] < time.monotonic()):
            until, scenario = self._leased.popleft()
            while left := outcomes.leases_left(scenario):
                assert time.monotonic() < until, f"job {scenario.job_id} has ended, and its leases {left} have not"
                time.sleep(0.1)

    def finish(self) -> None:
        """Wait until no lease of any case is left."""
        self._check_leases(all_of_them=True)

    def _told(self, case: Case, scenario: Scenario, error: Exception) -> str:
        try:
            history = outcomes.history(scenario)
        except ClientError as unreachable:
            history = str(unreachable)
        return f"VIOLATION: {case}\n{type(error).__name__}: {error}\n{history}\n{self._stack.logs(12)}"


def write(path: Path, table: Iterable[str]) -> None:
    """Write the table to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(table) + "\n")
