"""The kinds of credentials, and what each is made of. Pure."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import StrEnum

from services.credentials import private_keys
from services.runtime.errors import FieldViolation

SHORTEST_SECRET = 8
"""Bytes. What is shorter cannot be masked without masking half of what a job prints."""
LONGEST_SECRET = 64 * 1024


class Kind(StrEnum):
    """What a credential is made of."""

    USERNAME_PASSWORD = "USERNAME_PASSWORD"  # noqa: S105  (a kind, not a password)
    SSH_KEY = "SSH_KEY"
    TOKEN = "TOKEN"  # noqa: S105
    DOMAIN_ACCOUNT = "DOMAIN_ACCOUNT"


@dataclass(frozen=True, slots=True)
class Secret:
    """The value of a credential. Its bytes are taken as they are, a newline at their end too. Its representation does
    not show them."""

    secret: bytes = field(repr=False)
    passphrase: bytes = field(default=b"", repr=False)

    def same(self, other: Secret) -> bool:
        """Whether both are the same, in a time that does not tell where they differ."""
        secret = hmac.compare_digest(self.secret, other.secret)
        passphrase = hmac.compare_digest(self.passphrase, other.passphrase)
        return secret and passphrase


def account_violations(kind: Kind, username: str, domain: str) -> list[FieldViolation]:
    """What is missing for this kind, or too much."""
    found = []
    if kind is Kind.TOKEN:
        if username:
            found.append(FieldViolation("username", "a token has none; leave it empty"))
    elif not username.strip():
        found.append(FieldViolation("username", f"is required for the kind {kind}"))
    if kind is Kind.DOMAIN_ACCOUNT:
        if not domain.strip():
            found.append(FieldViolation("domain", f"is required for the kind {kind}"))
    elif domain:
        found.append(FieldViolation("domain", f"is for {Kind.DOMAIN_ACCOUNT} only; leave it empty"))
    return found


def secret_violations(kind: Kind, value: Secret) -> list[FieldViolation]:
    """What is wrong with a secret of this kind; the words repeat nothing of it. An encrypted private key takes up to
    seconds of processor time."""
    found = _size_violations("value.secret", value.secret)
    if kind is not Kind.SSH_KEY:
        if value.passphrase:
            found.append(FieldViolation("value.passphrase", f"is for {Kind.SSH_KEY} only; leave it empty"))
        return found
    if value.passphrase:
        found += _size_violations("value.passphrase", value.passphrase)
    if found:
        return found
    try:
        private_keys.check(value.secret, value.passphrase)
    except private_keys.BadPassphrase as error:
        found.append(FieldViolation("value.passphrase", str(error)))
    except private_keys.BadKey as error:
        found.append(FieldViolation("value.secret", str(error)))
    return found


def _size_violations(name: str, value: bytes) -> list[FieldViolation]:
    if len(value) < SHORTEST_SECRET:
        return [FieldViolation(name, f"is required, with at least {SHORTEST_SECRET} bytes")]
    if len(value) > LONGEST_SECRET:
        return [FieldViolation(name, f"has {len(value):,} bytes; at most {LONGEST_SECRET:,} are taken")]
    if b"\0" in value:
        return [FieldViolation(name, "has a NUL byte, which no process can be given; remove it")]
    if not value.strip():
        return [FieldViolation(name, "is blank; give the secret itself")]
    return []
