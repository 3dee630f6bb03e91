"""What the hub reads from an agent's certificate."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from services.runtime.errors import InvalidArgument, Unauthenticated
from services.sis_agent.hub.certificates import AgentCertificate, requested_key
from sis.credentials.v1 import certificate_pb2
from tests.support.certificates import CertificateAuthority, agent_keys


def test_serial_key_and_times_are_read(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    pem = authority.agent("g", "a1").certificate.read_bytes()
    found = AgentCertificate.parse(pem)
    certificate = x509.load_pem_x509_certificate(pem)
    assert int(found.serial, 16) == certificate.serial_number
    assert found.not_before == certificate.not_valid_before_utc
    assert found.not_after == certificate.not_valid_after_utc
    assert len(found.key_sha256) == 32
    other = AgentCertificate.parse(authority.agent("g", "a1").certificate.read_bytes())
    assert other.serial != found.serial
    assert other.key_sha256 != found.key_sha256


def test_the_key_that_is_to_be_certified_is_that_of_its_certificate(tmp_path: Path) -> None:
    files = CertificateAuthority(tmp_path).agent("g", "a1")
    assert requested_key(agent_keys(files)) == AgentCertificate.parse(files.certificate.read_bytes()).key_sha256


@pytest.mark.parametrize("keys", [b"\xff\xff", b"", certificate_pb2.AgentKeys(csr=b"none").SerializeToString()])
def test_keys_that_cannot_be_read_are_a_wrong_field(keys: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        requested_key(keys)
    assert caught.value.violations[0].field == "keys"


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_proves_nothing(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        AgentCertificate.parse(pem)
