"""The overlays as kubectl renders them, those of this repository and those that the documentation has people write."""

from __future__ import annotations

import atexit
import copy
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.support.podman import ROOT

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir() if (path / "kustomization.yaml").exists())
DOCUMENTED = {
    "own": ("kubernetes.md", "On a cluster"),
    "own-agent": ("kubernetes.md", "An agent"),
    "own-migrate-post": ("upgrade.md", "Kubernetes"),
    "own-recover": ("backup.md", "In Kubernetes"),
}
"""Overlays that people write, and the page and section of docs/operations that has each."""
EVERY = (*OVERLAYS, *DOCUMENTED)
WORKLOADS = ("Deployment", "StatefulSet", "Job")

Document: TypeAlias = "dict[str, Any]"


def program(name: str) -> str:
    """One of those that the environment has, or this machine."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is missing: run tools/setup.sh image"
    return found


@functools.cache
def rendered(directory: Path) -> str:
    """What `kubectl apply -k` would send."""
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def documented(page: str, section: str) -> str:
    """The one kustomization of a section, as it is printed there."""
    text = (ROOT / "docs" / "operations" / page).read_text(encoding="utf-8")
    _, _, found = text.partition(f"\n## {section}\n")
    found, _, _ = found.partition("\n## ")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)
    (block,) = [each for each in blocks if "kind: Kustomization\n" in each]
    return str(block)


@functools.cache
def written() -> Path:
    """A copy of deploy/k8s in which somebody has written the documented overlays."""
    root = Path(tempfile.mkdtemp(prefix="sis-k8s-"))
    atexit.register(shutil.rmtree, root)
    shutil.copytree(K8S, root, dirs_exist_ok=True)
    for name, (page, section) in DOCUMENTED.items():
        directory = root / "overlays" / name
        directory.mkdir()
        (directory / "kustomization.yaml").write_text(documented(page, section), encoding="utf-8")
    return root


def manifest(overlay: str) -> str:
    """What an overlay is rendered to, be it of this repository or of the documentation."""
    return rendered((written() if overlay in DOCUMENTED else K8S) / "overlays" / overlay)


@functools.cache
def _parsed(overlay: str) -> list[Document]:
    return list(yaml.safe_load_all(manifest(overlay)))


def documents(overlay: str) -> list[Document]:
    """The same, parsed; whoever asks may change them."""
    return copy.deepcopy(_parsed(overlay))


def pod(workload: Mapping[str, Any]) -> Document:
    """The specification of a workload's pods."""
    found: Document = workload["spec"]["template"]["spec"]
    return found


def containers(workload: Mapping[str, Any]) -> Iterator[Document]:
    """Its containers, those included that run before."""
    yield from pod(workload).get("initContainers", ())
    yield from pod(workload)["containers"]


def workloads(overlay: str) -> list[Document]:
    """What of an overlay has pods."""
    return [each for each in documents(overlay) if each["kind"] in WORKLOADS]


def named(overlay: str, kind: str, name: str) -> Document:
    """The one of this kind and name."""
    (found,) = [each for each in documents(overlay) if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def environment(overlay: str, container: Mapping[str, Any]) -> dict[str, str]:
    """What a container of an overlay sees, files of secrets apart."""
    configuration = {
        each["metadata"]["name"]: each["data"] for each in documents(overlay) if each["kind"] == "ConfigMap"
    }
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= configuration[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        found[variable["name"]] = variable.get("value", "pod-name")
    return found
