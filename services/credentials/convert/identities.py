"""Agents' identities and certificates: messages of CertificateService and AgentIdentityService <-> domain."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from google.protobuf.message import DecodeError

from services.credentials.certificates import Issued
from services.credentials.identities import AgentKeys, Enrolment, Renewal
from services.credentials.identity_store import AgentIdentity, Revocation
from services.runtime.fields import Violations, to_timestamp
from services.runtime.identity import is_address
from sis.credentials.v1 import agent_identity_service_pb2 as identity_pb
from sis.credentials.v1 import certificate_pb2
from sis.credentials.v1 import certificate_service_pb2 as certificate_pb

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PAIRING_ID: Final = re.compile(r"[a-z2-7]{8}")
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_CSR_BYTES: Final = 8 * 1024
_HOST_NAMES: Final = 20
_SERVICES: Final = frozenset({"queue", "hub", "credentials", "gateway", "inventory"})


def pair_agent(request: identity_pb.PairAgentRequest) -> tuple[str, str]:
    """The name and the group. Raises InvalidArgument."""
    wrong = Violations()
    _name(wrong, "name", request.name)
    _name(wrong, "group", request.group)
    wrong.refuse()
    return request.name, request.group


def revoke_agent(request: identity_pb.RevokeAgentRequest) -> tuple[str, str]:
    """The name and the reason. Raises InvalidArgument."""
    wrong = Violations()
    _name(wrong, "name", request.name)
    wrong.line("reason", request.reason, 500)
    wrong.refuse()
    return request.name, request.reason


def page_size(request: identity_pb.ListAgentIdentitiesRequest) -> int:
    """Raises InvalidArgument."""
    wrong = Violations()
    size = wrong.page_size(request.page_size)
    wrong.refuse()
    return size


def _name(wrong: Violations, field: str, value: str) -> None:
    if not _NAME.fullmatch(value):
        wrong.add(field, "give 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")


def enrol_agent(request: certificate_pb.EnrolAgentRequest) -> Enrolment:
    """Raises InvalidArgument."""
    wrong = Violations()
    if not _PAIRING_ID.fullmatch(request.pairing_id):
        wrong.add("pairing_id", "is the part of a pairing code behind sis1-")
    if len(request.mac) != 32:
        wrong.add("mac", "is an HMAC of 32 bytes")
    wrong.line("origin", request.origin, 100)
    keys = _agent_keys(wrong, request.keys)
    wrong.refuse()
    assert keys is not None
    return Enrolment(request.pairing_id, keys, request.mac, request.origin)


def renew_agent(request: certificate_pb.RenewAgentCertificateRequest) -> Renewal:
    """Raises InvalidArgument."""
    wrong = Violations()
    _name(wrong, "agent", request.agent)
    if not 1 <= len(request.signature) <= 128:
        wrong.add("signature", "is an ECDSA signature in DER")
    keys = _agent_keys(wrong, request.keys)
    wrong.refuse()
    assert keys is not None
    return Renewal(request.agent, keys, request.signature)


def _agent_keys(wrong: Violations, serialised: bytes) -> AgentKeys | None:
    try:
        message = certificate_pb2.AgentKeys.FromString(serialised)
    except DecodeError:
        wrong.add("keys", "is not a serialised sis.credentials.v1.AgentKeys")
        return None
    csr = _csr(wrong, "keys.csr", message.csr)
    if not _takes_secrets(message.sealing_key):
        wrong.add("keys.sealing_key", "is not a public X25519 key of 32 bytes")
    if message.generation < 1:
        wrong.add("keys.generation", "is 1 at first and raised from then on")
    return None if csr is None else AgentKeys(serialised, csr, message.sealing_key, message.generation)


def _takes_secrets(sealing_key: bytes) -> bool:
    try:
        # With a point of small order, anybody would know what is agreed upon.
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(sealing_key))
    except ValueError:
        return False
    return True


def _csr(wrong: Violations, field: str, der: bytes) -> x509.CertificateSigningRequest | None:
    try:
        if len(der) > _CSR_BYTES:
            raise ValueError
        csr = x509.load_der_x509_csr(der)
        key = csr.public_key()
        sound = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        if sound and csr.is_signature_valid:
            return csr
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        pass
    wrong.add(field, "is not a PKCS #10 request (DER), signed by its own key, which is an EC key on P-256")
    return None


def issue_service_certificate(
    request: certificate_pb.IssueServiceCertificateRequest, service: str
) -> tuple[x509.CertificateSigningRequest, Sequence[str]]:
    """The request and the host names. Raises InvalidArgument."""
    wrong = Violations()
    csr = _csr(wrong, "csr", request.csr)
    if len(request.host_names) > _HOST_NAMES:
        wrong.add("host_names", f"has {len(request.host_names)} names; at most {_HOST_NAMES} are taken")
    for number, name in enumerate(request.host_names[:_HOST_NAMES]):
        field = f"host_names[{number}]"
        if not _can_be_certified(name):
            wrong.add(field, "is neither a DNS name nor an IP address that a certificate can bear")
        elif name.lower() in _SERVICES - {service}:
            wrong.add(field, f"is the name of another service; this is {service}")
    wrong.refuse()
    assert csr is not None
    return csr, request.host_names


def _can_be_certified(name: str) -> bool:
    """Whether Vault leaves it as it is: the rest it drops or refuses, with one word for all names."""
    if is_address(name):
        # What an IPv4 address is mapped to becomes that IPv4 address.
        return getattr(ipaddress.ip_address(name), "ipv4_mapped", None) is None
    return _HOST_NAME.fullmatch(name) is not None and all(map(_is_label, name.lower().split(".")))


def _is_label(label: str) -> bool:
    if not label.startswith("xn--"):
        return True
    encoded = label.removeprefix("xn--")
    try:
        decoded = encoded.encode("ascii").decode("punycode")
        return not decoded.isascii() and decoded.encode("punycode").decode("ascii") == encoded
    except UnicodeError:
        return False


def to_certificate(issued: Issued) -> certificate_pb2.IssuedCertificate:
    return certificate_pb2.IssuedCertificate(
        certificate_chain=issued.chain,
        ca=issued.ca,
        serial=issued.serial,
        not_after=to_timestamp(issued.not_after),
    )


def to_identity(found: AgentIdentity) -> identity_pb.AgentIdentity:
    return identity_pb.AgentIdentity(
        name=found.name,
        group=found.group,
        revoked=found.revoked_at is not None,
        enrol_time=to_timestamp(found.enrolled_at),
        pairer=found.pairer,
        serial=found.serial,
        not_after=to_timestamp(found.not_after),
        revoke_time=to_timestamp(found.revoked_at),
        revoker=found.revoker,
        revoke_reason=found.revoke_reason,
    )


def to_revocations(found: Sequence[Revocation], *, complete: bool) -> certificate_pb.WatchRevocationsResponse:
    return certificate_pb.WatchRevocationsResponse(
        revocations=[
            certificate_pb2.Revocation(serial=each.serial, agent=each.agent, not_after=to_timestamp(each.not_after))
            for each in found
        ],
        complete=complete,
    )
