"""The rendered single-node overlay, played by Podman: it comes up by itself, runs jobs, and its probes mean
something."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.openbao import until
from tests.support.podman import SERVER, Podman
from tests.support.probes import SERVING, heard
from tests.system.kubernetes.manifests import Document, documents, pod
from tests.system.kubernetes.translation import Play, plays

pytestmark = pytest.mark.timeout(900)

NETWORK = "sis-test"
_SECONDS = 120.0
# A Job's pod goes on until its servers are there, as it would in a cluster.
ORDER = (
    *("sis-bootstrap", "sis-openbao", "sis-postgres", "sis-migrate"),
    *("sis-gateway", "sis-hub", "sis-queue", "sis-credentials", "sis-administrator", "sis-agent"),
)
SERVERS = ("sis-queue", "sis-credentials", "sis-hub", "sis-gateway")
JOBS = ("sis-bootstrap", "sis-migrate")


@dataclass
class Node:
    """What the overlay has made of this machine."""

    podman: Podman
    directory: Path
    plays: dict[str, Play]
    workloads: dict[str, Document]

    def play(self, name: str) -> None:
        """Start a workload; what was there of it goes."""
        play = self.plays[name]
        file = self.directory / f"{name}.yaml"
        file.write_text(play.text)
        words = ("--replace", "--network", NETWORK, "--ip", play.address, str(file))
        self.podman.run("play", "kube", *words, seconds=300)

    def until_done(self, name: str) -> None:
        """Wait until each container of a Job has ended well."""
        for container in self.plays[name].containers:
            until(
                lambda container=container: self.state(container)["Status"] == "exited", f"{container} to end", _SECONDS
            )
            assert self.state(container)["ExitCode"] == 0, self.said(container)

    def state(self, container: str) -> Document:
        found: Document = self.podman.inspect("inspect", container)["State"]
        return found

    def said(self, container: str) -> str:
        done = self.podman.run("logs", "--tail", "30", container, check=False)
        return done.stdout + done.stderr

    def probe(self, name: str, kind: str) -> int:
        """What a probe of the manifest hears; -1 where nothing answers."""
        asked = pod(self.workloads[name])["containers"][0][kind]["grpc"]
        return heard(f"{self.plays[name].address}:{asked['port']}", asked.get("service", ""))

    def until_ready(self, name: str) -> None:
        try:
            until(lambda: self.probe(name, "readinessProbe") == SERVING, f"{name} to be ready", _SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said(self.plays[name].container)}") from None

    def sis(self, *arguments: str, given: str | None = None) -> str:
        """The command line, where `kubectl exec` would run it."""
        administrator = self.plays["sis-administrator"].container
        return self.podman.run("exec", "--interactive", administrator, "sis", *arguments, given=given).stdout

    def secrets(self) -> str:
        """The digests of all that pods prove themselves by."""
        volumes = [name for name in self.podman.lines("volume", "ls", "--quiet") if name.startswith("sis-secrets-")]
        assert len(volumes) == 7
        mounted = [f"--volume={name}:/secrets/{name}:ro" for name in volumes]
        find = "find /secrets -type f | sort | xargs sha256sum"
        return self.podman.run("run", "--rm", "--network=none", *mounted, SERVER, "sh", "-c", find).stdout


@pytest.fixture(scope="module")
def node(images: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Everything is started; nothing has been waited for."""
    images.run("network", "create", NETWORK)
    subnet = images.inspect("network", "inspect", NETWORK)["subnets"][0]["subnet"]
    prefix = subnet.removesuffix("0/24")
    assert prefix != subnet, subnet
    overlay = documents("single-node")
    played = plays(overlay, [f"{prefix}{number}" for number in range(10, 30)])
    workloads = {
        each["metadata"]["name"]: each
        for each in overlay
        if each["metadata"]["name"] in played and "spec" in each and "template" in each["spec"]
    }
    assert set(played) == set(ORDER), "a workload is not started"
    node = Node(images, tmp_path_factory.mktemp("plays"), played, workloads)
    for name in ORDER:
        node.play(name)
    return node


def test_it_comes_up_by_itself(node: Node) -> None:
    for name in JOBS:
        node.until_done(name)
    for name in (*SERVERS, "sis-agent"):
        node.until_ready(name)
        assert node.probe(name, "livenessProbe") == SERVING
        assert node.podman.inspect("inspect", node.plays[name].container)["RestartCount"] == 0


def test_it_runs_the_demonstration(node: Node) -> None:
    script = "for child in red green blue; do echo $child & done; wait; id -u"
    words = ("jobs", "create", "--name", "Demo", "--package", "core.shell", "--operation", "run", "--follow")
    said = node.sis(*words, "--site", "group:local", "--param", f"script={script}", "--timeout", "60s")
    assert all(word in said for word in ("red", "green", "blue", "10001", "Success")), said


def test_a_secret_goes_through_its_openbao_to_a_job_alone(node: Node) -> None:
    secret = "correct-horse-battery"
    made = ("credentials", "create", "--name", "db", "--kind", "username-password", "--username", "app")
    node.sis(*made, "--secret-stdin", given=secret)
    script = 'echo "${#SIS_CREDENTIAL_SECRET_PASSWORD} characters: $SIS_CREDENTIAL_SECRET_PASSWORD"'
    words = ("jobs", "create", "--name", "Secret", "--package", "core.shell", "--operation", "run", "--follow")
    job = ("--site", "group:local", "--param", f"script={script}", "--credential", "secret=db", "--timeout", "60s")
    said = node.sis(*words, *job)
    assert f"{len(secret)} characters: ***" in said, said
    assert "Success" in said
    assert secret not in said


def test_the_gateway_is_reached_in_its_pod_alone(node: Node) -> None:
    gateway = node.plays["sis-gateway"]
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/readyz', timeout=20).read().decode())"
    assert '"ready"' in node.podman.run("exec", gateway.container, "python3", "-c", fetch).stdout
    elsewhere = fetch.replace("127.0.0.1", gateway.address)
    done = node.podman.run("exec", gateway.container, "python3", "-c", elsewhere, check=False)
    assert "Connection refused" in done.stderr


def test_bootstrap_and_migrations_may_run_again(node: Node) -> None:
    before = node.secrets()
    for name in JOBS:
        node.play(name)
    for name in JOBS:
        node.until_done(name)
    assert node.secrets() == before
    node.sis("jobs", "list")


def test_without_postgresql_a_server_is_not_ready_and_lives(node: Node) -> None:
    postgres = node.plays["sis-postgres"].container
    node.podman.run("stop", "--time", "20", postgres)
    for name in ("sis-queue", "sis-credentials", "sis-hub"):
        until(lambda name=name: node.probe(name, "readinessProbe") != SERVING, f"{name} to be not ready", _SECONDS)
        assert node.probe(name, "livenessProbe") == SERVING
    node.podman.run("start", postgres)
    for name in SERVERS:
        node.until_ready(name)


def test_pods_that_start_anew_find_each_other_again(node: Node) -> None:
    for name in ("sis-openbao", "sis-credentials", "sis-queue", "sis-hub", "sis-agent"):
        node.play(name)
    for name in (*SERVERS, "sis-agent"):
        node.until_ready(name)
    said = node.sis("agents", "list")
    assert "local-1" in said
