"""The history of a job answers for every event: who, when, why, from where."""

from __future__ import annotations

import socket
from datetime import timedelta

from services.queue.reports import Accepted
from services.queue.sweeper import Sweeper
from tests.integration.queue.clock import Clock
from tests.integration.queue.rig import ALICE, Rig, of
from tests.support.frames import Spool


async def told(rig: Rig, job_id: int) -> dict[str, tuple[str, str, str]]:
    """By event: who, from where, why."""
    return {e.event: (e.actor, e.origin, e.message) for e in await rig.history(job_id)}


async def test_from_its_creation_to_its_end(rig: Rig) -> None:
    await rig.hello()
    job_id = await rig.create(agent="a", deferred=True)
    await rig.activate(job_id, "the window is open")
    (key,) = await rig.claim()
    spool = Spool()
    end = of(spool.process_started(100), spool.payload_ended(3), spool.finished("SUCCEEDED"))
    assert (await rig.report(key, Accepted(), end)).sealed
    agent = f"agent {rig.agent('a')}"
    alice = (ALICE.name, ALICE.origin)
    assert await told(rig, job_id) == {
        "CREATE": (*alice, "held until somebody activates it"),
        "ACTIVATE": (*alice, "the window is open"),
        "CLAIM": (agent, "hub-1", "attempt 1, for a free slot on host of a"),
        "ACCEPT": (agent, "host of a", "it is in its agent's journal"),
        "FIRST_PROCESS": (agent, "host of a", "payload process 100"),
        "PAYLOAD_ENDED": (agent, "host of a", "its payload ended with exit code 3"),
        "FINISH_SUCCEEDED": (agent, "host of a", (await told(rig, job_id))["FINISH_SUCCEEDED"][2]),
    }


async def test_what_the_clock_and_the_hub_do(rig: Rig, clock: Clock) -> None:
    sweeper = Sweeper(rig.database)
    await sweeper.sweep()
    await clock.elapse(70, sweeper.sweep)
    await rig.hello()
    here = ("sweeper", socket.gethostname())
    job_id = await rig.create(
        agent="a", not_before=clock.now + timedelta(seconds=1), heartbeat_timeout=timedelta(seconds=60)
    )
    await clock.advance(1)
    await sweeper.sweep()
    (key,) = await rig.claim()
    await rig.refuse(key)
    await clock.elapse(5, sweeper.sweep)
    (key,) = await rig.claim()
    await rig.accept(key)
    await clock.elapse(61, sweeper.sweep)
    await rig.beat("a", key)
    found = await told(rig, job_id)
    agent = rig.agent("a")
    assert found["CREATE"][2] == "held until its earliest start"
    assert found["RELEASE"] == (*here, "its earliest start has come")
    assert found["LEASE_REFUSED"][:2] == (f"hub of agent {agent}", "hub-1")
    assert found["CLAIM"] == (f"agent {agent}", "hub-1", "attempt 2, for a free slot on host of a")
    assert found["SILENCE"] == (*here, f"agent {agent} has said nothing of it for 60 s")
    back = (f"agent {agent}", "host of a", f"agent {agent} is back")
    assert found["RETURN_STARTING"] == back
    # By a new stream, it comes from no other machine.
    await clock.elapse(61, sweeper.sweep)
    await rig.hello(in_hand=[key])
    assert [(e.actor, e.origin, e.message) for e in await rig.history(job_id) if e.event == "RETURN_STARTING"] == [
        back,
        back,
    ]


async def test_both_histories_say_why_a_job_was_run_again(rig: Rig) -> None:
    old = await rig.create()
    await rig.cancel(old)
    made = (await rig.rerun(old, reason="the disk was full")).job.job_id
    assert (await told(rig, old))["RERUN"] == (ALICE.name, ALICE.origin, f"as job {made}: the disk was full")
    assert (await told(rig, made))["CREATE"][2] == f"rerun of job {old}: the disk was full"
