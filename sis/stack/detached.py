"""The starter's side of `sis up --detach`; the other side, which keeps the stack, is `session`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from sis.stack import processes
from sis.stack import state as states
from sis.stack.errors import StackError
from sis.stack.layout import Layout
from sis.stack.settings import MOST_REPLICAS, STOP_SECONDS, Options, longest_start_seconds
from sis.stack.state import AlreadyUpError

_STOP_SECONDS = 4 * STOP_SECONDS + 2.0
# The start bounds itself; beyond this its report is not coming.
_REPORT_SECONDS = longest_start_seconds(MOST_REPLICAS) + _STOP_SECONDS


def start(layout: Layout, options: Options, say: Callable[[str], None]) -> None:
    """Start the stack in the background; returns when all of it is healthy.

    Raises:
        AlreadyUpError: another `sis up` keeps it.
        StackError: it could not be started, and is stopped; names the reason and the log.
    """
    layout.create()
    processes.rotate(layout.log("up"))
    given = json.dumps({**asdict(options), "data": str(layout.data)})
    reading, writing = os.pipe()
    try:
        try:
            with processes.open_log(layout.log("up")) as log:
                session = subprocess.Popen(
                    [sys.executable, "-P", "-m", "sis.stack.session", str(writing), given],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=layout.data,
                    pass_fds=[writing],
                    start_new_session=True,
                )
        finally:
            os.close(writing)
        try:
            _follow(layout, reading, say)
        except BaseException:  # it failed, or was called off: what has been started is stopped again
            session.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                session.wait(_STOP_SECONDS)
            raise
    finally:
        os.close(reading)
    session.returncode = 0  # it is meant to outlive this process, so nobody waits for it


def _follow(layout: Layout, descriptor: int, say: Callable[[str], None]) -> None:
    for report in _reports(descriptor):
        if "say" in report:
            say(report["say"])
        elif "ready" in report:
            return
        elif "already" in report:
            raise AlreadyUpError(states.holder(layout))
        else:
            raise StackError(f"{report['failed']} (log of the start: {layout.log('up')})")
    words = processes.last_words(layout.log("up"))
    raise StackError(f"the start ended without a word; see {layout.log('up')}{words}")


def _reports(descriptor: int) -> Iterator[dict[str, str]]:
    deadline = time.monotonic() + _REPORT_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    buffer = b""
    while (remaining := deadline - time.monotonic()) > 0:
        if not poll.poll(remaining * 1000):
            continue
        if not (data := os.read(descriptor, 65536)):
            return
        *lines, buffer = (buffer + data).split(b"\n")
        yield from (json.loads(line) for line in lines)
