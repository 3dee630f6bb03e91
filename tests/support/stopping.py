"""Processes that are stopped, for certain: SIGSTOP returns before it has taken effect."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from sis.stack import processes

_SECONDS = 10.0
_STILL = (b"T", b"t", b"Z", b"X")


def stop(*pids: int) -> bool:
    """Stop each process, and wait until no thread of any runs any more. False: one was gone."""
    identities = [processes.identify(pid) for pid in pids]
    signalled = [identity for identity in identities if identity and identity.signal(signal.SIGSTOP)]
    deadline = time.monotonic() + _SECONDS
    for identity in signalled:
        while not still(identity.pid):
            assert time.monotonic() < deadline, f"the process {identity.pid} was not stopped in {_SECONDS:g} s"
            time.sleep(0.001)
    return len(signalled) == len(pids)


def still(pid: int) -> bool:
    """Whether no thread of a process runs: it is stopped or gone."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            content = stat.read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # this thread has just ended
            continue
        if content[content.rindex(b")") + 2 :].split(maxsplit=1)[0] not in _STILL:
            return False
    return True
