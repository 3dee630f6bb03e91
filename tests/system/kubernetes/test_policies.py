"""The network policies let pass what the processes need, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.system.kubernetes.manifests import (
    EVERY,
    Document,
    containers,
    documents,
    environment,
    pod,
    workloads,
)
from tests.system.kubernetes.policies import NAME, Peer, passes

pytestmark = pytest.mark.timeout(600)

SERVERS = ("queue", "credentials", "hub", "gateway")
WITH_SERVERS = [overlay for overlay in EVERY if "agent" not in overlay]
WITH_MEASUREMENTS = ("own", "own-agent")
PROXIED = {"gateway": 8080, "queue": 7441, "credentials": 7440, "hub": 7442}
"""What people reach through a Gateway."""
INTERNAL = {"queue": 7451, "credentials": 7450}
DATABASE = 5432
JOBS = {"sis-migrate", "sis-migrate-post", "sis-recover"}
ANYWHERE = Peer(address="203.0.113.9")
RESOLVERS = {
    "CoreDNS": (Peer("kube-system", {"k8s-app": "kube-dns"}), 53),
    "NodeLocal DNSCache": (Peer(address="169.254.20.10"), 53),
    "OpenShift": (Peer("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}), 5353),
}


def policies(overlay: str) -> list[Document]:
    return [each for each in documents(overlay) if each["kind"] == "NetworkPolicy"]


def peer(workload: Document) -> Peer:
    """One of its pods."""
    return Peer(workload["metadata"]["namespace"], workload["spec"]["template"]["metadata"]["labels"])


def named(overlay: str, name: str) -> Peer:
    (found,) = [peer(each) for each in workloads(overlay) if each["metadata"]["name"] == f"sis-{name}"]
    return found


def addresses(overlay: str, workload: Document) -> Iterator[tuple[str, str, int]]:
    """Each variable of each of its containers, those included that run before, that names a Service and a port."""
    for container in containers(workload):
        for variable, value in environment(overlay, container).items():
            found = re.fullmatch(r"(?:dns:///|https?://)?(sis-[a-z]+):([0-9]+)", value)
            if found is not None:
                yield f"{container['name']} {variable}", found[1], int(found[2])


@pytest.mark.parametrize("overlay", WITH_SERVERS)
def test_a_process_reaches_what_its_environment_names(overlay: str) -> None:
    """The Service is there, leads to such pods, and the policies of both sides let it pass."""
    services = {each["metadata"]["name"]: each for each in documents(overlay) if each["kind"] == "Service"}
    reached = 0
    for workload in workloads(overlay):
        if workload["metadata"]["name"] in JOBS:
            continue  # it has the environment of the servers, and asks PostgreSQL alone
        for variable, service, port in addresses(overlay, workload):
            if variable == "pair SIS_QUEUE_ENDPOINT":
                continue  # it tells `sis` that a suite is named at all; a code is made by the credential service
            spec = services[service]["spec"]
            assert port in {each["port"] for each in spec["ports"]}, variable
            target = Peer(services[service]["metadata"]["namespace"], spec["selector"])
            assert passes(policies(overlay), peer(workload), target, port), variable
            reached += 1
    assert reached >= 8


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("overlay", EVERY)
def test_every_pod_resolves_names(overlay: str, resolver: str) -> None:
    target, port = RESOLVERS[resolver]
    for workload in workloads(overlay):
        for protocol in ("UDP", "TCP"):
            assert passes(policies(overlay), peer(workload), target, port, protocol), workload["metadata"]["name"]


@pytest.mark.parametrize("overlay", WITH_SERVERS)
def test_whoever_is_given_a_database_reaches_it(overlay: str) -> None:
    """Beside the servers, or where it is in an overlay that has none."""
    found = documents(overlay)
    if any(each["kind"] == "Cluster" for each in found):
        database = Peer("sis", {"cnpg.io/cluster": "sis-database"})
    elif overlay == "single-node":
        database = named(overlay, "postgres")
    else:
        database = ANYWHERE
    users = [each for each in workloads(overlay) if "DATABASE_URL" in str(each) or overlay == "single-node"]
    names = {each["metadata"]["name"] for each in users} & {"sis-queue", "sis-credentials", "sis-hub", *JOBS}
    assert {"sis-queue", "sis-credentials", "sis-hub"} < names
    for workload in users:
        if workload["metadata"]["name"] in names:
            assert passes(policies(overlay), peer(workload), database, DATABASE), workload["metadata"]["name"]
    if not database.address:
        assert not passes(policies(overlay), named(overlay, "gateway"), database, DATABASE)


@pytest.mark.parametrize("overlay", ["production", "own"])
@pytest.mark.parametrize(
    "proxy",
    [
        Peer("ingress", {"app": "envoy"}, {"sis.example/proxies": "true"}),
        Peer("sis", {"gateway.networking.k8s.io/gateway-name": "sis"}),
    ],
    ids=["elsewhere", "beside the Gateway"],
)
def test_people_come_in_through_the_proxies_alone(overlay: str, proxy: Peer) -> None:
    found = policies(overlay)
    assert passes(found, ANYWHERE, proxy, 8443)
    for name, port in PROXIED.items():
        target = named(overlay, name)
        assert passes(found, proxy, target, port), name
        for stranger in (ANYWHERE, Peer("ingress", proxy.labels), Peer("sis", {"app": "envoy"})):
            assert not passes(found, stranger, target, port), name
        if name in INTERNAL:
            assert not passes(found, proxy, target, INTERNAL[name]), name
    controller = Peer("istio-system", {"app": "istiod"}, {"sis.example/proxies": "true"})
    assert passes(found, proxy, controller, 15012)
    for name in ("queue", "credentials", "gateway"):
        assert not passes(found, ANYWHERE, named(overlay, name), 7444), name
    assert passes(found, ANYWHERE, named(overlay, "hub"), 7443)
    assert passes(found, ANYWHERE, named(overlay, "hub"), 7444)


@pytest.mark.parametrize("overlay", WITH_MEASUREMENTS)
def test_what_is_measured_is_read_and_traced(overlay: str) -> None:
    """By the namespace `observability`, and by nobody else."""
    found, there = policies(overlay), Peer("observability", {"app": "prometheus"})
    measured = [
        each for each in workloads(overlay) if each["metadata"]["name"].removeprefix("sis-") in (*SERVERS, "agent")
    ]
    assert len(measured) == (1 if overlay == "own-agent" else 4)
    for workload in measured:
        name, container = workload["metadata"]["name"].removeprefix("sis-"), pod(workload)["containers"][0]
        (port,) = [each["containerPort"] for each in container["ports"] if each["name"] == "metrics"]
        annotations = workload["spec"]["template"]["metadata"]["annotations"]
        assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}
        given = environment(overlay, container)
        assert given[f"SIS_{name.upper()}_METRICS_LISTEN"] == f"0.0.0.0:{port}"
        collector = re.fullmatch(r"http://collector\.observability:([0-9]+)", given["OTEL_EXPORTER_OTLP_ENDPOINT"])
        assert collector is not None
        assert passes(found, there, peer(workload), port), name
        assert passes(found, peer(workload), there, int(collector[1])), name
        for stranger in (ANYWHERE, Peer("default", there.labels)):
            assert not passes(found, stranger, peer(workload), port), name


def test_what_is_computed_of_policies_is_what_they_say() -> None:
    """Of each form that the manifests use, what it lets pass and what it does not."""

    def policy(selector: Document, ways: list[str], **rules: list[Document]) -> Document:
        spec = {"podSelector": selector, "policyTypes": ways, **rules}
        return {"metadata": {"namespace": "here"}, "spec": spec}

    a, b, other = Peer("here", {"name": "a"}), Peer("here", {"name": "b"}), Peer("there", {"name": "a"})
    deny = policy({}, ["Ingress", "Egress"])
    assert passes([], a, b, 1)
    assert not passes([deny], a, b, 1)
    assert passes([deny], other, ANYWHERE, 1)
    out = policy({"matchLabels": {"name": "a"}}, ["Egress"], egress=[{"ports": [{"port": 1}]}])
    assert passes([out], a, b, 1)
    assert not passes([out], a, b, 2)
    assert not passes([out], a, b, 1, "UDP")
    assert not passes([deny, out], a, b, 1)  # b still lets nobody in
    several = {"matchExpressions": [{"key": "name", "operator": "In", "values": ["a", "c"]}]}
    let_in = policy({}, ["Ingress"], ingress=[{"from": [{"podSelector": several}]}])
    assert passes([let_in], a, b, 1)
    assert not passes([let_in], b, a, 1)
    assert not passes([let_in], other, b, 1), "a podSelector alone is about the policy's own namespace"
    both = {"namespaceSelector": {"matchLabels": {NAME: "there"}}, "podSelector": {"matchLabels": {"name": "a"}}}
    let_in = policy({}, ["Ingress"], ingress=[{"from": [both]}])
    assert passes([let_in], other, b, 1)
    assert not passes([let_in], a, b, 1)
    assert not passes([let_in], ANYWHERE, b, 1)
    block = policy({}, ["Egress"], egress=[{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}])
    assert passes([block], a, ANYWHERE, 1)
    assert not passes([block], a, Peer(address="198.51.100.1"), 1)
    unknown = policy({}, ["Egress"], egress=[{"ports": [{"port": 1, "endPort": 9}]}])
    with pytest.raises(AssertionError):
        passes([unknown], a, b, 1)
