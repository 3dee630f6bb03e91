"""`sis packages test`: an operation on this machine, without a stack, to its end or until somebody stops it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from sis.cli import rehearsal
from sis.cli.main import run
from sis.packages import shipped
from tests.support.attempts import alive_with, eventually

SCRIPT = """
import hashlib, os, sys
content = open(sys.argv[1], "rb").read()
print("read", os.path.basename(sys.argv[1]), hashlib.sha256(content).hexdigest()[:8], flush=True)
print("from", os.environ["SIS_PACKAGE_DIR"], file=sys.stderr)
with open(os.environ["SIS_PROGRESS"], "a") as progress:
    progress.write("40 half-way\\n")
if os.environ.get("SIS_PARAM_WORD"):
    with open(os.environ["SIS_OUTPUT"], "a") as output:
        output.write("word=" + os.environ["SIS_PARAM_WORD"] + "\\n")
sys.exit(int(os.environ["SIS_PARAM_CODE"]))
"""
OPERATIONS = {
    "read": {
        "command": [sys.executable, "{package}/read.py", "{param.log}"],
        "inputs": {
            "log": {"type": "file", "required": True},
            "word": {"type": "string"},
            "code": {"type": "integer", "default": 0},
        },
        "outputs": {"word": {"required": True}},
    },
    "shell": {
        "command": ["/bin/sh", "-c", "{param.script}"],
        "inputs": {"script": {"type": "string"}},
        "outputs": {"outcome": {}},
        "output_markers": True,
    },
    "secret": {
        "command": ["true"],
        "inputs": {"password": {"type": "string", "sensitive": True, "required": True}},
        "credentials": {"database": {"required": True}, "other": {}},
    },
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    directory = tmp_path / "package"
    directory.mkdir()
    manifest = {"name": "a", "version": "1.0.0", "operations": OPERATIONS}
    (directory / "package.yaml").write_text(json.dumps(manifest))
    (directory / "read.py").write_text(SCRIPT)
    (tmp_path / "site.log").write_text("content")
    return directory


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the rehearsals have their directories, of which nothing is left."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    assert list(directory.iterdir()) == []


def test_a_job_is_shown_as_it_would_run(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = package.parent / "site.log"
    given = ["--param", "word=hello", "--param-file", f"log={log}"]
    assert run(["packages", "test", str(package), "read", *given]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    lines = [line[9:] for line in shown.out.splitlines()]
    assert "| read site.log ed7002b4" in lines
    assert "* Progress: 40 % half-way" in lines
    # Unpacked from an archive, not the directory itself.
    assert not [line for line in lines if line == f"! from {package}"]
    assert [line for line in lines if line.startswith("! from /")]
    assert "hello" in [line.rpartition("  ")[2] for line in shown.out.splitlines()]
    assert shown.out.splitlines()[-1].startswith("Test: Success, exit code 0, after ")


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (["--param", "word=x", "--param", "code=3"], "exit code 3"),
        ([], "exit code 0, after"),
    ],
)
def test_a_job_that_fails(package: Path, options: list[str], end: str, capfd: pytest.CaptureFixture[str]) -> None:
    log = package.parent / "site.log"
    assert run(["packages", "test", str(package), "read", "--param-file", f"log={log}", *options]) == 1
    last = capfd.readouterr().out.splitlines()[-1]
    assert last.startswith("Test: Failed, ") and end in last
    assert ("OUTPUT_MISSING" in last) == (not options)


def test_an_output_that_is_given_as_for_hornbill(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marked = "{{SISJobOutputParameterStart:outcome}}all is well{{SISJobOutputParameterEnd}}"
    assert run(["packages", "test", str(package), "shell", "--param", f"script=echo '{marked}'"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert f"| {marked}" in [line[9:] for line in lines]
    assert [line for line in lines if "outcome" in line and line.endswith("  all is well")]


def test_the_lines_for_programs_are_those_of_the_monitor(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--param", "script=sleep 60", "--timeout", "100ms", "--json"]
    assert run(["packages", "test", str(package), "shell", *given]) == 1
    responses = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    jobs = [each["job"] for each in responses if "job" in each]
    assert [jobs[0]["status"], jobs[1]["status"]] == ["JOB_STATUS_STARTING", "JOB_STATUS_RUNNING"]
    assert (jobs[-1]["status"], jobs[-1]["failureReason"]) == ("JOB_STATUS_TIMED_OUT", "RUN_TIMEOUT")
    frames = [frame for each in responses for frame in each.get("frames", {}).get("frames", [])]
    assert [int(frame["sequence"]) for frame in frames] == list(range(1, len(frames) + 1))
    assert frames[-1]["notice"]["finished"]["evidence"]["treeEmpty"]


@contextlib.contextmanager
def started(package: Path, script: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A test of its own process, once the payload has said that it is ready."""
    command = [sys.executable, "-P", "-m", "sis.cli", "packages", "test", str(package), "shell"]
    with subprocess.Popen(
        [*command, "--param", f"script={script}"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("| ready\n"):
                break
        try:
            yield process, process.stdout
        finally:
            process.kill()


def test_an_interrupt_asks_the_payload_to_end(package: Path) -> None:
    mark = f"sleep 3{os.getpid()}"
    with started(package, f"trap 'echo bye; exit 0' TERM; {mark} & echo ready; wait") as (process, shown):
        process.send_signal(signal.SIGINT)
        rest = shown.read()
        assert process.wait() == 130
    assert "| bye\n" in rest
    assert "Cancel request received, reason: the rehearsal was interrupted" in rest
    assert rest.splitlines()[-1].startswith("Test: Canceled")
    assert alive_with(mark) == []


def test_a_second_interrupt_ends_it(package: Path) -> None:
    mark = f"sleep 4{os.getpid()}"
    script = f"trap 'echo deaf' TERM; echo ready; while true; do {mark}; done"
    with started(package, script) as (process, shown):
        process.send_signal(signal.SIGINT)
        for line in shown:
            if "Cancel request received" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = shown.read()
        assert process.wait() == 130
    assert "Abort request received" in rest
    assert alive_with(mark) == []


async def test_with_the_command_the_payload_ends(package: Path, scratch: Path) -> None:
    mark = f"sleep 5{os.getpid()}"
    with started(package, f"echo ready; {mark}") as (process, _):
        process.kill()
        process.wait()
        await eventually(lambda: not alive_with(mark) and not list(scratch.iterdir()))


@pytest.mark.parametrize(
    ("operation", "options", "said"),
    [
        ("none", [], "a 1.0.0 has no operation none; it has: read, shell, secret"),
        ("read", ["--param", "log=x"], "parameter log: must be a file: give its name and its content"),
        ("read", [], "parameter log: is required: give a value"),
        (
            "secret",
            ["--param", "password=hunter2hunter2"],
            "parameter password: is sensitive: it takes a credential, never a plain value",
        ),
        (
            "secret",
            [],
            "it requires the credential database, which there is in the KeySafe alone: "
            "push the package and create a job",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused(
    operation: str, options: list[str], said: str, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["packages", "test", str(package), operation, *options]) == 1
    assert f"error: {said}" in capsys.readouterr().err.splitlines()


def test_a_package_with_mistakes_is_refused(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "package.yaml").write_text("name: a\n")
    assert run(["packages", "test", str(package), "read"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {package}/package.yaml: version: is missing\n")


def test_without_an_agent_it_says_what_to_install(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "find_spec", lambda name: None if name == "setproctitle" else name)
    assert run(["packages", "test", str(package), "shell"]) == 1
    said = "this needs setproctitle; run `make setup`, or install the wheel of SIS with the extra agent"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_shipped_package_can_be_tested(capfd: pytest.CaptureFixture[str]) -> None:
    script = "echo result=$((6 * 7)) >> $SIS_OUTPUT"
    given = ["--param", f"script={script}"]
    assert run(["packages", "test", str(shipped() / "core.shell"), "run", *given]) == 0
    assert "result  42" in capfd.readouterr().out
