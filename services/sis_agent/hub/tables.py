"""The tables of schema `agents`, as the migrations leave them (a test compares the two)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB

from services.runtime.schema import Time, metadata_of

SCHEMA = "agents"

metadata = metadata_of(SCHEMA)

agents = Table(
    "agents",
    metadata,
    Column("name", Text(collation="C"), primary_key=True),
    Column("agent_group", Text, nullable=False),
    # Of the session that was recorded last: what an older one says later has no effect.
    Column("epoch", BigInteger, nullable=False),
    Column("hub", Text, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("version", Text, nullable=False),
    Column("platform", Text, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("labels", JSONB, nullable=False),
    # [[job id, number], …]
    Column("attempts", JSONB, nullable=False),
    Column("first_seen_at", Time, nullable=False),
    Column("connected_at", Time, nullable=False),
    Column("last_seen_at", Time, nullable=False),
    Index("agents_by_group", "agent_group", "name"),
)

# One for each identity key that an agent has connected with; no more than one of an agent is in force.
chains = Table(
    "chains",
    metadata,
    Column("agent", Text(collation="C"), primary_key=True),
    # Of the public key (SubjectPublicKeyInfo).
    Column("key_sha256", BYTEA, primary_key=True),
    # When its certificate began that was shown first. The suite certifies one key of an agent at a time, each new one
    # after the one before it, so this says which of two is the newer.
    Column("certified_at", Time, nullable=False),
    # Of the resume secret that was shown last; "nothing" has a hash as well. Empty after a restore, until one is shown.
    Column("shown_sha256", BYTEA, nullable=False),
    # Of those that were offered since, the newest last.
    Column("offered_sha256", ARRAY(BYTEA), nullable=False),
    Column("began_at", Time, nullable=False),
    # When another key took its place.
    Column("ended_at", Time),
    Column("quarantined_at", Time),
    # Of what was shown then; nothing where the credential service has noticed.
    Column("refused_sha256", BYTEA),
    Index("chains_in_force", "agent", unique=True, postgresql_where=text("ended_at IS NULL")),
    Index("chains_in_quarantine", "agent", postgresql_where=text("quarantined_at IS NOT NULL")),
)

revocations = Table(
    "revocations",
    metadata,
    # Of the certificate, in lower-case hexadecimal without leading zeros.
    Column("serial", Text(collation="C"), primary_key=True),
    Column("agent", Text, nullable=False),
    Column("not_after", Time, nullable=False),
)
