"""What people, hubs and agents do to a queue, each step a transaction of its own, as its servicers do it; and a
checker of what that must leave behind."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select, text

from services.queue import creation, dispatch, explanations, jobs, lease_ends, packages, reports, sessions
from services.queue.creation import CreateJob, Priority
from services.queue.errors import IllegalTransition
from services.queue.explanations import Explanation
from services.queue.frames import Frame, extend_digest
from services.queue.jobs import JobView
from services.queue.model import Actor, HistoryEntry, LeaseEnd, LeaseRefusal, RefusalReason
from services.queue.reports import Accepted, Declined, Report, Result
from services.queue.sessions import AttemptKey, Heartbeat, OpenSession, Session, Welcome
from services.queue.states import TERMINAL, Event, Status, next_status
from services.queue.tables import attempts, log
from services.queue.tables import jobs as job_table
from services.queue.tables import lease_ends as outbox
from services.runtime.database import Database
from sis.packages import archive
from tests.support.frames import Spool

ALICE = Actor("alice", "10.0.0.1")


class Rig:
    """A group of agents with one database."""

    def __init__(self, database: Database, group: str) -> None:
        self.database = database
        self.group = group
        self.epochs: dict[str, int] = {}

    def agent(self, name: str) -> str:
        """The full name of an agent of this rig."""
        return f"{self.group}-{name}"

    def session(self, name: str) -> Session:
        """The newest session of an agent."""
        return Session(self.agent(name), self.epochs[name])

    def command(self, **changes: Any) -> CreateJob:
        values: dict[str, Any] = {
            "display_name": "hello", "package_name": "core.shell", "package_version": "", "operation": "run",
            "parameters": {"script": "echo hello"}, "site_kind": "group", "site_name": self.group,
            "priority": Priority.NORMAL, "deferred": False, "not_before": None, "latest_start": None,
            "run_timeout": None, "heartbeat_timeout": timedelta(seconds=120), "labels": {}, "request_id": "",
            "fingerprint": b"",
        }  # fmt: skip
        if "agent" in changes:
            values |= {"site_kind": "agent", "site_name": self.agent(changes.pop("agent"))}
        return CreateJob(**(values | changes))

    async def create(self, **changes: Any) -> int:
        (job_id,) = await self.create_many(1, **changes)
        return job_id

    async def create_many(self, count: int, **changes: Any) -> list[int]:
        command = self.command(**changes)
        async with self.database.begin() as connection:
            return [(await creation.create(connection, command, ALICE)).job.job_id for _ in range(count)]

    async def hello(self, name: str = "a", **changes: Any) -> Welcome:
        """Open a session, by default with the journal that the agent has always had, one record longer each time."""
        values: dict[str, Any] = {
            "agent": self.agent(name), "group": self.group, "hub": "hub-1", "journal_id": f"journal of {name}",
            "record_number": self.epochs.get(name, 0) + 1, "hostname": f"host of {name}", "slots": 8,
            "draining": False, "platform": "linux", "in_hand": frozenset(),
        }  # fmt: skip
        changes["in_hand"] = frozenset(changes.get("in_hand", ()))
        async with self.database.begin() as connection:
            welcome = await sessions.open_session(connection, OpenSession(**(values | changes)))
        self.epochs[name] = max(welcome.epoch, self.epochs.get(name, 0))
        return welcome

    async def claim(self, *names: str, slots: int = 8, epoch: int | None = None) -> list[AttemptKey]:
        """Claim for agents ("a" alone by default) and return what was claimed for them."""
        wanted = [dispatch.Capacity(self.agent(name), epoch or self.epochs[name], slots) for name in names or ("a",)]
        async with self.database.begin() as connection:
            claimed, _ = await dispatch.claim(connection, wanted)
        return [AttemptKey(assignment.job_id, assignment.attempt) for _, assignment in claimed]

    async def report(self, key: AttemptKey, *contents: Any, name: str = "a", epoch: int | None = None) -> Result:
        """Report all contents in one batch; the answer to the last one."""
        session = Session(self.agent(name), epoch or self.epochs[name])
        return (await reports.commit(self.database, [Report(session, key, content) for content in contents]))[-1]

    async def accept(self, key: AttemptKey, **how: Any) -> Result:
        return await self.report(key, Accepted(), **how)

    async def decline(self, key: AttemptKey, **how: Any) -> Result:
        return await self.report(key, Declined("it is full"), **how)

    async def refuse(
        self,
        key: AttemptKey,
        reason: RefusalReason = RefusalReason.VAULT_SEALED,
        *,
        permanent: bool = False,
        retry_after: float = 0,
        **how: Any,
    ) -> Result:
        """The hub gets no leases for it."""
        refusal = LeaseRefusal(reason, f"because of {reason}", permanent, timedelta(seconds=retry_after))
        return await self.report(key, refusal, **how)

    async def hand_out(self) -> list[LeaseEnd]:
        """What a hub that watches is given of the outbox."""
        async with self.database.begin() as connection:
            return await lease_ends.hand_out(connection)

    async def acknowledge(self, *ends: LeaseEnd) -> None:
        async with self.database.begin() as connection:
            await lease_ends.acknowledge(connection, ends)

    async def lease_ends(self, *job_ids: int) -> list[tuple[int, bool]]:
        """What the outbox has of these jobs: attempt and `job_over`."""
        query = select(outbox.c.attempt, outbox.c.job_over).where(outbox.c.job_id.in_(job_ids))
        async with self.database.begin() as connection:
            rows = await connection.execute(query.order_by(outbox.c.job_id, outbox.c.attempt))
            return [(row.attempt, row.job_over) for row in rows]

    async def beat(
        self, name: str = "a", *keys: AttemptKey, draining: bool = False
    ) -> tuple[list[Session], list[AttemptKey]]:
        """A heartbeat: the stale sessions, and what is delivered again."""
        beat = Heartbeat(self.session(name), frozenset(keys), draining)
        async with self.database.begin() as connection:
            stale, again = await sessions.heartbeat(connection, [beat])
        return stale, [AttemptKey(assignment.job_id, assignment.attempt) for _, assignment in again]

    async def stops(self, hub: str = "hub-1") -> dict[AttemptKey, str]:
        """The stop commands for this rig's agents."""
        async with self.database.begin() as connection:
            found = await sessions.stops(connection, hub)
        return {s.attempt: s.kind.value for s in found if s.session.agent.startswith(f"{self.group}-")}

    async def started(self, name: str = "a", **changes: Any) -> tuple[AttemptKey, Spool]:
        """A job that runs at an agent, which says hello first if it has not yet."""
        if name not in self.epochs:
            await self.hello(name)
        await self.create(agent=name, **changes)
        (key,) = await self.claim(name)
        spool = Spool()
        await self.report(key, Accepted(), spool.process_started(100), name=name)
        return key, spool

    async def cancel(self, job_id: int) -> JobView:
        async with self.database.begin() as connection:
            return await jobs.cancel(connection, job_id, ALICE, "")

    async def abort(self, job_id: int) -> JobView:
        async with self.database.begin() as connection:
            return await jobs.abort(connection, job_id, ALICE, "")

    async def delete(self, job_id: int) -> None:
        async with self.database.begin() as connection:
            await jobs.delete(connection, job_id, ALICE)

    async def activate(self, job_id: int) -> JobView:
        async with self.database.begin() as connection:
            return await jobs.activate(connection, job_id, ALICE)

    async def rerun(self, job_id: int, request_id: str = "") -> JobView:
        async with self.database.begin() as connection:
            return await creation.rerun(connection, job_id, request_id, ALICE)

    async def whole(self, job_id: int) -> JobView:
        async with self.database.begin() as connection:
            return await jobs.get(connection, job_id, contents=True)

    async def explain(self, job_id: int) -> Explanation:
        async with self.database.begin() as connection:
            return await explanations.explain(connection, job_id)

    async def push(self, directory: Path, manifest: str) -> None:
        """Put a package that is no more than its manifest into the library."""
        (directory / "package.yaml").write_text(manifest)
        content = archive.pack(directory)
        upload = packages.Upload(archive.digest(content), len(content))
        upload.add(content)
        await packages.push(self.database, upload, ALICE)

    async def job(self, job_id: int) -> Row[Any]:
        """The row of a job, deleted or not."""
        async with self.database.begin() as connection:
            return (await connection.execute(select(job_table).where(job_table.c.job_id == job_id))).one()

    async def statuses(self, job_ids: Sequence[int]) -> dict[int, str]:
        """The statuses of many jobs in one look."""
        query = select(job_table.c.job_id, job_table.c.status).where(job_table.c.job_id.in_(job_ids))
        async with self.database.begin() as connection:
            return {row.job_id: row.status for row in await connection.execute(query)}

    async def status(self, job_id: int) -> str:
        return str((await self.job(job_id)).status)

    async def attempt(self, key: AttemptKey) -> Row[Any]:
        query = select(attempts).where(attempts.c.job_id == key.job_id, attempts.c.number == key.number)
        async with self.database.begin() as connection:
            return (await connection.execute(query)).one()

    async def history(self, job_id: int) -> list[HistoryEntry]:
        async with self.database.begin() as connection:
            return await jobs.history_after(connection, job_id, 0, 10_000)

    async def events(self, job_id: int) -> list[str]:
        return [entry.event for entry in await self.history(job_id)]

    async def blocked(self) -> bool:
        """Whether a transaction waits for another one."""
        query = (
            "SELECT count(*) > 0 FROM pg_stat_activity"
            " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
        )
        async with self.database.begin() as connection:
            return bool((await connection.exec_driver_sql(query)).scalar_one())

    async def execute(self, statement: str, **values: Any) -> None:
        async with self.database.begin() as connection:
            await connection.execute(text(statement), values)


async def check(database: Database, job_ids: Sequence[int]) -> None:
    """Assert what is true of these jobs whatever happened to them:

    the history is without a gap and each row follows from the one before by the rulebook; nothing leaves a terminal
    status; each attempt was claimed once and accepted at most once, and all but the last are sealed; the log of each
    attempt is without a gap and has the digest that its row says.
    """
    async with database.begin() as connection:
        found = (await connection.execute(select(job_table).where(job_table.c.job_id.in_(job_ids)))).all()
        tried = (await connection.execute(select(attempts).where(attempts.c.job_id.in_(job_ids)))).all()
        frames = (
            await connection.execute(
                select(log).where(log.c.job_id.in_(job_ids)).order_by(log.c.job_id, log.c.attempt, log.c.sequence)
            )
        ).all()
        histories = {i: await jobs.history_after(connection, i, 0, 10_000) for i in job_ids}
    for job in found:
        history = histories[job.job_id]
        _check_history(job, history)
        own = [a for a in tried if a.job_id == job.job_id]
        assert len(own) == job.attempt == sum(e.event == "CLAIM" for e in history)
        assert all(a.sealed_at is not None for a in own if a.number < job.attempt)
        if job.status in TERMINAL:
            assert job.completed_at is not None
    accepted = [(e.attempt, i) for i in job_ids for e in histories[i] if e.event == "ACCEPT"]
    assert len(accepted) == len(set(accepted)), "an attempt was accepted twice"
    by_attempt = {key: list(rows) for key, rows in itertools.groupby(frames, key=lambda r: (r.job_id, r.attempt))}
    for row in tried:
        digest = bytes(32)
        bodies = by_attempt.pop((row.job_id, row.number), [])
        assert [f.sequence for f in bodies] == list(range(1, row.sequence + 1))
        for frame in bodies:
            digest = extend_digest(digest, bytes(frame.body))
        assert bytes(row.digest) == digest
    assert not by_attempt, "a log without an attempt"


async def check_lease_ends(database: Database, job_ids: Sequence[int]) -> None:
    """Assert that the outbox, of which nothing was acknowledged, has the end of each attempt of these jobs that is
    over, of none that is not, and the end of each job that is over, if it names credentials."""
    async with database.begin() as connection:
        found = (await connection.execute(select(job_table).where(job_table.c.job_id.in_(job_ids)))).all()
        tried = (await connection.execute(select(attempts).where(attempts.c.job_id.in_(job_ids)))).all()
        ends = (await connection.execute(select(outbox).where(outbox.c.job_id.in_(job_ids)))).all()
    for job in found:
        own = {a.number: a for a in tried if a.job_id == job.job_id}
        live = job.attempt in own and own[job.attempt].sealed_at is None
        expected = {number: False for number, a in own.items() if a.sealed_at is not None}
        if job.status in TERMINAL and not live:
            expected[job.attempt] = True
        if not job.credentials:
            expected = {}
        assert {e.attempt: e.job_over for e in ends if e.job_id == job.job_id} == expected, job


def _check_history(job: Row[Any], history: Sequence[HistoryEntry]) -> None:
    assert [e.sequence for e in history] == list(range(1, job.history_sequence + 1))
    before: Status | None = None
    for entry in history:
        assert entry.from_status == before, f"job {job.job_id}: {history}"
        if before is not None and entry.to_status is not before:
            assert before not in TERMINAL
            assert entry.to_status in _permitted(before, Event(entry.event))
        before = entry.to_status
    assert before == job.status


def _permitted(status: Status, event: Event) -> set[Status]:
    found = set()
    for accepted, canceled in itertools.product((False, True), repeat=2):
        with contextlib.suppress(IllegalTransition):
            found.add(next_status(status, event, accepted=accepted, cancel_recorded=canceled))
    return found


def of(*batches: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """Frames of a spool as one batch."""
    return tuple(itertools.chain(*batches))
