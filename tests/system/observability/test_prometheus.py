"""A real Prometheus reads what the processes of a stack measure, and the alerts say what they should."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sis.stack.ports import Reservations
from tests.support.enrolled import free_endpoint
from tests.support.stack import Stack

ALERTS = Path(__file__).parents[3] / "deploy" / "observability" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def prometheus(traced_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one that reads the stack every second, with the alerts loaded."""
    directory = tmp_path_factory.mktemp("prometheus")
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "sis", "file_sd_configs": [{"files": [str(traced_stack.layout.targets)]}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with Reservations() as ports, (directory / "log").open("wb") as log:
        endpoint = free_endpoint(ports)
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={endpoint}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield endpoint
        finally:
            process.terminate()
            process.wait(30)


def _get(endpoint: str, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"http://{endpoint}/api/v1/{path}?{query}", timeout=10) as answer:
        return json.loads(answer.read())["data"]


def _until(found: Callable[[], Any]) -> Any:
    """What `found` returns, once that is true; until then Prometheus may not even answer."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if result := found():
                return result
        except OSError as error:
            result = error
        assert time.monotonic() < deadline, f"not in time: {result}"
        time.sleep(0.2)


def test_every_process_is_read(traced_stack: Stack, prometheus: str) -> None:
    expected = {"credentials-1", "queue-1", "hub-1", "gateway-1", "local-1"}
    healthy = _until(
        lambda: (
            found
            if len(found := {t["labels"]["process"]: t for t in _get(prometheus, "targets")["activeTargets"]}) == 5
            and all(each["health"] == "up" for each in found.values())
            else None
        )
    )
    assert set(healthy) == expected


def test_a_job_is_counted(traced_stack: Stack, prometheus: str) -> None:
    done = traced_stack.cli(
        "jobs", "create", "--name", "counted", "--package", "core.shell", "--operation", "run",
        "--site", "group:local", "--param", "script=true", "--follow",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    def value(query: str) -> float:
        found = _get(prometheus, "query", query=query)["result"]
        return float(found[0]["value"][1]) if found else 0.0

    for query in (
        'sis_job_transitions_total{sis_job_status="SUCCEEDED", sis_job_event="FINISH_SUCCEEDED"}',
        "sis_job_wait_duration_seconds_count",
        "sis_job_start_duration_seconds_count",
        'sis_job_run_duration_seconds_count{sis_job_status="SUCCEEDED"}',
        "sis_log_written_bytes_total",
        'rpc_server_call_duration_seconds_count{rpc_method="sis.queue.v1.JobService/CreateJob"}',
        'sis_database_transaction_duration_seconds_count{sis_database_transaction="queue.claim"}',
        'sis_hub_slots{sis_slot_state="free"}',
        "sis_agent_slots",
    ):
        _until(lambda query=query: value(query) > 0)


def test_every_alert_is_about_something_that_is_measured(traced_stack: Stack, prometheus: str) -> None:
    """A rule about a name that nothing has would be silent for ever."""
    wanted = {
        name for rule in _rules() for name in re.findall(r"\b(?:sis|rpc|http)_[a-z_]+\b(?=[{\[)>< ])", rule["expr"])
    }
    labels = {"error_type", "le", "rpc_method", "sis_vault_operation"}
    labels |= {"sis_job_status", "sis_job_type", "sis_slot_state"}
    wanted -= labels
    assert len(wanted) > 12
    urllib.request.urlopen(f"{traced_stack.gateway}/healthz", timeout=10).close()

    def missing() -> set[str]:
        return wanted - set(_get(prometheus, "label/__name__/values"))

    _until(lambda: not missing())
    # Nothing has failed here, so nothing has this one.
    assert labels - {"error_type"} <= set(_get(prometheus, "labels"))


def test_what_is_measured_has_no_ids(traced_stack: Stack, prometheus: str) -> None:
    """The number of series is bounded by what the program knows, not by what people do."""
    _until(lambda: "sis_job_wait_duration_seconds_count" in _get(prometheus, "label/__name__/values"))
    labels = set(_get(prometheus, "labels"))
    assert not {name for name in labels if "id" in name.split("_") and not name.startswith("service_instance")}
    # Of one job or of a million.
    series = _get(prometheus, "series", **{"match[]": '{job="sis"}'})
    assert len(series) < 5_000


def test_every_rule_is_sound_and_evaluated(prometheus: str) -> None:
    checked = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rules = _until(
        lambda: (
            found
            if (found := [r for group in _get(prometheus, "rules")["groups"] for r in group["rules"]])
            and all(rule["health"] == "ok" for rule in found)
            else None
        )
    )
    assert len(rules) == len(_alerts())


def test_every_alert_is_raised_when_it_should_be() -> None:
    tried = subprocess.run(["promtool", "test", "rules", CASES], capture_output=True, text=True, timeout=60)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    raised = {
        case["alertname"]
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert raised == _alerts()


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def _alerts() -> set[str]:
    return {rule["alert"] for rule in _rules()}
