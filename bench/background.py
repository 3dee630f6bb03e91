"""A program of the benchmarks that listens while others are measured."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

START_SECONDS = 20.0


@contextmanager
def listening(module: str, *arguments: str) -> Iterator[int]:
    """The port of `python -m MODULE PORT ARGUMENT...`, which listens by then, and is ended with the block."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = int(reserved.getsockname()[1])
    process = subprocess.Popen([sys.executable, "-m", module, str(port), *arguments])
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{module} did not start") from None
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)
