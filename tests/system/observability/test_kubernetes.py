"""The scrape job for Kubernetes finds what the manifests have measured, by the labels that the alerts are about."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
JOB = ROOT / "deploy" / "observability" / "prometheus-kubernetes.yaml"
ALERTS = ROOT / "deploy" / "observability" / "alerts.yaml"


def configured(directory: Path) -> Path:
    """A configuration with the job, which finds in a file what Kubernetes would tell it: Debian's Prometheus is built
    without that."""
    configuration = yaml.safe_load(JOB.read_text())
    (job,) = configuration["scrape_configs"]
    del job["kubernetes_sd_configs"]
    job["file_sd_configs"] = [{"files": [str(directory / "pods.json")]}]
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    return file


def test_the_scrape_job_is_sound(tmp_path: Path) -> None:
    (tmp_path / "pods.json").write_text("[]")
    done = subprocess.run(
        ["promtool", "check", "config", configured(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scrape_job_looks_where_the_overlays_put_the_suite() -> None:
    (job,) = yaml.safe_load(JOB.read_text())["scrape_configs"]
    overlays = [ROOT / "deploy" / "k8s" / "overlays" / name / "kustomization.yaml" for name in ("production", "agent")]
    namespaces = [yaml.safe_load(each.read_text())["namespace"] for each in overlays]
    assert job["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": namespaces}}]


def found(directory: Path, *pods: dict[str, str]) -> list[dict[str, Any]]:
    """What the job makes of ports of pods: the labels of each that is to be read, in the order of their addresses.

    promtool finds them in a file, under the labels that Kubernetes would give them.
    """
    targets = [
        {
            "targets": [f"10.0.0.{number}:7480"],
            "labels": {f"__meta_kubernetes_pod_{name}": value for name, value in pod.items()},
        }
        for number, pod in enumerate(pods)
    ]
    (directory / "pods.json").write_text(json.dumps(targets))
    done = subprocess.run(
        ["promtool", "check", "service-discovery", "--timeout=5s", configured(directory), "sis"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    labels = [each["labels"] for each in json.loads(done.stdout) if each.get("labels")]
    return sorted(labels, key=lambda each: str(each["__address__"]))


def pod(name: str, port: str = "metrics", **changes: str) -> dict[str, str]:
    """One of the suite's, with one port."""
    return {
        "name": name,
        "label_app_kubernetes_io_part_of": "sis",
        "container_port_name": port,
        "phase": "Running",
        **changes,
    }


def test_every_process_is_read_once_under_its_name(tmp_path: Path) -> None:
    read = found(
        tmp_path,
        pod("sis-queue-7c9d5b6f4-x2x8k"),
        pod("sis-queue-7c9d5b6f4-x2x8k", "people"),
        pod("sis-hub-5d4f8b7c6-abcde"),
        pod("sis-agent-0"),
        pod("sis-migrate-4711", phase="Succeeded"),
        pod("grafana-0", label_app_kubernetes_io_part_of="grafana"),
    )
    assert [each["process"] for each in read] == ["queue-7c9d5b6f4-x2x8k", "hub-5d4f8b7c6-abcde", "agent-0"]
    assert {each["job"] for each in read} == {"sis"}
    assert [each["instance"] for each in read] == [f"10.0.0.{number}:7480" for number in (0, 2, 3)]


def test_the_alerts_are_about_labels_that_the_job_sets(tmp_path: Path) -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    selectors = [each for rule in rules for each in re.findall(r"\bup\{(.*?)\}", rule["expr"])]
    assert len(selectors) == 6
    servers = found(
        tmp_path, *(pod(f"sis-{name}-7c9d5b6f4-x2x8k") for name in ("queue", "credentials", "hub", "gateway"))
    )
    for selector in selectors:
        parts = re.findall(r"(\w+)(=~?)\"(.*?)\"", selector)
        patterns = {name: value if matches == "=~" else re.escape(value) for name, matches, value in parts}
        assert any(all(re.fullmatch(patterns[name], each[name]) for name in patterns) for each in servers), selector


@pytest.mark.parametrize("component", ["observability", "agent-observability"])
def test_the_ports_that_it_looks_for_are_those_of_the_components(component: str) -> None:
    text = (ROOT / "deploy" / "k8s" / "components" / component / "kustomization.yaml").read_text()
    assert "{name: metrics, containerPort: 7480}" in text
