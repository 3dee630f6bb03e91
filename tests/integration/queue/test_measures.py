"""What the queue measures of jobs, and their traces: of what was committed, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text

from services.queue import census, creation, dispatch, measures, reports
from services.queue.census import Census
from services.queue.dispatch import Capacity
from services.queue.reports import Accepted, Report
from services.queue.wakes import CHANNEL, Wakes
from services.runtime import metrics, tracing
from services.runtime.database import after_commit
from services.runtime.tracing import Attribute, Attributes
from sis.trace_context import TraceContext
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig
from tests.support.frames import Spool
from tests.support.recorded_spans import Spans, recorded_spans

GIVEN = TraceContext(0xABC, 0xDEF)


class Told:
    """What instruments were told, instead of OpenTelemetry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[tuple[str, float, dict[str, str | int]]] = []
        for name in ("TRANSITIONS", "WAIT", "START", "RUN", "LOG"):
            monkeypatch.setattr(measures, name, _Instrument(self, name))

    def of(self, name: str) -> list[tuple[float, dict[str, str | int]]]:
        return [(value, about) for each, value, about in self.all if each == name]


class _Instrument:
    def __init__(self, told: Told, name: str) -> None:
        self._told = told
        self._name = name

    def record(self, value: float, attributes: Attributes = metrics.NONE) -> None:
        self._told.all.append((self._name, value, {str(key): each for key, each in attributes.items()}))

    add = record


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


async def _whole(rig: Rig, clock: Clock) -> int:
    """A job that waits for three minutes and runs for two."""
    await rig.hello()
    job_id = await rig.create()
    await clock.advance(180)
    (key,) = await rig.claim()
    await rig.accept(key)
    spool = Spool()
    await rig.report(key, spool.process_started(7))
    await clock.advance(120)
    await rig.report(key, spool.payload_ended(0), spool.finished("SUCCEEDED"))
    return job_id


async def test_a_job_is_measured_from_its_queueing_to_its_end(rig: Rig, clock: Clock, told: Told) -> None:
    await _whole(rig, clock)
    (wait,), (start,), (run,) = told.of("WAIT"), told.of("START"), told.of("RUN")
    assert 180 <= wait[0] < 200
    assert wait[1] == {"sis.job.type": "PACKAGE"}
    assert 0 <= start[0] < 20
    assert 120 <= run[0] < 140
    assert run[1] == {"sis.job.type": "PACKAGE", "sis.job.status": "SUCCEEDED"}
    moves = [(about["sis.job.event"], about["sis.job.status"]) for _, about in told.of("TRANSITIONS")]
    assert moves == [
        ("CREATE", "WAITING"),
        ("CLAIM", "STARTING"),
        ("FIRST_PROCESS", "RUNNING"),
        ("PAYLOAD_ENDED", "PROCESSING_OUTPUT"),
        ("FINISH_SUCCEEDED", "SUCCEEDED"),
    ]
    assert sum(value for value, _ in told.of("LOG")) > 0


async def test_what_is_rolled_back_is_not_measured(rig: Rig, told: Told) -> None:
    await rig.hello()
    await rig.create()
    with pytest.raises(RuntimeError, match="lost"):
        async with rig.database.begin() as connection:
            await dispatch.claim(connection, [Capacity(rig.agent("a"), rig.epochs["a"], 1)])
            raise RuntimeError("lost")
    assert not told.of("WAIT")
    await rig.claim()
    assert len(told.of("WAIT")) == 1


async def test_acts_come_after_the_commit_in_order(rig: Rig) -> None:
    done: list[str] = []
    async with rig.database.begin() as connection:
        for name in ("first", "second"):
            after_commit(connection, lambda name=name: done.append(name))
        assert not done
    assert done == ["first", "second"]
    async with rig.database.begin():
        pass
    assert done == ["first", "second"]


async def _spans_of_a_job(rig: Rig, clock: Clock) -> Spans:
    with recorded_spans() as recorded:
        await rig.hello()
        with tracing.within(GIVEN):
            await rig.create()
        await clock.advance(180)
        (key,) = await rig.claim()
        spool = Spool()
        with tracing.served("Report", None, {}):
            session = rig.session("a")
            contents = [Accepted(), spool.process_started(7), spool.payload_ended(0), spool.finished("SUCCEEDED")]
            await reports.commit(rig.database, [Report(session, key, content) for content in contents])
        return recorded


async def test_a_job_is_part_of_the_trace_in_which_it_was_created(rig: Rig, clock: Clock) -> None:
    recorded = await _spans_of_a_job(rig, clock)
    wait, seal, report = recorded.one("job wait"), recorded.one("job seal"), recorded.one("Report")
    for span in (wait, seal):
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == (GIVEN.trace_id, GIVEN.span_id)
    assert wait.start_time is not None and wait.end_time is not None
    assert wait.end_time - wait.start_time >= 180e9
    assert seal.attributes is not None and seal.attributes["sis.job.status"] == "SUCCEEDED"
    # The report is of many jobs, so it is in the trace of none.
    assert report.parent is None
    assert {link.context.trace_id for link in report.links} == {GIVEN.trace_id}


async def test_the_assignment_carries_the_trace(rig: Rig) -> None:
    await rig.hello()
    with tracing.within(GIVEN):
        await rig.create()
    await rig.create()
    async with rig.database.begin() as connection:
        claimed, _ = await dispatch.claim(connection, [Capacity(rig.agent("a"), rig.epochs["a"], 2)])
        again = await dispatch.assignments(connection, [each.job_id for _, each in claimed])
    expected = [str(GIVEN), ""]
    assert [each.trace_context for _, each in claimed] == expected
    assert [each.trace_context for _, each in again] == expected


async def test_a_rerun_is_part_of_the_trace_in_which_it_was_asked_for(rig: Rig, clock: Clock) -> None:
    with tracing.within(GIVEN):
        job_id = await _whole(rig, clock)
    async with rig.database.begin() as connection:
        made = await creation.rerun(connection, job_id, "", ALICE)
    assert made.job.trace_context == ""


# --- the census ---


@pytest.fixture
async def asked(rig: Rig) -> AsyncIterator[Census]:
    """A census whose NOTIFY can be heard."""
    wakes = Wakes()
    heard = asyncio.Event()
    listening = asyncio.create_task(rig.database.listen(CHANNEL, wakes.heard, heard.set))
    await asyncio.wait_for(heard.wait(), 20)
    try:
        yield Census(rig.database, wakes)
    finally:
        listening.cancel()
        await asyncio.wait([listening])


def _jobs(asked: Census) -> dict[str, float]:
    return {str(about[Attribute.JOB_STATUS]): value for value, about in asked._jobs() if value}


async def test_live_jobs_are_counted_by_status(rig: Rig, clock: Clock, asked: Census) -> None:
    assert list(asked._jobs()) == []
    await asked.take()
    before = _jobs(asked)
    await rig.hello()
    await rig.create_many(3)
    await rig.create(deferred=True)
    await rig.claim(slots=1)
    await clock.advance(60)
    await asked.take()
    found = {status: count - before.get(status, 0) for status, count in _jobs(asked).items()}
    assert found == {"DEFERRED": 1, "STARTING": 1, "WAITING": 2}
    assert max(seconds for seconds, _ in asked._waits()) >= 60
    statuses = {about[Attribute.JOB_STATUS] for _, about in asked._jobs()}
    assert "AWOL" in statuses, "what there is none of is told as such"
    assert "SUCCEEDED" not in statuses


async def test_a_count_that_is_old_is_not_told(rig: Rig, asked: Census, monkeypatch: pytest.MonkeyPatch) -> None:
    await asked.take()
    assert list(asked._jobs()) and list(asked._waits())
    monkeypatch.setattr(census, "KEPT_SECONDS", 0.0)
    assert list(asked._jobs()) == [] and list(asked._waits()) == []


async def test_a_notification_is_timed(asked: Census, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    monkeypatch.setattr(census._NOTIFY, "record", taken.append)
    monkeypatch.setattr(census, "NOTIFY_SECONDS", 60.0)
    await asked.probe()
    monkeypatch.setattr(census, "NOTIFY_SECONDS", 0.2)
    deaf = Census(asked._database, Wakes())
    await deaf.probe()
    heard, lost = taken
    assert 0 < heard < 60, "it was not heard"
    assert lost >= 0.2


async def test_the_count_reads_the_index_of_what_is_live(rig: Rig) -> None:
    async with rig.database.begin() as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = (await connection.execute(text(f"EXPLAIN {census._COUNT.text}"), {"live": census._LIVE})).scalars().all()
    assert any("jobs_list" in line for line in plan), plan
    assert timedelta(seconds=census.COUNT_SECONDS) < timedelta(seconds=census.INTERVAL_SECONDS)
