"""What Podman 4.3 can play of the single-node overlay, and how the rest is made up for.

It plays Pods and Deployments; so a Job becomes a Pod, a StatefulSet a Deployment and its claims volumes. It has no
Services: their names are in each pod's hosts file, at addresses that are handed out here. It has no gRPC probes: the
test asks instead.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from tests.support.podman import AGENT, OPENBAO, POSTGRES, SERVER
from tests.system.kubernetes.manifests import WORKLOADS, Document, containers, pod

_IMAGES: Mapping[str, str] = {"sis-server": SERVER, "sis-agent": AGENT, "postgres": POSTGRES, "openbao": OPENBAO}
_COMMANDS: Mapping[str, Sequence[str]] = {POSTGRES: ["/usr/local/bin/postgres.sh"]}
"""What an image runs by itself; Podman 4.3 takes the base's for it."""
_ANNOTATIONS = {"io.podman.annotations.init.container.type": "always"}
"""Else it removes an init container that has ended, sometimes before it knows that it has, and fails."""
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle")


@dataclass(frozen=True)
class Play:
    """What is played at once: a workload, with the ConfigMaps."""

    name: str
    address: str
    text: str
    container: str
    """The name that Podman gives to the main container."""
    containers: Sequence[str]


def plays(documents: Sequence[Document], addresses: Sequence[str]) -> dict[str, Play]:
    """By the name of the workload."""
    workloads = [document for document in documents if document["kind"] in WORKLOADS]
    services = [document["metadata"]["name"] for document in documents if document["kind"] == "Service"]
    at = dict(zip((each["metadata"]["name"] for each in workloads), addresses, strict=False))
    assert len(at) == len(workloads), "there are too few addresses"
    aliases = [{"ip": at[name], "hostnames": [name]} for name in services]
    configuration = [document for document in documents if document["kind"] == "ConfigMap"]
    found = {}
    for workload in workloads:
        name = workload["metadata"]["name"]
        played = _played(copy.deepcopy(workload), aliases)
        prefix = f"{name}-pod-0" if played["kind"] == "Deployment" else name
        names = [f"{prefix}-{container['name']}" for container in pod(workload)["containers"]]
        text = yaml.safe_dump_all([*configuration, played])
        found[name] = Play(name, at[name], text, names[0], names)
    return found


def _played(workload: Document, aliases: Sequence[Document]) -> Document:
    spec = pod(workload)
    spec["hostAliases"] = list(aliases)
    spec["restartPolicy"] = "OnFailure"  # with Always, Podman runs what has ended before the start again and again
    for claim in workload["spec"].pop("volumeClaimTemplates", ()):
        name = claim["metadata"]["name"]
        claimed = {"claimName": f"{name}-{workload['metadata']['name']}-0"}
        spec["volumes"].append({"name": name, "persistentVolumeClaim": claimed})
    _keep_apart(workload)
    for container in containers(workload):
        container["image"] = _IMAGES[container["image"].rpartition("/")[2].partition(":")[0]]
        if container["image"] in _COMMANDS:
            container.setdefault("command", _COMMANDS[container["image"]])
        for probe in _PROBES:
            container.pop(probe, None)
        for variable in container.get("env", ()):
            if variable.get("valueFrom") == {"fieldRef": {"fieldPath": "metadata.name"}}:
                del variable["valueFrom"]
                variable["value"] = f"{workload['metadata']['name']}-0"
    name, labels = workload["metadata"]["name"], workload["spec"]["template"]["metadata"]["labels"]
    metadata = {"name": name, "labels": labels, "annotations": _ANNOTATIONS}
    workload["spec"]["template"]["metadata"]["annotations"] = _ANNOTATIONS
    if workload["kind"] == "Job":
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"selector": workload["spec"]["selector"], "template": workload["spec"]["template"]},
    }


def _keep_apart(workload: Document) -> None:
    """To Podman 4.3 an emptyDir is a volume by its name, which other pods may have as well."""
    prefix = workload["metadata"]["name"]
    own = [each["name"] for each in pod(workload)["volumes"] if "emptyDir" in each]
    mounts = [mount for container in containers(workload) for mount in container.get("volumeMounts", ())]
    for named in (*pod(workload)["volumes"], *mounts):
        if named["name"] in own:
            named["name"] = f"{prefix}-{named['name']}"
