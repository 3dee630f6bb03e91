"""The zygote: quick, small, and gone with its agent."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from services.sis_agent.agent import processes
from services.sis_agent.agent.handle import SpawnFailed, Zygote
from sis.queue.v1 import frame_pb2 as pb
from tests.support.attempts import Attempts, eventually, is_alive


def pid_of(zygote: Zygote) -> int:
    assert zygote._running is not None
    return zygote._running._process.pid


def children_of(pid: int) -> list[processes.ProcessInfo]:
    return [process for process in processes.read_all() if process.parent_pid == pid]


async def test_it_has_one_thread_and_no_grpc(attempts_anyhow: Attempts) -> None:
    zygote = attempts_anyhow.zygote
    await zygote.start()
    pid = pid_of(zygote)
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "grpc" not in mapped
    assert "uvloop" not in mapped


async def test_it_ends_with_its_agent_and_its_supervisors_do_not(attempts_anyhow: Attempts) -> None:
    zygote = attempts_anyhow.zygote
    attempt = await attempts_anyhow.start("sleep 0.5; echo on")
    pid = pid_of(zygote)
    await zygote.stop()
    assert not is_alive(pid)
    assert (await attempt.end()).outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.output() == b"on\n"


async def test_many_at_once(attempts_anyhow: Attempts) -> None:
    started = await asyncio.gather(*(attempts_anyhow.start(f"echo {number}") for number in range(12)))
    finished = await asyncio.gather(*(attempt.end() for attempt in started))
    assert {end.outcome for end in finished} == {pb.OUTCOME_SUCCEEDED}
    assert [attempt.output() for attempt in started] == [b"%d\n" % number for number in range(12)]


async def test_it_leaves_no_zombies(attempts_anyhow: Attempts) -> None:
    for _ in range(3):
        await attempts_anyhow.run("true")
    pid = pid_of(attempts_anyhow.zygote)
    await eventually(lambda: [p.name for p in children_of(pid) if p.alive] and all(p.alive for p in children_of(pid)))


async def test_a_spare_that_dies_is_replaced(attempts_anyhow: Attempts) -> None:
    zygote = attempts_anyhow.zygote
    await zygote.start()
    for _ in range(2):
        await eventually(lambda: children_of(pid_of(zygote)))
        for spare in children_of(pid_of(zygote)):
            processes.send_signal(spare, signal.SIGKILL)
        await eventually(lambda: not any(p.alive for p in children_of(pid_of(zygote))))
        assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED


async def test_a_spare_ends_with_the_zygote(attempts_anyhow: Attempts) -> None:
    zygote = attempts_anyhow.zygote
    await zygote.start()
    await eventually(lambda: children_of(pid_of(zygote)))
    spares = children_of(pid_of(zygote))
    os.kill(pid_of(zygote), signal.SIGKILL)
    await eventually(lambda: not any(is_alive(spare.pid) for spare in spares))
    # The agent has noticed, and another zygote serves.
    assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED


async def test_one_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(SpawnFailed) as caught:
        await Zygote().start()
    assert not caught.value.may_have_started
