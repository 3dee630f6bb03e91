"""Streams over HTTP: through a proxy that cuts them, and beside a reader that hardly reads."""

from __future__ import annotations

import base64
import random
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.event_source import EventSource
from tests.support.numbered_job import shell_job
from tests.support.stack import Stack
from tests.support.tcp_proxy import proxied

LINES_PER_SECOND = 1_000
TICKS = 20
"""Pieces in which a second's lines are printed."""

PRINTER = f"""
i=0
while [ $i -lt {{lines}} ]; do
    seq -f 'line %.0f' $((i + 1)) $((i + {LINES_PER_SECOND // TICKS}))
    i=$((i + {LINES_PER_SECOND // TICKS}))
    sleep {1 / TICKS}
done
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seconds", [12, pytest.param(60, marks=pytest.mark.long)])
def test_every_line_comes_once_through_a_proxy_that_cuts(stack: Stack, seconds: int) -> None:
    lines = seconds * LINES_PER_SECOND
    dice = random.Random(20261122)
    over = threading.Event()
    with proxied(stack.state.gateway_endpoints[0]) as proxy, stack.client() as client:

        def cut() -> None:
            while not over.wait(dice.uniform(0.05, 1.5)):
                proxy(lambda each: each.cut())

        job = client.jobs.create(shell_job(PRINTER.format(lines=lines)))
        source = EventSource(f"http://{proxy.proxy.endpoint}/v1/jobs/{job.job_id}:monitor", stack.token)
        cutter = threading.Thread(target=cut)
        cutter.start()
        output = bytearray()
        statuses = []
        try:
            for event in source:
                for frame in event.data.get("frames", {}).get("frames", ()):
                    if "chunk" in frame:
                        output += base64.b64decode(frame["chunk"]["data"])
                if "job" in event.data:
                    statuses.append(event.data["job"]["status"])
        finally:
            over.set()
            cutter.join()
    assert output == b"".join(b"line %d\n" % number for number in range(1, lines + 1))
    assert statuses[-1] == "JOB_STATUS_SUCCEEDED"
    assert source.connections > seconds / 3


def test_a_reader_of_one_byte_a_second_costs_the_others_nothing(stack: Stack) -> None:
    megabytes = 64
    with stack.client() as client:
        script = f"head -c {megabytes}M /dev/zero | tr '\\0' x | fold -w 99"
        job = client.jobs.create(shell_job(script))
        url = urlsplit(stack.gateway)
        path = f"/v1/jobs/{job.job_id}:monitor"
        slow = []
        before = {name: _resident(stack.pid(name)) for name in ("gateway", "queue")}
        for _ in range(5):
            reader = socket.create_connection((url.hostname, url.port), timeout=20)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(f"GET {path} HTTP/1.1\r\nHost: sis\r\nAuthorization: Bearer {stack.token}\r\n\r\n".encode())
            slow.append(reader)
        try:
            size = 0
            for event in EventSource(stack.gateway + path, stack.token):
                for frame in event.data.get("frames", {}).get("frames", ()):
                    size += len(base64.b64decode(frame.get("chunk", {}).get("data", "")))
                for reader in slow:
                    assert reader.recv(1)  # what it reads, it reads while the other one has all of it
            held = {name: _resident(stack.pid(name)) - before[name] for name in before}
        finally:
            for reader in slow:
                reader.close()
    assert size == (megabytes << 20) + (megabytes << 20) // 99
    # Five readers of what is some ninety megabytes as JSON: neither process holds it for them. What it has in hand of
    # six streams at a time depends on how busy the machine is.
    assert all(grown < 200 << 20 for grown in held.values()), held


def _resident(pid: int) -> int:
    """Bytes of memory in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])
