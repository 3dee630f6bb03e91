"""What people and programs do with credentials.

Metadata are in PostgreSQL, values in Vault, and no transaction spans both. Whatever changes a value is done in three
steps, each of which can be the last one before a crash:

    1. PostgreSQL   the row says what is intended, with a mark
    2. Vault        the value is written, the same mark beside it, or removed
    3. PostgreSQL   the row says that it is done

After 1 or 2 the reconciler looks for the mark in Vault: it finishes what got there, and takes back what did not; so it
does where Vault's answer to 2 says nothing. A write that comes late, after it was taken back, is never used: a row
names the version in Vault that is its value. Vault keeps ten versions: before that one is the oldest, it is copied to
the front.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import Row

from services.credentials import store
from services.credentials.errors import (
    CredentialChanged,
    CredentialExists,
    CredentialNotFound,
    RequestIdReused,
)
from services.credentials.kinds import Kind, Secret, account_violations, secret_violations
from services.credentials.store import Credential
from services.credentials.tables import State
from services.credentials.values import Values
from services.credentials.vault_errors import CasMismatch, VaultError
from services.runtime import faults
from services.runtime.database import Database
from services.runtime.errors import FieldViolation, InvalidArgument, SisError, Unavailable

ONE_JOB_LIFETIME = timedelta(hours=1)
"""How long a credential that was made for one job waits for it."""

_WRITES: Final = 8
_UNUSED: Final = 5
"""So many versions may follow the one that counts before it is copied, which leaves as much room again for the copy."""

_log = logging.getLogger("credentials")


@dataclass(frozen=True, slots=True)
class CreateCredential:
    """A credential to be."""

    name: str
    kind: Kind
    username: str
    domain: str
    description: str
    value: Secret
    for_one_job: bool
    request_id: str
    fingerprint: bytes = field(repr=False)
    """Of the request without its secret, so that a reused id is told from a retry."""


@dataclass(frozen=True, slots=True)
class ReplaceCredential:
    """Another secret for a credential; None leaves a field as it is, version 0 takes any."""

    name: str
    value: Secret
    username: str | None
    domain: str | None
    description: str | None
    version: int


class _Unknown(Exception):
    """A replacement was sent to Vault; whether it got there, the answer does not say."""

    def __init__(self, error: VaultError) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Leases, newest first, and whether there are more."""

    uses: Sequence[Row[Any]]
    more: bool


async def create(database: Database, values: Values, command: CreateCredential, by: str) -> Credential:
    """Store a credential; with a request id that was used for the same request and secret, return the one that it made.

    Ended with VaultError, nothing was stored by this call, and the name is free, unless an earlier one has stored it.

    Raises:
        CredentialExists, RequestIdReused, InvalidArgument, VaultError
        CredentialNotFound: the request was repeated, and its credential has been deleted since.
    """
    problems = account_violations(command.kind, command.username, command.domain)
    await _check(problems, command.kind, command.value)
    credential_id, made = uuid4(), None
    async with database.begin() as connection:
        if command.request_id:
            fingerprint = hmac.digest(by.encode(), command.fingerprint, hashlib.sha256)
            made = await store.claim_request_id(connection, by, command.request_id, fingerprint, credential_id)
        if made is None:
            credential = await store.add(
                connection,
                {
                    "credential_id": credential_id,
                    "name": command.name,
                    "kind": command.kind,
                    "username": command.username,
                    "domain": command.domain,
                    "description": command.description,
                    "intent": uuid4(),
                    "attended_at": None,
                    "creator": by,
                },
                lifetime=ONE_JOB_LIFETIME if command.for_one_job else None,
            )
            if credential is None:
                raise CredentialExists(command.name)
        else:
            credential = await store.get(connection, made)
            if credential is None or credential.state not in (State.PENDING, *store.HELD):
                raise CredentialNotFound(command.name)
    faults.point("credentials.created")
    if credential.state is not State.PENDING:
        await _compare(values, credential, command)
        return credential
    return await _finish_creation(database, values, credential, command)


async def _finish_creation(
    database: Database, values: Values, credential: Credential, command: CreateCredential
) -> Credential:
    assert credential.intent is not None  # as long as it is PENDING
    try:
        try:
            vault_version = await values.put(credential.credential_id, command.value, credential.intent, after=0)
        except CasMismatch:
            # An earlier try of this request got there.
            vault_version = await _compare(values, credential, command)
    except VaultError:
        async with database.begin() as connection:
            await store.abandon(connection, credential.credential_id)
        raise
    faults.point("credentials.stored")
    async with database.begin() as connection:
        settled = await store.settle_creation(connection, credential.credential_id, vault_version)
        found = settled or await store.get(connection, credential.credential_id)
    if found is not None and found.state in store.HELD:
        return found
    await _remove_late(values, credential.credential_id)
    raise Unavailable(f"credential {command.name!r} was taken back while it was stored; try again", retry_after=1.0)


async def _compare(values: Values, credential: Credential, command: CreateCredential) -> int:
    """The version that the credential was created with, if that was this secret. Raises RequestIdReused."""
    stored = await values.get(credential.credential_id, version=1)
    if stored is None or not stored.value.same(command.value):
        raise RequestIdReused(command.request_id)
    return stored.version


async def replace(database: Database, values: Values, command: ReplaceCredential, by: str) -> Credential:
    """Replace the secret, and what else is given. Of several at once, one wins.

    Ended with VaultError, nothing was replaced; with one that is `unknown`, it may be, or be yet, unless it is replaced
    again: with its version, that may be tried at once.

    Raises:
        CredentialNotFound, CredentialChanged, InvalidArgument, VaultError
    """
    async with database.begin() as connection:
        before = await store.find(connection, command.name)
    if before is None or before.state is State.DELETING:
        raise CredentialNotFound(command.name)
    username = before.username if command.username is None else command.username
    domain = before.domain if command.domain is None else command.domain
    await _check(account_violations(before.kind, username, domain), before.kind, command.value)
    intent = uuid4()
    given = {"username": command.username, "domain": command.domain, "description": command.description}
    change = {name: value for name, value in given.items() if value is not None} | {"updater": by}
    async with database.begin() as connection:
        intended = await store.intend_replacement(connection, before.credential_id, command.version, intent, change)
        if intended is None:
            raise _unlike(command, await store.get(connection, before.credential_id))
    faults.point("credentials.replacing")
    try:
        vault_version = await _write(database, values, intended, command.value, intent)
    except _Unknown as unknown:
        raise unknown.error.amended(
            f"whether credential {command.name!r} was replaced shows within minutes of its return: look at it then, or"
            f" repeat this with version {intended.version}"
        ) from None
    except (CredentialChanged, VaultError):
        async with database.begin() as connection:
            await store.give_up_replacement(connection, before.credential_id, intent)
        raise
    faults.point("credentials.replaced")
    async with database.begin() as connection:
        settled = await store.settle_replacement(connection, before.credential_id, intent, vault_version)
        found = settled or await store.get(connection, before.credential_id)
    if found is not None and found.state in store.HELD:
        if found.vault_version == vault_version:
            return found
        raise _superseded(command.name)
    await _remove_late(values, before.credential_id)
    raise CredentialNotFound(command.name)


async def _write(database: Database, values: Values, credential: Credential, value: Secret, intent: UUID) -> int:
    """Write the newest version. What a replacement that was superseded writes meanwhile may come in between."""
    for _ in range(_WRITES):
        newest = await values.newest_version(credential.credential_id)
        try:
            if newest - credential.vault_version >= _UNUSED:
                newest = await _copy(database, values, credential, newest)
            return await _put(values, credential, value, intent, newest)
        except CasMismatch:
            async with database.begin() as connection:
                now = await store.get(connection, credential.credential_id)
            if now is None or now.intent != intent:
                break
            credential = now
    raise _superseded(credential.name)


async def _put(values: Values, credential: Credential, value: Secret, intent: UUID, newest: int) -> int:
    try:
        return await values.put(credential.credential_id, value, intent, after=newest)
    except VaultError as error:
        if error.unknown:
            raise _Unknown(error) from None
        raise


async def _copy(database: Database, values: Values, credential: Credential, newest: int) -> int:
    """Have the newest version be the value that counts, with its mark, by which a copy is recognised whose answer was
    lost. Returns its number; may raise CasMismatch."""
    counting = await values.get(credential.credential_id, credential.vault_version)
    if counting is None:
        return newest  # nothing is left to be kept
    front = await values.get(credential.credential_id)
    if front is not None and front.intent == counting.intent:
        version = front.version
    else:
        version = await values.put(credential.credential_id, counting.value, counting.intent, after=newest)
    async with database.begin() as connection:
        await store.move_value(connection, credential, version)
    return version


def _unlike(command: ReplaceCredential, found: Credential | None) -> SisError:
    if found is None or found.state not in (State.PENDING, *store.HELD):
        return CredentialNotFound(command.name)
    if found.state is State.PENDING:
        why = "is still being stored; try again in a few minutes, or delete it"
        return CredentialChanged(command.name, "STATE_PENDING", why)
    why = f"has version {found.version}, not {command.version}: somebody replaced it; look at it, then decide"
    return CredentialChanged(command.name, "VERSION", why)


def _superseded(name: str) -> CredentialChanged:
    return CredentialChanged(
        name, "REPLACED", "was replaced by somebody else at the same time; look at it, then decide"
    )


async def delete(database: Database, values: Values, name: str) -> None:
    """Delete a credential with every version of its secret; no lease is given on it any more.

    Ended with VaultError, it is DELETING: the reconciler goes on, and so does a retry.

    Raises:
        CredentialNotFound, VaultError
    """
    async with database.begin() as connection:
        found = await store.intend_deletion(connection, name)
    if found is None:
        raise CredentialNotFound(name)
    faults.point("credentials.deleting")
    await values.remove(found.credential_id)
    faults.point("credentials.erased")
    async with database.begin() as connection:
        await store.settle_removal(connection, found.credential_id)


async def _remove_late(values: Values, credential_id: UUID) -> None:
    """A value was written whose credential is gone: remove it, or leave that to the reconciler."""
    try:
        await values.remove(credential_id)
    except VaultError as error:
        _log.warning("a value of a deleted credential is left to the reconciler: %s", error)


async def list_page(database: Database, after: str, size: int, *, for_one_job: bool) -> tuple[list[Credential], bool]:
    """A page of credentials by name, after a name, and whether there are more."""
    async with database.begin() as connection:
        found = await store.page(connection, after, size + 1, for_one_job=for_one_job)
    return found[:size], len(found) > size


async def get(database: Database, name: str) -> Credential:
    """One credential.

    Raises:
        CredentialNotFound
    """
    async with database.begin() as connection:
        found = await store.find(connection, name)
    if found is None:
        raise CredentialNotFound(name)
    return found


async def usage(database: Database, name: str, before: tuple[datetime, UUID] | None, size: int) -> UsagePage:
    """Who used the credential of this name, newest first; those that had the name before it and were deleted, too.

    Raises:
        CredentialNotFound: none ever had this name.
    """
    async with database.begin() as connection:
        found = await store.used(connection, name, before, size + 1)
    if found is None:
        raise CredentialNotFound(name)
    return UsagePage(found[:size], len(found) > size)


async def bind(database: Database, name: str, job_id: int) -> Credential:
    """Tie a credential that was made for one job to that job.

    Raises:
        CredentialNotFound: also if it has expired.
        CredentialChanged: it is not made for one job, or is tied to another.
    """
    async with database.begin() as connection:
        bound = await store.bind(connection, name, job_id)
        if bound is not None:
            return bound
        found = await store.find(connection, name)
    if found is None or found.state is State.DELETING:
        raise CredentialNotFound(name)
    if not found.for_one_job:
        raise CredentialChanged(name, "NOT_FOR_ONE_JOB", "is not made for one job; nothing needs to be tied")
    if found.job_id is not None:
        raise CredentialChanged(name, "OTHER_JOB", f"is tied to job {found.job_id}; make another one")
    raise CredentialNotFound(name)


async def _check(problems: list[FieldViolation], kind: Kind, value: Secret) -> None:
    # In a thread, as an encrypted key costs time by design.
    problems = problems + await asyncio.to_thread(secret_violations, kind, value)
    if problems:
        raise InvalidArgument.fields(problems)
