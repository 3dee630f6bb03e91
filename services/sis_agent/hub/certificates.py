"""The certificate by which an agent opened its stream, and the key that it wants certified. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidArgument, Unauthenticated
from sis.credentials.v1 import certificate_pb2


@dataclass(frozen=True, slots=True)
class AgentCertificate:
    """What the hub has to know of it; TLS has verified the rest."""

    # In lower-case hexadecimal without leading zeros.
    serial: str
    # Of the public key (SubjectPublicKeyInfo): the agent's identity, which stays when it is certified anew.
    key_sha256: bytes
    not_before: datetime
    not_after: datetime

    @classmethod
    def parse(cls, pem: bytes) -> AgentCertificate:
        """Raises Unauthenticated if this is no certificate."""
        try:
            found = x509.load_pem_x509_certificate(pem)
            key_sha256 = _sha256(found.public_key())
        except ValueError:
            raise Unauthenticated("the client certificate cannot be read: use one that this suite issued") from None
        return cls(f"{found.serial_number:x}", key_sha256, found.not_valid_before_utc, found.not_valid_after_utc)


def requested_key(keys: bytes) -> bytes:
    """The SHA-256, as above, of the key that a serialised AgentKeys wants certified. Nothing of it is proven.

    Raises:
        InvalidArgument: it cannot be read.
    """
    try:
        request = certificate_pb2.AgentKeys.FromString(keys)
        return _sha256(x509.load_der_x509_csr(request.csr).public_key())
    except (DecodeError, ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidArgument.field("keys", "are no AgentKeys with a PKCS #10 request (DER)") from None


def _sha256(key: CertificatePublicKeyTypes) -> bytes:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
