"""The HTTP API does what its OpenAPI document says, whatever it is asked: schemathesis against the whole stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from gateway.routes import bindings
from sis.packages import archive, shipped
from tests.support.stack import Stack

SEED = 20261122
SECONDS = 300.0

EXCLUDED = {
    "WatchJobs": "it ends when its client goes, so none of its answers is ever whole",
    "MonitorJob": "it ends with its job, which for one that nobody can run is never",
    "RevokeAgent": "names are tried that other answers had, and the agent of this stack is every test's",
}
"""Operations that have tests of their own, and why they are left out here."""

UNCHECKED = {
    "negative_data_rejection": "null and the numbers of enums are taken, which no schema here spells out",
    "positive_data_acceptance": "names of packages, agents and jobs are more than their patterns",
}


@pytest.fixture(scope="module", autouse=True)
def _shipped_packages(stack: Stack) -> Iterator[None]:
    """Deleted with a name that another answer had, they are there again for the tests that follow."""
    yield
    with stack.client() as client:
        for directory in sorted(path for path in shipped().iterdir() if (path / "package.yaml").is_file()):
            client.packages.push(archive.pack(directory))


@pytest.mark.timeout(360)
@pytest.mark.parametrize(
    ("phases", "examples"),
    [
        ("examples,fuzzing", 2),
        pytest.param("examples,coverage,fuzzing", 40, marks=pytest.mark.long),
    ],
)
def test_with_a_token_every_answer_is_as_documented(stack: Stack, tmp_path: Path, phases: str, examples: int) -> None:
    statuses = _schemathesis(stack, tmp_path, stack.token, phases=phases, examples=examples)
    # What can succeed without knowing what is there has succeeded, so it was not refusals alone that were looked at.
    reached = {key for key, found in statuses.items() if 200 in found}
    assert reached >= {
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/jobs:apply"),
        ("GET", "/v1/packages"),
        ("GET", "/v1/credentials"),
        ("GET", "/v1/agents"),
        ("POST", "/v1/agents:pair"),
        ("GET", "/v1/agentIdentities"),
        ("GET", "/readyz"),
    }
    assert any(status == 400 for found in statuses.values() for status in found)


@pytest.mark.timeout(360)
def test_without_a_token_nothing_is_given_away(stack: Stack, tmp_path: Path) -> None:
    statuses = _schemathesis(stack, tmp_path, None, examples=2, phases="examples,fuzzing")
    for (verb, path), found in statuses.items():
        if path not in ("/healthz", "/readyz"):
            assert not any(status < 400 for status in found), (verb, path, found)
    assert 401 in statuses["GET", "/v1/jobs"]


def test_every_method_refuses_whoever_has_no_token_and_says_why(stack: Stack) -> None:
    for binding in bindings():
        path = binding.template.replace("{job_id}", "1").replace("{name}", "x")
        answer = requests.request(binding.verb, stack.gateway + path, timeout=10)
        assert answer.status_code == 401, binding.full_name
        [info] = answer.json()["error"]["details"]
        assert info["reason"] == "UNAUTHENTICATED"
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_stack_is_none_the_worse_for_it(stack: Stack) -> None:
    assert requests.get(f"{stack.gateway}/readyz", timeout=10).status_code == 200
    stack.wait_healthy()


def _schemathesis(
    stack: Stack, directory: Path, token: str | None, *, examples: int, phases: str
) -> dict[tuple[str, str], set[int]]:
    """Run it; it must find nothing. Returns the statuses that were answered, by verb and path."""
    configuration = directory / "schemathesis.toml"
    headers = f"headers = {{ Authorization = {json.dumps(f'Bearer {token}')} }}\n" if token else ""
    configuration.write_text(headers, encoding="utf-8")
    report = directory / "report.har"
    command = [
        *(sys.executable, "-P", "-m", "schemathesis.cli", "--config-file", configuration, "--no-color"),
        *("run", f"{stack.gateway}/openapi.json"),
        *("--seed", SEED, "--max-examples", examples, "--generation-database", "none", "--request-timeout", 10),
        *("--phases", phases, "--continue-on-failure"),
        *("--checks", "all", "--exclude-checks", ",".join(UNCHECKED)),
        *("--report-har-path", report),
        *(word for name in EXCLUDED for word in ("--exclude-operation-id", name)),
    ]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if not name.startswith("SCHEMATHESIS_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    statuses: dict[tuple[str, str], set[int]] = defaultdict(set)
    for entry in _entries(report):
        request = entry["request"]
        statuses[request["method"], urlsplit(request["url"]).path].add(entry["response"]["status"])
    return statuses


def _entries(report: Path) -> Iterator[dict[str, Any]]:
    yield from json.loads(report.read_text(encoding="utf-8"))["log"]["entries"]
