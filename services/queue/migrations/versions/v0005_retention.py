"""Ended jobs are walked in an order of their own, from the oldest on, and the space of their logs is used again soon.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    "DROP INDEX queue.jobs_ended",
    """
    CREATE INDEX jobs_ended ON queue.jobs (completed_at, job_id)
    WHERE completed_at IS NOT NULL AND hidden_at IS NULL
    """,
    # At a fifth, which is the default, the log grows to nearly half as much again before its space is used again.
    """
    ALTER TABLE queue.log SET (
        autovacuum_vacuum_scale_factor = 0.05,
        toast.autovacuum_vacuum_scale_factor = 0.05)
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
