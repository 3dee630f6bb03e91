"""A certificate authority for tests, with the identities that the suite's processes have."""

from __future__ import annotations

import ipaddress
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.runtime.tls import TlsFiles
from sis.credentials.v1 import certificate_pb2

_DAY = timedelta(days=1)


class CertificateAuthority:
    """Issues certificates that are valid for a day, as files below `directory`; each is an identity directory.

    Each of them begins a second after the one before it: which is the newer one shows, however quickly they follow.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("sis test CA")
        self._numbers = itertools.count()
        certificate = (
            _builder(self._name, self._name, self._key.public_key(), _DAY, next(self._numbers))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def service(self, name: str) -> TlsFiles:
        """A server's certificate, which it shows as a client too: `spiffe://sis/service/<name>`."""
        return self.issue(f"spiffe://sis/service/{name}", dns_names=("localhost", name))

    def agent(self, group: str, name: str) -> TlsFiles:
        return self.issue(f"spiffe://sis/agent/{group}/{name}")

    def issue(self, spiffe_id: str, dns_names: tuple[str, ...] = ()) -> TlsFiles:
        """A certificate with this identity; with names, it is a server's, good on the loopback addresses as well."""
        key = ec.generate_private_key(ec.SECP256R1())
        folder = self._directory / spiffe_id.removeprefix("spiffe://").replace("/", "-")
        folder.mkdir(exist_ok=True)
        files = TlsFiles(ca=self.ca, certificate=folder / "certificate.pem", key=folder / "key.pem")
        files.certificate.write_bytes(self._certify(key.public_key(), spiffe_id, dns_names, _DAY))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def certify(
        self, request: bytes, spiffe_id: str, dns_names: tuple[str, ...] = (), *, life: timedelta = _DAY
    ) -> bytes:
        """The certificate (PEM) for a PKCS #10 request (DER), valid for `life` from now on."""
        public_key = x509.load_der_x509_csr(request).public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        return self._certify(public_key, spiffe_id, dns_names, life)

    def _certify(
        self, public_key: ec.EllipticCurvePublicKey, spiffe_id: str, dns_names: tuple[str, ...], life: timedelta
    ) -> bytes:
        alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id)]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if dns_names:
            alternatives += [x509.DNSName(name) for name in dns_names]
            alternatives += [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            _builder(_name(spiffe_id.rpartition("/")[2]), self._name, public_key, life, next(self._numbers))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def agent_keys(files: TlsFiles) -> bytes:
    """A serialised AgentKeys, by which an agent with this key asks for another certificate."""
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = x509.CertificateSigningRequestBuilder().subject_name(_name("an agent")).sign(key, hashes.SHA256())
    csr = request.public_bytes(serialization.Encoding.DER)
    return certificate_pb2.AgentKeys(csr=csr, sealing_key=bytes(32), generation=2).SerializeToString()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, life: timedelta, number: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY + timedelta(seconds=number))
        .not_valid_after(now + life)
    )
