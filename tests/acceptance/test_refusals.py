"""Bad input on the command line: one line that names the field and what to do, exit status 1 or 2, nothing stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sis.queue.v1 import job_pb2
from tests.support.numbered_job import shell_job, until
from tests.support.stack import Stack

CREATE = ("jobs", "create", "--type", "package", "--name", "refused", "--operation", "run")
SHELL = (*CREATE, "--package", "core.shell")
LOCAL = ("--site", "group:local")
SCRIPT = ("--param", "script=true")

REFUSALS = [
    pytest.param((*CREATE, *LOCAL, *SCRIPT, "--package", "no.such"), "no.such", id="unknown package"),
    pytest.param((*CREATE, *LOCAL, *SCRIPT, "--package", "core.shell@9.9.9"), "9.9.9", id="unknown version"),
    pytest.param((*SHELL, *LOCAL, *SCRIPT, "--operation", "fly"), "fly", id="unknown operation"),
    pytest.param((*SHELL, *SCRIPT, "--site", "agent:nobody"), "nobody", id="unknown agent"),
    pytest.param((*SHELL, *SCRIPT, "--site", "planet:mars"), "site", id="unknown kind of site"),
    pytest.param((*SHELL, *LOCAL), "script", id="missing parameter"),
    pytest.param((*SHELL, *LOCAL, *SCRIPT, "--param", "colour=red"), "colour", id="surplus parameter"),
    pytest.param((*SHELL, *LOCAL, *SCRIPT, "--param", "environment=no-equals"), "environment", id="wrong parameter"),
    pytest.param((*SHELL, *LOCAL, *SCRIPT, "--latest-start", "2001-01-01T00:00:00Z"), "latest", id="past latest start"),
    pytest.param((*SHELL, *LOCAL, *SCRIPT, "--timeout", "soon"), "timeout", id="no duration"),
    pytest.param((*SHELL, *LOCAL, *SCRIPT, "--type", "dance"), "type", id="unknown type"),
    pytest.param(("jobs", "get", "999999999"), "999999999", id="unknown job"),
    pytest.param(("jobs", "list", "--page-token", "garbage"), "page", id="bad page token"),
    pytest.param(("jobs", "list", "--status", "dancing"), "status", id="unknown status"),
    pytest.param(("jobs", "list", "--order", "shoe_size"), "order", id="unknown order"),
    pytest.param(("agents", "show", "nobody"), "nobody", id="agent not found"),
    pytest.param(("packages", "push", "/nonexistent"), "/nonexistent", id="no such directory"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSALS)
def test_it_is_refused_in_words(stack: Stack, arguments: Sequence[str], named: str) -> None:
    before = _jobs(stack)
    done = stack.cli(*arguments)
    assert done.returncode in (1, 2), done.stdout
    assert named in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 6, done.stderr
    assert _jobs(stack) == before


def test_a_value_of_five_mebibytes(stack: Stack, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#" * (5 << 20))
    before = _jobs(stack)
    done = stack.cli(*SHELL, *LOCAL, "--param", f"script=@{script}")
    assert done.returncode == 1
    assert "script" in done.stderr
    assert "Traceback" not in done.stderr
    assert _jobs(stack) == before


def test_a_wrong_token_and_none(stack: Stack, tmp_path: Path) -> None:
    token = tmp_path / "token"
    for content in ("wrong", "x" * 64):
        token.write_text(content)
        kept = {key: value for key, value in stack.environment().items() if key != "SIS_DATA"}
        environment = {
            **kept,
            "SIS_QUEUE_ENDPOINT": stack.state.queue_endpoint,
            "SIS_TOKEN_FILE": str(token),
            "SIS_CA": str(stack.data / "tls" / "ca.pem"),
        }
        done = stack.cli("jobs", "list", environment=environment)
        assert done.returncode == 1
        assert "token" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_manifest_with_mistakes_is_refused_with_each_of_them(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "package.yaml").write_text(
        "name: Bad Name\nversion: one\noperations:\n  go:\n    command: ['{param.x}']\n    colour: red\n"
    )
    done = stack.cli("packages", "push", tmp_path)
    assert done.returncode == 1
    for named in ("name", "version", "operations.go"):
        assert named in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_an_illegal_verb_says_why(stack: Stack) -> None:
    with stack.client() as client:
        number = client.jobs.create(shell_job("true")).job_id
        until(lambda: client.jobs.get(number).status == job_pb2.JOB_STATUS_SUCCEEDED, "the job")
    for verb in ("activate", "cancel", "abort"):
        done = stack.cli("jobs", verb, str(number))
        assert done.returncode == 1
        assert str(number) in done.stderr
        assert "succe" in done.stderr.lower()


def _jobs(stack: Stack) -> int:
    with stack.client() as client:
        return client.jobs.list(page_size=1).total_size
