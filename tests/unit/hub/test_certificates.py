"""What the hub reads from an agent's certificate."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from services.runtime.errors import Unauthenticated
from services.sis_agent.hub.certificates import AgentCertificate
from tests.support.certificates import CertificateAuthority


def test_serial_key_and_end_are_read(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    pem = authority.agent("g", "a1").certificate.read_bytes()
    found = AgentCertificate.parse(pem)
    certificate = x509.load_pem_x509_certificate(pem)
    assert int(found.serial, 16) == certificate.serial_number
    assert found.not_after == certificate.not_valid_after_utc
    assert len(found.key_sha256) == 32
    other = AgentCertificate.parse(authority.agent("g", "a1").certificate.read_bytes())
    assert other.serial != found.serial
    assert other.key_sha256 != found.key_sha256


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_proves_nothing(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        AgentCertificate.parse(pem)
