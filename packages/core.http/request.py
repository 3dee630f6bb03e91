"""Asks a web server for something and checks what it answers. Needs Python 3.9 or later, and nothing else.

Inputs and credential come in the environment. What the server sends goes to standard output as it is, what is to be
said about it to standard error. Exit codes: 0 every check has passed, 1 one has failed, 2 there is no answer to check.
"""

from __future__ import annotations

import concurrent.futures
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import inputs
from exchange import NoAnswer, ask

MAX_BODY_OUTPUT_BYTES = 60_000  # an output holds 64 KiB

T = TypeVar("T")


class Progress:
    """How far it is, for the job and for the words of a time-out."""

    def __init__(self) -> None:
        self._path = Path(os.environ["SIS_PROGRESS"])
        self.text = "starting"

    def tell(self, percent: int, text: str) -> None:
        self.text = text
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{percent} {text}\n")


def main() -> int:
    progress = Progress()
    try:
        request, checks = inputs.read(os.environ)
        seconds = int(os.environ["SIS_PARAM_TIMEOUT"])
        started = time.monotonic()
        answer = within(seconds, lambda: ask(request, progress.tell), progress)
    except NoAnswer as error:
        print(error, file=sys.stderr)
        return 2
    elapsed_ms = round((time.monotonic() - started) * 1000)
    status = f"{answer.status} {answer.reason}".strip()
    print(f"{status} from {answer.url}: {len(answer.body)} bytes, {elapsed_ms} ms", file=sys.stderr, flush=True)
    sys.stdout.buffer.write(answer.body)
    sys.stdout.buffer.flush()
    text = answer.text.replace("\0", "\ufffd").encode("utf-8", "replace")
    give("status", str(answer.status))
    give("elapsed_ms", str(elapsed_ms))
    give("content_type", answer.content_type)
    give("final_url", answer.url)
    give("body", text[:MAX_BODY_OUTPUT_BYTES].decode(errors="ignore"))
    give("body_truncated", "true" if len(text) > MAX_BODY_OUTPUT_BYTES or not answer.whole else "false")
    progress.tell(100, f"status {answer.status}")
    problems = checks.problems(answer)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def within(seconds: int, work: Callable[[], T], progress: Progress) -> T:
    """What `work` gives. All of it has the time together, looking up a name too, which nothing can interrupt: hence a
    thread that is left behind."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(seconds)
    except concurrent.futures.TimeoutError:
        raise NoAnswer(f"not done after {seconds} s, still {progress.text}") from None


def give(name: str, value: str) -> None:
    """Writes an output parameter, whose end is a mark that nobody can have put into the value."""
    mark = secrets.token_hex(16)
    with Path(os.environ["SIS_OUTPUT"]).open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{name}<<{mark}\n{value}\n{mark}\n")


if __name__ == "__main__":
    sys.exit(main())
