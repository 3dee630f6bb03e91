"""The tables of schema `queue`, as the migrations leave them (a test compares the two)."""

from __future__ import annotations

import json
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

from services.queue.frames import StopKind
from services.queue.model import LogVerdict, WaitReason
from services.queue.states import Status, StopState
from services.runtime.schema import Time, metadata_of, one_of
from sis.packages import platforms

SCHEMA = "queue"

metadata = metadata_of(SCHEMA)


class TransactionId(UserDefinedType[str]):
    """PostgreSQL's `xid8`: the number of a transaction, which never comes again. As text in Python."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


class JobType(StrEnum):
    """What a job does."""

    DISCOVERY = "DISCOVERY"
    PACKAGE = "PACKAGE"
    ASSET_IMPORT = "ASSET_IMPORT"


jobs = Table(
    "jobs",
    metadata,
    Column("job_id", BigInteger, Identity(always=True), primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("package_name", Text, nullable=False),
    Column("package_version", Text, nullable=False),
    Column("package_digest", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("site_kind", Text, nullable=False),
    Column("site_name", Text, nullable=False),
    Column("target", Text, nullable=False, server_default=""),
    Column("priority", SmallInteger, nullable=False),
    # Where the job stands among those that wait: the time of queueing minus a weight for the priority.
    Column("claim_key", Time),
    Column("queued_at", Time),
    Column("not_before", Time),
    Column("latest_start", Time),
    # Not to be claimed before this time, although it waits.
    Column("retry_at", Time),
    Column("run_timeout", Interval),
    Column("heartbeat_timeout", Interval, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("started_at", Time),
    Column("completed_at", Time),
    Column("creator", Text, nullable=False),
    # The current attempt; 0 before the first claim.
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("agent", Text, nullable=False, server_default=""),
    Column("cancel_requested_at", Time),
    Column("stop_state", Text, nullable=False, server_default="NONE"),
    Column("hidden_at", Time),
    Column("result_code", Integer),
    Column("failure_reason", Text, nullable=False, server_default=""),
    Column("status_message", Text, nullable=False, server_default=""),
    Column("outputs", JSONB, nullable=False, server_default="{}"),
    Column("progress_percent", SmallInteger, nullable=False, server_default="0"),
    Column("progress_text", Text, nullable=False, server_default=""),
    # The highest sequence in the history.
    Column("history_sequence", Integer, nullable=False, server_default="0"),
    # Raised by every change, so that a watcher sees one.
    Column("revision", BigInteger, nullable=False, server_default="1"),
    # What its attempts lease: a list of {"ref", "credential", "kinds"}, as `credentials.to_rows` makes it.
    Column("credentials", JSONB, nullable=False, server_default="[]"),
    # What keeps it, where that is something other than a free slot.
    Column("wait_reason", Text),
    Column("wait_message", Text, nullable=False, server_default=""),
    # The job that this one repeats; 0 for none.
    Column("rerun_of", BigInteger, nullable=False, server_default="0"),
    # Those that its package runs on.
    Column("platforms", JSONB, nullable=False, server_default=json.dumps(platforms.NAMES)),
    # The transaction that changed the row last, so that a list can be watched: a trigger notes it.
    Column("changed_xid", TransactionId, nullable=False, server_default=text("pg_current_xact_id()")),
    # When a job that was created deferred expires, unless somebody activates it.
    Column("deferral_ends_at", Time),
    Column("start_timeout", Interval, nullable=False, server_default="5 minutes"),
    Column("output_timeout", Interval, nullable=False, server_default="60 seconds"),
    Column("cancel_grace", Interval, nullable=False, server_default="10 seconds"),
    # A traceparent: where in which trace it was created; "" where nobody traced that.
    Column("trace_context", Text, nullable=False, server_default=""),
    one_of("type", JobType),
    one_of("status", Status),
    one_of("stop_state", StopState),
    one_of("wait_reason", WaitReason),
    CheckConstraint("site_kind IN ('group', 'agent')", name="site_kind_known"),
    Index(
        "jobs_claim",
        "site_kind",
        "site_name",
        "claim_key",
        "job_id",
        postgresql_where=text("status = 'WAITING'"),
    ),
    # What waits for one platform is not in the way of those who look for another.
    *(
        Index(
            f"jobs_claim_{platform}",
            "site_kind",
            "site_name",
            "claim_key",
            "job_id",
            postgresql_where=text(f"status = 'WAITING' AND platforms ? '{platform}'"),
        )
        for platform in platforms.NAMES
    ),
    Index("jobs_list", "status", "job_id", postgresql_where=text("hidden_at IS NULL")),
    Index("jobs_release", "not_before", postgresql_where=text("status = 'DEFERRED' AND not_before IS NOT NULL")),
    Index(
        "jobs_expire",
        "latest_start",
        postgresql_where=text("status IN ('DEFERRED', 'WAITING') AND latest_start IS NOT NULL"),
    ),
    Index(
        "jobs_held", "deferral_ends_at", postgresql_where=text("status = 'DEFERRED' AND deferral_ends_at IS NOT NULL")
    ),
    Index("jobs_purge", "hidden_at", postgresql_where=text("hidden_at IS NOT NULL")),
    Index("jobs_changed", "changed_xid", "job_id"),
    Index(
        "jobs_ended", "completed_at", "job_id", postgresql_where=text("completed_at IS NOT NULL AND hidden_at IS NULL")
    ),
    Index("jobs_rare", "type", "job_id", postgresql_where=text("type <> 'PACKAGE' AND hidden_at IS NULL")),
    Index(
        "jobs_text",
        text(r"(display_name || E'\n' || operation || E'\n' || target) public.gin_trgm_ops"),
        postgresql_using="gin",
    ),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", BigInteger, ForeignKey(jobs.c.job_id, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("journal_id", Text, nullable=False),
    Column("claimed_at", Time, nullable=False),
    Column("last_heard_at", Time, nullable=False),
    Column("active_at", Time, nullable=False),
    Column("accepted_at", Time),
    Column("first_process_at", Time),
    Column("payload_ended_at", Time),
    # The last frame that is committed, and the running digest after it.
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    Column("digest", LargeBinary, nullable=False),
    Column("output_bytes", BigInteger, nullable=False, server_default="0"),
    Column("discarded_bytes", BigInteger, nullable=False, server_default="0"),
    # The wish to stop is written with its transition; it is fulfilled when stop_begun says so.
    Column("stop_wish", Text),
    Column("stop_reason", Text, nullable=False, server_default=""),
    Column("stop_wished_at", Time),
    Column("stop_begun", Text),
    Column("lost", Boolean, nullable=False, server_default="false"),
    Column("sealed_at", Time),
    Column("verdict", Text, nullable=False, server_default="OPEN"),
    Column("processes", JSONB, nullable=False, server_default="[]"),
    Column("evidence", JSONB),
    one_of("stop_wish", StopKind),
    one_of("stop_begun", StopKind),
    one_of("verdict", LogVerdict),
    Index("attempts_live", "agent", "job_id", postgresql_where=text("sealed_at IS NULL")),
)

history = Table(
    "history",
    metadata,
    Column("job_id", BigInteger, ForeignKey(jobs.c.job_id, ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("at", Time, nullable=False),
    Column("from_status", Text),
    Column("to_status", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    one_of("from_status", Status),
    one_of("to_status", Status),
)

# No foreign key: frames are written under the lock of their job, and a purge deletes here first, in parts.
log = Table(
    "log",
    metadata,
    Column("job_id", BigInteger, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("channel", SmallInteger, nullable=False),
    Column("severity", SmallInteger, nullable=False),
    # The site's clock.
    Column("at", Time, nullable=False),
    # The serialised sis.queue.v1.Frame, byte for byte as the site cut it.
    Column("body", LargeBinary, nullable=False),
    # How many bytes of output the attempt had before it; NULL in frames from before this was noted.
    Column("output_offset", BigInteger),
)

# An outbox: attempts whose leases are to end. Written with what ends them, deleted once a hub has delivered it. No
# foreign key, as it survives the job.
lease_ends = Table(
    "lease_ends",
    metadata,
    Column("job_id", BigInteger, primary_key=True),
    # 0 for a job that was never claimed.
    Column("attempt", Integer, primary_key=True),
    # No attempt follows.
    Column("job_over", Boolean, nullable=False),
    Column("created_at", Time, nullable=False),
    # When a hub was last given it.
    Column("handed_at", Time),
    Index("lease_ends_order", "created_at", "job_id"),
)

# Survives the job's deletion; swept after seven days.
request_ids = Table(
    "request_ids",
    metadata,
    Column("caller", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("job_id", BigInteger, nullable=False),
    Column("created_at", Time, nullable=False),
    Index("request_ids_created", "created_at"),
)

# What was deleted, by whom and why: of a job that is gone, this is left, for a year.
removals = Table(
    "removals",
    metadata,
    Column("job_id", BigInteger, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("removed_at", Time, nullable=False),
    Column("actor", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # The file that the job was exported to before; "" for none.
    Column("export", Text, nullable=False, server_default=""),
    one_of("status", Status),
    Index("removals_age", "removed_at"),
)

agent_sessions = Table(
    "agent_sessions",
    metadata,
    Column("agent", Text, primary_key=True),
    Column("agent_group", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("hub", Text, nullable=False),
    Column("journal_id", Text, nullable=False),
    Column("record_number", BigInteger, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("last_heard_at", Time, nullable=False),
    # What the agent said of itself in its last hello; 0 and "" until it says it.
    Column("slots", Integer, nullable=False, server_default="0"),
    Column("draining", Boolean, nullable=False, server_default="false"),
    Column("platform", Text, nullable=False, server_default=""),
)

packages = Table(
    "packages",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("name", Text(collation="C"), nullable=False),
    Column("version", Text, nullable=False),
    # Orders versions by their precedence (semver), byte by byte.
    Column("version_key", Text(collation="C"), nullable=False),
    # The manifest as JSON, in the form of sis.packages.manifest.
    Column("manifest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("pushed_at", Time, nullable=False),
    Column("pusher", Text, nullable=False),
    Index("packages_version", "name", "version", unique=True),
    Index("packages_order", "name", "version_key"),
)

# Versions that were deleted, for good: one that is pushed again has the content that it had.
package_removals = Table(
    "package_removals",
    metadata,
    Column("name", Text(collation="C"), primary_key=True),
    Column("version", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("removed_at", Time, nullable=False),
    Column("actor", Text, nullable=False),
    Column("origin", Text, nullable=False),
)

package_chunks = Table(
    "package_chunks",
    metadata,
    Column("digest", Text, ForeignKey(packages.c.digest, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
