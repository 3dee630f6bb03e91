"""The credentials, their leases, and the agents with their certificates.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE credentials.agents (
        name TEXT COLLATE "C" NOT NULL,
        agent_group TEXT NOT NULL,
        public_key BYTEA NOT NULL,
        sealing_key BYTEA NOT NULL,
        generation BIGINT NOT NULL,
        enrolled_at TIMESTAMP WITH TIME ZONE NOT NULL,
        pairing_id TEXT NOT NULL,
        pairer TEXT NOT NULL,
        revoked_at TIMESTAMP WITH TIME ZONE,
        revoker TEXT DEFAULT '' NOT NULL,
        revoke_reason TEXT DEFAULT '' NOT NULL,
        CONSTRAINT agents_pkey PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE credentials.attempts (
        job_id BIGINT NOT NULL,
        attempt INTEGER NOT NULL,
        agent TEXT NOT NULL,
        ended_at TIMESTAMP WITH TIME ZONE,
        job_over BOOLEAN DEFAULT 'false' NOT NULL,
        CONSTRAINT attempts_pkey PRIMARY KEY (job_id, attempt)
    )
    """,
    "CREATE INDEX attempts_ended ON credentials.attempts (ended_at) WHERE ended_at IS NOT NULL",
    "CREATE INDEX attempts_job_over ON credentials.attempts (job_id) WHERE job_over",
    """
    CREATE TABLE credentials.certificates (
        serial TEXT NOT NULL,
        agent TEXT NOT NULL,
        issued_at TIMESTAMP WITH TIME ZONE NOT NULL,
        not_after TIMESTAMP WITH TIME ZONE NOT NULL,
        revoked_at TIMESTAMP WITH TIME ZONE,
        vault_revoked_at TIMESTAMP WITH TIME ZONE,
        CONSTRAINT certificates_pkey PRIMARY KEY (serial)
    )
    """,
    "CREATE INDEX certificates_agent ON credentials.certificates (agent, issued_at)",
    "CREATE INDEX certificates_not_after ON credentials.certificates (not_after)",
    "CREATE INDEX certificates_untold ON credentials.certificates (revoked_at) WHERE revoked_at IS NOT NULL AND vault_revoked_at IS NULL",
    """
    CREATE TABLE credentials.credentials (
        credential_id UUID NOT NULL,
        name TEXT COLLATE "C" NOT NULL,
        kind TEXT NOT NULL,
        username TEXT NOT NULL,
        domain TEXT NOT NULL,
        description TEXT NOT NULL,
        state TEXT NOT NULL,
        version BIGINT NOT NULL,
        vault_version BIGINT DEFAULT '0' NOT NULL,
        intent UUID,
        intent_at TIMESTAMP WITH TIME ZONE,
        intent_change JSONB,
        for_one_job BOOLEAN NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE,
        job_id BIGINT,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        creator TEXT NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updater TEXT DEFAULT '' NOT NULL,
        deleted_at TIMESTAMP WITH TIME ZONE,
        attended_at TIMESTAMP WITH TIME ZONE,
        CONSTRAINT credentials_pkey PRIMARY KEY (credential_id),
        CONSTRAINT credentials_kind_known CHECK (kind IN ('USERNAME_PASSWORD', 'SSH_KEY', 'TOKEN', 'DOMAIN_ACCOUNT')),
        CONSTRAINT credentials_state_known CHECK (state IN ('PENDING', 'READY', 'VALUE_MISSING', 'DELETING', 'DELETED', 'ABANDONED'))
    )
    """,
    "CREATE INDEX credentials_by_name ON credentials.credentials (name)",
    "CREATE INDEX credentials_expiry ON credentials.credentials (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE INDEX credentials_gone ON credentials.credentials (deleted_at) WHERE deleted_at IS NOT NULL",
    "CREATE INDEX credentials_intent ON credentials.credentials (intent_at) WHERE intent IS NOT NULL",
    "CREATE INDEX credentials_job ON credentials.credentials (job_id) WHERE job_id IS NOT NULL",
    "CREATE INDEX credentials_leaving ON credentials.credentials (attended_at) WHERE state = 'DELETING' OR state = 'ABANDONED' AND deleted_at IS NULL",
    "CREATE UNIQUE INDEX credentials_name ON credentials.credentials (name) WHERE state IN ('PENDING', 'READY', 'VALUE_MISSING', 'DELETING')",
    "CREATE INDEX credentials_watched ON credentials.credentials (attended_at) WHERE state IN ('READY', 'VALUE_MISSING')",
    """
    CREATE TABLE credentials.pairings (
        pairing_id TEXT NOT NULL,
        agent TEXT NOT NULL,
        agent_group TEXT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        creator TEXT NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
        used_at TIMESTAMP WITH TIME ZONE,
        used_origin TEXT DEFAULT '' NOT NULL,
        keys_sha256 BYTEA,
        CONSTRAINT pairings_pkey PRIMARY KEY (pairing_id)
    )
    """,
    "CREATE INDEX pairings_agent ON credentials.pairings (agent)",
    "CREATE INDEX pairings_expiry ON credentials.pairings (expires_at)",
    """
    CREATE TABLE credentials.request_ids (
        caller TEXT NOT NULL,
        request_id TEXT NOT NULL,
        fingerprint BYTEA NOT NULL,
        credential_id UUID NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT request_ids_pkey PRIMARY KEY (caller, request_id)
    )
    """,
    "CREATE INDEX request_ids_created ON credentials.request_ids (created_at)",
    "CREATE INDEX request_ids_credential ON credentials.request_ids (credential_id)",
    """
    CREATE TABLE credentials.leases (
        lease_id UUID NOT NULL,
        job_id BIGINT NOT NULL,
        attempt INTEGER NOT NULL,
        ref TEXT NOT NULL,
        agent TEXT NOT NULL,
        requester TEXT NOT NULL,
        credential_id UUID NOT NULL,
        version BIGINT NOT NULL,
        sealing_key_id TEXT NOT NULL,
        ciphertext BYTEA,
        taken_at TIMESTAMP WITH TIME ZONE NOT NULL,
        ended_at TIMESTAMP WITH TIME ZONE,
        CONSTRAINT leases_pkey PRIMARY KEY (lease_id),
        CONSTRAINT leases_job_id_attempt_ref_key UNIQUE (job_id, attempt, ref),
        CONSTRAINT leases_erased_at_its_end CHECK ((ciphertext IS NULL) = (ended_at IS NOT NULL)),
        CONSTRAINT leases_credential_id_fkey FOREIGN KEY(credential_id) REFERENCES credentials.credentials (credential_id)
    )
    """,
    "CREATE INDEX leases_by_credential ON credentials.leases (credential_id, taken_at, lease_id)",
    "CREATE INDEX leases_ended ON credentials.leases (ended_at) WHERE ended_at IS NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
