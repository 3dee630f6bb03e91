"""Secrets sealed to one agent, for one attempt: HPKE as `sis.credentials.v1.SealedLease` describes it.

Pure; what seals (the credential service) and what opens (an attempt's supervisor) share it and nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

_SUITE: Final = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class Unsealable(Exception):
    """The ciphertext was not made for this key and this use, or was changed; nothing more can be said of it."""


@dataclass(frozen=True, slots=True)
class LeaseBinding:
    """What a sealed secret is good for. All of it is authenticated; none of it is secret."""

    job_id: int
    attempt: int
    agent: str
    lease_id: str
    ref: str

    def info(self) -> bytes:
        """The `info` of HPKE. Raises ValueError for a text with NUL, which would make it ambiguous."""
        parts = ["sis.lease.v1", str(self.job_id), str(self.attempt), self.agent, self.lease_id, self.ref]
        if any("\0" in part for part in parts):
            raise ValueError("a lease is bound to texts without NUL characters")
        return "\0".join(parts).encode()


def key_id(public_key: bytes) -> str:
    """By what a sealing key is known: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def seal(secret: bytes, public_key: bytes, binding: LeaseBinding) -> bytes:
    """The ciphertext of `secret` for the X25519 `public_key` (32 bytes).

    Raises:
        ValueError: the key is none, or one to which nothing can be sealed.
    """
    return _SUITE.encrypt(secret, X25519PublicKey.from_public_bytes(public_key), info=binding.info())


def unseal(ciphertext: bytes, private_key: X25519PrivateKey, binding: LeaseBinding) -> bytes:
    """The secret again.

    Raises:
        Unsealable: it was sealed to another key or for another use, or was changed.
    """
    try:
        return _SUITE.decrypt(ciphertext, private_key, info=binding.info())
    except (InvalidTag, ValueError):
        raise Unsealable("the secret was not sealed to this agent for this attempt, or was changed") from None
