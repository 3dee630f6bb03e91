"""Of a package that was deleted it is kept what it was, by whom and when.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # A replica of the release before knows nothing of it: it takes a deleted version with other content.
    op.execute("""
    CREATE TABLE queue.package_removals (
        name TEXT COLLATE "C" NOT NULL,
        version TEXT NOT NULL,
        digest TEXT NOT NULL,
        removed_at TIMESTAMP WITH TIME ZONE NOT NULL,
        actor TEXT NOT NULL,
        origin TEXT NOT NULL,
        CONSTRAINT package_removals_pkey PRIMARY KEY (name, version)
    )
    """)
