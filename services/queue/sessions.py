"""Sessions of agents: epochs, verdicts, heartbeats.

`agent_sessions` holds one row for each agent. Opening a session raises its epoch under FOR UPDATE; claims, reports
and heartbeats hold it FOR KEY SHARE and refuse a lower epoch, so that nothing of an older stream takes effect later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import adoption, dispatch, lifecycle, store, wakes
from services.queue.frames import StopKind
from services.queue.model import Actor, Attempt, Job
from services.queue.states import TERMINAL, Status, StopState

REDELIVER_AFTER = timedelta(seconds=5)

ONLINE_WITHIN = timedelta(seconds=60)
"""An agent whose session is open but was not heard for this long is not online: its hub has died."""


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One claim of one job."""

    job_id: int
    number: int


@dataclass(frozen=True, slots=True)
class Session:
    """An agent, and the epoch of its stream."""

    agent: str
    epoch: int


class Verdict(StrEnum):
    """What an agent does with an attempt that it has in hand."""

    GO_ON = "GO_ON"
    KILL = "KILL"
    FORGET = "FORGET"


@dataclass(frozen=True, slots=True)
class OpenSession:
    """What an agent says of itself when its stream opens."""

    agent: str
    group: str
    hub: str
    journal_id: str
    record_number: int
    hostname: str
    slots: int
    draining: bool
    platform: str
    """By the name that packages give it, "" when it is not known."""
    in_hand: frozenset[AttemptKey]


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop that is still to be done."""

    session: Session
    attempt: AttemptKey
    kind: StopKind
    reason: str


@dataclass(slots=True)
class Welcome:
    """The answer: the new epoch, what shall become of each attempt in hand, and what is to be delivered again."""

    epoch: int
    verdicts: list[tuple[AttemptKey, Verdict, int]] = field(default_factory=list)
    redelivered: list[dispatch.Assignment] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)


async def open_session(connection: AsyncConnection, hello: OpenSession) -> Welcome:
    """Supersede the agent's session and settle every attempt that either side knows of."""
    now = await store.now(connection)
    await connection.execute(_REMEMBER, {"agent": hello.agent, "agent_group": hello.group, "now": now})
    before = (await connection.execute(_LOCK, {"agent": hello.agent})).one()
    # The journal is the one we knew, and it has forgotten nothing.
    trusted = before.epoch == 0 or (
        before.journal_id == hello.journal_id and hello.record_number >= before.record_number
    )
    welcome = Welcome(epoch=before.epoch + 1)
    await connection.execute(
        _SUPERSEDE,
        {
            "agent": hello.agent, "agent_group": hello.group, "epoch": welcome.epoch, "hub": hello.hub,
            "journal_id": hello.journal_id, "record_number": hello.record_number, "hostname": hello.hostname,
            "slots": hello.slots, "draining": hello.draining, "platform": hello.platform, "now": now,
        },
    )  # fmt: skip
    locked = await _lock(connection, hello)
    known = _live_attempts(hello, locked)
    now = store.since_locked(now, known.values())
    by = Actor(f"agent {hello.agent}", hello.hostname)
    free = 0 if hello.draining else hello.slots - len(hello.in_hand)
    again: list[int] = []
    for key, job in known.items():
        attempt = job.attempt
        if attempt is None:
            continue
        held = key in hello.in_hand
        if held:
            attempt.last_heard_at = attempt.active_at = now
        if attempt.lost or (attempt.accepted_at is not None and not (held and trusted)):
            lifecycle.journal_lost(job, now, by)
        elif not held and trusted:
            # Delivered after its start limit, it would only fail for it.
            if job.status is Status.STARTING and free > 0 and now < attempt.claimed_at + job.start_timeout:
                free -= 1
                again.append(job.job_id)
                attempt.last_heard_at = now
            else:
                lifecycle.never_started(job, now, by, "the agent came back without having accepted it")
        elif not held:
            lifecycle.journal_lost(job, now, by)
        elif attempt.accepted_at is None and job.status in TERMINAL and job.live:
            lifecycle.never_started(job, now, by, "the job ended before the agent's acceptance came")
        elif job.status is Status.AWOL:
            lifecycle.come_back(job, now, by)
        else:
            lifecycle.reopen_stop(job, now)
        if held:
            welcome.verdicts.append((key, _verdict(job), attempt.sequence))
        if held and attempt.sealed_at is None and attempt.stop_wish is not None and not attempt.lost:
            session = Session(hello.agent, welcome.epoch)
            welcome.stops.append(Stop(session, key, attempt.stop_wish, attempt.stop_reason))
    changed = list(known.values())
    for key in sorted(hello.in_hand - known.keys(), key=lambda k: (k.job_id, k.number)):
        unknown, attempt = locked.get(key.job_id), _as_held(key, hello, welcome.epoch, now)
        site = {"group": hello.group, "hostname": hello.hostname}
        if unknown and await adoption.adopt(connection, unknown, attempt, **site, now=now, by=by):
            changed.append(unknown)
            welcome.verdicts.append((key, Verdict.GO_ON, 0))
        else:
            welcome.verdicts.append((key, Verdict.FORGET, 0))
    await store.save(connection, changed, [wakes.WORK])
    await connection.execute(
        _ADOPT,
        {"agent": hello.agent, "epoch": welcome.epoch, "job_ids": again, "journal_id": hello.journal_id},
    )
    welcome.redelivered = [a for _, a in await dispatch.assignments(connection, again)]
    return welcome


def _verdict(job: Job) -> Verdict:
    attempt = job.attempt
    if attempt is None or attempt.sealed_at is not None or attempt.lost:
        return Verdict.FORGET
    return Verdict.KILL if job.status in TERMINAL else Verdict.GO_ON


def _as_held(key: AttemptKey, hello: OpenSession, epoch: int, now: datetime) -> Attempt:
    """What is known, by its agent's word alone, of an attempt in hand."""
    return Attempt(
        number=key.number, agent=hello.agent, epoch=epoch, journal_id=hello.journal_id, claimed_at=now,
        last_heard_at=now, active_at=now, accepted_at=now,
    )  # fmt: skip


async def _lock(connection: AsyncConnection, hello: OpenSession) -> dict[int, Job]:
    """The jobs of which this agent has, or should have, an attempt."""
    ids = {row.job_id for row in await connection.execute(_LIVE, {"agent": hello.agent})}
    return await store.lock(connection, ids | {key.job_id for key in hello.in_hand})


def _live_attempts(hello: OpenSession, locked: Mapping[int, Job]) -> dict[AttemptKey, Job]:
    """Every attempt of this agent that is not sealed, and those in hand that are the agent's and current."""
    return {
        AttemptKey(job.job_id, job.attempt.number): job
        for job in locked.values()
        if job.attempt is not None
        and job.attempt.agent == hello.agent
        and (job.live or AttemptKey(job.job_id, job.attempt.number) in hello.in_hand)
    }


_REMEMBER = text("""
    INSERT INTO queue.agent_sessions
        (agent, agent_group, epoch, hub, journal_id, record_number, hostname, open, last_heard_at)
    VALUES (:agent, :agent_group, 0, '', '', 0, '', false, :now)
    ON CONFLICT (agent) DO NOTHING
""")
_LOCK = text("SELECT epoch, journal_id, record_number FROM queue.agent_sessions WHERE agent = :agent FOR UPDATE")
_SUPERSEDE = text("""
    UPDATE queue.agent_sessions
    SET agent_group = :agent_group, epoch = :epoch, hub = :hub, journal_id = :journal_id,
        record_number = :record_number, hostname = :hostname, open = true, last_heard_at = :now,
        slots = :slots, draining = :draining, platform = :platform
    WHERE agent = :agent
""")
_LIVE = text("SELECT job_id FROM queue.attempts WHERE agent = :agent AND sealed_at IS NULL")
_ADOPT = text("""
    UPDATE queue.attempts SET epoch = :epoch, journal_id = :journal_id
    WHERE agent = :agent AND sealed_at IS NULL AND job_id = ANY(:job_ids)
""")


async def close_session(connection: AsyncConnection, session: Session) -> None:
    """The stream of this session has ended; without effect once it was superseded."""
    await connection.execute(
        text("UPDATE queue.agent_sessions SET open = false WHERE agent = :agent AND epoch = :epoch"),
        {"agent": session.agent, "epoch": session.epoch},
    )


@dataclass(frozen=True, slots=True)
class Machines:
    """At the two ends of a session: those of the agent and, by its name, of the hub."""

    agent: str
    hub: str


async def share(
    connection: AsyncConnection, sessions: Collection[Session]
) -> tuple[Mapping[Session, Machines], datetime]:
    """Those of the sessions that are the newest of their agents, and the time; they stay so until the transaction
    ends."""
    rows = (await connection.execute(_SHARE, {"agents": sorted({s.agent for s in sessions})})).all()
    current = {Session(row.agent, row.epoch): Machines(row.hostname, row.hub) for row in rows}
    now = max((row.now for row in rows), default=None) or await store.now(connection)
    return {session: current[session] for session in sessions if session in current}, now


_SHARE = text("""
    SELECT agent, epoch, hostname, hub, queue.now() AS now
    FROM queue.agent_sessions WHERE agent = ANY(:agents) ORDER BY agent FOR KEY SHARE
""")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A session was heard, with these attempts in its hand."""

    session: Session
    attempts: frozenset[AttemptKey]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """To heartbeats: the sessions that are stale, what was claimed for a session but never reached it, by agent, and
    stops for what agents have in hand of which nobody wants to know any more."""

    stale: list[Session]
    undelivered: list[tuple[str, dispatch.Assignment]]
    stops: list[Stop]


async def heartbeat(connection: AsyncConnection, heartbeats: Sequence[Heartbeat]) -> Answer:
    """Note who was heard, with what in hand."""
    current, now = await share(connection, [h.session for h in heartbeats])
    heard = {h.session.agent: h for h in heartbeats if h.session in current}
    # Nothing that a claim or a report depends on is written here, and the lock that they hold lets it be written. Who
    # is at the row beside them is another heartbeat, or a hello, for which nothing is waited here.
    beats = {"agents": list(heard), "draining": [h.draining for h in heard.values()], "now": now}
    await connection.execute(_HEARD, beats)
    keys = [(h.session.agent, key) for h in heard.values() for key in h.attempts]
    touched = {
        "agents": [agent for agent, _ in keys],
        "job_ids": [key.job_id for _, key in keys],
        "numbers": [key.number for _, key in keys],
        "now": now,
    }
    rows = (await connection.execute(_HEARD_ATTEMPTS, touched)).all()
    given_up = [row for row in rows if row.status == Status.AWOL or row.stop_state == StopState.UNCONFIRMED]
    await _come_back(connection, heard, current, {row.job_id for row in given_up if not row.lost})
    let_go = await connection.execute(_LET_GO, touched) if keys else ()
    undelivered = await connection.execute(
        _UNDELIVERED,
        {
            "agents": [h.session.agent for h in heard.values()],
            "epochs": [h.session.epoch for h in heard.values()],
            "before": now - REDELIVER_AFTER,
        },
    )
    lost = [row.job_id for row in undelivered if AttemptKey(row.job_id, row.number) not in heard[row.agent].attempts]
    return Answer(
        [h.session for h in heartbeats if h.session not in current],
        await dispatch.assignments(connection, lost),
        [
            Stop(
                heard[row.agent].session, AttemptKey(row.job_id, row.number), StopKind.ABORT, "it was given up for lost"
            )
            for row in let_go
        ],
    )


async def _come_back(
    connection: AsyncConnection,
    heard: Mapping[str, Heartbeat],
    current: Mapping[Session, Machines],
    job_ids: set[int],
) -> None:
    if not job_ids:
        return
    # The attempts are locked already, against the order of locks, so nothing may be waited for: whoever has the job in
    # hand is a report, which brings it home itself, or else the next beat does.
    locked = await store.lock(connection, job_ids, skip_locked=True)
    now = await store.now(connection)
    returned = []
    for job in locked.values():
        if job.attempt is None or job.attempt.lost or job.agent not in heard:
            continue
        if AttemptKey(job.job_id, job.attempt.number) not in heard[job.agent].attempts:
            continue
        if job.status is Status.AWOL:
            machine = current[heard[job.agent].session].agent
            lifecycle.come_back(job, now, Actor(f"agent {job.agent}", machine))
            returned.append(job)
        elif lifecycle.reopen_stop(job, now):
            returned.append(job)
    await store.save(connection, returned, [wakes.STOP])


_HEARD = text("""
    UPDATE queue.agent_sessions AS s SET last_heard_at = :now, draining = h.draining
    FROM unnest(CAST(:agents AS text[]), CAST(:draining AS boolean[])) AS h(agent, draining)
    WHERE s.agent = h.agent AND s.agent IN (
        SELECT agent FROM queue.agent_sessions WHERE agent = ANY(:agents) FOR NO KEY UPDATE SKIP LOCKED)
""")
_HEARD_ATTEMPTS = text("""
    WITH heard AS (
        SELECT a.job_id, a.number
        FROM queue.attempts a
        JOIN unnest(CAST(:agents AS text[]), CAST(:job_ids AS bigint[]), CAST(:numbers AS int[]))
            AS k(agent, job_id, number) ON a.job_id = k.job_id AND a.number = k.number AND a.agent = k.agent
        FOR NO KEY UPDATE OF a SKIP LOCKED)
    UPDATE queue.attempts a SET last_heard_at = :now
    FROM heard, queue.jobs j
    WHERE a.job_id = heard.job_id AND a.number = heard.number AND j.job_id = a.job_id AND a.sealed_at IS NULL
    RETURNING a.job_id, a.lost, j.status, j.stop_state
""")
# Its stream has been open all along, so that no hello has had a verdict: it goes on with what was let go by force.
_LET_GO = text("""
    SELECT k.agent, k.job_id, k.number
    FROM unnest(CAST(:agents AS text[]), CAST(:job_ids AS bigint[]), CAST(:numbers AS int[]))
        AS k(agent, job_id, number)
    LEFT JOIN queue.attempts a ON a.job_id = k.job_id AND a.number = k.number
    WHERE a.job_id IS NULL OR (a.lost AND a.agent = k.agent)
    ORDER BY k.job_id LIMIT 1000
""")
_UNDELIVERED = text("""
    SELECT a.job_id, a.number, a.agent
    FROM queue.attempts a
    JOIN unnest(CAST(:agents AS text[]), CAST(:epochs AS bigint[])) AS s(agent, epoch)
        ON a.agent = s.agent AND a.epoch = s.epoch
    JOIN queue.jobs j ON j.job_id = a.job_id AND j.attempt = a.number
    WHERE a.sealed_at IS NULL AND a.accepted_at IS NULL AND NOT a.lost AND a.claimed_at < :before
    LIMIT 1000
""")


async def stops(connection: AsyncConnection, hub: str) -> list[Stop]:
    """The stops that are wished and not begun, of the sessions that this hub holds, a thousand at the most: those first
    whose agents are online, and of these the last ones, so that what nobody takes up keeps back nothing else."""
    rows = await connection.execute(_STOPS, {"hub": hub, "online_within": ONLINE_WITHIN})
    return [
        Stop(
            Session(row.agent, row.epoch),
            AttemptKey(row.job_id, row.number),
            StopKind(row.stop_wish),
            row.stop_reason,
        )
        for row in rows
    ]


_STOPS = text("""
    SELECT a.job_id, a.number, a.agent, s.epoch, a.stop_wish, a.stop_reason
    FROM queue.attempts a JOIN queue.agent_sessions s ON s.agent = a.agent
    WHERE s.hub = :hub AND s.open AND a.sealed_at IS NULL
        AND a.stop_wish IS NOT NULL
        -- What is lost cannot report any more that its stop has begun, so it is told for a while only.
        AND (NOT a.lost OR a.stop_wished_at > queue.now() - interval '10 minutes')
        AND (a.stop_begun IS NULL OR (a.stop_wish = 'ABORT' AND a.stop_begun <> 'ABORT'))
    ORDER BY s.last_heard_at > queue.now() - CAST(:online_within AS interval) DESC, a.stop_wished_at DESC, a.job_id
    LIMIT 1000
""")
