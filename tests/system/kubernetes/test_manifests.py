"""Every manifest is valid, as safe as it can be, and means what the processes understand."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import ValidationError

from gateway.main import GatewaySettings
from gateway.server import DRAIN_SECONDS as GATEWAY_DRAIN
from services.credentials.main import CredentialsSettings
from services.queue.main import QueueSettings
from services.runtime.probes import LIVENESS
from services.runtime.server import DRAIN_SECONDS
from services.runtime.settings import Settings
from services.sis_agent.agent.settings import AgentSettings
from services.sis_agent.hub.main import HubSettings
from tests.support.podman import ROOT
from tests.system.kubernetes.manifests import (
    K8S,
    OVERLAYS,
    WORKLOADS,
    Document,
    containers,
    documents,
    pod,
    program,
    rendered,
)

pytestmark = pytest.mark.timeout(600)

VERSIONS = ("1.29", "1.33", "1.37")
OURS = ("gateway.networking.k8s.io/", "postgresql.cnpg.io/")
"""Kinds that Kubernetes does not have by itself."""
GATEWAY_API = ("@kubernetes-models/gateway-api@2.0.0", "typescript@5.9.3")
CHECKOV = "checkov==3.3.30"
SETTINGS: dict[str, type[Settings]] = {
    "queue": QueueSettings,
    "credentials": CredentialsSettings,
    "hub": HubSettings,
    "gateway": GatewaySettings,
    "agent": AgentSettings,
}
SERVERS = ("queue", "credentials", "hub", "gateway")


@pytest.fixture(scope="session")
def own_overlay(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Production with every component, as docs/operations/kubernetes.md has somebody write it."""
    directory = tmp_path_factory.mktemp("own")
    upward = Path(*[".."] * len(directory.resolve().parts[1:]), *K8S.parts[1:])
    relative = {
        "resources": [str(upward / "overlays/production")],
        "components": [str(upward / path.relative_to(K8S)) for path in sorted(K8S.glob("components/*"))],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(relative))
    return rendered(directory)


def workloads(overlay: str) -> list[Document]:
    return [each for each in documents(overlay) if each["kind"] in WORKLOADS]


def servers(overlay: str) -> Iterator[tuple[str, Document]]:
    for each in workloads(overlay):
        name = each["metadata"]["name"].removeprefix("sis-")
        if name in SETTINGS:
            yield name, each


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_manifest_is_valid(overlay: str, version: str) -> None:
    for document in documents(overlay):
        if not document["apiVersion"].startswith(OURS):
            kubernetes_validate.validate(document, version, strict=True)


def test_an_overlay_with_cloudnativepg_is_valid_and_takes_its_secret(own_overlay: str) -> None:
    found = list(yaml.safe_load_all(own_overlay))
    for document in found:
        if not document["apiVersion"].startswith(OURS):
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    (cluster,) = [each for each in found if each["kind"] == "Cluster"]
    secret = f"{cluster['metadata']['name']}-app"
    for each in found:
        if each["kind"] in WORKLOADS and each["metadata"]["name"] != "sis-gateway":
            assert f"name: {secret}\n" in yaml.safe_dump(each), each["metadata"]["name"]
            assert "name: sis-database\n" not in yaml.safe_dump(each)


def test_an_overlay_with_observability_is_measured_and_traced(own_overlay: str) -> None:
    found = list(yaml.safe_load_all(own_overlay))
    (policy,) = [each for each in found if each["metadata"]["name"] == "sis-observability"]
    measured = {value.removeprefix("sis-") for value in policy["spec"]["podSelector"]["matchExpressions"][0]["values"]}
    assert measured == set(SERVERS)
    (opened,) = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    for name in SERVERS:
        (deployment,) = [
            each for each in found if each["kind"] == "Deployment" and each["metadata"]["name"] == f"sis-{name}"
        ]
        template = deployment["spec"]["template"]
        assert {"name": "metrics", "containerPort": opened} in template["spec"]["containers"][0]["ports"]
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(opened)
        (reference,) = [each["configMapRef"]["name"] for each in template["spec"]["containers"][0]["envFrom"]]
        (config,) = [each for each in found if each["kind"] == "ConfigMap" and each["metadata"]["name"] == reference]
        assert config["data"][f"SIS_{name.upper()}_METRICS_LISTEN"] == f"0.0.0.0:{opened}"
        assert config["data"]["OTEL_EXPORTER_OTLP_ENDPOINT"]


def test_the_check_finds_what_is_wrong() -> None:
    (queue,) = [each for each in workloads("production") if each["metadata"]["name"] == "sis-queue"]
    queue["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(ValidationError):
        kubernetes_validate.validate(queue, VERSIONS[0], strict=True)


@pytest.fixture(scope="session")
def gateway_api(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The types and schemas of the Gateway API, as npm has them."""
    directory = tmp_path_factory.mktemp("gateway-api")
    (directory / "package.json").write_text("{}")
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *GATEWAY_API],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def compiled(directory: Path, found: list[Document]) -> subprocess.CompletedProcess[str]:
    """Whether TypeScript takes them for what they say they are: every field known, of its type, and none missing."""
    kinds = ", ".join(sorted({f"I{each['kind']}" for each in found}))
    lines = [f'import type {{ {kinds} }} from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";']
    lines += [f"export const d{n}: I{each['kind']} = {json.dumps(each)};" for n, each in enumerate(found)]
    (directory / "documents.mts").write_text("\n".join(lines))
    compiler = directory / "node_modules" / ".bin" / "tsc"
    return subprocess.run(
        [str(compiler), "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "documents.mts"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_what_is_of_the_gateway_api_is_valid(gateway_api: Path) -> None:
    found = [each for each in documents("production") if each["apiVersion"] == "gateway.networking.k8s.io/v1"]
    assert {each["kind"] for each in found} == {"Gateway", "HTTPRoute", "TLSRoute"}
    done = compiled(gateway_api, found)
    assert done.returncode == 0, done.stdout
    script = """
        import * as v1 from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
        import { readFileSync } from "node:fs";
        for (const each of JSON.parse(readFileSync(0, "utf8"))) new v1[each.kind](each).validate();
    """
    (gateway_api / "validate.mjs").write_text(script)
    done = subprocess.run(
        ["node", "validate.mjs"],
        cwd=gateway_api,
        input=json.dumps(found),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (route,) = [each for each in found if each["metadata"]["name"] == "sis-gateway"]
    assert route["spec"]["rules"][0]["timeouts"] == {"request": "0s", "backendRequest": "0s"}, (
        "a stream would be cut off"
    )
    route["spec"]["rules"][0]["timeout"] = {}
    assert compiled(gateway_api, [route]).returncode != 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_checkov_finds_nothing_unexplained(overlay: str, tmp_path: Path) -> None:
    manifest = tmp_path / "rendered.yaml"
    manifest.write_text(rendered(K8S / "overlays" / overlay))
    words = ["--config-file", str(K8S / "checkov.yaml"), "--file", str(manifest), "--skip-download", "--output", "json"]
    done = subprocess.run(
        [program("uv"), "tool", "run", "--from", CHECKOV, "checkov", *words],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    found = json.loads(done.stdout)
    assert found["summary"]["passed"] > 50, done.stderr[-2000:]
    failed = found["results"]["failed_checks"]
    assert not failed, [(each["check_id"], each["resource"], each["check_name"]) for each in failed]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [program("hadolint"), str(ROOT / "deploy" / "Containerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_is_confined(overlay: str) -> None:
    for workload in workloads(overlay):
        spec, name = pod(workload), workload["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["serviceAccountName"] != "default", name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(workload):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, container["name"]
            assert security["allowPrivilegeEscalation"] is False, container["name"]
            assert security["capabilities"] == {"drop": ["ALL"]}, container["name"]
            for kind in ("requests", "limits"):
                assert container["resources"][kind].keys() == {"cpu", "memory"}, container["name"]
            assert re.search(r":[0-9][^:/]*$", container["image"]), container["image"]
    (deny,) = [
        each
        for each in documents(overlay)
        if each["kind"] == "NetworkPolicy"
        and each["spec"]["podSelector"] == {}
        and "Ingress" in each["spec"]["policyTypes"]
    ]
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not deny["spec"].get("ingress")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_process_is_asked_where_it_answers(overlay: str) -> None:
    for name, workload in servers(overlay):
        container = pod(workload)["containers"][0]
        port = int(environment(overlay, workload)[f"SIS_{name.upper()}_PROBE_LISTEN"].rpartition(":")[2])
        assert container["livenessProbe"]["grpc"] == {"port": port, "service": LIVENESS}
        assert container["startupProbe"]["grpc"] == {"port": port, "service": LIVENESS}
        assert container["readinessProbe"]["grpc"] == {"port": port}
    for name, workload in servers("production"):
        container = pod(workload)["containers"][0]
        before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
        drain = 2 * GATEWAY_DRAIN + 5 if name == "gateway" else 3 * DRAIN_SECONDS
        assert pod(workload)["terminationGracePeriodSeconds"] >= before + drain + 10, name


def environment(overlay: str, workload: Document) -> dict[str, str]:
    """What the main container of a workload sees, files of secrets apart."""
    configuration = {
        each["metadata"]["name"]: each["data"] for each in documents(overlay) if each["kind"] == "ConfigMap"
    }
    container = pod(workload)["containers"][0]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= configuration[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        found[variable["name"]] = variable.get("value", "pod-name")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_process_understands_its_environment(overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its own settings: each variable is one of them, and together they are enough."""
    values = {
        "DATABASE_URL": "postgresql+psycopg://sis:word@db/sis",
        "ADMIN_TOKEN_SHA256": "ab" * 32,
        "JOIN_TOKENS": f"queue={'cd' * 32}",
    }
    for name, workload in servers(overlay):
        prefix = f"SIS_{name.upper()}_"
        given = environment(overlay, workload)
        secrets = tmp_path / name
        secrets.mkdir()
        for wanted, value in values.items():
            if f"path: {prefix}{wanted}\n" in yaml.safe_dump(pod(workload)) or overlay == "single-node":
                (secrets / f"{prefix}{wanted}").write_text(value)
        with monkeypatch.context() as patch:
            for variable, value in {**given, "SIS_SECRETS": str(secrets)}.items():
                patch.setenv(variable, value)
            settings = SETTINGS[name].load()
        known = {f"{prefix}{field}".upper() for field in type(settings).model_fields}
        if isinstance(settings, CredentialsSettings):
            known |= {f"{prefix}VAULT_{field}".upper() for field in type(settings.vault).model_fields}
        unknown = given.keys() - known - {"SIS_SECRETS", "SIS_HUB_ENROLMENT"}
        assert not unknown, name


@pytest.mark.parametrize("overlay", ["single-node", "production"])
def test_a_process_reaches_what_its_environment_names(overlay: str) -> None:
    """The Service is there, leads to such pods, and the policies of both sides let it pass."""
    found = documents(overlay)
    services = {each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "Service"}
    policies = [each["spec"] for each in found if each["kind"] == "NetworkPolicy"]
    reached = 0
    for name, workload in servers(overlay):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        for variable, value in environment(overlay, workload).items():
            address = re.fullmatch(r"(?:dns:///)?(sis-[a-z]+):([0-9]+)|https://(sis-[a-z]+):([0-9]+)", value)
            if address is None:
                continue
            service, port = (group for group in address.groups() if group)
            assert port in {str(each["port"]) for each in services[service]["ports"]}, variable
            target = services[service]["selector"]
            assert passes(policies, "egress", "to", labels, target, int(port)), f"{name}: {variable}"
            assert passes(policies, "ingress", "from", target, labels, int(port)), f"{name}: {variable}"
            reached += 1
    assert reached >= 8


def passes(policies: list[Document], way: str, peer: str, own: Document, other: Document, port: int) -> bool:
    """Whether one of the policies for pods with the labels `own` lets them talk with those with `other`."""
    for policy in policies:
        if not policy["podSelector"].get("matchLabels", {}).items() <= own.items():
            continue
        for rule in policy.get(way, ()):
            peers = [each.get("podSelector", {}).get("matchLabels", {"": ""}) for each in rule.get(peer, ())]
            ports = [each["port"] for each in rule["ports"]]
            if port in ports and (peer not in rule or any(each.items() <= other.items() for each in peers)):
                return True
    return False


def test_production_is_spread_scaled_and_never_emptied() -> None:
    found = documents("production")
    for name in SERVERS:
        of = {each["kind"]: each.get("spec", {}) for each in found if each["metadata"]["name"] == f"sis-{name}"}
        assert of["PodDisruptionBudget"]["maxUnavailable"] == 1
        assert of["HorizontalPodAutoscaler"]["minReplicas"] >= 2
        assert "replicas" not in of["Deployment"], "the autoscaler says how many"
        assert of["Deployment"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        keys = {each["topologyKey"] for each in of["Deployment"]["template"]["spec"]["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        assert (of["Service"].get("clusterIP") == "None") == (name != "gateway"), "gRPC balances by itself"


def test_no_secret_is_in_a_manifest() -> None:
    for overlay in OVERLAYS:
        assert not [each for each in documents(overlay) if each["kind"] == "Secret"]
