"""Which certificates can serve: with a CA that has another one below it, too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.credentials.certificates import anchor, issued
from services.credentials.vault import Signed
from services.runtime.identity import Unusable, canonical_host_name, check, is_address

NOW = datetime.now(UTC)
Key = ec.EllipticCurvePrivateKey


def key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certificate(subject: str, subject_key: Key, issuer: str, issuer_key: Key, *, ca: bool) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(subject_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(private: Key) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


ROOT_KEY, BELOW_KEY, LEAF_KEY = key(), key(), key()
ROOT = certificate("root", ROOT_KEY, "root", ROOT_KEY, ca=True)
BELOW = certificate("below", BELOW_KEY, "root", ROOT_KEY, ca=True)
LEAF = certificate("leaf", LEAF_KEY, "below", BELOW_KEY, ca=False)
NO_CA = certificate("below", BELOW_KEY, "root", ROOT_KEY, ca=False)


@pytest.mark.parametrize(
    ("chain", "ca"),
    [(LEAF + BELOW, ROOT), (LEAF + BELOW + ROOT, ROOT), (LEAF, BELOW), (LEAF, BELOW + ROOT), (LEAF + BELOW, BELOW)],
)
def test_a_chain_that_leads_to_the_ca(chain: bytes, ca: bytes) -> None:
    assert check(pem(LEAF_KEY), chain, ca, NOW) == x509.load_pem_x509_certificate(LEAF)


@pytest.mark.parametrize(
    ("key_", "chain", "ca", "why"),
    [
        (LEAF_KEY, LEAF, ROOT, "this CA"),
        (LEAF_KEY, LEAF + ROOT, ROOT, "this CA"),
        (LEAF_KEY, LEAF + ROOT + BELOW, ROOT, "this CA"),
        (LEAF_KEY, LEAF + NO_CA, ROOT, "this CA"),
        (LEAF_KEY, LEAF, NO_CA, "this CA"),
        (BELOW_KEY, LEAF + BELOW, ROOT, "another certificate"),
        (BELOW_KEY, BELOW + LEAF, b"", "the CA cannot be read"),
        (LEAF_KEY, b"", ROOT, "the certificate cannot be read"),
    ],
)
def test_what_cannot_serve(key_: Key, chain: bytes, ca: bytes, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        check(pem(key_), chain, ca, NOW)


@pytest.mark.parametrize("hours", [-1.01, 1])
def test_at_a_time_at_which_it_is_not_valid(hours: float) -> None:
    with pytest.raises(Unusable, match="valid from"):
        check(pem(LEAF_KEY), LEAF + BELOW, ROOT, NOW + timedelta(hours=hours))


def test_the_damaged_key_is_not_repeated() -> None:
    with pytest.raises(Unusable) as caught:
        check(b"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n", LEAF, BELOW, NOW)
    assert "hunter2" not in repr(caught.value)


def test_what_is_given_out_leads_up_to_what_is_trusted() -> None:
    found = issued(Signed(LEAF, BELOW + ROOT, "1", NOW))
    assert (found.chain, found.ca) == (LEAF + BELOW + ROOT, ROOT)
    assert anchor(BELOW + ROOT) == x509.load_pem_x509_certificate(ROOT)
    check(pem(LEAF_KEY), found.chain, found.ca, NOW)


def test_host_names_have_one_form() -> None:
    assert canonical_host_name("FE80:0::1") == "fe80::1"
    assert canonical_host_name("Queue.Example.COM") == "queue.example.com"
    assert [is_address(each) for each in ("::1", "10.0.0.1", "10.0.0", "fe80::1%eth0")] == [True, True, False, False]
