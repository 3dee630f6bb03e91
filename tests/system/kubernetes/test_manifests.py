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
from sis.stack import single_node
from tests.support.podman import ROOT
from tests.system.kubernetes.manifests import (
    DOCUMENTED,
    EVERY,
    K8S,
    Document,
    containers,
    documented,
    documents,
    environment,
    manifest,
    named,
    pod,
    program,
    rendered,
    workloads,
    written,
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


def servers(overlay: str) -> Iterator[tuple[str, Document]]:
    for each in workloads(overlay):
        name = each["metadata"]["name"].removeprefix("sis-")
        if name in SETTINGS:
            yield name, each


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", EVERY)
def test_a_manifest_is_valid(overlay: str, version: str) -> None:
    for document in documents(overlay):
        if not document["apiVersion"].startswith(OURS):
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("overlay", EVERY)
def test_everything_is_in_a_namespace(overlay: str) -> None:
    """Else it would be made in whichever one somebody's kubectl is about."""
    kinds = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
    wanted = "sis-agent" if overlay in ("agent", "own-agent") else "sis"
    for document in documents(overlay):
        found = document["metadata"].get("namespace")
        named = f"{document['kind']} {document['metadata']['name']}"
        assert found == (None if document["kind"] in kinds else wanted), named


def test_a_component_says_its_namespace_to_overlays_that_do_not() -> None:
    text = documented(*DOCUMENTED["own"])
    plain = text.replace("namespace: sis\n", "")
    assert plain != text
    directory = written() / "overlays" / "plain"
    directory.mkdir(exist_ok=True)
    (directory / "kustomization.yaml").write_text(plain, encoding="utf-8")
    assert rendered(directory) == manifest("own")


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


@pytest.mark.parametrize("overlay", EVERY)
def test_checkov_finds_nothing_unexplained(overlay: str, tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(manifest(overlay))
    words = ["--config-file", str(K8S / "checkov.yaml"), "--file", str(file), "--skip-download", "--output", "json"]
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


@pytest.mark.parametrize("overlay", EVERY)
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


@pytest.mark.parametrize("overlay", EVERY)
def test_a_process_is_asked_where_it_answers(overlay: str) -> None:
    for name, workload in servers(overlay):
        container = pod(workload)["containers"][0]
        port = int(environment(overlay, container)[f"SIS_{name.upper()}_PROBE_LISTEN"].rpartition(":")[2])
        assert container["livenessProbe"]["grpc"] == {"port": port, "service": LIVENESS}
        assert container["startupProbe"]["grpc"] == {"port": port, "service": LIVENESS}
        assert container["readinessProbe"]["grpc"] == {"port": port}
    for name, workload in servers("production"):
        container = pod(workload)["containers"][0]
        before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
        drain = 2 * GATEWAY_DRAIN + 5 if name == "gateway" else 3 * DRAIN_SECONDS
        assert pod(workload)["terminationGracePeriodSeconds"] >= before + drain + 10, name


@pytest.mark.parametrize("overlay", EVERY)
def test_a_process_understands_its_environment(overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its own settings: each variable is one of them, and together they are enough."""
    values = {
        "DATABASE_URL": "postgresql+psycopg://sis:word@db/sis",
        "ADMIN_TOKEN_SHA256": "ab" * 32,
        "JOIN_TOKENS": f"queue={'cd' * 32}",
    }
    for name, workload in servers(overlay):
        prefix = f"SIS_{name.upper()}_"
        given = environment(overlay, pod(workload)["containers"][0])
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
        unknown = given.keys() - known - {"SIS_SECRETS", "SIS_HUB_ENROLMENT", "OTEL_EXPORTER_OTLP_ENDPOINT"}
        assert not unknown, name


@pytest.mark.parametrize("overlay", ["single-node", "production"])
def test_what_a_process_is_given_is_named_and_there(overlay: str, tmp_path: Path) -> None:
    """A variable names each file of a Secret that is no variable itself; and the file of each variable is mounted."""
    single_node.make(tmp_path)
    for name, workload in servers(overlay):
        if name == "agent":
            continue  # it has none
        given = environment(overlay, pod(workload)["containers"][0])
        paths = {value for value in given.values() if value.startswith("/etc/sis/secrets/")}
        (volume,) = [each for each in pod(workload)["volumes"] if each["name"] == "secrets"]
        if "projected" in volume:
            sources = [source["secret"] for source in volume["projected"]["sources"]]
            mounted = {item["path"] for source in sources for item in source["items"]}
        else:
            mounted = {each.name for each in (tmp_path / name).iterdir()} - {single_node.COMPLETE}
            if name == "credentials":  # what `sis vault bootstrap` writes beside them
                mounted |= {"role-id", "secret-id"}
        files = {f"/etc/sis/secrets/{each}" for each in mounted if not each.startswith("SIS_")}
        assert paths == files, name


def test_no_secret_is_in_a_manifest() -> None:
    for overlay in EVERY:
        assert not [each for each in documents(overlay) if each["kind"] == "Secret"]


@pytest.mark.parametrize("overlay", EVERY)
def test_a_job_that_failed_can_be_looked_at(overlay: str) -> None:
    """By the logs of its pods, for a day."""
    for job in documents(overlay):
        if job["kind"] == "Job":
            name = job["metadata"]["name"]
            assert pod(job)["restartPolicy"] == "Never", name
            assert job["spec"]["ttlSecondsAfterFinished"] >= 86_400, name


def begun(overlay: str, container: str, directory: Path, programs: dict[str, str]) -> tuple[int, list[str]]:
    """How the command of an agent's init container ends where these scripts stand for programs and `directory` for the
    root of its volumes, and the programs in turn."""
    (found,) = [each for each in containers(named(overlay, "StatefulSet", "sis-agent")) if each["name"] == container]
    said, path = directory / "said", directory / "bin"
    path.mkdir()
    for name, script in programs.items():
        program_file = path / name
        program_file.write_text(f"#!/bin/sh\necho {name} >>{said}\n{script}\n")
        program_file.chmod(0o755)
    shell, *words, script = found["command"]
    script = re.sub(r"(/etc/sis|/var/lib/sis-agent)(?=/)", lambda place: f"{directory}{place[0]}", script)
    values = {
        "PATH": f"{path}:/usr/bin:/bin",
        "SIS_AGENT_STATE": f"{directory}/var/lib/sis-agent",
        **environment(overlay, found),
    }
    done = subprocess.run([shell, *words, script], env=values, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, said.read_text().split() if said.exists() else []


def laid(directory: Path, *files: str) -> None:
    for file in files:
        (directory / file).parent.mkdir(parents=True)
        (directory / file).write_text("x")


CODE, IDENTITY = "etc/sis/pairing/code", "var/lib/sis-agent/identity/identity.json"


@pytest.mark.parametrize(
    ("files", "granted", "starts", "asked"),
    [
        pytest.param((CODE,), True, True, True, id="a new agent"),
        pytest.param((CODE,), False, False, True, id="a new agent that is refused"),
        pytest.param((), True, False, False, id="a new agent without a code"),
        pytest.param((IDENTITY,), True, True, False, id="an agent"),
        pytest.param((CODE, IDENTITY), True, True, True, id="an agent with another code"),
        pytest.param((CODE, IDENTITY), False, True, True, id="an agent whose code is refused"),
    ],
)
def test_an_agent_takes_the_code_that_is_there(
    files: tuple[str, ...], granted: bool, starts: bool, asked: bool, tmp_path: Path
) -> None:
    """So one that was revoked is enrolled anew without losing its volume, and an old code stops none."""
    laid(tmp_path, *files)
    programs = {"sis-agent": '[ "$*" = "enrol --hub $SIS_HUB_ENROLMENT --code -" ] || exit 64\n'}
    programs["sis-agent"] += f"cat >/dev/null; exit {0 if granted else 1}"
    code, said = begun("agent", "enrol", tmp_path, programs)
    assert (code == 0) == starts
    assert said == (["sis-agent"] if asked else [])


def test_a_code_is_made_when_there_is_a_hub_to_take_it(tmp_path: Path) -> None:
    """Its hour would pass meanwhile, and nothing makes another one for that pod."""
    laid(tmp_path, "etc/sis/ca/ca.pem", CODE)
    programs = {
        "python3": f'[ "$(grep -c python3 {tmp_path}/said)" = 3 ]',  # the hub answers the third time
        "sleep": "exit 0",
        "sis": "echo code",
    }
    code, said = begun("single-node", "pair", tmp_path, programs)
    assert code == 0
    assert said == ["python3", "sleep", "python3", "sleep", "python3", "sis"]
    assert (tmp_path / CODE).read_text() == "code\n"
