"""The queue's first tables.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    # Free text is searched by trigrams; the extension is trusted, so the database's owner may create it.
    "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public",
    # The clock of everything that is judged by time. Tests replace it.
    "CREATE FUNCTION queue.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()'",
    # Where a job stands among those that wait: its age, minus a weight for its priority, so that nothing starves;
    # but IDLE (1) behind everything else.
    """
    CREATE FUNCTION queue.claim_key(queued_at timestamptz, priority smallint) RETURNS timestamptz
    LANGUAGE sql STABLE AS $$
        SELECT queued_at + CASE priority
            WHEN 1 THEN interval '1000 years'
            WHEN 2 THEN interval '10 minutes'
            WHEN 4 THEN interval '-10 minutes'
            ELSE interval '0'
        END
    $$
    """,
    """
    CREATE TABLE queue.agent_sessions (
        agent TEXT NOT NULL,
        agent_group TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        hub TEXT NOT NULL,
        journal_id TEXT NOT NULL,
        record_number BIGINT NOT NULL,
        hostname TEXT NOT NULL,
        open BOOLEAN NOT NULL,
        last_heard_at TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT agent_sessions_pkey PRIMARY KEY (agent)
    )
    """,
    """
    CREATE TABLE queue.jobs (
        job_id BIGINT GENERATED ALWAYS AS IDENTITY,
        display_name TEXT NOT NULL,
        type TEXT NOT NULL,
        status TEXT NOT NULL,
        operation TEXT NOT NULL,
        package_name TEXT NOT NULL,
        package_version TEXT NOT NULL,
        package_digest TEXT NOT NULL,
        parameters JSONB NOT NULL,
        site_kind TEXT NOT NULL,
        site_name TEXT NOT NULL,
        target TEXT DEFAULT '' NOT NULL,
        priority SMALLINT NOT NULL,
        claim_key TIMESTAMP WITH TIME ZONE,
        queued_at TIMESTAMP WITH TIME ZONE,
        not_before TIMESTAMP WITH TIME ZONE,
        latest_start TIMESTAMP WITH TIME ZONE,
        retry_at TIMESTAMP WITH TIME ZONE,
        run_timeout INTERVAL,
        heartbeat_timeout INTERVAL NOT NULL,
        labels JSONB NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        started_at TIMESTAMP WITH TIME ZONE,
        completed_at TIMESTAMP WITH TIME ZONE,
        creator TEXT NOT NULL,
        attempt INTEGER DEFAULT '0' NOT NULL,
        agent TEXT DEFAULT '' NOT NULL,
        cancel_requested_at TIMESTAMP WITH TIME ZONE,
        stop_state TEXT DEFAULT 'NONE' NOT NULL,
        hidden_at TIMESTAMP WITH TIME ZONE,
        result_code INTEGER,
        failure_reason TEXT DEFAULT '' NOT NULL,
        status_message TEXT DEFAULT '' NOT NULL,
        outputs JSONB DEFAULT '{}' NOT NULL,
        progress_percent SMALLINT DEFAULT '0' NOT NULL,
        progress_text TEXT DEFAULT '' NOT NULL,
        history_sequence INTEGER DEFAULT '0' NOT NULL,
        revision BIGINT DEFAULT '1' NOT NULL,
        CONSTRAINT jobs_pkey PRIMARY KEY (job_id),
        CONSTRAINT jobs_type_known CHECK (type IN ('DISCOVERY', 'PACKAGE', 'ASSET_IMPORT')),
        CONSTRAINT jobs_status_known CHECK (status IN ('DEFERRED', 'WAITING', 'STARTING', 'RUNNING', 'PROCESSING_OUTPUT', 'CANCEL_REQUESTED', 'CANCELED', 'SUCCEEDED', 'FAILED', 'ABORTED', 'TIMED_OUT', 'EXPIRED', 'AWOL')),
        CONSTRAINT jobs_stop_state_known CHECK (stop_state IN ('NONE', 'PENDING', 'CONFIRMED', 'UNCONFIRMED')),
        CONSTRAINT jobs_site_kind_known CHECK (site_kind IN ('group', 'agent'))
    )
    """,
    """
    CREATE INDEX jobs_claim ON queue.jobs (site_kind, site_name, claim_key, job_id) WHERE status = 'WAITING'
    """,
    """
    CREATE INDEX jobs_expire ON queue.jobs (latest_start) WHERE status IN ('DEFERRED', 'WAITING') AND latest_start IS NOT NULL
    """,
    "CREATE INDEX jobs_list ON queue.jobs (status, job_id) WHERE hidden_at IS NULL",
    "CREATE INDEX jobs_purge ON queue.jobs (hidden_at) WHERE hidden_at IS NOT NULL",
    """
    CREATE INDEX jobs_release ON queue.jobs (not_before) WHERE status = 'DEFERRED' AND not_before IS NOT NULL
    """,
    r"""
    CREATE INDEX jobs_text ON queue.jobs USING gin ((display_name || E'\n' || operation || E'\n' || target) public.gin_trgm_ops)
    """,
    """
    CREATE TABLE queue.log (
        job_id BIGINT NOT NULL,
        attempt INTEGER NOT NULL,
        sequence BIGINT NOT NULL,
        channel SMALLINT NOT NULL,
        severity SMALLINT NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        body BYTEA NOT NULL,
        CONSTRAINT log_pkey PRIMARY KEY (job_id, attempt, sequence)
    )
    """,
    """
    CREATE TABLE queue.packages (
        digest TEXT NOT NULL,
        name TEXT COLLATE "C" NOT NULL,
        version TEXT NOT NULL,
        version_key TEXT COLLATE "C" NOT NULL,
        manifest TEXT NOT NULL,
        size_bytes BIGINT NOT NULL,
        pushed_at TIMESTAMP WITH TIME ZONE NOT NULL,
        pusher TEXT NOT NULL,
        CONSTRAINT packages_pkey PRIMARY KEY (digest)
    )
    """,
    "CREATE INDEX packages_order ON queue.packages (name, version_key)",
    "CREATE UNIQUE INDEX packages_version ON queue.packages (name, version)",
    """
    CREATE TABLE queue.request_ids (
        caller TEXT NOT NULL,
        request_id TEXT NOT NULL,
        fingerprint BYTEA NOT NULL,
        job_id BIGINT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT request_ids_pkey PRIMARY KEY (caller, request_id)
    )
    """,
    "CREATE INDEX request_ids_created ON queue.request_ids (created_at)",
    """
    CREATE TABLE queue.attempts (
        job_id BIGINT NOT NULL,
        number INTEGER NOT NULL,
        agent TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        journal_id TEXT NOT NULL,
        claimed_at TIMESTAMP WITH TIME ZONE NOT NULL,
        last_heard_at TIMESTAMP WITH TIME ZONE NOT NULL,
        active_at TIMESTAMP WITH TIME ZONE NOT NULL,
        accepted_at TIMESTAMP WITH TIME ZONE,
        first_process_at TIMESTAMP WITH TIME ZONE,
        payload_ended_at TIMESTAMP WITH TIME ZONE,
        sequence BIGINT DEFAULT '0' NOT NULL,
        digest BYTEA NOT NULL,
        output_bytes BIGINT DEFAULT '0' NOT NULL,
        discarded_bytes BIGINT DEFAULT '0' NOT NULL,
        stop_wish TEXT,
        stop_reason TEXT DEFAULT '' NOT NULL,
        stop_wished_at TIMESTAMP WITH TIME ZONE,
        stop_begun TEXT,
        lost BOOLEAN DEFAULT 'false' NOT NULL,
        sealed_at TIMESTAMP WITH TIME ZONE,
        verdict TEXT DEFAULT 'OPEN' NOT NULL,
        processes JSONB DEFAULT '[]' NOT NULL,
        evidence JSONB,
        CONSTRAINT attempts_pkey PRIMARY KEY (job_id, number),
        CONSTRAINT attempts_stop_wish_known CHECK (stop_wish IN ('CANCEL', 'TIME_OUT', 'ABORT')),
        CONSTRAINT attempts_stop_begun_known CHECK (stop_begun IN ('CANCEL', 'TIME_OUT', 'ABORT')),
        CONSTRAINT attempts_verdict_known CHECK (verdict IN ('OPEN', 'COMPLETE', 'TRUNCATED', 'GAPPED')),
        CONSTRAINT attempts_job_id_fkey FOREIGN KEY(job_id) REFERENCES queue.jobs (job_id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX attempts_live ON queue.attempts (agent, job_id) WHERE sealed_at IS NULL",
    """
    CREATE TABLE queue.history (
        job_id BIGINT NOT NULL,
        sequence INTEGER NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        from_status TEXT,
        to_status TEXT NOT NULL,
        event TEXT NOT NULL,
        actor TEXT NOT NULL,
        origin TEXT NOT NULL,
        message TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        CONSTRAINT history_pkey PRIMARY KEY (job_id, sequence),
        CONSTRAINT history_from_status_known CHECK (from_status IN ('DEFERRED', 'WAITING', 'STARTING', 'RUNNING', 'PROCESSING_OUTPUT', 'CANCEL_REQUESTED', 'CANCELED', 'SUCCEEDED', 'FAILED', 'ABORTED', 'TIMED_OUT', 'EXPIRED', 'AWOL')),
        CONSTRAINT history_to_status_known CHECK (to_status IN ('DEFERRED', 'WAITING', 'STARTING', 'RUNNING', 'PROCESSING_OUTPUT', 'CANCEL_REQUESTED', 'CANCELED', 'SUCCEEDED', 'FAILED', 'ABORTED', 'TIMED_OUT', 'EXPIRED', 'AWOL')),
        CONSTRAINT history_job_id_fkey FOREIGN KEY(job_id) REFERENCES queue.jobs (job_id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE queue.package_chunks (
        digest TEXT NOT NULL,
        number INTEGER NOT NULL,
        data BYTEA NOT NULL,
        CONSTRAINT package_chunks_pkey PRIMARY KEY (digest, number),
        CONSTRAINT package_chunks_digest_fkey FOREIGN KEY(digest) REFERENCES queue.packages (digest) ON DELETE CASCADE
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
