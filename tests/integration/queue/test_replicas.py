"""What one replica of the queue does wakes whoever waits at another. Nothing is polled for here: without the wake a
test would wait for an hour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from services.queue import logs, watching
from services.queue.listing import JobFilter
from services.queue.logs import Position
from services.queue.model import HistoryEntry
from services.queue.states import Status
from services.queue.wakes import CHANNEL, Wakes
from services.runtime.database import Database
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import Api

SECONDS = 30.0


@dataclass(frozen=True)
class Replica:
    """What a process of the queue waits with, in this one; the `server` of the fixtures is another."""

    database: Database
    waker: Wakes


@pytest.fixture(autouse=True)
def never_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (logs, watching):
        monkeypatch.setattr(module, "POLL_SECONDS", 3_600.0)


@pytest.fixture
async def here(served_url: str) -> AsyncIterator[Replica]:
    database = Database(served_url, application_name="test", pool_size=2)
    waker, connected = Wakes(), asyncio.Event()

    def listens() -> None:
        connected.set()
        waker.heard_all()

    heard = asyncio.create_task(database.listen(CHANNEL, waker.heard, listens))
    async with asyncio.timeout(SECONDS):
        await connected.wait()
    yield Replica(database, waker)
    heard.cancel()
    await asyncio.gather(heard, return_exceptions=True)
    await database.dispose()


async def created(api: Api) -> int:
    """A job that nobody takes, made by the server."""
    request = pb.CreateJobRequest(
        display_name="elsewhere",
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="core.shell"),
        operation="run",
        site_target=job_pb2.SiteTarget(group="nobody"),
    )
    request.parameters["script"].plain = "true"
    return int((await api(api.jobs.CreateJob, request)).job.job_id)


async def test_a_list_at_one_replica_shows_what_another_creates_and_cancels(api: Api, here: Replica) -> None:
    async with (
        asyncio.timeout(SECONDS),
        aclosing(watching.watch(here.database, here.waker, JobFilter(), None)) as changes,
    ):
        await anext(changes)
        job_id = await created(api)
        shown = [row async for row in _shown(changes, job_id, Status.WAITING)]
        assert shown == [Status.WAITING]
        await api(api.jobs.CancelJob, pb.CancelJobRequest(job_id=job_id))
        assert [row async for row in _shown(changes, job_id, Status.CANCELED)][-1] == Status.CANCELED


async def _shown(changes: AsyncIterator[watching.Changes], job_id: int, last: Status) -> AsyncIterator[Status]:
    """What is told of a job, until it has this status."""
    async for change in changes:
        for row in change.jobs:
            if row.job_id == job_id:
                yield row.status
                if row.status == last:
                    return


async def test_a_monitor_at_one_replica_ends_with_the_cancel_at_another(api: Api, here: Replica) -> None:
    job_id = await created(api)
    events: list[str] = []
    async with (
        asyncio.timeout(SECONDS),
        aclosing(logs.monitor(here.database, here.waker, job_id, Position())) as news,
    ):
        async for item in news:
            if isinstance(item.content, HistoryEntry):
                events.append(item.content.event)
                if item.content.event == "CREATE":
                    # Only now, when the monitor has shown all that there is: the rest has to wake it.
                    await api(api.jobs.CancelJob, pb.CancelJobRequest(job_id=job_id))
    assert events == ["CREATE", "CANCEL"]
