"""The fan-out of one process."""

from __future__ import annotations

import asyncio

import pytest

from services.queue.wakes import JOBS, Wakes, job, payloads
from services.runtime.errors import Unavailable


async def test_who_waits_for_a_topic_hears_of_it_and_nobody_else() -> None:
    wakes = Wakes()
    with wakes.subscribe("work", "stop") as both, wakes.subscribe("job:4") as four, wakes.subscribe("job:42") as other:
        wakes.heard("job:4 stop")
        assert await wakes.wait(both, 30) == {"stop"}
        assert await wakes.wait(four, 30) == {"job:4"}
        assert await wakes.wait(other, 0.01) == set()


async def test_who_waits_for_any_job_hears_of_each() -> None:
    wakes = Wakes()
    with wakes.subscribe(JOBS) as any_job, wakes.subscribe("job:4", "work") as four:
        wakes.heard("work stop")
        assert await wakes.wait(any_job, 0.01) == set()
        wakes.heard("stop job:7 job:4 job:8")
        assert await wakes.wait(any_job, 30) == {JOBS}
        assert await wakes.wait(four, 30) == {"work", "job:4"}


async def test_a_wake_up_between_two_waits_is_not_lost() -> None:
    wakes = Wakes()
    with wakes.subscribe("work") as subscription:
        wakes.heard("work")
        async with asyncio.timeout(1):
            assert await wakes.wait(subscription, 30) == {"work"}
        assert await wakes.wait(subscription, 0.01) == set()


async def test_a_wait_without_news_ends_by_itself() -> None:
    wakes = Wakes()
    with wakes.subscribe("work") as subscription:
        assert await wakes.wait(subscription, 0.01) == set()


async def test_after_a_reconnection_everybody_looks() -> None:
    wakes = Wakes()
    with wakes.subscribe("job:1") as one, wakes.subscribe("job:2", "work") as two:
        wakes.heard_all()
        assert await wakes.wait(one, 30) == {"job:1"}
        assert await wakes.wait(two, 30) == {"job:2", "work"}


def test_payloads_stay_within_what_postgresql_takes() -> None:
    topics = [job(number) for number in range(5_000)]
    found = payloads(topics)
    assert all(len(payload) < 8_000 for payload in found)
    assert " ".join(found).split(" ") == topics
    assert payloads(["work", "work"]) == ["work"]
    assert payloads([]) == []


async def test_nobody_is_kept_who_no_longer_waits() -> None:
    wakes = Wakes()
    for number in range(100):
        with wakes.subscribe(f"job:{number}"):
            pass
    assert not wakes._waiting


async def test_draining_ends_every_wait_now_and_later() -> None:
    wakes = Wakes()
    wakes.check()
    with wakes.subscribe("work") as event:
        waiting = asyncio.create_task(wakes.wait(event, 30))
        await asyncio.sleep(0)
        await wakes.drain()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await wakes.wait(event, 30)
    with pytest.raises(Unavailable):
        wakes.check()
