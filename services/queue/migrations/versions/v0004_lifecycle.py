"""Jobs have all their deadlines, and what was removed is remembered.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    # The defaults are what a replica of the release before, which does not know of these, means.
    """
    ALTER TABLE queue.jobs
        ADD COLUMN deferral_ends_at TIMESTAMP WITH TIME ZONE,
        ADD COLUMN start_timeout INTERVAL DEFAULT '5 minutes' NOT NULL,
        ADD COLUMN output_timeout INTERVAL DEFAULT '60 seconds' NOT NULL,
        ADD COLUMN cancel_grace INTERVAL DEFAULT '10 seconds' NOT NULL
    """,
    """
    CREATE INDEX jobs_held ON queue.jobs (deferral_ends_at)
    WHERE status = 'DEFERRED' AND deferral_ends_at IS NOT NULL
    """,
    """
    CREATE TABLE queue.removals (
        job_id BIGINT NOT NULL,
        display_name TEXT NOT NULL,
        status TEXT NOT NULL,
        removed_at TIMESTAMP WITH TIME ZONE NOT NULL,
        actor TEXT NOT NULL,
        origin TEXT NOT NULL,
        reason TEXT NOT NULL,
        export TEXT DEFAULT '' NOT NULL,
        CONSTRAINT removals_pkey PRIMARY KEY (job_id),
        CONSTRAINT removals_status_known CHECK (status IN ('DEFERRED', 'WAITING', 'STARTING', 'RUNNING', 'PROCESSING_OUTPUT', 'CANCEL_REQUESTED', 'CANCELED', 'SUCCEEDED', 'FAILED', 'ABORTED', 'TIMED_OUT', 'EXPIRED', 'AWOL'))
    )
    """,
    "CREATE INDEX removals_age ON queue.removals (removed_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
