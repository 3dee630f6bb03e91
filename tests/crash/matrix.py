"""Cases, one after the other on one stack, and the table of what became of each."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from sis.client import Client, ClientError
from tests.crash import outcomes, strikes
from tests.crash.points import Passage, passages
from tests.crash.scenarios import SCENARIOS, PlainJob, Scenario
from tests.crash.secrecy import Secrecy
from tests.crash.strikes import LINKS, PROCESSES, NotPassed, Strike
from tests.support import promises
from tests.support.promises import Record
from tests.support.stack import Stack

SELF: Final = ("kill", "stop")
OTHERS: Final = tuple(f"kill:{process}" for process in PROCESSES)
FAULTS: Final = (*SELF, *OTHERS)
"""What each moment is tried with."""
MORE: Final = (
    *(f"{kind}:{process}" for kind in ("stop", "hang") for process in PROCESSES),
    *(f"{kind}:{link}" for kind in ("cut", "hole", "lapse") for link in LINKS),
)
"""What samples of the moments are tried with: other processes stopped, links cut and silent."""
HEALTHY_SECONDS: Final = 60.0
LATE_SECONDS: Final = 2.0
"""For so long after the end of a job the second of two moments may be reached."""
LEASE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a scenario, and what is done to it."""

    struck: tuple[tuple[Passage, str], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The case that is written so; the other way round, it is `str`."""
        parts = [re.fullmatch(r"(\S+)/(\S+) (\S+) (\S+)", part) for part in text.split(" + ")]
        assert all(parts), text
        found = [part.groups() for part in parts if part is not None]
        return cls(tuple((Passage(point, scenario, phase), fault) for scenario, phase, point, fault in found))

    @property
    def scenario(self) -> str:
        return self.struck[0][0].scenario

    def __str__(self) -> str:
        return " + ".join(f"{passage} {fault}" for passage, fault in self.struck)


@dataclass(slots=True)
class Result:
    """What became of a case. `violation` says what was not as promised; "" where all was.

    By their places in the case: `unreached` are the moments that nothing came by, `idle` those at which nobody was
    struck, since there was no such process or no connection then, which is no success of that fault.
    """

    case: Case
    outcome: str
    seconds: float
    violation: str = ""
    unreached: Collection[int] = ()
    idle: Collection[int] = ()

    @property
    def told(self) -> str:
        """The outcome, and what there was not."""
        struck = self.case.struck
        missing = [f"{struck[place][0].point} not reached" for place in self.unreached]
        alone = len(struck) == 1
        missing += ["nobody" if alone else f"nobody at {struck[place][0].point}" for place in self.idle]
        return f"{self.outcome} ({', '.join(missing)})" if missing else self.outcome


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


def sample(seed: int, times: int) -> list[Case]:
    """Some of `more`: each of its faults so many times, at moments that are drawn."""
    chance = random.Random(seed)
    found = list(passages())
    return [Case(((passage, fault),)) for fault in MORE for passage in chance.sample(found, times)]


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
                        self.say(f"{result.seconds:5.1f} s  {result.case}  ->  {result.told}")
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

    @property
    def unproven(self) -> list[str]:
        """The faults that have struck nobody in any of their cases."""
        done: set[str] = set()
        tried: set[str] = set()
        for result in self.results:
            for place, (_, fault) in enumerate(result.case.struck):
                tried.add(fault)
                if place not in result.idle and place not in result.unreached:
                    done.add(fault)
        return [fault for fault in FAULTS + MORE if fault in tried - done]

    def summary(self) -> str:
        """The counts, for the last line."""
        told = f"{len(self.results)} cases, {len(self.violations)} violations"
        told += f", {sum(bool(each.idle) for each in self.results)} in which a fault struck nobody"
        told += f", {sum(bool(each.unreached) for each in self.results)} in which a moment was not reached"
        return told + (f"; nobody was ever struck by {', '.join(self.unproven)}" if self.unproven else "")

    def table(self) -> Iterator[str]:
        """Markdown: the moments and the faults, then the samples, of one fault and of two, then what went wrong."""
        single = {result.case.struck[0]: result for result in self.results if len(result.case.struck) == 1}
        columns = [fault for fault in FAULTS if any(fault == done for _, done in single)]
        if columns:
            yield "| moment | " + " | ".join(columns) + " |"
            yield "|---" * (len(columns) + 1) + "|"
            for passage in passages():
                cells = [single.get((passage, fault)) for fault in columns]
                if any(cells):
                    told = " | ".join(cell.told if cell else "" for cell in cells)
                    yield f"| {passage.scenario}: {passage.point} | {told} |"
            yield ""
        drawn = [(fault, passage) for fault in MORE for passage in passages() if (passage, fault) in single]
        if drawn:
            yield "| another stopped, or a link | moment | outcome |"
            yield "|---|---|---|"
            for fault, passage in drawn:
                yield f"| {fault} | {passage.scenario}: {passage.point} | {single[passage, fault].told} |"
            yield ""
        double = [result for result in self.results if len(result.case.struck) == 2]
        if double:
            yield "| scenario | first | second | outcome |"
            yield "|---|---|---|---|"
            for result in double:
                told = " | ".join(f"{passage.point} {fault}" for passage, fault in result.case.struck)
                yield f"| {result.case.scenario} | {told} | {result.told} |"
            yield ""
        for result in self.violations:
            yield from ("```", *result.violation.splitlines(), "```", "")
        yield self.summary()


class Bench:
    """A stack on which case after case is run."""

    def __init__(self, stack: Stack, client: Client, directory: Path) -> None:
        """What the payloads tell goes into `directory`."""
        self._stack = stack
        self._client = client
        self._directory = directory
        self._number = 0
        self._judged: deque[tuple[float, Scenario, Record]] = deque()
        self._secrecy = Secrecy(stack)
        self._jobs: set[int] = set()
        with stack.database() as database:
            self._before = max(_jobs_after(database, 0), default=0)

    def run(self, case: Case) -> Result:
        """Run a case, and leave the stack healthy."""
        began = time.monotonic()
        scenario = self._made(SCENARIOS[case.scenario])
        struck = [Strike(self._stack, passage, fault) for passage, fault in case.struck]
        try:
            self._prepare()
            self._play(scenario, struck)
            outcome, record = outcomes.judge(scenario, struck)
            self._judged.append((time.monotonic() + LEASE_SECONDS, scenario, record))
            self._judge_again()
            violation = ""
        except (AssertionError, ClientError, OSError) as error:
            outcome = "VIOLATION"
            violation = self._told(case, scenario, error)
            scenario.leave()
        finally:
            self._stack.faults.clear()
            self._jobs.update(scenario.jobs, scenario.others)
        unreached = [place for place, strike in enumerate(struck) if not strike.passed]
        idle = [place for place, strike in enumerate(struck) if strike.passed and not strike.hit]
        return Result(case, outcome, time.monotonic() - began, violation, unreached, idle)

    def _made(self, kind: type[Scenario]) -> Scenario:
        self._number += 1
        return kind(self._stack, self._client, self._directory / f"{self._number}")

    def _prepare(self) -> None:
        """Each case finds an agent that has nothing in hand, and a zygote with a spare, whatever the last one did."""
        if not strikes.is_there(self._stack, "zygote"):
            # The next job starts one, and comes too soon for a spare.
            first = self._made(PlainJob)
            first.start()
            first.settle()
            self._jobs.update(first.jobs)
        strikes.wait_idle(self._stack)

    def _play(self, scenario: Scenario, struck: list[Strike]) -> None:
        try:
            for phase in scenario.PHASES:
                for strike in struck:
                    if strike.passage.phase == phase:
                        strike.arm()
                getattr(scenario, phase)()
                if scenario.CREDENTIAL and phase == "start":
                    self._secrecy.check_site(scenario.job_id, lambda: not scenario.ended())
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

    def _judge_again(self, *, all_of_them: bool = False) -> None:
        """What was so after a case is so still a while later, and its leases have ended."""
        while self._judged and (all_of_them or self._judged[0][0] < time.monotonic()):
            until, scenario, record = self._judged.popleft()
            while left := outcomes.leases_left(scenario):
                assert time.monotonic() < until, f"job {scenario.job_id} has ended, and its leases {left} have not"
                time.sleep(0.1)
            with self._stack.database() as database:
                promises.check_kept(record, promises.read(database, list(record.jobs)))

    def finish(self) -> None:
        """Wait until no lease of any case is left, and judge all of them together.

        Raises:
            AssertionError: what was so after its case is not so any more, a job was made that nobody asked for, or the
                secret has leaked.
        """
        self._judge_again(all_of_them=True)
        with self._stack.database() as database:
            unknown = set(_jobs_after(database, self._before)) - self._jobs
        assert not unknown, f"nobody asked for jobs {unknown}"
        self._secrecy.check_suite()

    def _told(self, case: Case, scenario: Scenario, error: Exception) -> str:
        try:
            history = outcomes.history(scenario)
        except ClientError as unreachable:
            history = str(unreachable)
        return f"VIOLATION: {case}\n{type(error).__name__}: {error}\n{history}\n{self._stack.logs(12)}"


def _jobs_after(database: psycopg.Connection[tuple[Any, ...]], job_id: int) -> list[int]:
    found = database.execute("SELECT job_id FROM queue.jobs WHERE job_id > %s ORDER BY job_id", [job_id])
    return [each for (each,) in found]


def write(path: Path, table: Iterable[str]) -> None:
    """Write the table to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(table) + "\n")
