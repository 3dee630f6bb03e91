"""The overlays as kubectl renders them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.support.podman import ROOT

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir() if (path / "kustomization.yaml").exists())
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


def documents(overlay: str) -> list[Document]:
    """Those of an overlay."""
    return list(yaml.safe_load_all(rendered(K8S / "overlays" / overlay)))


def pod(workload: Mapping[str, Any]) -> Document:
    """The specification of a workload's pods."""
    found: Document = workload["spec"]["template"]["spec"]
    return found


def containers(workload: Mapping[str, Any]) -> Iterator[Document]:
    """Its containers, those included that run before."""
    yield from pod(workload).get("initContainers", ())
    yield from pod(workload)["containers"]
