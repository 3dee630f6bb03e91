"""Why a job waits, through sessions, claims and time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from services.queue import sessions
from services.queue.creation import Priority
from services.queue.errors import JobNotFound
from services.queue.explanations import Cause, Explanation
from services.queue.reports import Accepted
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import Rig
from tests.support.frames import Spool

pytestmark = pytest.mark.usefixtures("clock")


def reasons(found: Explanation) -> list[str]:
    return [cause.reason.value for cause in found.causes if cause.reason]


async def only(rig: Rig, job_id: int, reason: str) -> Cause:
    found = await rig.explain(job_id)
    assert reasons(found) == [reason], found
    return found.causes[0]


async def test_agents_come_and_go(rig: Rig, clock: Clock) -> None:
    job_id = await rig.create()
    await only(rig, job_id, "NO_AGENT_KNOWN")
    await rig.hello(draining=True)
    assert list((await only(rig, job_id, "AGENTS_DRAINING")).agents) == [rig.agent("a")]
    await rig.beat()
    await only(rig, job_id, "NOTHING")
    await rig.beat(draining=True)
    await only(rig, job_id, "AGENTS_DRAINING")
    await rig.hello(platform="windows")
    assert "run windows" in (await only(rig, job_id, "NO_AGENT_FITS")).message
    await rig.hello("b", platform="")
    await only(rig, job_id, "NOTHING")
    # Its hub is dead: nobody has closed its session.
    await clock.advance(61)
    await only(rig, job_id, "NO_AGENT_ONLINE")
    await rig.beat("b")
    await only(rig, job_id, "NOTHING")
    async with rig.database.begin() as connection:
        await sessions.close_session(connection, rig.session("b"))
    await only(rig, job_id, "NO_AGENT_ONLINE")


async def test_the_slots_are_taken(rig: Rig, clock: Clock) -> None:
    await rig.hello(slots=2)
    start = clock.now
    limited, unlimited = await rig.create(run_timeout=timedelta(hours=1)), await rig.create(agent="a")
    keys = {key.job_id: key for key in await rig.claim(slots=2)}
    await clock.advance(10)
    await rig.report(keys[limited], Accepted(), Spool().process_started(100))
    await rig.beat()
    job_id = await rig.create()
    cause = await only(rig, job_id, "AT_CAPACITY")
    assert [(h.job_id, h.agent, h.status, h.claimed_at, h.deadline) for h in cause.holders] == [
        (limited, rig.agent("a"), "RUNNING", start, start + timedelta(hours=1, seconds=10)),
        (unlimited, rig.agent("a"), "STARTING", start, None),
    ]
    found = await rig.explain(job_id)
    assert cause.retry_at == found.estimated_start_at == start + timedelta(hours=1, seconds=10)
    # A slot is free once the stop of its job is settled, not before.
    await rig.abort(limited)
    assert [h.status for h in (await only(rig, job_id, "AT_CAPACITY")).holders] == ["ABORTED", "STARTING"]
    await rig.decline(keys[unlimited])
    await rig.cancel(unlimited)
    await only(rig, job_id, "NOTHING")
    # So it is where the agent has lost its journal.
    await rig.hello(slots=1, journal_id="another")
    await only(rig, job_id, "NOTHING")


async def test_others_come_first(rig: Rig, clock: Clock) -> None:
    await rig.hello(slots=1)
    running, _ = await rig.started(run_timeout=timedelta(hours=1))
    mine = await rig.create()
    await rig.create_many(2, priority=Priority.HIGH)
    await rig.create(priority=Priority.LOW)
    await rig.create(site_name=f"{rig.group}-elsewhere", priority=Priority.HIGH)
    windows = await rig.create(priority=Priority.HIGH)
    await rig.execute("UPDATE queue.jobs SET platforms = '[\"windows\"]' WHERE job_id = :job_id", job_id=windows)
    found = await rig.explain(mine)
    assert reasons(found) == ["AT_CAPACITY", "JOBS_AHEAD"]
    assert found.causes[1].jobs_ahead == 2 and [h.job_id for h in found.causes[0].holders] == [running.job_id]
    assert found.causes[0].retry_at is not None and found.estimated_start_at is None
    await rig.execute(
        "UPDATE queue.jobs SET retry_at = :until WHERE priority = 4 AND site_name = :group",
        until=clock.now + timedelta(hours=1), group=rig.group,
    )  # fmt: skip
    found = await rig.explain(mine)
    assert reasons(found) == ["AT_CAPACITY"] and found.estimated_start_at == found.causes[0].retry_at


async def test_an_agents_own_job_waits_for_that_agent_alone(rig: Rig) -> None:
    await rig.hello("a")
    await rig.hello("b", slots=1)
    await rig.started("b")
    job_id = await rig.create(agent="b")
    assert list((await only(rig, job_id, "AT_CAPACITY")).agents) == [rig.agent("b")]
    await only(rig, await rig.create(), "NOTHING")


async def test_a_refused_lease_is_told_until_it_is_tried_again(rig: Rig, clock: Clock) -> None:
    job_id = await rig.create()
    await rig.hello()
    (key,) = await rig.claim()
    await rig.refuse(key, retry_after=30)
    cause = await only(rig, job_id, "VAULT_SEALED")
    assert "because of VAULT_SEALED" in cause.message
    assert cause.retry_at is not None and cause.retry_at >= clock.now + timedelta(seconds=30)
    await clock.advance(40)
    await only(rig, job_id, "NOTHING")


async def test_a_job_from_beginning_to_end(rig: Rig, clock: Clock) -> None:
    held = await rig.create(deferred=True)
    await only(rig, held, "HELD")
    timed = await rig.create(not_before=clock.now + timedelta(hours=1))
    assert (await only(rig, timed, "NOT_BEFORE")).retry_at == clock.now + timedelta(hours=1)

    async def said(job_id: int) -> str:
        found = await rig.explain(job_id)
        assert not found.causes
        return found.summary

    await rig.hello()
    job_id = await rig.create()
    (key,) = await rig.claim()
    assert "claimed it at" in await said(job_id)
    spool = Spool()
    await rig.report(key, Accepted(), spool.process_started(100))
    assert f"running on agent {rig.agent('a')} since {clock.now:%Y-%m-%d %H:%M:%S}" in await said(job_id)
    await rig.cancel(job_id)
    assert "been canceling it" in await said(job_id)
    await rig.hello(journal_id="another")
    assert "without its journal" in await said(job_id)
    await rig.abort(job_id)
    assert "as aborted" in await said(job_id)
    await rig.delete(job_id)
    with pytest.raises(JobNotFound):
        await rig.explain(job_id)


@pytest.mark.parametrize("changes", [{"platform": "windows"}, {"draining": True}, {"slots": 0}])
async def test_a_session_of_an_older_hub_says_less_and_nothing_is_made_of_that(
    rig: Rig, changes: dict[str, Any]
) -> None:
    """What a hello says is what counts from then on, whatever was said before."""
    await rig.hello(**changes)
    job_id = await rig.create()
    await rig.hello(platform="", slots=0)
    await only(rig, job_id, "NOTHING")
