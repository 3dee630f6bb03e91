"""The examples of a page in Markdown, run as a reader would run them.

What is run is in blocks that are marked as `console`: a line that begins with "$ " is a command, to which lines that
begin with "> " belong, and so do those after a backslash at the end; the lines after it are what it prints. There a
line "…" stands for any number of lines, and "…" within a line for any text.

All blocks of a page are one session of `bash -euo pipefail`, so that variables and files of earlier ones can be used.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\s*$")
ANYTHING = "…"


@dataclass(frozen=True)
class Example:
    """One command, and what it prints."""

    line: int
    """Where it is on the page, from 1 on."""
    command: str
    expected: tuple[str, ...]


class Mismatch(AssertionError):
    """An example that does not do what its page says."""


def read(page: str) -> list[Example]:
    """The examples of a page, in order. Raises ValueError for a block that does not begin with a command."""
    found: list[Example] = []
    inside = ""
    for number, line in enumerate(page.splitlines(), 1):
        fence = _FENCE.match(line)
        if fence:
            inside = "" if inside else fence[1] or "plain"
            fresh = True
        elif inside == "console":
            if line.startswith("$ "):
                found.append(Example(number, line[2:], ()))
            elif fresh:
                raise ValueError(f"line {number}: a block begins with a command, after '$ '")
            else:
                found[-1] = _longer(found[-1], line)
            fresh = False
    return found


def _longer(example: Example, line: str) -> Example:
    if not example.expected and (line.startswith("> ") or example.command.endswith("\\")):
        return Example(example.line, f"{example.command}\n{line.removeprefix('> ')}", ())
    return Example(example.line, example.command, (*example.expected, line))


def run(
    examples: Sequence[Example], environment: Mapping[str, str], directory: Path, *, seconds: float = 120.0
) -> None:
    """Run them in `directory`, all within so many seconds.

    Raises:
        Mismatch: one failed, did not end, or printed something else than its page says.
    """
    results = directory / ".results"
    results.mkdir()
    script = results / "script"
    script.write_text("".join(_step(number, example, results) for number, example in enumerate(examples)))
    session = subprocess.Popen(
        ["bash", "-euo", "pipefail", str(script)],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status: int | None = session.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
        os.killpg(session.pid, signal.SIGKILL)
        session.wait()
    for number, example in enumerate(examples):
        printed = results / f"{number}.out"
        lines = printed.read_text(errors="replace").splitlines() if printed.exists() else []
        if not (results / f"{number}.done").exists():
            said = (results / f"{number}.err").read_text(errors="replace") if printed.exists() else ""
            ended = f"did not end within {seconds:.0f} s" if status is None else f"failed with status {status}"
            raise Mismatch(_told(example, f"{ended}\n{said}", lines))
        if not matches(example.expected, lines):
            raise Mismatch(_told(example, "printed something else", lines))


def _step(number: int, example: Example, results: Path) -> str:
    """In the braces, so that variables stay."""
    output = f"'{results}/{number}'"
    return f"{{\n{example.command}\n}} >{output}.out 2>{output}.err\n: >{output}.done\n"


def matches(expected: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether these lines are what a page says."""
    reachable = {0}
    for line in expected:
        if line.strip() == ANYTHING:
            reachable = set(range(min(reachable, default=len(printed) + 1), len(printed) + 1))
        else:
            pattern = re.compile(".*".join(re.escape(part) for part in line.rstrip().split(ANYTHING)))
            reachable = {
                at + 1 for at in reachable if at < len(printed) and pattern.fullmatch(printed[at].rstrip()) is not None
            }
    return len(printed) in reachable


def _told(example: Example, what: str, lines: Sequence[str]) -> str:
    shown = "\n".join(f"    {line}" for line in lines)
    expected = "\n".join(f"    {line}" for line in example.expected)
    return f"line {example.line}: {example.command}\n{what}\nexpected:\n{expected}\nprinted:\n{shown}"
