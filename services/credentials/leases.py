"""Leases: secrets sealed to one agent, for one attempt of one job.

Vault is read outside of any transaction. What is kept of a lease is its ciphertext, and after its end only that it was
there: that is the record of who used a credential.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid4

from services.credentials import lease_store, store
from services.credentials.kinds import Kind, Secret
from services.credentials.lease_store import EndedAttempt, Lease, NewLease, Taken
from services.credentials.store import Credential
from services.credentials.values import Values
from services.credentials.vault_errors import VaultError
from services.runtime import faults, sealing
from services.runtime.database import Database
from services.runtime.sealing import LeaseBinding

READ_SECONDS: Final = 6.0
"""For all that one request wants. A hub gives up a call after 8 s, and with it what its other requests got."""
COMMITS: Final = 3
"""How many attempts of one call are written down at once; the pool has other users."""


class Reason(StrEnum):
    """Why an attempt got no leases; the names are the proto's."""

    VAULT_SEALED = "VAULT_SEALED"
    VAULT_UNREACHABLE = "VAULT_UNREACHABLE"
    VAULT_SLOW = "VAULT_SLOW"
    VAULT_FORBIDDEN = "VAULT_FORBIDDEN"
    VAULT_RATE_LIMITED = "VAULT_RATE_LIMITED"
    VAULT_FAILED = "VAULT_FAILED"
    AGENT_UNKNOWN = "AGENT_UNKNOWN"
    CREDENTIAL_NOT_FOUND = "CREDENTIAL_NOT_FOUND"
    CREDENTIAL_UNSUITABLE = "CREDENTIAL_UNSUITABLE"
    CREDENTIAL_VALUE_MISSING = "CREDENTIAL_VALUE_MISSING"
    ATTEMPT_ENDED = "ATTEMPT_ENDED"


PERMANENT: Final = frozenset(
    {Reason.CREDENTIAL_NOT_FOUND, Reason.CREDENTIAL_UNSUITABLE, Reason.CREDENTIAL_VALUE_MISSING}
)
"""What will not go away by itself."""

_AGENT_RETRY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Use:
    """That an attempt wants a credential, and what it may be; None: anything."""

    ref: str
    credential: str
    kinds: frozenset[Kind] | None


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """One attempt, and what it wants."""

    job_id: int
    attempt: int
    agent: str
    requester: str
    uses: tuple[Use, ...]


@dataclass(frozen=True, slots=True)
class LeasedSecret:
    """What is sealed."""

    credential: Credential
    value: Secret


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an attempt gets no leases, in words for a person. `retry_after` is in seconds."""

    reason: Reason
    message: str
    retry_after: float | None = None

    @property
    def permanent(self) -> bool:
        return self.reason in PERMANENT


class _Refused(Exception):
    def __init__(self, reason: Reason, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason, message, retry_after)


Encode = Callable[[LeasedSecret], bytes]
"""Serialises what is sealed."""
Answer = tuple[Lease, ...] | Refusal


class Leasing:
    """Takes and ends leases."""

    def __init__(
        self, database: Database, values: Values, encode: Encode, *, read_seconds: float = READ_SECONDS
    ) -> None:
        self._database = database
        self._values = values
        self._encode = encode
        self._read_seconds = read_seconds

    async def take(self, requests: Sequence[LeaseRequest]) -> list[Answer]:
        """For each request all leases that it wants, or why it gets none of them: VAULT_SLOW for one whose values were
        not read in time. What was taken before, by the same agent for the same attempt, is given again without Vault.
        Safe to retry.

        Raises:
            Unavailable, DeadlineExceeded: the database does not answer. Some leases may have been taken.
        """
        until = asyncio.get_running_loop().time() + self._read_seconds
        async with self._database.begin() as connection:
            taken = await lease_store.taken(connection, ((each.job_id, each.attempt) for each in requests))
            keys = await lease_store.sealing_keys(connection, (each.agent for each in requests))
            names = (use.credential for each in requests for use in each.uses)
            credentials = await lease_store.credentials_named(connection, names)
        commits = asyncio.Semaphore(COMMITS)
        async with _Reads(self._database, self._values) as reads:

            async def answer(request: LeaseRequest) -> Answer:
                try:
                    before = _repeated(request, taken.get((request.job_id, request.attempt)), keys)
                    if before is not None:
                        return before
                    if not request.uses:
                        return ()
                    wanted = _wanted(request, credentials)
                    try:
                        async with asyncio.timeout_at(until):
                            secrets = await reads.secrets(wanted)
                    except TimeoutError:
                        raise self._too_slow(len(wanted)) from None
                    new = self._sealed(request, keys[request.agent], secrets)
                    async with commits:
                        return await self._commit(request, keys[request.agent], new)
                except _Refused as refused:
                    return refused.refusal
                except VaultError as error:
                    return Refusal(Reason(error.reason), error.message, error.retry_after)

            # Those that want least read first, so that one that wants much holds up no other one.
            order = sorted(range(len(requests)), key=lambda place: len(requests[place].uses))
            answers = await asyncio.gather(*(answer(requests[place]) for place in order), return_exceptions=True)
        found: dict[int, Answer] = {}
        for place, each in zip(order, answers, strict=True):
            if isinstance(each, BaseException):
                raise each
            found[place] = each
        return [found[place] for place in range(len(requests))]

    async def end(self, ended: Sequence[EndedAttempt]) -> None:
        """Erase the leases of attempts; none is taken for them any more. Credentials that were made for a job that is
        over are deleted by the reconciler. Safe to retry.

        Raises:
            Unavailable, DeadlineExceeded
        """
        async with self._database.begin("credentials.end") as connection:
            await lease_store.end(connection, ended)

    def _too_slow(self, values: int) -> _Refused:
        return _Refused(
            Reason.VAULT_SLOW,
            f"Vault did not give the {values} values of this attempt in {self._read_seconds:g} s",
            2.0,
        )

    def _sealed(self, request: LeaseRequest, key: bytes, secrets: Sequence[LeasedSecret]) -> list[NewLease]:
        new = []
        for use, secret in zip(request.uses, secrets, strict=True):
            lease_id = uuid4()
            binding = LeaseBinding(request.job_id, request.attempt, request.agent, str(lease_id), use.ref)
            ciphertext = sealing.seal(self._encode(secret), key, binding)
            new.append(NewLease(Lease(lease_id, use.ref, sealing.key_id(key), ciphertext), secret.credential))
        return new

    async def _commit(self, request: LeaseRequest, key: bytes, new: Sequence[NewLease]) -> tuple[Lease, ...]:
        job_id, attempt, agent = request.job_id, request.attempt, request.agent
        async with self._database.begin("credentials.lease") as connection:
            known = await lease_store.begin_attempt(connection, job_id, attempt, agent)
            before = _repeated(request, known, {agent: key})
            if before is not None:
                return before
            if not await lease_store.hold_agent(connection, agent, key):
                raise _Refused(Reason.AGENT_UNKNOWN, f"agent {agent!r} was revoked or enrolled anew just now", 1.0)
            credentials = [each.credential for each in new]
            if not await lease_store.hold_credentials(connection, credentials, job_id):
                names = ", ".join(sorted({each.name for each in credentials}))
                raise _Refused(
                    Reason.CREDENTIAL_NOT_FOUND, f"one of {names} was deleted, or tied to another job, just now"
                )
            await lease_store.add(connection, job_id, attempt, agent, request.requester, new)
        return tuple(sorted((each.lease for each in new), key=lambda lease: lease.ref))


def _repeated(request: LeaseRequest, known: Taken | None, keys: Mapping[str, bytes]) -> tuple[Lease, ...] | None:
    """The leases that were taken before; None if there were none."""
    if known is not None and (known.ended or known.agent != request.agent):
        raise _Refused(
            Reason.ATTEMPT_ENDED,
            f"job {request.job_id}, attempt {request.attempt} has ended, or belongs to another agent",
        )
    if request.agent not in keys:
        raise _Refused(
            Reason.AGENT_UNKNOWN,
            f"agent {request.agent!r} is not enrolled, or was revoked: enrol it with a new pairing code",
            _AGENT_RETRY_SECONDS,
        )
    return None if known is None else known.leases


def _wanted(request: LeaseRequest, credentials: Mapping[str, Credential]) -> list[Credential]:
    """What the request's uses name, in their order."""
    found = []
    for use in request.uses:
        credential = credentials.get(use.credential)
        if credential is None:
            raise _Refused(Reason.CREDENTIAL_NOT_FOUND, _not_found(use.credential))
        if credential.job_id not in (None, request.job_id):
            raise _Refused(
                Reason.CREDENTIAL_UNSUITABLE,
                f"credential {credential.name!r} was made for job {credential.job_id} alone; name another one",
            )
        if use.kinds is not None and credential.kind not in use.kinds:
            known = ", ".join(sorted(use.kinds)) or "none that this server knows"
            raise _Refused(
                Reason.CREDENTIAL_UNSUITABLE,
                f"credential {credential.name!r} is of the kind {credential.kind}; {use.ref} takes: {known}",
            )
        found.append(credential)
    return found


def _not_found(name: str) -> str:
    return f"there is no credential {name!r}: it was never stored, was deleted, or has expired"


class _Reads:
    """The values that one call needs, each read once, however many of its leases are on it."""

    def __init__(self, database: Database, values: Values) -> None:
        self._database = database
        self._values = values
        self._tasks: dict[tuple[UUID, int], asyncio.Task[LeasedSecret]] = {}

    async def __aenter__(self) -> _Reads:
        return self

    async def __aexit__(self, *failure: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def secrets(self, wanted: Sequence[Credential]) -> list[LeasedSecret]:
        """The values of the credentials as they were found, which are read all at once, as far as Vault is called at
        once. Raises _Refused, VaultError, as soon as one cannot be had.

        Cancelled, it leaves the reads to others that want the same.
        """
        tasks = [self._task(each) for each in wanted]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return [task.result() for task in tasks]

    def _task(self, credential: Credential) -> asyncio.Task[LeasedSecret]:
        key = credential.credential_id, credential.vault_version
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._read(credential))
        return self._tasks[key]

    async def _read(self, credential: Credential) -> LeasedSecret:
        faults.point("credentials.reading")
        stored = await self._values.get(credential.credential_id, credential.vault_version)
        if stored is None and await self._values.newest_version(credential.credential_id):
            # Vault knows it: whether it has this version, it is asked once more, for the job fails without.
            stored = await self._values.get(credential.credential_id, credential.vault_version)
        faults.point("credentials.read")
        if stored is not None:
            return LeasedSecret(credential, stored.value)
        async with self._database.begin() as connection:
            await store.note_presence(connection, credential, present=False)
            now = await store.get(connection, credential.credential_id)
        if now is None or now.state not in store.HELD:
            raise _Refused(Reason.CREDENTIAL_NOT_FOUND, _not_found(credential.name))
        if now.vault_version != credential.vault_version:
            raise _Refused(Reason.VAULT_FAILED, f"credential {credential.name!r} was replaced just now", 1.0)
        raise _Refused(
            Reason.CREDENTIAL_VALUE_MISSING,
            f"Vault has no value for credential {credential.name!r} any more: replace or delete it",
        )
