"""`make bench`: everything in one run, so that ratios mean something."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bench import gateway, masking, parts, peer_procrastinate, retention, suite, telemetry
from bench.figures import show
from sis import stack
from sis.client import Client
from sis.stack import postgres


def main() -> None:
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}{'  (others are at work: trust ratios only)' if load > 0.5 else ''}")
    show("Masking, one core", masking.measure())
    with tempfile.TemporaryDirectory(prefix="sis-bench-") as name:
        with postgres.running(Path(name) / "peers") as server:
            show("The parts", parts.grpc_calls() + parts.skip_locked(server))
            show("A peer", peer_procrastinate.measure(server))
        with postgres.running(Path(name) / "logs", retention.SETTINGS) as server:
            show("Retention", retention.measure(server))
        data = Path(name) / "stack"
        if stack.up(stack.Options(data=data, detach=True, slots=32)) != 0:
            raise SystemExit("the stack did not start")
        try:
            with Client.find(data) as client:
                suite.push(client)
                show("SIS, idle", suite.latency(client))
                show("SIS, logs", suite.log_lines(client))
                show("SIS, HTTP", gateway.measure(client, data))
                show("SIS, dispatch", suite.dispatch(client))
        finally:
            stack.down(data)
        show("SIS, watched", telemetry.measure(Path(name)))


if __name__ == "__main__":
    main()
