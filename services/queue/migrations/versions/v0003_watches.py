"""Lists can be watched, jobs rerun, their waits explained, and their output read from an offset.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    """
    ALTER TABLE queue.jobs
        ADD COLUMN rerun_of BIGINT DEFAULT 0 NOT NULL,
        ADD COLUMN platforms JSONB DEFAULT '["linux", "darwin", "windows"]' NOT NULL,
        ADD COLUMN changed_xid XID8 DEFAULT '0' NOT NULL,
        DROP CONSTRAINT jobs_wait_reason_known,
        ADD CONSTRAINT jobs_wait_reason_known CHECK (wait_reason IN ('VAULT_SEALED', 'VAULT_UNREACHABLE', 'VAULT_SLOW', 'VAULT_FORBIDDEN', 'VAULT_RATE_LIMITED', 'VAULT_FAILED', 'CREDENTIALS_UNREACHABLE', 'AGENT_UNKNOWN', 'DECLINED', 'HELD', 'NOT_BEFORE', 'NO_AGENT_KNOWN', 'NO_AGENT_ONLINE', 'AGENTS_DRAINING', 'AT_CAPACITY', 'JOBS_AHEAD', 'NOTHING', 'NO_AGENT_FITS'))
    """,
    "ALTER TABLE queue.jobs ALTER COLUMN changed_xid SET DEFAULT pg_current_xact_id()",
    # Noted here, so that replicas of the release before are seen as well while they are replaced.
    """
    CREATE FUNCTION queue.note_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_xid := pg_current_xact_id();
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER jobs_note_change BEFORE UPDATE ON queue.jobs
    FOR EACH ROW EXECUTE FUNCTION queue.note_change()
    """,
    "CREATE INDEX jobs_changed ON queue.jobs (changed_xid, job_id)",
    "CREATE INDEX jobs_ended ON queue.jobs (completed_at) WHERE completed_at IS NOT NULL AND hidden_at IS NULL",
    "CREATE INDEX jobs_rare ON queue.jobs (type, job_id) WHERE type <> 'PACKAGE' AND hidden_at IS NULL",
    *(
        f"""
        CREATE INDEX jobs_claim_{platform} ON queue.jobs (site_kind, site_name, claim_key, job_id)
        WHERE status = 'WAITING' AND platforms ? '{platform}'
        """
        for platform in ("linux", "darwin", "windows")
    ),
    "ALTER TABLE queue.log ADD COLUMN output_offset BIGINT",
    """
    ALTER TABLE queue.agent_sessions
        ADD COLUMN slots INTEGER DEFAULT 0 NOT NULL,
        ADD COLUMN draining BOOLEAN DEFAULT false NOT NULL,
        ADD COLUMN platform TEXT DEFAULT '' NOT NULL
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
