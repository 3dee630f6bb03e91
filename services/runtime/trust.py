"""Whether a certificate comes from a CA. Pure; dates are for the caller to judge: a clock may be wrong."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature


def issued_under(chain: Sequence[x509.Certificate], anchor: x509.Certificate) -> bool:
    """Whether the first of the certificates was issued by the CA `anchor`, by way of those that follow, in order."""
    if not chain or not _is_ca(anchor):
        return False
    current, *others = chain
    while not _issued(current, anchor):
        if not others or not _is_ca(others[0]) or not _issued(current, others[0]):
            return False
        current = others.pop(0)
    return True


def _is_ca(certificate: x509.Certificate) -> bool:
    """Whether it may issue others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
