"""Jobs name credentials, say what keeps them, and their leases end through an outbox.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """
    ALTER TABLE queue.jobs
        ADD COLUMN credentials JSONB DEFAULT '[]' NOT NULL,
        ADD COLUMN wait_reason TEXT,
        ADD COLUMN wait_message TEXT DEFAULT '' NOT NULL,
        ADD CONSTRAINT jobs_wait_reason_known CHECK (wait_reason IN ('VAULT_SEALED', 'VAULT_UNREACHABLE', 'VAULT_SLOW', 'VAULT_FORBIDDEN', 'VAULT_RATE_LIMITED', 'VAULT_FAILED', 'CREDENTIALS_UNREACHABLE', 'AGENT_UNKNOWN', 'DECLINED'))
    """,
    """
    CREATE TABLE queue.lease_ends (
        job_id BIGINT NOT NULL,
        attempt INTEGER NOT NULL,
        job_over BOOLEAN NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        handed_at TIMESTAMP WITH TIME ZONE,
        CONSTRAINT lease_ends_pkey PRIMARY KEY (job_id, attempt)
    )
    """,
    "CREATE INDEX lease_ends_order ON queue.lease_ends (created_at, job_id)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
