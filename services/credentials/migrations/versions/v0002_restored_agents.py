"""Agents that are ahead of a database which was restored from a backup.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE credentials.agents ADD COLUMN ahead BOOLEAN DEFAULT false NOT NULL")
