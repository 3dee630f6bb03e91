"""What people, hubs and agents do to a queue, each step a transaction of its own, as its servicers do it; and a
checker of what that must leave behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Row, select, text

from services.queue import creation, dispatch, explanations, jobs, lease_ends, packages, reports, sessions
from services.queue.creation import CreateJob, Priority
from services.queue.explanations import Explanation
from services.queue.frames import Frame
from services.queue.jobs import JobView
from services.queue.model import Actor, HistoryEntry, LeaseEnd, LeaseRefusal, RefusalReason
from services.queue.reports import Accepted, Declined, Report, Result
from services.queue.sessions import AttemptKey, Heartbeat, OpenSession, Session, Welcome
from services.queue.states import TERMINAL
from services.queue.tables import attempts
from services.queue.tables import jobs as job_table
from services.queue.tables import lease_ends as outbox
from services.runtime.database import Database
from sis.packages import archive
from tests.support import promises
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
            "priority": Priority.NORMAL, "deferral_limit": None, "not_before": None, "latest_start": None,
            "run_timeout": None, "heartbeat_timeout": timedelta(seconds=120), "start_timeout": timedelta(minutes=5),
            "output_timeout": timedelta(seconds=60), "cancel_grace": None, "labels": {}, "request_id": "",
            "fingerprint": b"",
        }  # fmt: skip
        if "agent" in changes:
            values |= {"site_kind": "agent", "site_name": self.agent(changes.pop("agent"))}
        if changes.pop("deferred", False):
            values["deferral_limit"] = timedelta(days=30)
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
            return await lease_ends.InHand().hand_out(connection)

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
            answer = await sessions.heartbeat(connection, [beat])
        return answer.stale, [AttemptKey(again.job_id, again.attempt) for _, again in answer.undelivered]

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

    async def abort(self, job_id: int, reason: str = "", *, force: bool = False) -> JobView:
        async with self.database.begin() as connection:
            return await jobs.abort(connection, job_id, ALICE, reason, force=force)

    async def delete(self, job_id: int, reason: str = "") -> None:
        async with self.database.begin() as connection:
            await jobs.delete(connection, job_id, ALICE, reason)

    async def activate(self, job_id: int, reason: str = "") -> JobView:
        async with self.database.begin() as connection:
            return await jobs.activate(connection, job_id, ALICE, reason)

    async def rerun(self, job_id: int, request_id: str = "", reason: str = "") -> JobView:
        async with self.database.begin() as connection:
            return await creation.rerun(connection, job_id, request_id, ALICE, reason)

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
    """Assert what is true of these jobs whatever happened to them (`tests.support.promises`)."""
    async with database.begin() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, psycopg.AsyncConnection)
        promises.check(await asyncio.to_thread(_read, driver.info.dsn, job_ids))


def _read(conninfo: str, job_ids: Sequence[int]) -> promises.Record:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return promises.read(connection, job_ids)


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


def of(*batches: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """Frames of a spool as one batch."""
    return tuple(itertools.chain(*batches))
