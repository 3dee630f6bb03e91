"""The chains of resume secrets, and the revoked certificates.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """
    CREATE TABLE agents.chains (
        agent TEXT COLLATE "C" NOT NULL,
        key_sha256 BYTEA NOT NULL,
        certified_at TIMESTAMP WITH TIME ZONE NOT NULL,
        shown_sha256 BYTEA NOT NULL,
        offered_sha256 BYTEA[] NOT NULL,
        began_at TIMESTAMP WITH TIME ZONE NOT NULL,
        ended_at TIMESTAMP WITH TIME ZONE,
        quarantined_at TIMESTAMP WITH TIME ZONE,
        refused_sha256 BYTEA,
        CONSTRAINT chains_pkey PRIMARY KEY (agent, key_sha256)
    )
    """,
    "CREATE UNIQUE INDEX chains_in_force ON agents.chains (agent) WHERE ended_at IS NULL",
    "CREATE INDEX chains_in_quarantine ON agents.chains (agent) WHERE quarantined_at IS NOT NULL",
    """
    CREATE TABLE agents.revocations (
        serial TEXT COLLATE "C" NOT NULL,
        agent TEXT NOT NULL,
        not_after TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT revocations_pkey PRIMARY KEY (serial)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
