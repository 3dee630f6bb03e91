"""The stack of `sis up --detach`, in a session of its own.

    python -m sis.stack.session DESCRIPTOR OPTIONS

OPTIONS is JSON. How the start goes is told in JSON lines to the inherited DESCRIPTOR: `say` (a line for the
person who waits), and at last `ready`, `already` (another `sis up` keeps this stack) or `failed`.
Everything else goes to `up.log`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from sis.stack import stack
from sis.stack import state as states
from sis.stack.errors import StackError, refusals
from sis.stack.layout import Layout
from sis.stack.settings import Options
from sis.stack.state import AlreadyUpError


class _Report:
    """The starter's ear, until the last word."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor

    def say(self, line: str) -> None:
        self._write("say", line)

    def last(self, kind: str, text: str = "") -> None:
        """The last word: whatever comes after it is not reported."""
        if self._descriptor >= 0:
            self._write(kind, text)
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, kind: str, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the starter was killed; the stack is wanted all the same
            os.write(self._descriptor, json.dumps({kind: text}).encode() + b"\n")


def _main(report: _Report, options: Options) -> int:
    os.umask(0o077)
    layout = Layout(options.data)
    try:
        with refusals(), states.lock(layout):
            stack.run(layout, options, report.say, ready=lambda: report.last("ready"))
    except AlreadyUpError:
        report.last("already")
        return 1
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        report.last("failed", str(error))
        return 1
    report.last("failed", "the stack was stopped while it was being started")
    return 0


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    sys.exit(_main(_Report(int(sys.argv[1])), Options(**{**given, "data": Path(given["data"])})))
