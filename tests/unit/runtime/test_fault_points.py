"""Every named moment in the source is one of the crash matrix, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import services
from tests.crash.points import ELSEWHERE, STARTING, passages
from tests.crash.scenarios import SCENARIOS

SOURCE = Path(services.__file__).parent
ROOT = SOURCE.parent
PROCESSES = {
    "queue": {"queue"},
    "credentials": {"credentials"},
    "sis_agent/hub": {"hub"},
    "sis_agent/agent": {"agent", "zygote", "guardian", "supervisor", "payload"},
}
"""Which processes run the code in a directory."""
NAMES = {passage.point for passage in passages()} | set(ELSEWHERE)


def patterns() -> Iterator[tuple[str, Path]]:
    """What the source calls its moments, as regular expressions: a name may have a variable in it."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path == SOURCE / "runtime" / "faults.py":
            continue  # its docstring has an example
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'faults\.point\(\s*f?"([^"]+)"', text):
            if not name.startswith("{point}"):
                yield re.sub(r"\\\{.+?\\\}", r"\\w+", re.escape(name)), path
        for name in re.findall(r'\.begin\("([^"]+)"\)', text):
            yield rf"{re.escape(name)}\.committing", path
            yield rf"{re.escape(name)}\.committed", path


def test_every_moment_of_the_source_is_in_the_matrix() -> None:
    found = list(patterns())
    assert len(found) > 100
    missing = [pattern for pattern, _ in found if not any(re.fullmatch(pattern, name) for name in NAMES)]
    assert not missing


def test_every_moment_of_the_matrix_is_in_the_source_of_its_process() -> None:
    found = list(patterns())
    for name in NAMES:
        homes = {path.relative_to(SOURCE).as_posix() for pattern, path in found if re.fullmatch(pattern, name)}
        assert homes, f"{name} is nowhere"
        process = name.partition(".")[0]
        for home in homes:
            assert any(home.startswith(f"{of}/") and process in ran for of, ran in PROCESSES.items()), (name, home)


def test_every_phase_is_one_of_its_scenario() -> None:
    for passage in passages():
        assert passage.phase in SCENARIOS[passage.scenario].PHASES, passage
    assert NAMES >= STARTING


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_the_matrix_leaves_out_is_shown_where_it_says(name: str) -> None:
    # A commit is one moment where nothing but its end follows.
    text = (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
    assert name in text or name.replace(".committed", ".committing") in text
