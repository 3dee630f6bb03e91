"""The statements on attempts and their leases. Taking and ending meet at the row of the attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials import store
from services.credentials.store import HELD, Credential
from services.credentials.tables import agents, attempts, credentials


@dataclass(frozen=True, slots=True)
class Lease:
    """A secret that one agent can open, for one attempt."""

    lease_id: UUID
    ref: str
    sealing_key_id: str
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """What an attempt has taken, by which agent, and whether it has ended."""

    agent: str
    ended: bool
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class NewLease:
    """A lease to be."""

    lease: Lease
    credential: Credential


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """An attempt whose stop is settled; with `job_over`, no other one follows it."""

    job_id: int
    attempt: int
    job_over: bool


_ATTEMPTS: Final = text("""
    SELECT w.job_id, w.attempt, coalesce(a.agent, l.agent) AS agent,
        a.ended_at IS NOT NULL OR l.ended_at IS NOT NULL AS ended, l.lease_id, l.ref, l.sealing_key_id, l.ciphertext
    FROM jsonb_to_recordset(:wanted) AS w(job_id bigint, attempt int)
    LEFT JOIN credentials.attempts a USING (job_id, attempt)
    LEFT JOIN credentials.leases l USING (job_id, attempt)
    WHERE a.job_id IS NOT NULL OR l.lease_id IS NOT NULL
    ORDER BY l.ref
""").bindparams(bindparam("wanted", type_=JSONB))


async def taken(connection: AsyncConnection, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Taken]:
    """What is known of these attempts (job id, number)."""
    keys = [{"job_id": job_id, "attempt": attempt} for job_id, attempt in set(wanted)]
    found: dict[tuple[int, int], Taken] = {}
    for row in await connection.execute(_ATTEMPTS, {"wanted": keys}):
        key = (row.job_id, row.attempt)
        known = found.get(key, Taken(row.agent, row.ended, ()))
        held: tuple[Lease, ...] = ()
        if row.lease_id is not None and not row.ended:
            held = (Lease(row.lease_id, row.ref, row.sealing_key_id, bytes(row.ciphertext)),)
        found[key] = Taken(known.agent, known.ended or row.ended, known.leases + held)
    return found


async def sealing_keys(connection: AsyncConnection, names: Iterable[str]) -> dict[str, bytes]:
    """The present sealing keys of those agents that are enrolled and not revoked."""
    query = select(agents.c.name, agents.c.sealing_key).where(
        agents.c.name.in_(set(names)), agents.c.revoked_at.is_(None)
    )
    return {row.name: bytes(row.sealing_key) for row in await connection.execute(query)}


async def credentials_named(connection: AsyncConnection, names: Iterable[str]) -> Mapping[str, Credential]:
    """Those that a lease can be taken on, by name."""
    query = select(credentials).where(
        credentials.c.name.in_(set(names)), credentials.c.state.in_(HELD), ~store.expired()
    )
    return {row.name: Credential.from_row(row) for row in await connection.execute(query)}


async def begin_attempt(connection: AsyncConnection, job_id: int, attempt: int, agent: str) -> Taken | None:
    """Note that this agent takes the leases of an attempt, and keep the row until the transaction's end. What is known
    of it, if somebody was there before."""
    query = insert(attempts).values(job_id=job_id, attempt=attempt, agent=agent)
    first = await connection.execute(query.on_conflict_do_nothing().returning(attempts.c.job_id))
    if first.first() is not None:
        return None
    return (await taken(connection, [(job_id, attempt)]))[job_id, attempt]


async def hold_agent(connection: AsyncConnection, name: str, sealing_key: bytes) -> bool:
    """Whether the agent is still enrolled, with this sealing key; it stays so until the transaction's end."""
    query = select(agents.c.name).where(
        agents.c.name == name, agents.c.sealing_key == sealing_key, agents.c.revoked_at.is_(None)
    )
    return (await connection.execute(query.with_for_update(read=True))).first() is not None


async def hold_credentials(connection: AsyncConnection, wanted: Iterable[Credential], job_id: int) -> bool:
    """Whether all are still there for this job, until the transaction's end. One that was made for a job that did not
    tie it yet is tied to this one."""
    unique = {each.credential_id: each for each in wanted}
    own = sorted(key for key, each in unique.items() if each.for_one_job)
    shared = sorted(key for key, each in unique.items() if not each.for_one_job)
    held = 0
    for key in own:
        held += (await connection.execute(_TIE, {"key": key, "job": job_id})).rowcount
    if shared:
        query = select(credentials.c.credential_id).where(
            credentials.c.credential_id.in_(shared), credentials.c.state.in_(HELD)
        )
        locked = await connection.execute(query.order_by(credentials.c.credential_id).with_for_update(read=True))
        held += len(locked.all())
    return held == len(unique)


_TIE: Final = (
    update(credentials)
    .where(
        credentials.c.credential_id == bindparam("key"),
        credentials.c.state.in_(HELD),
        ~store.expired(),
        (credentials.c.job_id == bindparam("job")) | credentials.c.job_id.is_(None),
    )
    .values(job_id=bindparam("job"), expires_at=None)
)


async def add(
    connection: AsyncConnection, job_id: int, attempt: int, agent: str, requester: str, new: Sequence[NewLease]
) -> None:
    """Write down leases of an attempt that has none."""
    await connection.execute(
        _ADD,
        [
            {
                "job_id": job_id,
                "attempt": attempt,
                "agent": agent,
                "requester": requester,
                "lease_id": each.lease.lease_id,
                "ref": each.lease.ref,
                "sealing_key_id": each.lease.sealing_key_id,
                "ciphertext": each.lease.ciphertext,
                "credential_id": each.credential.credential_id,
                "version": each.credential.version,
            }
            for each in new
        ],
    )


_ADD: Final = text("""
    INSERT INTO credentials.leases (lease_id, job_id, attempt, ref, agent, requester, credential_id, version,
        sealing_key_id, ciphertext, taken_at)
    VALUES (:lease_id, :job_id, :attempt, :ref, :agent, :requester, :credential_id, :version, :sealing_key_id,
        :ciphertext, now())
""")


async def end(connection: AsyncConnection, ended: Iterable[EndedAttempt]) -> None:
    """Erase what the attempts have taken, and note that nothing is taken for them any more."""
    rows = [{"job_id": each.job_id, "attempt": each.attempt, "job_over": each.job_over} for each in ended]
    # The rows of the attempts first: who takes leases at this moment is waited for here.
    await connection.execute(_END_ATTEMPTS, {"ended": rows})
    await connection.execute(_END_LEASES, {"ended": rows})


# In order, so that two that end the same attempts do not wait for each other.
_END_ATTEMPTS: Final = text("""
    INSERT INTO credentials.attempts AS a (job_id, attempt, agent, ended_at, job_over)
    SELECT job_id, attempt, '', now(), bool_or(job_over)
    FROM jsonb_to_recordset(:ended) AS e(job_id bigint, attempt int, job_over boolean)
    GROUP BY job_id, attempt ORDER BY job_id, attempt
    ON CONFLICT (job_id, attempt) DO UPDATE
    SET ended_at = coalesce(a.ended_at, excluded.ended_at), job_over = a.job_over OR excluded.job_over
""").bindparams(bindparam("ended", type_=JSONB))
_END_LEASES: Final = text("""
    UPDATE credentials.leases l SET ciphertext = NULL, ended_at = now()
    FROM jsonb_to_recordset(:ended) AS e(job_id bigint, attempt int)
    WHERE l.job_id = e.job_id AND l.attempt = e.attempt AND l.ended_at IS NULL
""").bindparams(bindparam("ended", type_=JSONB))
