"""What a rolling restart costs: `python -m bench.rolling [RATE]` restarts every server of a stack with two replicas,
one by one, under a load of jobs and watchers, and prints how long each job took to start."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.figures import Figure, quantiles, show
from tests.support.stack import Stack
from tests.support.steady_load import Outcome, SteadyLoad

RATE = 5.0
QUIET_SECONDS = 20.0
SLOWEST = 5


def main() -> None:
    rate = float(sys.argv[1]) if len(sys.argv) > 1 else RATE
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rate:g} jobs a second")
    with tempfile.TemporaryDirectory(prefix="sis-rolling-") as name:
        stack = Stack(Path(name) / "data")
        try:
            stack.up("--replicas", "2", "--agents", "3")
            with SteadyLoad(stack, Path(name) / "before", rate=rate) as load:
                time.sleep(QUIET_SECONDS)
                show("Nothing is restarted", _figures(load.finish(), stack))
            with SteadyLoad(stack, Path(name) / "roll", rate=rate) as load:
                began = time.monotonic()
                done = stack.cli("restart", timeout=600)
                seconds = time.monotonic() - began
                if done.returncode:
                    raise SystemExit(done.stdout + done.stderr)
                outcome = load.finish()
                figures = _figures(outcome, stack)
            show("Every server is restarted", [Figure("the roll", f"{seconds:.0f} s"), *figures])
            print(_slowest(outcome))
        finally:
            stack.close()


def _figures(outcome: Outcome, stack: Stack) -> list[Figure]:
    outcome.check(stack)
    latencies = outcome.latencies()
    return [
        Figure("asked for -> payload's first instruction", quantiles(latencies), f"{len(latencies)} jobs"),
        Figure("the slowest", f"{max(latencies) * 1000:.0f} ms"),
        Figure("streams that went on elsewhere", str(outcome.interruptions)),
    ]


def _slowest(outcome: Outcome) -> str:
    """When the slowest jobs were asked for, to be compared with the logs."""
    first = min(outcome.asked.values())
    found = sorted(((outcome.starts[job][0] - at, at - first, job) for job, at in outcome.asked.items()), reverse=True)
    lines = [f"    job {job}, at {at:.1f} s: {took * 1000:.0f} ms" for took, at, job in found[:SLOWEST]]
    mean = statistics.mean(took for took, _, _ in found)
    return "\n".join([f"  slowest (mean {mean * 1000:.0f} ms)", *lines])


if __name__ == "__main__":
    main()
