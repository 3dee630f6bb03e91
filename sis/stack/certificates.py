"""The bootstrap CA of a local stack, and the certificates that its processes prove themselves with.

A certificate carries the SPIFFE id of its holder, and for a server the names under which it can be reached
here. Keys never leave the data directory. A certificate is made anew, with a new key, before a third of its
life is left.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sis.stack.errors import StackError
from sis.stack.layout import write_private

CA_DAYS = 3650
LEAF_DAYS = 365
# A machine whose clock is a little behind must still accept what was just made.
_BACKDATED = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Files:
    """The PEM files by which one process proves itself and checks others."""

    ca: Path
    certificate: Path
    key: Path


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Authority:
    """The CA in `directory`, made there at the first use.

    Raises:
        StackError: what is there cannot be read, or has expired.
    """

    def __init__(self, directory: Path, now: Callable[[], datetime.datetime] = _now) -> None:
        self._directory = directory
        self._now = now
        self.certificate_file = directory / "ca.pem"
        key_file = directory / "ca.key"
        # The certificate is written last: without it, the key is what an interrupted start left.
        if not self.certificate_file.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(key_file, _private_pem(key))
            write_private(self.certificate_file, _pem(_authority(key, now())))
        try:
            self._certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
            loaded = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise StackError(f"the CA in {directory} cannot be read: {error}") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != (
            self._certificate.public_key()
        ):
            raise StackError(f"{key_file} is not the key of {self.certificate_file}")
        if self._certificate.not_valid_after_utc <= now() + datetime.timedelta(days=LEAF_DAYS / 3):
            raise StackError(
                f"the CA in {directory} expires on {self._certificate.not_valid_after_utc:%Y-%m-%d}: "
                "remove that directory to have another made"
            )
        self._key = loaded

    def issue(self, name: str, spiffe_id: str, host_names: Sequence[str] = ()) -> Files:
        """The certificate of an identity, from `directory`/`name`; made if there is none, it names
        something else, another CA signed it, or a third of its life is left. With host names, it serves as
        a server's too, on this machine's loopback addresses as well."""
        files = Files(
            self.certificate_file,
            self._directory / name / "certificate.pem",
            self._directory / name / "key.pem",
        )
        alternatives = _alternatives(spiffe_id, host_names)
        if not self._good(files, alternatives):
            files.certificate.parent.mkdir(mode=0o700, exist_ok=True)
            files.certificate.unlink(missing_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(files.key, _private_pem(key))
            certificate = self._leaf(key, name, alternatives, server=bool(host_names))
            write_private(files.certificate, _pem(certificate))
        return files

    def _good(self, files: Files, alternatives: x509.SubjectAlternativeName) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
            certificate.verify_directly_issued_by(self._certificate)
            named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:
            return False
        return (
            key.public_key() == certificate.public_key()
            and set(named) == set(alternatives)
            and certificate.not_valid_after_utc > self._now() + datetime.timedelta(days=LEAF_DAYS / 3)
        )

    def _leaf(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: str,
        alternatives: x509.SubjectAlternativeName,
        *,
        server: bool,
    ) -> x509.Certificate:
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])
        return (
            _builder(name, key.public_key(), self._now(), LEAF_DAYS)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(alternatives, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    builder = _builder("SIS local stack CA", key.public_key(), now, CA_DAYS)
    return (
        builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIS local stack CA")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(name: str, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _alternatives(spiffe_id: str, host_names: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id)]
    if host_names:
        names += [x509.DNSName(name) for name in ("localhost", *host_names)]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    return x509.SubjectAlternativeName(names)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
