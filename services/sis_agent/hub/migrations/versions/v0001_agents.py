"""The registry of agents.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE agents.agents (
        name TEXT COLLATE "C" NOT NULL,
        agent_group TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        hub TEXT NOT NULL,
        online BOOLEAN NOT NULL,
        draining BOOLEAN NOT NULL,
        version TEXT NOT NULL,
        platform TEXT NOT NULL,
        hostname TEXT NOT NULL,
        slots INTEGER NOT NULL,
        labels JSONB NOT NULL,
        attempts JSONB NOT NULL,
        first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        connected_at TIMESTAMP WITH TIME ZONE NOT NULL,
        last_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT agents_pkey PRIMARY KEY (name)
    )
    """,
    "CREATE INDEX agents_by_group ON agents.agents (agent_group, name)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
