"""The tables of schema `credentials`, as the migrations leave them (a test compares the two).

No column holds a secret: a credential's value is in Vault at `credentials/<credential_id>`, and what a lease keeps
only one agent can open.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.credentials.kinds import Kind
from services.runtime.schema import Time, metadata_of, one_of

SCHEMA = "credentials"

metadata = metadata_of(SCHEMA)


class State(StrEnum):
    """How row and value stand to each other. `credentials` says who moves a row from which to which."""

    PENDING = "PENDING"
    """The value is on its way into Vault: by `create`, else by the reconciler -> READY or ABANDONED."""
    READY = "READY"
    """The value is in Vault. Also while another one replaces it: `intent` says so then."""
    VALUE_MISSING = "VALUE_MISSING"
    """Vault was seen without it. READY again once Vault is seen with it, or it was replaced."""
    DELETING = "DELETING"
    """The value is on its way out of Vault: by `delete`, else by the reconciler -> DELETED."""
    DELETED = "DELETED"
    """Vault has nothing of it; the row stays for those who ask for its usage."""
    ABANDONED = "ABANDONED"
    """Was never READY and never will be; once `deleted_at` is set, Vault has nothing of it either."""


LIVING = (State.PENDING, State.READY, State.VALUE_MISSING, State.DELETING)
"""The states of credentials that people see, and that keep their name."""


living: Final = text(f"state IN ({', '.join(repr(state.value) for state in LIVING)})")
"""As a condition, in the words of the index that keeps their names apart."""

credentials = Table(
    "credentials",
    metadata,
    Column("credential_id", Uuid, primary_key=True),
    Column("name", Text(collation="C"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("username", Text, nullable=False),
    Column("domain", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("state", Text, nullable=False),
    # Of the secret, as people count.
    Column("version", BigInteger, nullable=False),
    # Of the secret, as Vault counts; 0 before it is known to be there.
    Column("vault_version", BigInteger, nullable=False, server_default="0"),
    # The mark of a write to Vault that is not settled; whoever settles it finds the same mark beside the value.
    Column("intent", Uuid),
    Column("intent_at", Time),
    # What becomes of the row when a replacement is settled.
    Column("intent_change", JSONB),
    Column("for_one_job", Boolean, nullable=False),
    Column("expires_at", Time),
    Column("job_id", BigInteger),
    Column("created_at", Time, nullable=False),
    Column("creator", Text, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("updater", Text, nullable=False, server_default=""),
    Column("deleted_at", Time),
    # When the reconciler, or whoever deletes it, last took it in hand.
    Column("attended_at", Time),
    one_of("kind", Kind),
    one_of("state", State),
    Index("credentials_name", "name", unique=True, postgresql_where=living),
    Index("credentials_by_name", "name"),
    Index("credentials_job", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    Index("credentials_expiry", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    Index("credentials_intent", "intent_at", postgresql_where=text("intent IS NOT NULL")),
    Index(
        "credentials_leaving",
        "attended_at",
        postgresql_where=text("state = 'DELETING' OR state = 'ABANDONED' AND deleted_at IS NULL"),
    ),
    Index("credentials_watched", "attended_at", postgresql_where=text("state IN ('READY', 'VALUE_MISSING')")),
    Index("credentials_gone", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
)

request_ids = Table(
    "request_ids",
    metadata,
    Column("caller", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    # A keyed hash of the request without its secret.
    Column("fingerprint", LargeBinary, nullable=False),
    Column("credential_id", Uuid, nullable=False),
    Column("created_at", Time, nullable=False),
    Index("request_ids_credential", "credential_id"),
    Index("request_ids_created", "created_at"),
)

# Attempts that took leases or have ended. Taking and ending meet at this row, so that no lease is taken after the end.
attempts = Table(
    "attempts",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    # Which took the leases; "" if none did.
    Column("agent", Text, nullable=False),
    Column("ended_at", Time),
    # No attempt follows this one.
    Column("job_over", Boolean, nullable=False, server_default="false"),
    Index("attempts_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    Index("attempts_job_over", "job_id", postgresql_where=text("job_over")),
)

# The leases, and later the record of who used what.
leases = Table(
    "leases",
    metadata,
    Column("lease_id", Uuid, primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("ref", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("requester", Text, nullable=False),
    Column("credential_id", Uuid, ForeignKey("credentials.credential_id"), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("sealing_key_id", Text, nullable=False),
    # HPKE, to the agent's sealing key; none once the lease has ended.
    Column("ciphertext", LargeBinary),
    Column("taken_at", Time, nullable=False),
    Column("ended_at", Time),
    UniqueConstraint("job_id", "attempt", "ref"),
    CheckConstraint("(ciphertext IS NULL) = (ended_at IS NOT NULL)", name="erased_at_its_end"),
    Index("leases_by_credential", "credential_id", "taken_at", "lease_id"),
    Index("leases_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
)

agents = Table(
    "agents",
    metadata,
    Column("name", Text(collation="C"), primary_key=True),
    Column("agent_group", Text, nullable=False),
    # Its identity key: SubjectPublicKeyInfo, DER.
    Column("public_key", LargeBinary, nullable=False),
    # X25519, 32 bytes.
    Column("sealing_key", LargeBinary, nullable=False),
    # Of its keys; an older request cannot be replayed.
    Column("generation", BigInteger, nullable=False),
    Column("enrolled_at", Time, nullable=False),
    # The pairing by which it enrolled, and who made its code.
    Column("pairing_id", Text, nullable=False),
    Column("pairer", Text, nullable=False),
    Column("revoked_at", Time),
    Column("revoker", Text, nullable=False, server_default=""),
    Column("revoke_reason", Text, nullable=False, server_default=""),
    # Until its next renewal: the database was restored, and knows nothing of renewals since the backup.
    Column("ahead", Boolean, nullable=False, server_default="false"),
)

certificates = Table(
    "certificates",
    metadata,
    # In lower-case hexadecimal.
    Column("serial", Text, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("issued_at", Time, nullable=False),
    Column("not_after", Time, nullable=False),
    Column("revoked_at", Time),
    # When Vault was told.
    Column("vault_revoked_at", Time),
    Index("certificates_agent", "agent", "issued_at"),
    Index("certificates_not_after", "not_after"),
    Index(
        "certificates_untold",
        "revoked_at",
        postgresql_where=text("revoked_at IS NOT NULL AND vault_revoked_at IS NULL"),
    ),
)

# The key of a pairing's HMAC is in Vault at `pairings/<pairing_id>`, for as long as the row is here.
pairings = Table(
    "pairings",
    metadata,
    Column("pairing_id", Text, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("agent_group", Text, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("creator", Text, nullable=False),
    Column("expires_at", Time, nullable=False),
    Column("used_at", Time),
    Column("used_origin", Text, nullable=False, server_default=""),
    # Of the keys that used it, so that they are certified again when an answer was lost.
    Column("keys_sha256", LargeBinary),
    Index("pairings_agent", "agent"),
    Index("pairings_expiry", "expires_at"),
)
