"""The certificate by which a server process proves itself: obtained, kept on disk, renewed while it serves.

The directory holds `key.pem` and `certificate.pem` (the leaf, then what leads to the CA). What is on disk is used for
as long as it is valid, so a process starts and goes on without whoever issues certificates.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.runtime.backoff import Backoff
from services.runtime.errors import SisError
from services.runtime.tls import TlsFiles
from services.runtime.trust import issued_under
from sis.private_files import make_private, sync_directory, write_private

Obtain = Callable[[bytes], Awaitable[bytes]]
"""From a PKCS #10 request (DER) to the certificate's chain (PEM). It has a deadline of its own."""

# A clock may be set, and a machine may sleep, while this process waits for the time to renew.
_LOOK_SECONDS = 60.0

_log = logging.getLogger("identity")


class Unusable(ValueError):
    """Key and certificate cannot serve; the message says why."""


def check(key: bytes, chain: bytes, ca: bytes, now: datetime) -> x509.Certificate:
    """The leaf of `chain`, which belongs to `key`, is valid at `now` and was issued under `ca` (all in PEM).

    Raises:
        Unusable: it is not so.
    """
    leaf, *issuers = certificates(chain, "the certificate")
    pair(key, chain)
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise Unusable(f"it is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc} only")
    trusted = certificates(ca, "the CA")
    if not any(issued_under([leaf, *issuers], each) for each in trusted):
        raise Unusable("it was not issued by this CA")
    return leaf


def pair(key: bytes, chain: bytes) -> None:
    """Raises Unusable if `key` is not that of the first certificate of `chain` (both in PEM)."""
    leaf = certificates(chain, "the certificate")[0]
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise Unusable("the key cannot be read") from None
    if private.public_key() != leaf.public_key():
        raise Unusable("the key belongs to another certificate")


def certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """At least one. Raises Unusable, which calls them `what`."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise Unusable(f"{what} cannot be read") from None


class Identity:
    """The key and certificate of the process `name` in `directory`, which `obtain` renews.

    `ca` is the PEM file of the CA. With `host_names`, a certificate that lacks one of them is renewed at once.
    """

    def __init__(self, directory: Path, ca: Path, obtain: Obtain, *, name: str, host_names: Sequence[str] = ()) -> None:
        self.tls = TlsFiles(ca=ca, certificate=directory / "certificate.pem", key=directory / "key.pem")
        self.generation = 0
        self._directory = directory
        self._next_key = directory / "key.next.pem"
        self._obtain = obtain
        self._name = name
        self._host_names = host_names
        self._due: datetime | None = None

    async def ready(self) -> None:
        """Return once there is a valid certificate on disk: at once if there is one, else as soon as it was obtained,
        however long that takes; the log says why it waits."""
        try:
            await asyncio.to_thread(self._load)
        except (OSError, Unusable) as error:
            _log.info("%s has no usable certificate and asks for one: %s", self._name, error)
            await self._renew()

    async def run(self) -> None:
        """Renew the certificate, with a new key, whenever two thirds of its life have passed; for ever. While that
        fails, the last one stays."""
        while True:
            if self._due is None:
                await self.ready()
                continue
            remaining = (self._due - _now()).total_seconds()
            if remaining > 0:
                await asyncio.sleep(min(remaining, _LOOK_SECONDS))
            else:
                await self._renew()

    async def _renew(self) -> None:
        backoff = Backoff(initial=0.2, maximum=15.0)
        told = ""
        while True:
            try:
                await self._renew_once()
            except (SisError, OSError, ValueError) as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning("%s gets no certificate, and goes on asking for one: %s", self._name, error)
                await asyncio.sleep(backoff.next_delay())
            else:
                return

    async def _renew_once(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self._name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        chain = await self._obtain(request.public_bytes(serialization.Encoding.DER))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        await asyncio.to_thread(self._keep, pem, chain)
        self.generation += 1
        _log.info("%s has a new certificate", self._name, extra={"renewal": self._due})

    def _keep(self, key: bytes, chain: bytes) -> None:
        leaf = check(key, chain, self.tls.ca.read_bytes(), _now())
        make_private(self._directory)
        self._directory.chmod(0o700)
        # Killed in between, either the old key is with the old certificate, or the new one is found by `_load`.
        write_private(self._next_key, key)
        write_private(self.tls.certificate, chain)
        self._adopt_next_key()
        self._due = _due(leaf, _now())

    def _load(self) -> None:
        chain, ca = self.tls.certificate.read_bytes(), self.tls.ca.read_bytes()
        try:
            leaf = check(self.tls.key.read_bytes(), chain, ca, _now())
        except (OSError, Unusable):
            if not self._next_key.exists():
                raise
            leaf = check(self._next_key.read_bytes(), chain, ca, _now())
            self._adopt_next_key()
        obtained = datetime.fromtimestamp(self.tls.certificate.stat().st_mtime, UTC)
        self._due = _due(leaf, obtained) if _names(leaf).issuperset(self._host_names) else _now()

    def _adopt_next_key(self) -> None:
        self._next_key.replace(self.tls.key)
        sync_directory(self._directory)


def _now() -> datetime:
    return datetime.now(UTC)


def _due(leaf: x509.Certificate, obtained: datetime) -> datetime:
    """When two thirds of the life are over. Certificates are back-dated, so it began when it was obtained."""
    began = min(max(obtained, leaf.not_valid_before_utc), _now())
    return began + (leaf.not_valid_after_utc - began) * 2 / 3


def _names(leaf: x509.Certificate) -> set[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


def is_address(name: str) -> bool:
    """Whether a host name is an IP address, without a zone."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return "%" not in name


def canonical_host_name(name: str) -> str:
    """An IP address in its canonical form, anything else in lower case."""
    return str(ipaddress.ip_address(name)) if is_address(name) else name.lower()
