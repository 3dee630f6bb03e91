"""Pairing codes: how a program that nobody knows proves that somebody wants it as an agent.

A code is `sis1-<id>-<secret>-<fingerprint>`, in base32 without padding, in lower case: 40 bits that name it, 160 bits
of secret, and the first 160 bits of the SHA-256 of the CA's certificate (DER). The secret never travels: both sides
derive from it the key of an HMAC (HKDF-SHA256, info "sis.pairing.v1"), which covers what the agent sends and what it is
told it has become. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_ID_BYTES: Final = 5
_SECRET_BYTES: Final = 20
_FINGERPRINT_BYTES: Final = 20
_CODE: Final = re.compile(r"sis1-([a-z2-7]{8})-([a-z2-7]{32})-([a-z2-7]{32})")


class InvalidCode(ValueError):
    """The text is no pairing code."""


@dataclass(frozen=True, slots=True)
class PairingCode:
    """A pairing code, taken apart. Its representation does not show the secret."""

    pairing_id: str
    _secret: bytes
    fingerprint: bytes

    def __repr__(self) -> str:
        return f"PairingCode({self.pairing_id})"

    @classmethod
    def mint(cls, ca_der: bytes) -> PairingCode:
        """A new code for the CA with this certificate."""
        return cls(_text(secrets.token_bytes(_ID_BYTES)), secrets.token_bytes(_SECRET_BYTES), _fingerprint(ca_der))

    @classmethod
    def parse(cls, text: str) -> PairingCode:
        """Raises InvalidCode, with words for a person; they do not repeat the text."""
        found = _CODE.fullmatch(text.strip().lower())
        if found is None:
            raise InvalidCode("this is no pairing code: copy all of what `sis agents pair` printed, from sis1- on")
        return cls(found[1], _bytes(found[2]), _bytes(found[3]))

    def text(self) -> str:
        """What is given to a person."""
        return f"sis1-{self.pairing_id}-{_text(self._secret)}-{_text(self.fingerprint)}"

    def key(self) -> bytes:
        """The key of the HMAC, 32 bytes; it tells nothing of the secret."""
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"sis.pairing.v1").derive(self._secret)

    def trusts(self, ca_der: bytes) -> bool:
        """Whether this is the certificate of the CA that the code was made for."""
        return hmac.compare_digest(_fingerprint(ca_der), self.fingerprint)


def mac(key: bytes, keys: bytes) -> bytes:
    """The proof over a serialised AgentKeys."""
    return hmac.digest(key, keys, "sha256")


def enrolled_mac(key: bytes, name: str, group: str, serial: str) -> bytes:
    """The proof that whoever knows the code has made this agent of the keys; `serial`, in lower-case hexadecimal, is
    that of their certificate."""
    return mac(key, b"\0".join((b"sis.enrolled.v1", name.encode(), group.encode(), serial.encode())))


def renewal_message(agent: str, keys: bytes) -> bytes:
    """What an agent's identity key signs when it wants to be certified anew."""
    return b"\0".join((b"sis.keys.v1", agent.encode(), keys))


def _fingerprint(ca_der: bytes) -> bytes:
    return hashlib.sha256(ca_der).digest()[:_FINGERPRINT_BYTES]


def _text(data: bytes) -> str:
    return base64.b32encode(data).decode().lower().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b32decode(text.upper())
