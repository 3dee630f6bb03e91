"""The secrets of an attempt, opened by its supervisor and by nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from services.runtime import sealing
from services.runtime.sealing import LeaseBinding, Unsealable
from services.sis_agent.agent.errors import IdentityDamaged, NotEnrolled
from services.sis_agent.agent.secrecy.secret_forms import lines_of
from services.sis_agent.agent.supervision.start_failed import CREDENTIAL_UNSUITABLE, LEASE_UNREADABLE, StartFailed
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.credentials.v1 import lease_pb2
from sis.packages.operation import ADMIN, INPUT_PREFIX, REFERENCE_PREFIX, RUN_AS
from sis.queue.v1 import dispatch_service_pb2 as dispatch

MAX_SECRET_BYTES: Final = 128 << 10
MAX_SECRET_LINES: Final = 2_000
"""Of all secrets of an attempt. Nobody can stop it before the masker knows their forms, which takes about a second
for so much."""


class LeaseUnreadable(StartFailed):
    """A lease of the attempt is missing or cannot be opened here, or its secrets are too much; the message names what
    it is about and has nothing of it."""

    def __init__(self, message: str, reason: str = LEASE_UNREADABLE) -> None:
        super().__init__(message, reason)


@dataclass(frozen=True, slots=True)
class Secret:
    """What one lease holds."""

    credential: str
    kind: int
    """A sis.credentials.v1.CredentialKind."""
    username: str
    domain: str
    value: bytes = field(repr=False)
    """The password, the token, or the private key."""
    passphrase: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class LeasedAccount:
    """The account that a credential names, and the credential's own name."""

    username: str
    domain: str
    credential: str

    def __str__(self) -> str:
        return f"{self.domain}\\{self.username}" if self.domain else self.username


class Leases:
    """The secrets of one attempt, by ref, as `sis.packages.operation` has them."""

    def __init__(self, by_ref: Mapping[str, Secret]) -> None:
        self._by_ref = dict(by_ref)

    def __bool__(self) -> bool:
        return bool(self._by_ref)

    def get(self, ref: str) -> Secret | None:
        return self._by_ref.get(ref)

    def reference(self, name: str) -> Secret | None:
        """The secret for a reference of the operation. `admin` and `run_as` are the job's own accounts."""
        if name == ADMIN:
            return self.get(ADMIN)
        return self._run_as if name == RUN_AS else self.get(REFERENCE_PREFIX + name)

    def input(self, name: str) -> Secret | None:
        """The secret for a sensitive input of the operation."""
        return self.get(INPUT_PREFIX + name)

    @property
    def account(self) -> LeasedAccount | None:
        """The account that the payload is to run as, where the job names one: Run As, which defaults to Admin."""
        found = self._run_as
        return LeasedAccount(found.username, found.domain, found.credential) if found else None

    def secrets(self) -> list[bytes]:
        """Everything that must not be seen: passwords, tokens, keys and passphrases."""
        return [part for secret in self._by_ref.values() for part in (secret.value, secret.passphrase) if part]

    def forget(self) -> None:
        """Let go of everything, once it is delivered."""
        self._by_ref.clear()

    @property
    def _run_as(self) -> Secret | None:
        return self.get(RUN_AS) or self.get(ADMIN)


def open_leases(assignment: dispatch.Assignment, identity: AgentIdentity) -> Leases:
    """The leases of an assignment.

    Raises:
        LeaseUnreadable: one is missing, or cannot be opened with the keys of this agent; or there is too much in them.
    """
    opened = {lease.ref: _open(assignment, lease, identity) for lease in assignment.leases}
    for use in assignment.credentials:
        if use.ref not in opened:
            raise LeaseUnreadable(f"the assignment has no lease of {use.credential} for {use.ref}")
    leases = Leases(opened)
    secrets = set(leases.secrets())
    size, lines = sum(map(len, secrets)), sum(len(lines_of(secret)) for secret in secrets)
    if size > MAX_SECRET_BYTES or lines > MAX_SECRET_LINES:
        raise LeaseUnreadable(
            f"the secrets of this job are {size:,} bytes in {lines:,} lines; no more than {MAX_SECRET_BYTES:,} bytes "
            f"in {MAX_SECRET_LINES:,} lines can be masked: give it fewer or smaller credentials",
            CREDENTIAL_UNSUITABLE,
        )
    return leases


def leases_of(assignment: dispatch.Assignment, identity_directory: Path | None) -> Leases:
    """As `open_leases`, with the identity in this directory, which is read only where there is something to open."""
    if not assignment.credentials and not assignment.leases:
        return Leases({})
    if identity_directory is None:
        raise LeaseUnreadable("the leases of this job cannot be opened: this agent was started without an identity")
    try:
        identity = AgentIdentity.load(identity_directory)
    except (NotEnrolled, IdentityDamaged) as error:
        raise LeaseUnreadable(f"the leases of this job cannot be opened: {error}") from None
    return open_leases(assignment, identity)


def _open(assignment: dispatch.Assignment, lease: lease_pb2.SealedLease, identity: AgentIdentity) -> Secret:
    what = f"the lease for {lease.ref}"
    try:
        key = identity.sealing_key(lease.sealing_key_id)
    except IdentityDamaged as error:
        raise LeaseUnreadable(f"{what} cannot be opened: {error}") from None
    if key is None:
        raise LeaseUnreadable(f"{what} is sealed to the key {lease.sealing_key_id}, which this agent does not have")
    attempt = assignment.attempt
    binding = LeaseBinding(attempt.job_id, attempt.number, identity.name, lease.lease_id, lease.ref)
    try:
        content = sealing.unseal(lease.ciphertext, key, binding)
        leased = lease_pb2.LeasedSecret.FromString(content)
    except Unsealable as error:
        raise LeaseUnreadable(f"{what} cannot be opened: {error}") from None
    except (DecodeError, ValueError):
        raise LeaseUnreadable(f"{what} was opened and holds no secret") from None
    return Secret(
        credential=leased.credential,
        kind=leased.kind,
        username=leased.username,
        domain=leased.domain,
        value=leased.value.secret,
        passphrase=leased.value.passphrase,
    )
