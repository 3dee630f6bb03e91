"""The certificate by which an agent opened its stream. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.runtime.errors import Unauthenticated


@dataclass(frozen=True, slots=True)
class AgentCertificate:
    """What the hub has to know of it; TLS has verified the rest."""

    # In lower-case hexadecimal without leading zeros.
    serial: str
    # Of the public key (SubjectPublicKeyInfo): the agent's identity, which stays when it is certified anew.
    key_sha256: bytes
    not_after: datetime

    @classmethod
    def parse(cls, pem: bytes) -> AgentCertificate:
        """Raises Unauthenticated if this is no certificate."""
        try:
            found = x509.load_pem_x509_certificate(pem)
            key = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except ValueError:
            raise Unauthenticated("the client certificate cannot be read: use one that this suite issued") from None
        return cls(f"{found.serial_number:x}", hashlib.sha256(key).digest(), found.not_valid_after_utc)
