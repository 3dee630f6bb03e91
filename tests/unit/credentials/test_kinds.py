"""What each kind of credential is made of, and what is refused."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from services.credentials import private_keys
from services.credentials.kinds import Kind, Secret, account_violations, secret_violations
from services.credentials.private_keys import BadKey, BadPassphrase

PASSPHRASE = b"open sesame"
SCRYPTED = b"""\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGTME8GCSqGSIb3DQEFDTBCMCEGCSsGAQQB2kcECzAUBAjcn0+tQ1FwWQICQAAC
AQgCAQEwHQYJYIZIAWUDBAEqBBC6a33cbQjznQA3o6FWUyxjBEBfgwjqKPHz67mI
Ea//pP7td/xuWdHq9ff3wJUH1YgKbuja0l9z417ALJTXRruGteT6BWyPksXBM6sd
tWUTqFpi
-----END ENCRYPTED PRIVATE KEY-----
"""
"""An Ed25519 key, encrypted with PASSPHRASE by `openssl pkcs8 -topk8 -scrypt`."""
OPENSSH = serialization.PrivateFormat.OpenSSH
PKCS8 = serialization.PrivateFormat.PKCS8
TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL

ED25519 = ed25519.Ed25519PrivateKey.generate()
KEYS = {
    "ed25519": ED25519,
    "ecdsa": ec.generate_private_key(ec.SECP256R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
}
FORMS = [
    (name, form)
    for name in KEYS
    for form in (OPENSSH, PKCS8, TRADITIONAL)
    if not (name == "ed25519" and form is TRADITIONAL)
]


def pem(name: str, form: serialization.PrivateFormat, passphrase: bytes = b"") -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return KEYS[name].private_bytes(serialization.Encoding.PEM, form, encryption)


def fields(kind: Kind, secret: bytes, passphrase: bytes = b"") -> list[str]:
    found = secret_violations(kind, Secret(secret, passphrase))
    for each in found:
        assert secret == b"" or secret not in each.description.encode()
    return [each.field for each in found]


# --- accounts ---


@pytest.mark.parametrize(
    ("kind", "username", "domain", "wrong"),
    [
        (Kind.USERNAME_PASSWORD, "root", "", []),
        (Kind.USERNAME_PASSWORD, "", "", ["username"]),
        (Kind.USERNAME_PASSWORD, " ", "", ["username"]),
        (Kind.USERNAME_PASSWORD, "root", "CORP", ["domain"]),
        (Kind.SSH_KEY, "root", "", []),
        (Kind.SSH_KEY, "", "CORP", ["username", "domain"]),
        (Kind.TOKEN, "", "", []),
        (Kind.TOKEN, "root", "", ["username"]),
        (Kind.DOMAIN_ACCOUNT, "root", "CORP", []),
        (Kind.DOMAIN_ACCOUNT, "root", "", ["domain"]),
        (Kind.DOMAIN_ACCOUNT, "", "", ["username", "domain"]),
    ],
)
def test_an_account_has_what_its_kind_demands(kind: Kind, username: str, domain: str, wrong: list[str]) -> None:
    assert [each.field for each in account_violations(kind, username, domain)] == wrong


# --- secrets ---


@pytest.mark.parametrize("kind", [Kind.USERNAME_PASSWORD, Kind.TOKEN, Kind.DOMAIN_ACCOUNT])
def test_a_secret_has_a_size(kind: Kind) -> None:
    assert fields(kind, b"12345678") == []
    assert fields(kind, b"x" * 65_536) == []
    for secret in (b"", b"1234567", b"x" * 65_537, b"with\0nul bytes", b" \t\r\n      "):
        assert fields(kind, secret) == ["value.secret"]


def test_a_passphrase_is_for_private_keys() -> None:
    assert fields(Kind.TOKEN, b"12345678", b"12345678") == ["value.passphrase"]
    assert fields(Kind.TOKEN, b"short", b"12345678") == ["value.secret", "value.passphrase"]


def test_nothing_is_taken_off_a_secret() -> None:
    assert fields(Kind.TOKEN, b"1234567\n") == []
    assert Secret(b"1234567\n").secret == b"1234567\n"


def test_a_secret_is_not_shown() -> None:
    value = Secret(b"hunter2hunter2", b"open sesame")
    for shown in (repr(value), str(value), f"{value}", repr([value])):
        assert "hunter2" not in shown and "sesame" not in shown


def test_secrets_are_compared_whole() -> None:
    assert Secret(b"a", b"b").same(Secret(b"a", b"b"))
    for other in (Secret(b"a"), Secret(b"b", b"b"), Secret(b"a", b"c"), Secret(b"ab")):
        assert not Secret(b"a", b"b").same(other)


# --- private keys ---


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_private_key_is_taken_in_every_form(name: str, form: serialization.PrivateFormat) -> None:
    assert fields(Kind.SSH_KEY, pem(name, form)) == []
    assert fields(Kind.SSH_KEY, pem(name, form), PASSPHRASE) == ["value.passphrase"]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_encrypted_private_key_needs_its_passphrase(name: str, form: serialization.PrivateFormat) -> None:
    key = pem(name, form, PASSPHRASE)
    assert fields(Kind.SSH_KEY, key, PASSPHRASE) == []
    assert fields(Kind.SSH_KEY, key) == ["value.passphrase"]
    assert fields(Kind.SSH_KEY, key, b"another one") == ["value.passphrase"]
    assert fields(Kind.SSH_KEY, key, b"short") == ["value.passphrase"]


@pytest.mark.parametrize(
    "key",
    [
        b"just a password",
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI user@host",
        pem("ed25519", PKCS8).replace(b"PRIVATE", b"PUBLIC"),
        KEYS["ed25519"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        b"PuTTY-User-Key-File-3: ssh-ed25519\n",
        pem("rsa", PKCS8)[:200] + b"\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
    ],
)
def test_what_is_no_private_key_is_refused(key: bytes) -> None:
    assert fields(Kind.SSH_KEY, key) == ["value.secret"]


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def test_an_openssh_key_that_takes_for_ever_to_open_is_refused() -> None:
    options = _string(_string(b"0123456789abcdef") + (4_000_000).to_bytes(4, "big"))
    raw = b"openssh-key-v1\0" + _string(b"aes256-ctr") + _string(b"bcrypt") + options
    body = base64.b64encode(raw + (1).to_bytes(4, "big") + _string(b"k") + _string(b"p" * 64))
    key = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + body + b"\n-----END OPENSSH PRIVATE KEY-----\n"
    with pytest.raises(BadKey, match="rounds"):
        private_keys.check(key, PASSPHRASE)


def _der(tag: int, *content: bytes) -> bytes:
    data = b"".join(content)
    return bytes([tag, 0x82]) + len(data).to_bytes(2, "big") + data


PBKDF2, SCRYPT = "2a864886f70d01050c", "2b06010401da47040b"


def _pkcs8(derivation: str, *costs: int) -> bytes:
    """A key that would be opened with these costs, were it one."""
    pbes2, aes = (bytes.fromhex(oid) for oid in ("2a864886f70d01050d", "60864801650304012a"))
    numbers = [_der(0x02, cost.to_bytes(5, "big")) for cost in costs]
    cost = _der(0x30, _der(0x04, b"s" * 16), *numbers)
    derived = _der(0x30, _der(0x06, bytes.fromhex(derivation)), cost)
    scheme = _der(0x30, derived, _der(0x30, _der(0x06, aes), _der(0x04, b"i" * 16)))
    raw = _der(0x30, _der(0x30, _der(0x06, pbes2), scheme), _der(0x04, b"d" * 64))
    body = base64.encodebytes(raw)
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + body + b"-----END ENCRYPTED PRIVATE KEY-----\n"


def test_a_pkcs8_key_that_takes_for_ever_to_open_is_refused() -> None:
    with pytest.raises(BadKey, match="iterations"):
        private_keys.check(_pkcs8(PBKDF2, 2**31 - 1), PASSPHRASE)


@pytest.mark.parametrize("costs", [(2**14, 64, 4), (2**14, 8, 1_000_000), (2**19, 2, 1)])
def test_the_costs_of_scrypt_are_multiplied(costs: tuple[int, ...]) -> None:
    with pytest.raises(BadKey, match="scrypt"):
        private_keys.check(_pkcs8(SCRYPT, *costs), PASSPHRASE)


def test_scrypt_as_openssl_has_it_is_taken() -> None:
    assert fields(Kind.SSH_KEY, SCRYPTED, PASSPHRASE) == []


@pytest.mark.parametrize(("label", "refusal"), [("X", "iterations"), ("RSA", "does not open")])
def test_no_key_is_opened_but_the_one_whose_cost_was_read(label: str, refusal: str) -> None:
    decoy = f"-----BEGIN {label} PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END {label} PRIVATE KEY-----\n"
    with pytest.raises(BadKey, match=refusal):
        private_keys.check(decoy.encode() + _pkcs8(PBKDF2, 2**31 - 1), PASSPHRASE)


@given(
    st.sampled_from(["OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "PRIVATE KEY", "RSA PRIVATE KEY"]),
    st.binary(max_size=200),
    st.booleans(),
)
def test_nonsense_is_refused_and_never_more(label: str, nonsense: bytes, prefixed: bool) -> None:
    raw = (b"openssh-key-v1\0" if prefixed else b"") + nonsense
    key = f"-----BEGIN {label}-----\n{base64.b64encode(raw).decode()}\n-----END {label}-----\n".encode()
    for passphrase in (b"", PASSPHRASE):
        with pytest.raises(BadKey):
            private_keys.check(key, passphrase)


@given(st.integers(min_value=0), st.binary(min_size=1, max_size=3), st.booleans())
def test_a_damaged_key_is_refused_and_never_more(at: int, damage: bytes, encrypted: bool) -> None:
    key = DAMAGED[encrypted]
    at %= len(key)
    try:
        private_keys.check(key[:at] + damage + key[at + len(damage) :], PASSPHRASE if encrypted else b"")
    except BadKey as error:
        assert isinstance(error, BadPassphrase) or "repeat" not in str(error)


DAMAGED = {False: pem("ed25519", OPENSSH), True: pem("ecdsa", TRADITIONAL, PASSPHRASE)}
