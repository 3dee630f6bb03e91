"""Opening the leases of an assignment, and nothing of what they hold where it does not belong."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.runtime import sealing
from services.runtime.sealing import LeaseBinding
from services.sis_agent.agent.supervision.leases import (
    MAX_SECRET_LINES,
    Leases,
    LeaseUnreadable,
    leases_of,
    open_leases,
)
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from tests.support.sealed import DOMAIN_ACCOUNT, SSH_KEY, SealedIdentity

SECRET = b"correct horse battery staple"


@pytest.fixture
def sealed(tmp_path: Path) -> SealedIdentity:
    return SealedIdentity(tmp_path / "identity")


@pytest.fixture
def assignment() -> dispatch.Assignment:
    return dispatch.Assignment(attempt=dispatch.Attempt(job_id=7, number=2))


def opened(assignment: dispatch.Assignment, sealed: SealedIdentity) -> Leases:
    return open_leases(assignment, AgentIdentity.load(sealed.directory))


def test_leases_are_opened_by_their_ref(assignment: dispatch.Assignment, sealed: SealedIdentity) -> None:
    sealed.lease(assignment, "credential.db", SECRET, credential="figures", username="reader")
    sealed.lease(assignment, "param.pin", b"12345678")
    sealed.lease(assignment, "credential.repo", b"a key", SSH_KEY, passphrase=b"of the key")
    leases = opened(assignment, sealed)
    db = leases.reference("db")
    assert db is not None
    assert (db.credential, db.username, db.value) == ("figures", "reader", SECRET)
    assert leases.input("pin") == leases.get("param.pin")
    assert leases.reference("pin") is None
    assert sorted(leases.secrets()) == [b"12345678", b"a key", SECRET, b"of the key"]
    assert leases.account is None
    leases.forget()
    assert not leases
    assert leases.secrets() == []


def test_run_as_is_the_admin_unless_it_is_said(assignment: dispatch.Assignment, sealed: SealedIdentity) -> None:
    sealed.lease(assignment, "admin", SECRET, DOMAIN_ACCOUNT, username="root", domain="CORP")
    leases = opened(assignment, sealed)
    assert str(leases.account) == "CORP\\root"
    assert leases.reference("admin") == leases.reference("run_as") == leases.get("admin")
    sealed.lease(assignment, "run_as", SECRET, username="alice", credential="ops-alice")
    leases = opened(assignment, sealed)
    assert str(leases.account) == "alice"
    assert leases.account is not None
    assert leases.account.credential == "ops-alice"
    assert leases.reference("run_as") == leases.get("run_as")
    assert leases.reference("admin") == leases.get("admin")


def test_no_representation_has_the_secret(assignment: dispatch.Assignment, sealed: SealedIdentity) -> None:
    sealed.lease(assignment, "admin", SECRET, SSH_KEY, username="root", passphrase=b"of the key")
    leases = opened(assignment, sealed)
    seen = f"{leases!r} {leases} {leases.get('admin')!r} {leases.account!r} {vars(leases).keys()}"
    assert "horse" not in seen
    assert "of the key" not in seen


def test_a_lease_opens_for_nothing_else(
    assignment: dispatch.Assignment, sealed: SealedIdentity, tmp_path: Path
) -> None:
    lease = sealed.lease(assignment, "credential.db", SECRET)
    changes: list[dispatch.Assignment] = []
    for path, value in (
        ("attempt.job_id", 8),
        ("attempt.number", 3),
        ("leases.ref", "credential.other"),
        ("leases.lease_id", "lease-9"),
        ("leases.ciphertext", lease.ciphertext[:-1] + b"x"),
        ("leases.ciphertext", b"short"),
        ("leases.ciphertext", b""),
    ):
        changed = dispatch.Assignment.FromString(assignment.SerializeToString())
        part, _, name = path.partition(".")
        setattr(changed.leases[0] if part == "leases" else changed.attempt, name, value)
        changes.append(changed)
    for changed in changes:
        with pytest.raises(LeaseUnreadable, match=r"cannot be opened") as caught:
            opened(changed, sealed)
        assert b"horse" not in str(caught.value).encode()
    with pytest.raises(LeaseUnreadable, match="which this agent does not have"):
        opened(assignment, SealedIdentity(tmp_path / "another", sealed.name))
    other_name = SealedIdentity(tmp_path / "renamed", "agent-b")
    (other_name.directory / "sealing" / sealed.key_file.name).write_bytes(sealed.key_file.read_bytes())
    with pytest.raises(LeaseUnreadable, match=r"cannot be opened"):
        opened(assignment, other_name)


def test_every_wanted_credential_needs_its_lease(assignment: dispatch.Assignment, sealed: SealedIdentity) -> None:
    sealed.lease(assignment, "credential.db", SECRET)
    assignment.credentials.add(ref="run_as", credential="ops-alice")
    with pytest.raises(LeaseUnreadable, match="has no lease of ops-alice for run_as"):
        opened(assignment, sealed)


def test_what_is_sealed_and_no_secret_is_refused(assignment: dispatch.Assignment, sealed: SealedIdentity) -> None:
    lease = sealed.lease(assignment, "credential.db", SECRET)
    public = X25519PrivateKey.from_private_bytes(sealed.key_file.read_bytes()).public_key().public_bytes_raw()
    binding = LeaseBinding(7, 2, sealed.name, lease.lease_id, lease.ref)
    lease.ciphertext = sealing.seal(b"\xff" + SECRET, public, binding)
    with pytest.raises(LeaseUnreadable, match="holds no secret") as caught:
        opened(assignment, sealed)
    assert caught.value.__suppress_context__


def test_no_more_secrets_than_can_be_masked_at_once(assignment: dispatch.Assignment, sealed: SealedIdentity) -> None:
    for number in range(4):
        # The same one again costs nothing.
        sealed.lease(assignment, f"credential.x{number}", bytes([97 + number // 2]) * (64 << 10))
    assert len(opened(assignment, sealed).secrets()) == 4
    sealed.lease(assignment, "param.pin", SECRET)
    with pytest.raises(LeaseUnreadable, match="no more than 131,072 bytes in 2,000 lines can be masked") as caught:
        opened(assignment, sealed)
    assert caught.value.reason == "CREDENTIAL_UNSUITABLE"
    lines = dispatch.Assignment(attempt=assignment.attempt)
    sealed.lease(lines, "credential.a", b"12345678\n" * MAX_SECRET_LINES)
    opened(lines, sealed)
    sealed.lease(lines, "credential.b", b"12345678\n\n")
    with pytest.raises(LeaseUnreadable, match="18,010 bytes in 2,001 lines"):
        opened(lines, sealed)


def test_without_leases_no_identity_is_needed(assignment: dispatch.Assignment, sealed: SealedIdentity) -> None:
    assert not leases_of(assignment, None)
    sealed.lease(assignment, "credential.db", SECRET)
    assert leases_of(assignment, sealed.directory)
    with pytest.raises(LeaseUnreadable, match="started without an identity"):
        leases_of(assignment, None)
    with pytest.raises(LeaseUnreadable, match="there is no identity in"):
        leases_of(assignment, sealed.directory / "nowhere")
    sealed.key_file.write_bytes(b"short")
    with pytest.raises(LeaseUnreadable, match="cannot be read: enrol again"):
        leases_of(assignment, sealed.directory)
