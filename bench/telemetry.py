"""What it costs to be watched: dispatch on a stack that exports spans and measurements, beside one that does not.

They take turns within one run, so that what else the machine does meets both. Beside the rate there is the processor
time of the suite's own processes, which others at work on the machine change little. The receiver is a process of its
own, which reads what it gets and throws it away. `python -m bench.telemetry [JOBS]`
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import suite
from bench.background import listening
from bench.figures import Figure, show
from sis import stack
from sis.client import Client
from sis.stack import state as states
from sis.stack.layout import Layout

ROUNDS = 7
JOBS = 1_000
SLOTS = 32


def measure(directory: Path, jobs: int = JOBS) -> list[Figure]:
    """Jobs a second, create to sealed log, and processor time for a job, of both; and the ratios."""
    with ExitStack() as held:
        endpoint = f"http://127.0.0.1:{held.enter_context(listening('bench.otlp_sink'))}"
        silent = held.enter_context(_stack(directory / "silent", {}))
        watched = held.enter_context(_stack(directory / "watched", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}))
        for each in (silent, watched):
            suite.push(each.client)
            each.drain(jobs)  # once to warm up
        rounds = []
        for number in range(ROUNDS):
            turns = [silent, watched] if number % 2 == 0 else [watched, silent]
            found = {each.data: each.drain(jobs) for each in turns}
            rounds.append((found[silent.data], found[watched.data]))
    rates = [(without[0], with_[0]) for without, with_ in rounds]
    times = [(without[1], with_[1]) for without, with_ in rounds]
    rate, watched_rate = (statistics.median(each) for each in zip(*rates, strict=True))
    time_, watched_time = (statistics.median(each) for each in zip(*times, strict=True))
    return [
        Figure(f"{jobs:,} no-op jobs, create to sealed log, not watched", f"{rate:,.0f} jobs/s"),
        Figure("the same, every span and measurement exported", f"{watched_rate:,.0f} jobs/s"),
        _ratio("ratio", [with_ / without for without, with_ in rates], "the aim: above 0.95"),
        Figure("processor time of the suite for a job, not watched", f"{time_ * 1000:.2f} ms"),
        Figure("the same, every span and measurement exported", f"{watched_time * 1000:.2f} ms"),
        _ratio("ratio", [with_ / without for without, with_ in times], "PostgreSQL, payloads and supervisors apart"),
    ]


def _ratio(what: str, rounds: list[float], remark: str) -> Figure:
    value = f"{statistics.median(rounds):.3f}"
    return Figure(f"{what}, median of {len(rounds)} rounds", value, f"{remark}; {min(rounds):.2f} to {max(rounds):.2f}")


@dataclass(frozen=True, slots=True)
class _Stack:
    """One that is up."""

    data: Path
    client: Client

    def drain(self, jobs: int) -> tuple[float, float]:
        """Jobs a second, and the seconds of processor time that the suite's processes needed for each."""
        before = self._processor_seconds()
        _, seconds = suite.drain(self.client, jobs)
        return jobs / seconds, (self._processor_seconds() - before) / jobs

    def _processor_seconds(self) -> float:
        state = states.read(Layout(self.data))
        assert state is not None
        ticks = 0
        for each in state.processes:
            if each.kind not in ("postgres", "vault"):
                stat = Path(f"/proc/{each.pid}/stat").read_text()
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def _stack(data: Path, environment: dict[str, str]) -> Iterator[_Stack]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        if stack.up(stack.Options(data=data, detach=True, slots=SLOTS, metrics=bool(environment))) != 0:
            raise SystemExit("the stack did not start")
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        with Client.find(data) as client:
            yield _Stack(data, client)
    finally:
        stack.down(data)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sis-bench-") as name:
        show("SIS, watched", measure(Path(name), *map(int, sys.argv[1:2])))


if __name__ == "__main__":
    main()
