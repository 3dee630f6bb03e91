"""A certificate is trusted for the CA that it comes from, directly or by way of others, and for nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.runtime.trust import issued_under


class Holder:
    """A key with its certificate, which another one has signed, or itself."""

    def __init__(self, name: str, issuer: Holder | None = None, *, ca: bool = True) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer or self
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=1))  # as it may seem to a clock that is wrong
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(signer.key, hashes.SHA256())
        )


ROOT = Holder("root")
MIDDLE = Holder("middle", ROOT)
LEAF = Holder("leaf", MIDDLE, ca=False)
BELOW = Holder("below", LEAF, ca=False)
OTHER = Holder("root")

root, middle, leaf, below, other = (each.certificate for each in (ROOT, MIDDLE, LEAF, BELOW, OTHER))


def test_from_the_ca_directly_or_by_way_of_others() -> None:
    assert issued_under([leaf, middle], root)
    assert issued_under([leaf, middle, root], root)
    assert issued_under([leaf, middle, root], middle)
    assert issued_under([leaf], middle)
    assert issued_under([middle], root)


def test_from_nowhere_that_counts() -> None:
    assert not issued_under([], root)
    assert not issued_under([leaf], root), "the one in between is missing"
    assert not issued_under([leaf, root, middle], root), "the order is wrong"
    assert not issued_under([leaf, middle], other), "a namesake"
    assert not issued_under([below, leaf, middle], root), "who is no CA issues nothing"
    assert not issued_under([below], leaf), "who is no CA is not trusted"
