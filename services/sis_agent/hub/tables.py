"""The tables of schema `agents`, as the migrations leave them (a test compares the two)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Integer, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "agents"

metadata = MetaData(schema=SCHEMA, naming_convention={"pk": "%(table_name)s_pkey"})

Time = DateTime(timezone=True)

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
