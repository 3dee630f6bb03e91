"""A job keeps the trace in which it was created.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # A replica of the release before creates jobs without.
    op.execute("ALTER TABLE queue.jobs ADD COLUMN trace_context TEXT DEFAULT '' NOT NULL")
