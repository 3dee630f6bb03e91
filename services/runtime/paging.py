"""Opaque tokens (AIP-158): where to go on, bound to the request that they were made for."""

from __future__ import annotations

import base64
import hashlib
import json

from services.runtime.errors import FieldViolation, InvalidArgument

TOKEN_CHARACTERS = 2_000


class InvalidToken(InvalidArgument):
    """The token in `field` does not belong to the request that it came with."""

    reason = "INVALID_TOKEN"

    def __init__(self, field: str) -> None:
        description = "is damaged or was made for another request; begin again without it"
        super().__init__(f"{field}: {description}", violations=[FieldViolation(field, description)])


def encode(position: list[object], request: bytes) -> str:
    """A token for `position` within the answers to `request` (its bytes without token and page size)."""
    raw = json.dumps([_hash(request, position), *position], separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode(token: str, request: bytes, field: str, kinds: tuple[type | tuple[type, ...], ...]) -> list[object]:
    """The position in a token; `kinds` are the types that its parts must have.

    Raises:
        InvalidToken: it is damaged, or was made for another request.
    """
    try:
        if len(token) > TOKEN_CHARACTERS:
            raise ValueError
        padded = token + "=" * (-len(token) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not isinstance(parts, list) or len(parts) != len(kinds) + 1 or parts[0] != _hash(request, parts[1:]):
            raise ValueError
    except (ValueError, RecursionError):
        raise InvalidToken(field) from None
    position: list[object] = parts[1:]
    if not all(isinstance(p, k) and not isinstance(p, bool) for p, k in zip(position, kinds, strict=True)):
        raise InvalidToken(field)
    return position


def _hash(request: bytes, position: list[object]) -> str:
    """Of both, so that a position which was edited is told from one that was given out."""
    return hashlib.sha256(request + json.dumps(position).encode()).hexdigest()[:16]
