"""What is refused before anybody looks at a proof, with every wrong field named."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from services.credentials.convert import identities as convert
from services.runtime.errors import InvalidArgument
from sis.credentials.v1 import agent_identity_service_pb2 as identity_pb
from sis.credentials.v1 import certificate_pb2
from sis.credentials.v1 import certificate_service_pb2 as pb

KEY = ec.generate_private_key(ec.SECP256R1())
SEALING_KEY = X25519PrivateKey.generate().public_key().public_bytes_raw()
EMPTY = x509.Name([])


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = KEY) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(EMPTY).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.DER)


def enrolment(**changes: object) -> pb.EnrolAgentRequest:
    keys = {"csr": csr(), "sealing_key": SEALING_KEY, "generation": 1}
    request: dict[str, object] = {"pairing_id": "abcdef27", "mac": bytes(32), "origin": "10.0.0.1"}
    for name, value in changes.items():
        (keys if name in keys else request)[name] = value
    request.setdefault("keys", certificate_pb2.AgentKeys(**keys).SerializeToString())  # type: ignore[arg-type]
    return pb.EnrolAgentRequest(**request)  # type: ignore[arg-type]


def wrong_fields(call: object, *arguments: object) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        call(*arguments)  # type: ignore[operator]
    return [violation.field for violation in caught.value.violations]


def test_sound_keys_are_taken_as_they_are() -> None:
    request = enrolment()
    found = convert.enrol_agent(request)
    assert (found.pairing_id, found.mac, found.origin) == ("abcdef27", bytes(32), "10.0.0.1")
    assert found.keys.serialised == request.keys
    assert (found.keys.sealing_key, found.keys.generation) == (SEALING_KEY, 1)
    assert found.keys.public_key == KEY.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert "mac" not in repr(found)


def damaged(request: bytes) -> bytes:
    """With another signature."""
    return request[:-1] + bytes([request[-1] ^ 1])


@pytest.mark.parametrize(
    "request_",
    [b"", b"nonsense", csr()[:-1], damaged(csr()), bytes(9_000)],
    ids=["none", "junk", "cut", "forged", "big"],
)
def test_what_is_no_request_is_refused(request_: bytes) -> None:
    assert wrong_fields(convert.enrol_agent, enrolment(csr=request_)) == ["keys.csr"]


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65_537, 2_048),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["rsa", "p384", "ed25519"],
)
def test_another_kind_of_key_is_refused(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    assert wrong_fields(convert.enrol_agent, enrolment(csr=csr(key))) == ["keys.csr"]
    service = pb.IssueServiceCertificateRequest(csr=csr(key))
    assert wrong_fields(convert.issue_service_certificate, service, "hub") == ["csr"]


@pytest.mark.parametrize(
    "sealing_key", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31)], ids=["none", "short", "long", "0", "1"]
)
def test_a_sealing_key_that_keeps_nothing_secret_is_refused(sealing_key: bytes) -> None:
    assert wrong_fields(convert.enrol_agent, enrolment(sealing_key=sealing_key)) == ["keys.sealing_key"]


def test_every_wrong_field_is_named_at_once() -> None:
    request = enrolment(pairing_id="ABC", mac=b"short", origin="x" * 200, csr=b"", sealing_key=b"", generation=0)
    assert wrong_fields(convert.enrol_agent, request) == [
        "pairing_id", "mac", "origin", "keys.csr", "keys.sealing_key", "keys.generation",
    ]  # fmt: skip
    assert wrong_fields(convert.enrol_agent, enrolment(keys=b"\xff\xff")) == ["keys"]
    renewal = pb.RenewAgentCertificateRequest(agent="no name", keys=enrolment(generation=-1).keys)
    assert wrong_fields(convert.renew_agent, renewal) == ["agent", "signature", "keys.generation"]


@given(st.binary(max_size=300))
def test_any_keys_are_either_sound_or_refused(keys: bytes) -> None:
    try:
        convert.enrol_agent(enrolment(keys=keys))
    except InvalidArgument:
        return


@given(st.text(max_size=70))
def test_names_of_agents(name: str) -> None:
    ascii_name = name.isascii() and bool(name) and len(name) <= 63 and name[0].isalnum()
    allowed = ascii_name and all(letter.isalnum() or letter in "._-" for letter in name)
    request = identity_pb.PairAgentRequest(name=name, group="g")
    if allowed:
        assert convert.pair_agent(request) == (name, "g")
    else:
        assert wrong_fields(convert.pair_agent, request) == ["name"]


def test_a_reason_has_bounds() -> None:
    assert convert.revoke_agent(identity_pb.RevokeAgentRequest(name="a", reason="x" * 500)) == ("a", "x" * 500)
    for reason in ("x" * 501, "two\nlines"):
        request = identity_pb.RevokeAgentRequest(name="a", reason=reason)
        assert wrong_fields(convert.revoke_agent, request) == ["reason"]


def test_host_names() -> None:
    names = [
        "hub",
        "hub-0.sis.svc.cluster.local",
        "127.0.0.1",
        "fe80::1",
        "HUB.Example.com",
        "a" * 63,
        "a--b",
        "1.2.3",
        "XN--bcher-KVA.de",
    ]
    request = pb.IssueServiceCertificateRequest(csr=csr(), host_names=names)
    assert list(convert.issue_service_certificate(request, "hub")[1]) == names
    many = pb.IssueServiceCertificateRequest(csr=csr(), host_names=["a"] * 21)
    assert wrong_fields(convert.issue_service_certificate, many, "hub") == ["host_names"]
    wrong = [
        "queue",
        "INVENTORY",
        "a_b",
        "a.",
        ".a",
        "*",
        "*.a",
        "a\n",
        "é",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "xn--",
        "xn--a-",
        "hub.xn--zzzzzz99999",
        "XN--0.example.com",
        "a" * 64,
        ".".join(["a" * 63] * 4) + ".b",
    ]
    request = pb.IssueServiceCertificateRequest(csr=csr(), host_names=wrong)
    assert wrong_fields(convert.issue_service_certificate, request, "hub") == [
        f"host_names[{number}]" for number in range(len(wrong))
    ]
