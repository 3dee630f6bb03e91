"""What network policies let pass: https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1.

Whatever a policy says that is not judged here fails, instead of being passed over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.system.kubernetes.manifests import Document

NAME = "kubernetes.io/metadata.name"
"""The label that Kubernetes gives to each namespace."""


@dataclass(frozen=True)
class Peer:
    """A pod, by its labels and those of its namespace; or, without any, an address."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def passes(policies: Iterable[Document], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is let out where it comes from, and in where it goes to."""
    found = list(policies)
    return _permits(found, "Egress", source, target, port, protocol) and _permits(
        found, "Ingress", target, source, port, protocol
    )


def _permits(policies: Sequence[Document], way: str, own: Peer, other: Peer, port: int, protocol: str) -> bool:
    if own.address:
        return True
    mine = [
        each["spec"]
        for each in policies
        if each["metadata"]["namespace"] == own.namespace
        and way in each["spec"]["policyTypes"]
        and _selects(each["spec"]["podSelector"], own.labels)
    ]
    rules = [rule for spec in mine for rule in spec.get(way.lower(), ())]
    return not mine or any(_matches(rule, way, own.namespace, other, port, protocol) for rule in rules)


def _matches(rule: Document, way: str, namespace: str, other: Peer, port: int, protocol: str) -> bool:
    side = {"Egress": "to", "Ingress": "from"}[way]
    assert rule.keys() <= {side, "ports"}, rule
    ports = rule.get("ports", ())
    assert all(each.keys() <= {"port", "protocol"} and isinstance(each["port"], int) for each in ports), ports
    if ports and (port, protocol) not in [(each["port"], each.get("protocol", "TCP")) for each in ports]:
        return False
    return side not in rule or any(_is(peer, namespace, other) for peer in rule[side])


def _is(peer: Document, namespace: str, other: Peer) -> bool:
    if "ipBlock" in peer:
        assert peer.keys() == {"ipBlock"} and peer["ipBlock"].keys() == {"cidr"}, peer
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return bool(other.address) and ipaddress.ip_address(other.address) in network
    assert peer and peer.keys() <= {"podSelector", "namespaceSelector"}, peer
    if other.address:
        return False
    if "namespaceSelector" in peer:
        labels = {NAME: other.namespace, **other.namespace_labels}
        there = _selects(peer["namespaceSelector"], labels)
    else:
        there = other.namespace == namespace
    return there and _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: Document, labels: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    for each in selector.get("matchExpressions", ()):
        assert each.keys() == {"key", "operator", "values"} and each["operator"] == "In", each
        if labels.get(each["key"]) not in each["values"]:
            return False
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
