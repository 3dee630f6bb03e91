"""The values of credentials in Vault: one entry of KV v2 for each, `credentials/<id>`, with check-and-set.

Beside a value stands the mark of the intent with which it was written, by which an interrupted write is recognised.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.credentials.kinds import Secret
from services.credentials.vault import Vault
from services.credentials.vault_errors import ValueMissing

_PREFIX: Final = "credentials"

_log = logging.getLogger("values")


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A version of a value, and the intent with which it was written."""

    version: int
    value: Secret
    intent: UUID


class Values:
    """What Vault keeps for credentials. Every operation may raise VaultError."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def get(self, credential_id: UUID, version: int | None = None) -> StoredValue | None:
        """A version of a value, the newest unless given; None if Vault does not have it."""
        try:
            stored = await self._vault.read(_path(credential_id), version)
        except ValueMissing:
            return None
        with contextlib.suppress(KeyError, ValueError, binascii.Error):
            secret = Secret(_decoded(stored.values["secret"]), _decoded(stored.values["passphrase"]))
            return StoredValue(stored.version, secret, UUID(stored.values["intent"]))
        _log.error("what Vault has at %s was not written by this service: it does not count", _path(credential_id))
        return None

    async def put(self, credential_id: UUID, value: Secret, intent: UUID, after: int) -> int:
        """Write a value as the next version after this one (0: the first); returns its number.

        Raises:
            CasMismatch: the newest version is another.
        """
        fields = {"secret": _encoded(value.secret), "passphrase": _encoded(value.passphrase), "intent": str(intent)}
        return await self._vault.write(_path(credential_id), fields, after)

    async def newest_version(self, credential_id: UUID) -> int:
        """The number of the newest version, also if it was removed; 0 if there never was one."""
        return await self._vault.current_version(_path(credential_id)) or 0

    async def remove(self, credential_id: UUID) -> None:
        """Remove every version for good. Repeating it changes nothing."""
        await self._vault.destroy(_path(credential_id))

    async def ids(self) -> set[UUID]:
        """The credentials for which Vault keeps something. What else is found there is logged, and left alone."""
        found, strange = set(), 0
        for name in await self._vault.list(_PREFIX):
            try:
                found.add(UUID(name))
            except ValueError:
                strange += 1
        if strange:
            _log.warning("Vault keeps %d entries below %s/ that are no credentials", strange, _PREFIX)
        return found


def _path(credential_id: UUID) -> str:
    return f"{_PREFIX}/{credential_id}"


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
