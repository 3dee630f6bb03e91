"""The statements on credentials and their request ids. A row is moved only from the state that its mover saw."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, Select, Update, and_, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.errors import RequestIdReused
from services.credentials.kinds import Kind
from services.credentials.tables import LIVING, State, credentials, leases, living, request_ids

HELD: Final = (State.READY, State.VALUE_MISSING)
"""The states of credentials that were stored and are not on their way out."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential without its value."""

    credential_id: UUID
    name: str
    kind: Kind
    username: str
    domain: str
    description: str
    state: State
    version: int
    vault_version: int
    intent: UUID | None
    for_one_job: bool
    expires_at: datetime | None
    job_id: int | None
    created_at: datetime
    creator: str
    updated_at: datetime
    updater: str
    # When a job last took a lease on it; None also where nobody asked the database.
    last_used_at: datetime | None = None

    @classmethod
    def from_row(cls, row: Row[Any]) -> Credential:
        found = {each.name: row._mapping[each.name] for each in fields(cls) if each.name in row._mapping}
        return cls(**{**found, "kind": Kind(row.kind), "state": State(row.state)})


_last_used_at = (
    select(func.max(leases.c.taken_at))
    .where(leases.c.credential_id == credentials.c.credential_id)
    .scalar_subquery()
    .label("last_used_at")
)


def _shown() -> Select[Any]:
    return select(credentials, _last_used_at)


async def find(connection: AsyncConnection, name: str) -> Credential | None:
    """The living credential of this name."""
    query = _shown().where(credentials.c.name == name, credentials.c.state.in_(LIVING))
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Credential.from_row(row)


async def get(connection: AsyncConnection, credential_id: UUID) -> Credential | None:
    """A credential in any state."""
    row = (await connection.execute(_shown().where(credentials.c.credential_id == credential_id))).one_or_none()
    return None if row is None else Credential.from_row(row)


async def page(connection: AsyncConnection, after: str, limit: int, *, for_one_job: bool) -> list[Credential]:
    """Living credentials by name, after a name."""
    query = _shown().where(credentials.c.state.in_(LIVING), credentials.c.name > after)
    if not for_one_job:
        query = query.where(~credentials.c.for_one_job)
    rows = (await connection.execute(query.order_by(credentials.c.name).limit(limit))).all()
    return [Credential.from_row(row) for row in rows]


async def claim_request_id(
    connection: AsyncConnection, caller: str, request_id: str, fingerprint: bytes, credential_id: UUID
) -> UUID | None:
    """Take a request id for a credential to be (a concurrent retry waits here), or return the one that it made.

    Raises:
        RequestIdReused
    """
    taken = await connection.execute(
        insert(request_ids)
        .values(
            caller=caller,
            request_id=request_id,
            fingerprint=fingerprint,
            credential_id=credential_id,
            created_at=func.now(),
        )
        .on_conflict_do_nothing()
        .returning(request_ids.c.caller)
    )
    if taken.first() is not None:
        return None
    query = select(request_ids.c.fingerprint, request_ids.c.credential_id).where(
        request_ids.c.caller == caller, request_ids.c.request_id == request_id
    )
    found = (await connection.execute(query)).one()
    if not hmac.compare_digest(bytes(found.fingerprint), fingerprint):
        raise RequestIdReused(request_id)
    return UUID(str(found.credential_id))


async def add(
    connection: AsyncConnection, values: Mapping[str, object], *, lifetime: timedelta | None
) -> Credential | None:
    """Insert a credential whose value is on its way; None if a living one has its name. After `lifetime` it expires."""
    query = (
        insert(credentials)
        .values(
            **values,
            state=State.PENDING,
            version=1,
            intent_at=func.now(),
            created_at=func.now(),
            updated_at=func.now(),
            for_one_job=lifetime is not None,
            expires_at=None if lifetime is None else func.now() + lifetime,
        )
        .on_conflict_do_nothing(index_elements=[credentials.c.name], index_where=living)
        .returning(credentials)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Credential.from_row(row)


async def settle_creation(connection: AsyncConnection, credential_id: UUID, vault_version: int) -> Credential | None:
    """The value is in Vault: PENDING -> READY. None if it is not PENDING any more."""
    query = update(credentials).where(
        credentials.c.credential_id == credential_id, credentials.c.state == State.PENDING
    )
    return await _moved(connection, query.values(state=State.READY, vault_version=vault_version, **_SETTLED))


async def abandon(connection: AsyncConnection, credential_id: UUID) -> bool:
    """Take an unfinished creation back: PENDING -> ABANDONED, which frees its name and request id. What may have got
    into Vault is removed by the reconciler. False if it is not PENDING any more."""
    query = update(credentials).where(
        credentials.c.credential_id == credential_id, credentials.c.state == State.PENDING
    )
    if await _moved(connection, query.values(state=State.ABANDONED, **{**_SETTLED, "attended_at": None})) is None:
        return False
    await connection.execute(request_ids.delete().where(request_ids.c.credential_id == credential_id))
    return True


async def intend_replacement(
    connection: AsyncConnection, credential_id: UUID, version: int, intent: UUID, change: Mapping[str, str]
) -> Credential | None:
    """Note a replacement that is under way, in place of any other; with `version`, only of this one. None if the
    credential is not as supposed."""
    query = update(credentials).where(
        credentials.c.credential_id == credential_id, credentials.c.state.in_(HELD), _version(version)
    )
    values = {"intent": intent, "intent_at": func.now(), "intent_change": dict(change), "attended_at": func.now()}
    return await _moved(connection, query.values(**values))


async def settle_replacement(
    connection: AsyncConnection, credential_id: UUID, intent: UUID, vault_version: int
) -> Credential | None:
    """The new value is in Vault: change the row as was intended. None if this is not what is under way."""
    change = credentials.c.intent_change
    query = (
        update(credentials)
        .where(
            credentials.c.credential_id == credential_id,
            credentials.c.intent == intent,
            credentials.c.state.in_(HELD),
        )
        .values(
            state=State.READY,
            version=credentials.c.version + 1,
            vault_version=vault_version,
            username=func.coalesce(change["username"].astext, credentials.c.username),
            domain=func.coalesce(change["domain"].astext, credentials.c.domain),
            description=func.coalesce(change["description"].astext, credentials.c.description),
            updater=func.coalesce(change["updater"].astext, ""),
            updated_at=func.now(),
            **_SETTLED,
        )
    )
    return await _moved(connection, query)


async def give_up_replacement(connection: AsyncConnection, credential_id: UUID, intent: UUID) -> bool:
    """Forget a replacement that is under way; the value stays as it was. False if this is not what is under way."""
    query = update(credentials).where(
        credentials.c.credential_id == credential_id, credentials.c.intent == intent, credentials.c.state.in_(HELD)
    )
    return await _moved(connection, query.values(**_SETTLED)) is not None


async def move_value(connection: AsyncConnection, seen: Credential, vault_version: int) -> bool:
    """The value of the credential as it was seen is now in this version as well, which counts from now on. False if
    another one does meanwhile."""
    query = update(credentials).where(
        credentials.c.credential_id == seen.credential_id,
        credentials.c.vault_version == seen.vault_version,
        credentials.c.state.in_(HELD),
    )
    return await _moved(connection, query.values(vault_version=vault_version)) is not None


async def intend_deletion(connection: AsyncConnection, name: str) -> Credential | None:
    """A living credential is on its way out: -> DELETING. None if there is none of this name."""
    query = update(credentials).where(credentials.c.name == name, credentials.c.state.in_(LIVING))
    return await _moved(connection, query.values(state=State.DELETING, **_SETTLED))


async def settle_removal(connection: AsyncConnection, credential_id: UUID) -> bool:
    """Vault has nothing of it: DELETING -> DELETED; what is ABANDONED stays so. False if it is neither."""
    gone = or_(
        credentials.c.state == State.DELETING,
        and_(credentials.c.state == State.ABANDONED, credentials.c.deleted_at.is_(None)),
    )
    query = update(credentials).where(credentials.c.credential_id == credential_id, gone)
    after = text("CASE state WHEN 'DELETING' THEN 'DELETED' ELSE state END")
    return await _moved(connection, query.values(state=after, deleted_at=func.now())) is not None


async def note_presence(connection: AsyncConnection, seen: Credential, *, present: bool) -> bool:
    """Note whether Vault has the value of the credential as it was seen; False if it has changed since, or is known to
    be so."""
    before, after = (State.VALUE_MISSING, State.READY) if present else (State.READY, State.VALUE_MISSING)
    query = update(credentials).where(
        credentials.c.credential_id == seen.credential_id,
        credentials.c.vault_version == seen.vault_version,
        credentials.c.state == before,
    )
    return await _moved(connection, query.values(state=after)) is not None


async def bind(connection: AsyncConnection, name: str, job_id: int) -> Credential | None:
    """Tie a credential that is made for one job, and not to another, to this job. None if there is no such."""
    query = update(credentials).where(
        credentials.c.name == name,
        credentials.c.state.in_([State.PENDING, *HELD]),
        credentials.c.for_one_job,
        or_(credentials.c.job_id == job_id, and_(credentials.c.job_id.is_(None), ~expired())),
    )
    return await _moved(connection, query.values(job_id=job_id, expires_at=None))


def expired() -> Any:
    """Made for a job that has not come in time."""
    return func.coalesce(credentials.c.expires_at <= func.now(), False)


async def used(
    connection: AsyncConnection, name: str, before: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Row[Any]] | None:
    """The leases of all credentials that have or had this name, newest first; None if none ever had it."""
    bearers = select(credentials.c.credential_id).where(
        credentials.c.name == name, credentials.c.state != State.ABANDONED
    )
    ids = (await connection.execute(bearers)).scalars().all()
    if not ids:
        return None
    query = select(*(each for each in leases.c if each.name != "ciphertext")).where(leases.c.credential_id.in_(ids))
    if before is not None:
        at, lease_id = before
        earlier = and_(leases.c.taken_at == at, leases.c.lease_id < lease_id)
        query = query.where(or_(leases.c.taken_at < at, earlier))
    query = query.order_by(leases.c.taken_at.desc(), leases.c.lease_id.desc()).limit(limit)
    return (await connection.execute(query)).all()


# What a row holds once nothing is under way.
_SETTLED: Final[Mapping[str, Any]] = {
    "intent": None,
    "intent_at": None,
    "intent_change": None,
    "attended_at": func.now(),
}


def _version(version: int) -> Any:
    return credentials.c.version == version if version else text("true")


async def _moved(connection: AsyncConnection, query: Update) -> Credential | None:
    row = (await connection.execute(query.returning(credentials, _last_used_at))).one_or_none()
    return None if row is None else Credential.from_row(row)
