"""Certificates as they are given out, and those of the suite's server processes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from services.credentials.vault import Signed, Vault
from services.runtime.identity import canonical_host_name, is_address

ROLE = "sis-service"
"""The role of Vault's PKI by which server processes are certified."""

_log = logging.getLogger("certificates")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with what is needed to use it. `chain` (PEM) leads from the leaf up to the CA, which is in it, as a
    program that only knows the CA's fingerprint finds it there; `ca` (PEM) is this CA."""

    chain: bytes
    ca: bytes
    serial: str
    not_after: datetime


def anchor(chain: bytes) -> x509.Certificate:
    """The certificate that everybody trusts, of those that Vault names: the last."""
    return x509.load_pem_x509_certificates(chain)[-1]


def issued(signed: Signed) -> Issued:
    ca = anchor(signed.ca_chain_pem).public_bytes(serialization.Encoding.PEM)
    return Issued(signed.certificate_pem + signed.ca_chain_pem, ca, signed.serial, signed.not_after)


class ServiceCertificates:
    """Certifies server processes. `life` is that of their certificates."""

    def __init__(self, vault: Vault, *, life: timedelta) -> None:
        self._vault = vault
        self._life = life

    async def issue(self, service: str, csr: x509.CertificateSigningRequest, host_names: Sequence[str]) -> Issued:
        """A certificate for a service under its own name and these, DNS names and IP addresses. Raises VaultError."""
        names = dict.fromkeys([service, *map(canonical_host_name, host_names)])
        signed = await self._vault.sign(
            csr.public_bytes(serialization.Encoding.PEM),
            ROLE,
            uri_sans=[f"spiffe://sis/service/{service}"],
            dns_names=[name for name in names if not is_address(name)],
            ip_addresses=[name for name in names if is_address(name)],
            ttl_seconds=int(self._life.total_seconds()),
        )
        _log.info("service %s is certified", service, extra={"serial": signed.serial, "names": list(names)})
        return issued(signed)

    def obtain(self, service: str, host_names: Sequence[str]) -> Callable[[bytes], Awaitable[bytes]]:
        """For the `Identity` of this very process, which needs nobody to ask."""

        async def obtain(request: bytes) -> bytes:
            return (await self.issue(service, x509.load_der_x509_csr(request), host_names)).chain

        return obtain
