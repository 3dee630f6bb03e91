"""Every named moment in the source is one of the crash matrix, and the other way round. In a normal run there is
none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import services
from tests.crash.points import ELSEWHERE, HANDED, STARTING, passages
from tests.crash.scenarios import SCENARIOS
from tests.support.fault_points import FaultPoints

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
    assert NAMES >= STARTING >= HANDED


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_the_matrix_leaves_out_is_shown_where_it_says(name: str) -> None:
    # A commit is one moment where nothing but its end follows.
    text = (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
    assert name in text or name.replace(".committed", ".committing") in text


PASSING = """
import sys
from services.runtime import faults
looked = []
sys.addaudithook(lambda event, arguments: looked.append(event))
faults.point("queue.notified")
del faults
print(len(looked))
"""
"""Passes a place, and says how often the system was asked for something meanwhile."""


@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize("given", ["directory", "empty", "nothing"])
def test_only_who_is_started_with_faults_looks_for_them(tmp_path: Path, given: str, armed: bool) -> None:
    faults = FaultPoints(tmp_path)
    if armed:
        faults.arm("queue.notified")
    environment = {name: value for name, value in os.environ.items() if name != "SIS_FAULTS"}
    environment |= {"directory": dict(faults.environment), "empty": {"SIS_FAULTS": ""}, "nothing": {}}[given]
    environment["PYTHONPATH"] = str(ROOT)
    passing = [sys.executable, "-c", PASSING]
    # In that very directory, too: no file of a name that happens to be the same does anything.
    done = subprocess.run(passing, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    if given != "directory":
        assert (done.returncode, done.stdout, faults.is_armed("queue.notified")) == (0, "0\n", armed), done.stderr
    elif armed:
        assert (done.returncode, faults.is_armed("queue.notified")) == (-signal.SIGKILL, False)
    else:
        assert done.returncode == 0 and int(done.stdout) > 0, "or else nothing could have been noticed"
