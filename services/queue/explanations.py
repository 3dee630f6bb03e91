"""Why a job waits: found when somebody asks, from the job, the agents of its site and the jobs in their slots.

`explain` looks; what follows from what it sees is pure (`because`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import removals
from services.queue.model import WaitReason
from services.queue.sessions import ONLINE_WITHIN
from services.queue.states import Status
from sis.packages import platforms

AGENTS = 1_000
"""Looked at, those first that can take a job the soonest."""
NAMES = 20
HOLDERS = 50
AHEAD = 1_000
_NAMED_IN_TEXT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be known of the job; the times of the attempt are those of the current one."""

    job_id: int
    status: Status
    now: datetime
    site_kind: str
    site_name: str
    platforms: Sequence[str]
    claim_key: datetime | None = None
    not_before: datetime | None = None
    latest_start: datetime | None = None
    deferral_ends_at: datetime | None = None
    retry_at: datetime | None = None
    wait_reason: WaitReason | None = None
    wait_message: str = ""
    agent: str = ""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    status_message: str = ""
    claimed_at: datetime | None = None
    payload_ended_at: datetime | None = None
    last_heard_at: datetime | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """An agent of the site. `fits` says that the job's package is for its platform."""

    name: str
    platform: str
    online: bool
    fits: bool
    draining: bool
    full: bool
    slots: int

    @property
    def taking(self) -> bool:
        """Whether it takes the job once it has room."""
        return self.online and self.fits and not self.draining


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """A job in a slot of an agent; `deadline` is when its run timeout strikes."""

    agent: str
    job_id: int
    status: Status
    claimed_at: datetime
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class Site:
    """The agents that a job is for, the jobs in the slots of those that take it where all are full, the oldest first,
    and how many jobs for the same site come first."""

    agents: Sequence[Agent] = ()
    holders: Sequence[SlotHolder] = ()
    jobs_ahead: int = 0


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that keeps a job. Of what a job says of itself the reason may be None."""

    reason: WaitReason | None
    message: str
    retry_at: datetime | None = None
    agents: Sequence[str] = ()
    holders: Sequence[SlotHolder] = ()
    jobs_ahead: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What keeps a job, in the order in which it would have to pass; nothing where it does not wait."""

    status: Status
    summary: str
    causes: Sequence[Cause] = ()
    estimated_start_at: datetime | None = None


async def explain(connection: AsyncConnection, job_id: int) -> Explanation:
    """What keeps a job, or what it does instead of waiting.

    Raises:
        JobNotFound
    """
    row = (await connection.execute(_SUBJECT, {"job_id": job_id})).first()
    if row is None:
        raise await removals.not_found(connection, job_id)
    values = dict(row._mapping)
    values["status"] = Status(row.status)
    values["wait_reason"] = WaitReason(row.wait_reason) if row.wait_reason else None
    job = Subject(**values)
    return because(job, await _site(connection, job) if job.status is Status.WAITING else Site())


async def _site(connection: AsyncConnection, job: Subject) -> Site:
    site = {"kind": job.site_kind, "name": job.site_name, "platforms": list(job.platforms), "now": job.now}
    rows = await connection.execute(_AGENTS, site | {"since": job.now - ONLINE_WITHIN, "limit": AGENTS})
    agents = [Agent(**row._mapping) for row in rows]
    full = _full(agents)
    found = await connection.execute(_HOLDERS, {"agents": [agent.name for agent in full], "limit": HOLDERS})
    holders = [SlotHolder(r.agent, r.job_id, Status(r.status), r.claimed_at, r.deadline) for r in found]
    ahead = site | {"claim_key": job.claim_key, "job_id": job.job_id, "limit": AHEAD}
    return Site(agents, holders, (await connection.execute(_ahead(job.platforms), ahead)).scalar_one())


def _full(agents: Sequence[Agent]) -> list[Agent]:
    """The agents that take the job once they have room; none while one of them has."""
    taking = [agent for agent in agents if agent.taking]
    return taking if all(agent.full for agent in taking) else []


_SUBJECT = text("""
    SELECT j.job_id, j.status, queue.now() AS now, j.site_kind, j.site_name, j.platforms, j.claim_key, j.not_before,
        j.latest_start, j.deferral_ends_at, j.retry_at, j.wait_reason, j.wait_message, j.agent, j.started_at,
        j.completed_at, j.cancel_requested_at, j.status_message, a.claimed_at, a.payload_ended_at, a.last_heard_at,
        coalesce(a.lost, false) AS lost
    FROM queue.jobs j LEFT JOIN queue.attempts a ON a.job_id = j.job_id AND a.number = j.attempt
    WHERE j.job_id = :job_id AND j.hidden_at IS NULL
""")

# An agent that has not said how many slots it has is taken to have room. What is lost is in nobody's slot any more.
_AGENTS = text("""
    SELECT s.agent AS name, s.platform, s.draining, s.slots, s.open AND s.last_heard_at > :since AS online,
        s.platform = '' OR :platforms ? s.platform AS fits,
        s.slots > 0 AND s.slots <= held.count AS full
    FROM queue.agent_sessions s
    CROSS JOIN LATERAL (
        SELECT count(*) FROM queue.attempts a WHERE a.agent = s.agent AND a.sealed_at IS NULL AND NOT a.lost
    ) AS held
    WHERE (:kind = 'agent' AND s.agent = :name) OR (:kind = 'group' AND s.agent_group = :name)
    ORDER BY online DESC, fits DESC, s.draining, "full", s.agent
    LIMIT :limit
""").bindparams(bindparam("platforms", type_=JSONB))

_HOLDERS = text("""
    SELECT a.agent, a.job_id, j.status, a.claimed_at,
        CASE WHEN j.status IN ('RUNNING', 'CANCEL_REQUESTED') THEN a.first_process_at + j.run_timeout END AS deadline
    FROM queue.attempts a JOIN queue.jobs j USING (job_id)
    WHERE a.agent = ANY(:agents) AND a.sealed_at IS NULL AND NOT a.lost
    ORDER BY a.claimed_at, a.job_id
    LIMIT :limit
""")


def _ahead(wanted: Sequence[str]) -> TextClause:
    """Counts the jobs that come first. Those that only agents of other platforms can take are not in the way."""
    each = " UNION ".join(_AHEAD.format(platform=name) for name in platforms.NAMES if name in wanted)
    return text(f"SELECT count(*) FROM (SELECT * FROM ({each}) AS any_of LIMIT :limit) AS ahead")  # noqa: S608


_AHEAD = """(
    SELECT job_id FROM queue.jobs
    WHERE status = 'WAITING' AND site_kind = :kind AND site_name = :name AND platforms ? '{platform}'
        AND (claim_key, job_id) < (:claim_key, :job_id) AND (retry_at IS NULL OR retry_at <= :now)
    ORDER BY claim_key, job_id
    LIMIT :limit)"""


def because(job: Subject, site: Site = Site()) -> Explanation:
    """The explanation that follows from the facts."""
    match job.status:
        case Status.DEFERRED if job.not_before is not None:
            message = f"its earliest start is {_at(job.not_before)}"
            causes = [Cause(WaitReason.NOT_BEFORE, message, job.not_before)]
        case Status.DEFERRED:
            why = f": {job.wait_message}" if job.wait_message else ""
            causes = [Cause(WaitReason.HELD, f"it is held until somebody activates it{why}")]
        case Status.WAITING:
            causes = _causes(job, site)
        case _:
            return Explanation(job.status, f"It does not wait: {_instead(job)}.")
    summary = f"It waits: {'; '.join(cause.message for cause in causes)}."
    if job.latest_start is not None:
        summary += f" It expires if it has not started by {_at(job.latest_start)}."
    if job.status is Status.DEFERRED and job.deferral_ends_at is not None:
        summary += f" It expires if nobody has activated it by {_at(job.deferral_ends_at)}."
    return Explanation(job.status, summary, causes, _estimate(job, causes))


def _causes(job: Subject, site: Site) -> list[Cause]:
    found = _site_causes(job, site)
    if job.retry_at is None or job.retry_at <= job.now:
        return found
    message = f"{job.wait_message}; it is tried again at {_at(job.retry_at)}"
    told = Cause(job.wait_reason, message, job.retry_at)
    return [told, *(cause for cause in found if cause.reason is not WaitReason.NOTHING)]


def _site_causes(job: Subject, site: Site) -> list[Cause]:
    online = [agent for agent in site.agents if agent.online]
    fitting = [agent for agent in online if agent.fits]
    free = [agent for agent in fitting if agent.taking and not agent.full]
    alone = job.site_kind == "agent"
    none = f"agent {job.site_name}" if alone else f"no agent of group {job.site_name}"
    those = f"agent {job.site_name}" if alone else f"the agents of group {job.site_name} that are connected"
    ahead = _jobs_ahead(job, site.jobs_ahead)
    if not site.agents:
        return [Cause(WaitReason.NO_AGENT_KNOWN, f"{none} has {'never' if alone else 'ever'} been connected"), *ahead]
    if not online:
        message = f"{none} is {'not ' if alone else ''}connected"
        return [Cause(WaitReason.NO_AGENT_ONLINE, message, agents=_names(site.agents)), *ahead]
    if not fitting:
        seen = " and ".join(sorted({agent.platform for agent in online}))
        message = f"its package is for {' and '.join(job.platforms)}, and {those} run{'s' if alone else ''} {seen}"
        return [Cause(WaitReason.NO_AGENT_FITS, message, agents=_names(online)), *ahead]
    if not any(agent.taking for agent in fitting):
        message = f"{those} take{'s' if alone else ''} no new work"
        return [Cause(WaitReason.AGENTS_DRAINING, message, agents=_names(fitting)), *ahead]
    if full := _full(fitting):
        first = min((h.deadline for h in site.holders if h.deadline is not None), default=None)
        message = _at_capacity(those, full, site.holders)
        return [Cause(WaitReason.AT_CAPACITY, message, first, _names(full), site.holders), *ahead]
    message = f"agent {free[0].name} has a free slot and claims it in a moment"
    return ahead or [Cause(WaitReason.NOTHING, message, agents=_names(free))]


def _jobs_ahead(job: Subject, count: int) -> list[Cause]:
    if not count:
        return []
    number = f"{count:,} or more" if count == AHEAD else f"{count:,}"
    others = "other job" if count == 1 else "other jobs"
    message = f"{number} {others} for the same {job.site_kind} come{'s' if count == 1 else ''} first"
    return [Cause(WaitReason.JOBS_AHEAD, message, jobs_ahead=count)]


def _at_capacity(those: str, full: Sequence[Agent], holders: Sequence[SlotHolder]) -> str:
    slots = sum(agent.slots for agent in full)
    taken = f"the only slot of {those} is taken" if slots == 1 else f"all {slots:,} slots of {those} are taken"
    if not holders:
        return taken
    listed = ", ".join(str(holder.job_id) for holder in holders[:_NAMED_IN_TEXT])
    others = " and others" if len(holders) > _NAMED_IN_TEXT else ""
    return f"{taken}, by job{'' if len(holders) == 1 else 's'} {listed}{others}"


def _names(agents: Sequence[Agent]) -> list[str]:
    return [agent.name for agent in agents[:NAMES]]


def _estimate(job: Subject, causes: Sequence[Cause]) -> datetime | None:
    """When the last of the causes passes, if that is known of each. The slots that others come first for are not its
    own: it gets that of the holder whose deadline is the next one after theirs."""
    ahead = sum(cause.jobs_ahead for cause in causes)
    full = any(cause.reason is WaitReason.AT_CAPACITY for cause in causes)
    found = [job.now]
    for cause in causes:
        at = cause.retry_at
        if cause.reason is WaitReason.AT_CAPACITY:
            deadlines = sorted(h.deadline for h in cause.holders if h.deadline is not None)
            at = deadlines[ahead] if ahead < len(deadlines) else None
        elif cause.reason is WaitReason.JOBS_AHEAD and full:
            continue
        if at is None:
            return None
        found.append(at)
    return max(found)


def _instead(job: Subject) -> str:
    """What a job does that does not wait."""
    match job.status:
        case Status.STARTING:
            return f"agent {job.agent} claimed it at {_at(job.claimed_at)} and is starting it"
        case Status.RUNNING:
            return f"it has been running on agent {job.agent} since {_at(job.started_at)}"
        case Status.PROCESSING_OUTPUT:
            return f"its payload ended at {_at(job.payload_ended_at)}, and agent {job.agent} is processing its output"
        case Status.CANCEL_REQUESTED:
            return f"agent {job.agent} has been canceling it since {_at(job.cancel_requested_at)}"
        case Status.AWOL if job.lost:
            return f"agent {job.agent} came back without its journal, and nobody knows whether it still runs"
        case Status.AWOL:
            silent = f"agent {job.agent} has been silent since {_at(job.last_heard_at)}"
            return f"{silent}, and nobody knows whether it still runs"
        case _:
            why = f" ({job.status_message})" if job.status_message else ""
            return f"it ended at {_at(job.completed_at)} as {job.status.replace('_', ' ').lower()}{why}"


def _at(time: datetime | None) -> str:
    return "an unknown time" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
