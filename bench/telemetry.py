"""What it costs to be watched: dispatch on a stack that exports spans and measurements, beside one that does not.

They take turns within one run, so that what else the machine does meets both. The receiver is a process of its own,
which reads what it gets and throws it away. `python -m bench.telemetry`
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import suite
from bench.figures import Figure, show
from sis import stack
from sis.client import Client

ROUNDS = 7
JOBS = 1_000
SLOTS = 32


def measure(directory: Path) -> list[Figure]:
    """Jobs a second, create to sealed log, of both; and the ratio."""
    with ExitStack() as held:
        endpoint = held.enter_context(_receiver())
        silent = held.enter_context(_stack(directory / "silent", {}))
        watched = held.enter_context(_stack(directory / "watched", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}))
        for client in (silent, watched):
            suite.push(client)
            suite.drain(client, JOBS)  # once to warm up
        rounds = []
        for number in range(ROUNDS):
            turns = [silent, watched] if number % 2 == 0 else [watched, silent]
            found = {id(client): suite.drain(client, JOBS)[1] for client in turns}
            rounds.append((found[id(silent)], found[id(watched)]))
    without, with_ = (JOBS / statistics.median(each) for each in zip(*rounds, strict=True))
    ratios = sorted(one / other for one, other in rounds)
    return [
        Figure(f"{JOBS:,} no-op jobs, create to sealed log, not watched", f"{without:,.0f} jobs/s"),
        Figure("the same, every span and measurement exported", f"{with_:,.0f} jobs/s"),
        Figure(
            f"ratio, median of {ROUNDS} rounds",
            f"{statistics.median(ratios):.3f}",
            f"the aim: above 0.95; the rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}",
        ),
    ]


@contextmanager
def _stack(data: Path, environment: dict[str, str]) -> Iterator[Client]:
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
            yield client
    finally:
        stack.down(data)


@contextmanager
def _receiver() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = int(reserved.getsockname()[1])
    process = subprocess.Popen([sys.executable, "-m", "bench.otlp_sink", str(port)])
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise SystemExit("the receiver did not start") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sis-bench-") as name:
        show("SIS, watched", measure(Path(name)))


if __name__ == "__main__":
    main()
