"""Whether bytes are a private key that a passphrase opens, in a bounded time. Pure.

What an encrypted key costs to open is written in the key by whoever made it, so that is read first.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import warnings
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

MOST_BCRYPT_ROUNDS: Final = 256
"""Of an OpenSSH key; `ssh-keygen` makes 16 or 24 unless told otherwise."""
MOST_ITERATIONS: Final = 1_000_000
"""Of PBKDF2, in a PKCS #8 key. Other threads of the process stand still meanwhile, for less than a second."""
MOST_SCRYPT: Final = 2**19
"""Of scrypt, in a PKCS #8 key: N, r and p, multiplied; each takes 128 bytes. OpenSSL's own is a quarter of it."""

_KINDS: Final = rb"(?:OPENSSH |ENCRYPTED |RSA |DSA |EC |)PRIVATE KEY"
_ARMOUR: Final = re.compile(rb"-----BEGIN (" + _KINDS + rb")-----\s(.*?)-----END \1-----", re.DOTALL)
_SCRYPT: Final = bytes.fromhex("2b06010401da47040b")
"""Its object identifier, 1.3.6.1.4.1.11591.4.11 (RFC 7914)."""
_OPENSSH_MAGIC: Final = b"openssh-key-v1\0"


class BadKey(Exception):
    """The bytes are no private key that can be used; the words repeat nothing of them."""


class BadPassphrase(BadKey):
    """The passphrase is missing, wrong, or too much."""


def check(key: bytes, passphrase: bytes) -> None:
    """Return if `key`, in PEM or OpenSSH form, is a private key that `passphrase` opens (b"" for one not encrypted).

    Raises:
        BadPassphrase, BadKey
    """
    found = _ARMOUR.search(key)
    if found is None:
        raise BadKey("is not a private key in PEM or OpenSSH form (-----BEGIN … PRIVATE KEY-----)")
    label, body = found[1], found[2]
    encrypted = _encrypted(label, body)
    if encrypted and not passphrase:
        raise BadPassphrase("the private key is encrypted; give its passphrase")
    if passphrase and not encrypted:
        raise BadPassphrase("the private key is not encrypted; leave it empty")
    load = load_ssh_private_key if label == b"OPENSSH PRIVATE KEY" else load_pem_private_key
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old ciphers: a site may have to live with them
            # This block and no other, as its cost is the one that was read.
            load(found[0] + b"\n", passphrase or None)
    except UnsupportedAlgorithm:
        raise BadKey("is a private key of a kind that is not supported") from None
    except (ValueError, TypeError):
        if encrypted:
            raise BadPassphrase("does not open the private key, or the key is damaged") from None
        raise BadKey("is damaged: it cannot be read as a private key") from None


def _encrypted(label: bytes, body: bytes) -> bool:
    """Raises BadKey for a key that is damaged, or takes too long to open."""
    if label != b"OPENSSH PRIVATE KEY" and b"ENCRYPTED" in body[:200]:
        return True  # the traditional form, whose cost is fixed
    if label not in (b"OPENSSH PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"):
        return False
    try:
        raw = base64.b64decode(b"".join(body.split()), validate=True)
        if label == b"ENCRYPTED PRIVATE KEY":
            _check_iterations(raw)
            return True
        return _openssh_encrypted(raw)
    except (binascii.Error, IndexError, ValueError):
        raise BadKey("is damaged: it cannot be read as a private key") from None


def _openssh_encrypted(raw: bytes) -> bool:
    if not raw.startswith(_OPENSSH_MAGIC):
        raise ValueError
    cipher, position = _string(raw, len(_OPENSSH_MAGIC))
    _, position = _string(raw, position)
    options, _ = _string(raw, position)
    if cipher == b"none":
        return False
    rounds = options[-4:]
    if len(rounds) == 4 and int.from_bytes(rounds, "big") > MOST_BCRYPT_ROUNDS:
        raise BadKey(f"takes too long to open: encrypt it with at most {MOST_BCRYPT_ROUNDS} rounds (ssh-keygen -a)")
    return True


def _string(raw: bytes, position: int) -> tuple[bytes, int]:
    """A string of SSH's at `position`, and where it ends."""
    end = position + 4 + int.from_bytes(raw[position : position + 4], "big")
    if end > len(raw):
        raise ValueError
    return raw[position + 4 : end], end


def _check_iterations(raw: bytes) -> None:
    """EncryptedPrivateKeyInfo: a sequence of the algorithm, whose parameters say what it costs, and of the data."""
    _, start, _ = _element(raw, 0)
    tag, start, end = _element(raw, start)
    if tag != 0x30:
        raise ValueError
    if any(number > MOST_ITERATIONS for number in _integers(raw, start, end)):
        raise BadKey(f"takes too long to open: encrypt it with at most {MOST_ITERATIONS:,} iterations")
    # In a salt these bytes may stand by chance or by intent, so the iterations are looked at in any case.
    if (at := raw.find(_SCRYPT, start, end)) >= 0:
        _, start, end = _element(raw, at + len(_SCRYPT))
        if math.prod(_integers(raw, start, end)[:3]) > MOST_SCRYPT:
            raise BadKey(f"takes too long to open: encrypt it with scrypt's N · r · p at most {MOST_SCRYPT:,}")


def _integers(raw: bytes, start: int, end: int) -> list[int]:
    found: list[int] = []
    pending = [(start, end)]
    while pending:
        position, end = pending.pop()
        while position < end:
            tag, start, position = _element(raw, position)
            if tag == 0x02:
                found.append(int.from_bytes(raw[start:position], "big"))
            elif tag & 0x20:  # made of others
                pending.append((start, position))
    return found


def _element(raw: bytes, position: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the DER element at `position`."""
    tag, length = raw[position], raw[position + 1]
    start = position + 2
    if length & 0x80:
        width = length & 0x7F
        length = int.from_bytes(raw[start : start + width], "big")
        start += width
    if start + length > len(raw):
        raise ValueError
    return tag, start, start + length
