"""Each job has its own deadlines, from the request to the agent and to the sweeper."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from services.queue import dispatch
from services.queue.convert import jobs as convert
from services.queue.convert.dispatch import to_assignment
from services.queue.convert.repeats import to_request
from services.queue.creation import Limits
from services.queue.reports import Accepted
from services.queue.states import StopState
from services.queue.sweeper import Sweeper
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig, check, of
from tests.support.frames import Spool

DEADLINES = {
    "start_timeout": timedelta(seconds=70), "output_timeout": timedelta(seconds=80),
    "cancel_grace": timedelta(seconds=90),
}  # fmt: skip
PATIENT = """
name: test.patient
version: 1.0.0
operations:
  use: {command: ["true"], cancel_grace: 30s}
"""


@pytest.fixture
async def sweeper(rig: Rig, clock: Clock) -> Sweeper:
    """One that has watched for three minutes."""
    found = Sweeper(rig.database)
    await found.sweep()
    await clock.elapse(180, found.sweep)
    return found


async def test_a_deferral_ends_at_its_limit_and_the_job_says_so_before(
    rig: Rig, clock: Clock, sweeper: Sweeper
) -> None:
    held = await rig.create(deferral_limit=timedelta(minutes=1))
    shown = convert.to_job(await rig.whole(held))
    assert shown.deferral_expire_time.ToDatetime(clock.now.tzinfo) == clock.now + timedelta(minutes=1)
    assert f"by {clock.now + timedelta(minutes=1):%Y-%m-%d %H:%M:%S} UTC" in (await rig.explain(held)).summary
    await clock.advance(59.9)
    await sweeper.sweep()
    assert await rig.status(held) == "DEFERRED"
    await clock.advance(0.1)
    await sweeper.sweep()
    job = await rig.job(held)
    assert (job.status, job.failure_reason) == ("EXPIRED", "DEFERRAL_LIMIT")
    assert job.status_message == "nobody activated it before its deferral ended"
    entry = (await rig.history(held))[-1]
    assert (entry.event, entry.actor, bool(entry.origin)) == ("EXPIRE", "sweeper", True)
    assert not convert.to_job(await rig.whole(held)).HasField("deferral_expire_time")
    await check(rig.database, [held])


async def test_who_activates_a_job_ends_its_deferral_with_its_limit(rig: Rig, clock: Clock, sweeper: Sweeper) -> None:
    held = await rig.create(deferral_limit=timedelta(minutes=1))
    await rig.activate(held)
    assert (await rig.job(held)).deferral_ends_at is None
    await clock.advance(120)
    await sweeper.sweep()
    assert await rig.status(held) == "WAITING"


@pytest.mark.parametrize(
    ("status", "seconds", "reason"),
    [
        ("STARTING", 70, "START_TIMEOUT"),
        ("PROCESSING_OUTPUT", 80, "OUTPUT_TIMEOUT"),
        ("CANCEL_REQUESTED", 90 + 30, "STOP_UNCONFIRMED"),
    ],
)
async def test_the_sweeper_keeps_the_deadlines_of_each_job(
    rig: Rig, clock: Clock, sweeper: Sweeper, status: str, seconds: float, reason: str
) -> None:
    await rig.hello()
    await rig.create(agent="a", heartbeat_timeout=timedelta(seconds=600), **DEADLINES)
    (key,) = await rig.claim()
    if status == "PROCESSING_OUTPUT":
        spool = Spool()
        await rig.report(key, Accepted(), of(spool.process_started(1), spool.payload_ended(0)))
    elif status == "CANCEL_REQUESTED":
        await rig.cancel(key.job_id)
    await clock.elapse(seconds + 30, sweeper.sweep)
    assert await rig.status(key.job_id) == status
    await clock.advance(0.1)
    await sweeper.sweep()
    job = await rig.job(key.job_id)
    assert (job.status, job.failure_reason, job.stop_state) == ("FAILED", reason, StopState.PENDING)


async def test_the_agent_is_told_the_deadlines_of_each_job(rig: Rig) -> None:
    await rig.hello()
    own, usual = await rig.create(**DEADLINES), await rig.create()
    async with rig.database.begin() as connection:
        claimed, _ = await dispatch.claim(connection, [dispatch.Capacity(rig.agent("a"), rig.epochs["a"], 2)])
        again = await dispatch.assignments(connection, [own, usual])
    for delivered in (claimed, again):
        told = {a.job_id: to_assignment(a) for _, a in delivered}
        assert {name: getattr(told[own], name).ToTimedelta() for name in DEADLINES} == DEADLINES
        found = [getattr(told[usual], name).seconds for name in DEADLINES]
        assert found == [300, 60, 10]


async def test_an_assignment_is_redelivered_until_the_start_timeout_of_its_job(rig: Rig, clock: Clock) -> None:
    await rig.hello()
    patient, usual = [await rig.create(start_timeout=timedelta(seconds=t)) for t in (900, 300)]
    await rig.claim()
    await clock.advance(400)
    assert [a.job_id for a in (await rig.hello()).redelivered] == [patient]
    assert await rig.statuses([patient, usual]) == {patient: "STARTING", usual: "WAITING"}


async def test_a_grace_is_the_job_s_else_the_operation_s_and_goes_with_its_repetitions(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.push(tmp_path, PATIENT)
    package = {"package_name": "test.patient", "operation": "use", "parameters": {}}
    own = await rig.create(**package, **(DEADLINES | {"cancel_grace": timedelta()}))
    declared = await rig.create(**package)
    assert [(await rig.job(j)).cancel_grace.total_seconds() for j in (own, declared)] == [0, 30]
    command = convert.create_job(to_request(await rig.whole(own)), Limits())
    assert {name: getattr(command, name) for name in DEADLINES} == DEADLINES | {"cancel_grace": timedelta()}
    await rig.cancel(own)
    repeated = (await rig.rerun(own)).job
    assert {name: getattr(repeated, name) for name in DEADLINES} == DEADLINES | {"cancel_grace": timedelta()}
