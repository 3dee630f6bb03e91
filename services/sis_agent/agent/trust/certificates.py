"""Whether a certificate is what this agent may rely on. Pure; dates are never looked at, for the clock of a site may be
wrong, and whoever has to rely on them looks himself."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from services.runtime.trust import issued_under
from services.sis_agent.agent.errors import CertificateRefused


def own_certificate(
    chain: bytes, ca: bytes, key: ec.EllipticCurvePrivateKey, *, name: str, group: str
) -> x509.Certificate:
    """The leaf of a chain (PEM) that was issued for the key of this agent under the CA (PEM).

    Raises:
        CertificateRefused: it is not that.
    """
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        names = certificates[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        anchors = x509.load_pem_x509_certificates(ca)
        certified = certificates[0].public_key()
        trusted = any(issued_under(certificates, anchor) for anchor in anchors)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound) as error:
        raise CertificateRefused(f"the certificate that came cannot be read: {error}") from None
    if certified != key.public_key():
        raise CertificateRefused("the certificate that came is for another key")
    if not trusted:
        raise CertificateRefused("the certificate that came is not from the CA that this agent trusts")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [f"spiffe://sis/agent/{group}/{name}"]:
        raise CertificateRefused(f"the certificate that came is for {', '.join(uris)}, not for {name} of {group}")
    return certificates[0]
