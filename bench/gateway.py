"""The gateway beside the smallest handler that could do its work (`peer_starlette`), before the same queue."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from bench.background import listening
from bench.figures import Figure
from bench.suite import held_job
from sis.client import Client
from sis.stack import state as states
from sis.stack.layout import Layout

CONNECTIONS = 32
SECONDS = 4.0
ROUNDS = 5
"""They take turns, so that what else the machine does meets both."""


def measure(client: Client, data: Path) -> list[Figure]:
    """GET of one job over 32 connections: answers a second of both, and their ratio."""
    layout = Layout(data)
    state = states.read(layout)
    assert state is not None
    token = layout.token.read_text(encoding="ascii").strip()
    job_id = held_job(client).job_id
    path = f"/v1/jobs/{job_id}"
    port = int(state.gateway_endpoints[0].rpartition(":")[2])
    with listening("bench.peer_starlette", state.queue_endpoint, str(state.ca)) as peer:
        _load(port, path, token)
        _load(peer, path, token)
        rounds = [(_load(port, path, token), _load(peer, path, token)) for _ in range(ROUNDS)]
    client.jobs.cancel(job_id)
    ours, theirs = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    return [
        Figure(f"GET of a job, {CONNECTIONS} connections, the gateway", f"{ours:,.0f} requests/s"),
        Figure("the same, Starlette and grpc.aio alone", f"{theirs:,.0f} requests/s"),
        Figure("ratio, median of the rounds", f"{ratio:.2f}", "the aim: 0.85"),
    ]


def _load(port: int, path: str, token: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "bench.http_load", "127.0.0.1", str(port), path, str(CONNECTIONS), str(SECONDS)],
        input=token,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return float(done.stdout)
