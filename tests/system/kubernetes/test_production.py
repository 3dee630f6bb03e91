"""What keeps the suite in service on a cluster: replicas, rolls, the database, Vault, and the Jobs between."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml

from services.credentials import main as credentials
from services.queue import main as queue
from services.runtime.channels import DNS_MS
from services.sis_agent.hub import main as hub
from tests.support.podman import ROOT
from tests.system.kubernetes.manifests import EVERY, Document, containers, documents, named, pod, workloads

pytestmark = pytest.mark.timeout(600)

SERVERS = ("queue", "credentials", "hub", "gateway")
CONNECTIONS = {"queue": queue.POOL + 1, "hub": hub.POOL, "credentials": credentials.POOL + 1}
"""To PostgreSQL, of each process, with the one that listens (docs/operations/postgresql.md)."""
ORDINARY_CONNECTIONS = 100 - 3
"""max_connections and superuser_reserved_connections, as PostgreSQL comes."""
DNS_SECONDS = 30
"""For as long the CoreDNS of kubeadm, and of most others, keeps an answer."""
PROGRAMS = re.compile(r"^(\S+) = \"[a-z_.]+:main\"$", re.MULTILINE)


def test_production_is_spread_scaled_and_never_emptied() -> None:
    found = documents("production")
    for name in SERVERS:
        of = {each["kind"]: each.get("spec", {}) for each in found if each["metadata"]["name"] == f"sis-{name}"}
        assert of["PodDisruptionBudget"]["maxUnavailable"] == 1
        assert of["HorizontalPodAutoscaler"]["minReplicas"] >= 2
        assert "replicas" not in of["Deployment"], "the autoscaler says how many"
        assert of["Deployment"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        keys = {each["topologyKey"] for each in of["Deployment"]["template"]["spec"]["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        assert (of["Service"].get("clusterIP") == "None") == (name != "gateway"), "gRPC balances by itself"


def test_a_roll_leaves_every_caller_an_address_that_it_knows() -> None:
    for name in SERVERS:
        deployment = named("production", "Deployment", f"sis-{name}")
        ready = deployment["spec"]["minReadySeconds"]
        before = int(pod(deployment)["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        if name == "gateway":  # by a Service with an address of its own
            assert ready >= 3
        else:
            assert ready + before > DNS_SECONDS, "who asks when a pod ends is not told of its successor"
            assert ready > 2 * DNS_MS / 1000, "who was told nothing new does not ask again before the next one goes"


def test_a_server_is_added_when_its_one_core_is_busy() -> None:
    for name in SERVERS:
        (metric,) = named("production", "HorizontalPodAutoscaler", f"sis-{name}")["spec"]["metrics"]
        target = metric["resource"]["target"]
        assert target == {"type": "AverageValue", "averageValue": "600m"}, "a share of what it requests says nothing"
        requested = pod(named("production", "Deployment", f"sis-{name}"))["containers"][0]["resources"]["requests"]
        assert int(requested["cpu"].removesuffix("m")) < 600


def test_postgresql_has_room_for_as_many_as_there_may_be() -> None:
    """While of each server one more starts, one more drains, and every schema is migrated."""
    most = {
        name: named("production", "HorizontalPodAutoscaler", f"sis-{name}")["spec"]["maxReplicas"]
        for name in CONNECTIONS
    }
    rest = sum(most[name] * CONNECTIONS[name] for name in CONNECTIONS)
    rolling = rest + 2 * sum(CONNECTIONS.values()) + len(CONNECTIONS)
    assert rolling <= ORDINARY_CONNECTIONS
    said = (ROOT / "docs/operations/postgresql.md").read_text(encoding="utf-8")
    assert f"{most['queue']} queues, {most['hub']} hubs and {most['credentials']} credential services" in said
    assert f"\n{rest} at the most; {rolling} in an upgrade" in said
    database = named("own", "Cluster", "sis-database")["spec"]["postgresql"]["parameters"]
    assert int(database["max_connections"]) >= ORDINARY_CONNECTIONS + len(CONNECTIONS) + 2


def test_vault_may_have_the_token_of_the_credential_service_reviewed() -> None:
    """By that token, which is good for nothing else there."""
    role = named("production", "ClusterRole", "sis-token-review")
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    binding = named("production", "ClusterRoleBinding", "sis-token-review")
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "sis-token-review",
    }
    credentials = named("production", "Deployment", "sis-credentials")
    account = {"kind": "ServiceAccount", "name": pod(credentials)["serviceAccountName"], "namespace": "sis"}
    assert binding["subjects"] == [account]
    (token,) = [each for each in pod(credentials)["volumes"] if each["name"] == "vault-token"]
    # Of the API server's own audience, or it would not believe who asks.
    assert token["projected"]["sources"] == [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}]


@pytest.mark.parametrize("overlay", EVERY)
def test_a_container_runs_what_its_image_has(overlay: str) -> None:
    ours = set(PROGRAMS.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert "sis-queue" in ours
    for workload in workloads(overlay):
        for container in containers(workload):
            word = container.get("command", ["(the image's own)"])[0]
            if word.startswith("sis"):
                assert word in ours, container["name"]


@pytest.mark.parametrize(
    ("overlay", "job", "words"),
    [("own-migrate-post", "sis-migrate-post", ["migrate", "post"]), ("own-recover", "sis-recover", ["recover"])],
)
def test_a_job_that_is_applied_by_its_label_is_the_one_that_migrates(overlay: str, job: str, words: list[str]) -> None:
    """With other words: the same images, environments and secrets, and nothing else is applied with it."""
    migrate = named("own", "Job", "sis-migrate")
    (found,) = [
        each for each in documents(overlay) if each["metadata"].get("labels", {}).get("app.kubernetes.io/name") == job
    ]
    assert found["metadata"]["name"] == job
    programs = [container["command"] for container in pod(found)["containers"]]
    assert programs == [[f"sis-{name}", *words] for name in ("queue", "credentials", "hub")]
    for container, former in zip(pod(found)["containers"], pod(migrate)["containers"], strict=True):
        assert former["command"] == [container["command"][0], "migrate"]
        former["command"] = container["command"]
    assert found["spec"] == migrate["spec"]
    assert not [each for each in workloads(overlay) if each["metadata"]["name"] == "sis-migrate"]


def test_the_jobs_are_of_one_node_as_well() -> None:
    """Upon the overlay of one node the same components serve, and wait for its volumes."""
    for name in ("migrate-post", "recover"):
        component = yaml.safe_load((ROOT / f"deploy/k8s/components/{name}/kustomization.yaml").read_text())
        (patch,) = component["patches"]
        for operation in yaml.safe_load(patch["patch"]):
            if operation["path"].startswith("/spec/template/spec/containers/"):
                number = int(operation["path"].split("/")[5])
                job = named("single-node", "Job", "sis-migrate")
                assert pod(job)["containers"][number]["command"][0] == operation["value"][0]


Check = Callable[[Any], bool]


def one_of(*values: object) -> Check:
    return lambda value: value in values


def of(kind: type) -> Check:
    return lambda value: type(value) is kind


def matching(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_QUANTITY = matching(r"[0-9]+m?|[0-9]+[KMGT]i")
_STRINGS: Check = lambda value: all(isinstance(each, str) for each in (*value, *value.values()))  # noqa: E731
CLUSTER: Mapping[str, Any] = {
    "instances": lambda value: type(value) is int and value >= 1,
    "bootstrap": {
        "initdb": {
            "database": of(str),
            "owner": of(str),
            "encoding": of(str),
            "localeProvider": one_of("libc", "icu", "builtin"),
            "builtinLocale": of(str),
        }
    },
    "enableSuperuserAccess": of(bool),
    "enablePDB": of(bool),
    "primaryUpdateStrategy": one_of("unsupervised", "supervised"),
    "postgresql": {
        "synchronous": {
            "method": one_of("any", "first"),
            "number": lambda value: type(value) is int and value >= 1,
            "dataDurability": one_of("required", "preferred"),
        },
        "parameters": _STRINGS,
    },
    "storage": {"size": _QUANTITY},
    "walStorage": {"size": _QUANTITY},
    "resources": {
        "requests": {"cpu": _QUANTITY, "memory": _QUANTITY},
        "limits": {"cpu": _QUANTITY, "memory": _QUANTITY},
    },
    "affinity": {
        "enablePodAntiAffinity": of(bool),
        "topologyKey": of(str),
        "podAntiAffinityType": one_of("preferred", "required"),
    },
}
"""Those fields of CloudNativePG's Cluster that are used here, as its API reference (1.25 and later) has them. No
package has its schema."""


def mistakes(known: Mapping[str, Any], found: Mapping[str, Any], path: str = "spec") -> list[str]:
    """Where the fields of a document are not what is known of them."""
    wrong = []
    for name, value in found.items():
        expected = known.get(name)
        if isinstance(expected, Mapping) and isinstance(value, Mapping):
            wrong += mistakes(expected, value, f"{path}.{name}")
        elif expected is None or isinstance(expected, Mapping) or not expected(value):
            wrong.append(f"{path}.{name}: {value!r}")
    return wrong


def cluster() -> Document:
    found = named("own", "Cluster", "sis-database")
    assert found["apiVersion"] == "postgresql.cnpg.io/v1"
    assert found.keys() == {"apiVersion", "kind", "metadata", "spec"}
    return found


def test_the_cluster_of_cloudnativepg_is_what_its_reference_has() -> None:
    spec = cluster()["spec"]
    assert mistakes(CLUSTER, spec) == []
    # Else the operator refuses it, or the primary waits for a standby that cannot be.
    assert spec["postgresql"]["synchronous"]["number"] < spec["instances"]
    wrong = {**spec, "instance": 3, "enablePDB": "true", "storage": {"size": 50}, "walStorage": "10Gi"}
    assert len(mistakes(CLUSTER, wrong)) == 4


def test_an_overlay_with_cloudnativepg_takes_its_secret() -> None:
    secret = f"{cluster()['metadata']['name']}-app"
    for overlay in ("own", "own-migrate-post", "own-recover"):
        for each in workloads(overlay):
            if each["metadata"]["name"] != "sis-gateway":
                text = yaml.safe_dump(each)
                assert f"name: {secret}\n" in text, each["metadata"]["name"]
                assert "key: uri\n" in text
                assert "name: sis-database\n" not in text
