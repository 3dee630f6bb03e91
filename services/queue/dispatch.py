"""Claims: waiting jobs meet free slots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Row, RowMapping, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import credentials, measures, wakes
from services.queue.credentials import CredentialUse
from services.queue.frames import DIGEST_START
from services.queue.states import Event, Status, next_status
from services.runtime.database import after_commit
from sis.packages import platforms

LOG_CAP_BYTES = 1 << 30
"""Output of one job beyond this is discarded at the site, and its log says so."""

CLAIMS = 1_000
"""Jobs claimed in one transaction at the most."""

SMALL_BYTES = 4_000
"""Parameters and credentials shorter than this are read with the claim: a thousand of them fit in an answer."""

ANSWER_BYTES = 8 << 20
"""Parameters and credentials in one answer at the most, and one job's more: a message is limited to twice that."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many more attempts an agent can take."""

    agent: str
    epoch: int
    free_slots: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an agent has to do."""

    job_id: int
    attempt: int
    display_name: str
    package_name: str
    package_version: str
    package_digest: str
    operation: str
    parameters: dict[str, Any]
    run_timeout: timedelta | None
    start_timeout: timedelta
    output_timeout: timedelta
    cancel_grace: timedelta
    claimed_at: datetime
    credentials: list[CredentialUse]
    requester: str
    trace_context: str


async def claim(
    connection: AsyncConnection, capacities: Sequence[Capacity]
) -> tuple[list[tuple[str, Assignment]], list[Capacity]]:
    """Claim waiting jobs for many agents at once; also return the capacities whose sessions are stale.

    The oldest key goes first, an agent's own jobs and its group's alike; a group's job goes to the member with the
    most room of those whose platform its package is for.
    """
    rows = (await connection.execute(_SESSIONS, {"agents": sorted({c.agent for c in capacities})})).all()
    session = {row.agent: row for row in rows}
    room: dict[str, int] = {}
    stale: list[Capacity] = []
    for capacity in capacities:
        known = session.get(capacity.agent)
        if known is None or known.epoch != capacity.epoch:
            stale.append(capacity)
        elif capacity.free_slots > 0:
            room[capacity.agent] = min(capacity.free_slots, CLAIMS)
    if not room:
        return [], stale
    members: defaultdict[str, list[str]] = defaultdict(list)
    for agent in room:
        members[session[agent].agent_group].append(agent)
    found: dict[int, Row[Any]] = {}
    # A group of several platforms is asked for each, so that none waits behind what only another can run.
    for platform, query in _CANDIDATES.items():
        asking = [agent for agent in room if session[agent].platform == platform]
        if not asking:
            continue
        groups = sorted({session[agent].agent_group for agent in asking})
        free = [sum(room[agent] for agent in members[group]) for group in groups]
        values = {
            "kinds": ["agent"] * len(asking) + ["group"] * len(groups),
            "names": asking + groups,
            "limits": [min(slots, CLAIMS) for slots in [room[agent] for agent in asking] + free],
            "total": CLAIMS,
            "small": SMALL_BYTES,
        }
        found |= {row.job_id: row for row in await connection.execute(query, values)}
    candidates = sorted(found.values(), key=lambda row: (row.claim_key, row.job_id))[:CLAIMS]
    chosen: dict[int, str] = {}
    delivered: list[tuple[str, Assignment]] = []
    fitting: dict[tuple[str, ...], list[str]] = {}
    for row in candidates:
        key = (row.site_kind, row.site_name, *row.platforms)
        if key not in fitting:
            takers = [row.site_name] if row.site_kind == "agent" else members[row.site_name]
            fitting[key] = [a for a in takers if platforms.fits(session[a].platform, row.platforms)]
        agent = max(fitting[key], key=lambda a: room[a])
        if room[agent] > 0:
            room[agent] -= 1
            chosen[row.job_id] = agent
            delivered.append((agent, _assignment(row._mapping, claimed_at=row.now)))
    if not chosen:
        return [], stale
    claimed = sorted(chosen)
    topics = [wakes.job(j) for j in claimed]
    # Another hub passed over the jobs that were locked here and not taken: wake it for them.
    if len(found) > len(chosen):
        topics.append(wakes.WORK)
    await connection.execute(
        _CLAIM,
        {
            "channel": wakes.CHANNEL,
            "payloads": wakes.payloads(topics),
            "job_ids": claimed,
            "agents": [chosen[j] for j in claimed],
            "epochs": [session[chosen[j]].epoch for j in claimed],
            "journals": [session[chosen[j]].journal_id for j in claimed],
            "hosts": [session[chosen[j]].hostname for j in claimed],
            "hubs": [session[chosen[j]].hub for j in claimed],
            "waiting": Status.WAITING,
            "starting": next_status(Status.WAITING, Event.CLAIM),
            "event": Event.CLAIM,
            # The last: each was read after whatever was done to that job before.
            "at": max(row.now for row in candidates),
            "digest": DIGEST_START,
        },
    )
    claims = [row for row in candidates if row.job_id in chosen]
    after_commit(connection, partial(measures.claimed, claims, max(row.now for row in candidates)))
    if any(row.parameters is None for row in candidates):
        return await assignments(connection, claimed), stale
    return delivered, stale


def _assignment(row: RowMapping, **more: Any) -> Assignment:
    """What is delivered of a row."""
    values = {name: value for name, value in row.items() if name in Assignment.__slots__}
    values["credentials"] = credentials.from_rows(row["credentials"])
    return Assignment(**values, **more)


_SESSIONS = text("""
    SELECT agent, agent_group, epoch, hub, journal_id, hostname, platform
    FROM queue.agent_sessions WHERE agent = ANY(:agents) ORDER BY agent FOR KEY SHARE
""")


def _candidates(condition: str) -> TextClause:
    return text(f"""
        SELECT j.*, s.kind AS site_kind, s.name AS site_name
        FROM unnest(CAST(:kinds AS text[]), CAST(:names AS text[]), CAST(:limits AS int[])) AS s(kind, name, slots)
        CROSS JOIN LATERAL (
            SELECT job_id, attempt + 1 AS attempt, claim_key, display_name, package_name, package_version,
                package_digest, operation, run_timeout, start_timeout, output_timeout, cancel_grace,
                queue.now() AS now, credentials, platforms, creator AS requester, trace_context, type, queued_at,
                -- What is large as it is stored need not be fetched to know it.
                CASE WHEN pg_column_size(parameters) < :small THEN
                    CASE WHEN octet_length(CAST(parameters AS text)) + octet_length(CAST(credentials AS text)) < :small
                        THEN parameters END
                    END AS parameters
            FROM queue.jobs
            WHERE status = 'WAITING' AND site_kind = s.kind AND site_name = s.name
                -- By one look at the clock: there may be many that wait for their retry.
                AND (retry_at IS NULL OR retry_at <= (SELECT queue.now()))
                -- A sweeper may come later.
                AND (latest_start IS NULL OR latest_start > (SELECT queue.now()))
                AND {condition}
            ORDER BY claim_key, job_id
            LIMIT s.slots
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS j
        ORDER BY j.claim_key, j.job_id
        LIMIT :total
    """)  # noqa: S608


# By the platform of the agents that ask, each by an index of its own; those of which it is not known take all.
_CANDIDATES = {"": _candidates("true")} | {name: _candidates(f"platforms ? '{name}'") for name in platforms.NAMES}

_CLAIM = text("""
    WITH chosen AS (
        SELECT *, CAST(:at AS timestamptz) AS at
        FROM unnest(CAST(:job_ids AS bigint[]), CAST(:agents AS text[]), CAST(:epochs AS bigint[]),
                    CAST(:journals AS text[]), CAST(:hosts AS text[]), CAST(:hubs AS text[]))
            AS c(job_id, agent, epoch, journal_id, hostname, hub)
    ), claimed AS (
        UPDATE queue.jobs AS j
        SET status = :starting, agent = c.agent, target = c.hostname, attempt = j.attempt + 1,
            retry_at = NULL, wait_reason = NULL, wait_message = '',
            history_sequence = j.history_sequence + 1, revision = j.revision + 1
        FROM chosen c WHERE j.job_id = c.job_id
        RETURNING j.job_id, j.attempt, j.history_sequence, c.agent, c.epoch, c.journal_id, c.hostname, c.hub, c.at
    ), attempted AS (
        INSERT INTO queue.attempts
            (job_id, number, agent, epoch, journal_id, claimed_at, last_heard_at, active_at, digest)
        SELECT job_id, attempt, agent, epoch, journal_id, at, at, at, :digest FROM claimed
    ), recorded AS (
        INSERT INTO queue.history
            (job_id, sequence, at, from_status, to_status, event, actor, origin, message, attempt)
        SELECT job_id, history_sequence, at, :waiting, :starting, :event, 'agent ' || agent, hub,
            'attempt ' || attempt || ', for a free slot on ' || hostname, attempt
        FROM claimed
    )
    SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload
""")


async def assignments(connection: AsyncConnection, job_ids: Collection[int]) -> list[tuple[str, Assignment]]:
    """The current attempts of these jobs as their agents get them, by agent.

    Once their parameters and credentials pass ANSWER_BYTES the rest is left out, so that the answer fits in a message:
    attempts that do not arrive are delivered with the heartbeats.
    """
    if not job_ids:
        return []
    rows = await connection.execute(_ASSIGNMENTS, {"job_ids": sorted(job_ids), "limit": ANSWER_BYTES})
    return [(row.agent, _assignment(row._mapping)) for row in rows]


# Measured one after the other, and none behind the last that fits: with files, to measure is to read megabytes.
_ASSIGNMENTS = text("""
    WITH RECURSIVE taken (number, size) AS (
        SELECT 0, CAST(0 AS bigint)
        UNION ALL
        SELECT number + 1, size + coalesce((
            SELECT octet_length(CAST(parameters AS text)) + octet_length(CAST(credentials AS text))
            FROM queue.jobs WHERE job_id = (CAST(:job_ids AS bigint[]))[number + 1]), 0)
        FROM taken WHERE size < :limit AND number < cardinality(CAST(:job_ids AS bigint[]))
    )
    SELECT j.job_id, j.attempt, j.display_name, j.package_name, j.package_version, j.package_digest, j.operation,
        j.parameters, j.run_timeout, j.start_timeout, j.output_timeout, j.cancel_grace, a.claimed_at, a.agent,
        j.credentials, j.creator AS requester, j.trace_context
    FROM taken
    JOIN queue.jobs j ON j.job_id = (CAST(:job_ids AS bigint[]))[taken.number]
    JOIN queue.attempts a ON a.job_id = j.job_id AND a.number = j.attempt
    ORDER BY j.job_id
""")
