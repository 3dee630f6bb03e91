"""A supervisor outlives its agent and its zygote, and a disk that is full."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.sis_agent.agent.attempts import ASSIGNMENT
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.recording.spool import SpoolBusy, SpoolReader
from services.sis_agent.agent.supervision.handle import SpawnFailed, StopKind, SupervisorHandle
from services.sis_agent.agent.supervision.lost import finish_lost
from sis.queue.v1 import frame_pb2 as pb
from tests.support.attempts import UNTIL_GO, Attempts, eventually, is_alive
from tests.support.stopping import stop

AGENT = """
import asyncio, sys
from pathlib import Path
from services.sis_agent.agent.supervision.handle import Zygote

async def main():
    await Zygote().spawn(Path(sys.argv[1]), Path(sys.argv[2]))
    print("spawned", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_it_outlives_its_agent(attempts_anyhow: Attempts) -> None:
    script = f"for i in $(seq 1 20); do echo $i; sleep 0.02; done; {UNTIL_GO}; seq 21 40"
    attempt = attempts_anyhow.prepare(script)
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, attempt.directory, attempt.package],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"spawned\n"
        await attempt.until_output(b"5\n")
        os.killpg(agent.pid, signal.SIGKILL)
    with attempt.handle() as handle:
        process = processes.read(handle.identity.pid)
        assert process is not None
        assert process.session == process.pid
        attempt.go()
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.output() == b"".join(b"%d\n" % i for i in range(1, 41))


async def test_it_outlives_its_zygote_and_another_one_is_started(attempts_anyhow: Attempts) -> None:
    first = await attempts_anyhow.start(f"echo ready; {UNTIL_GO}; echo done")
    await first.until_output(b"ready")
    running = attempts_anyhow.zygote._running
    assert running is not None
    running._process.kill()
    await asyncio.to_thread(running._process.wait)
    second = await attempts_anyhow.run("echo second")
    assert second.finished().outcome == pb.OUTCOME_SUCCEEDED
    first.go()
    assert (await first.end()).outcome == pb.OUTCOME_SUCCEEDED
    assert first.output() == b"ready\ndone\n"


async def test_an_attempt_is_never_started_twice(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start("echo started; sleep 60")
    await attempt.until_output(b"started")
    with pytest.raises(SpawnFailed, match="another process writes this spool") as caught:
        await attempts_anyhow.spawn(attempt)
    assert caught.value.may_have_started
    with attempt.handle() as handle:
        handle.kill()
        await handle.wait_gone()
    with pytest.raises(SpawnFailed, match="was started before"):
        await attempts_anyhow.spawn(attempt)
    await asyncio.to_thread(finish_lost, attempt.directory)
    with pytest.raises(SpawnFailed, match="has ended"):
        await attempts_anyhow.spawn(attempt)
    assert attempt.output() == b"started\n"


async def test_an_attempt_that_was_finished_as_lost_cannot_start(attempts_anyhow: Attempts) -> None:
    """An order that reaches the zygote after the agent, started anew, has given the attempt up."""
    attempt = attempts_anyhow.prepare("echo must not run")
    await asyncio.to_thread(finish_lost, attempt.directory)
    with pytest.raises(SpawnFailed, match="has ended"):
        await attempts_anyhow.spawn(attempt)
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "SUPERVISOR_LOST")
    assert attempt.output() == b""


async def test_a_directory_that_cannot_be_used(attempts_anyhow: Attempts) -> None:
    attempt = attempts_anyhow.prepare("true")
    (attempt.directory / ASSIGNMENT).unlink()
    with pytest.raises(SpawnFailed) as caught:
        await attempts_anyhow.spawn(attempt)
    assert not caught.value.may_have_started


async def test_nobody_else_writes_while_it_lives(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start("sleep 60")
    with pytest.raises(SpoolBusy):
        await asyncio.to_thread(finish_lost, attempt.directory)
    with attempt.handle() as handle:
        await handle.stop(StopKind.ABORT, "")
        await handle.wait_gone()


async def test_no_byte_is_lost_when_the_disk_is_full(attempts_anyhow: Attempts) -> None:
    script = f"echo ready; {UNTIL_GO}; for i in $(seq 1 60000); do echo line $i; done"
    attempt = await attempts_anyhow.start(script)
    await attempt.until_output(b"ready")
    with attempt.handle() as handle:
        pid = handle.identity.pid
        # A file that may not grow fails like a disk that is full.
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (attempt.spool.stat().st_size + 100_000, hard))
        attempt.go()
        await eventually(lambda: "cannot be written" in attempt.faults())
        before = attempt.output()
        # It is held back, and neither crashes nor turns in circles.
        used = cpu_seconds(pid)
        await asyncio.sleep(0.5)
        assert attempt.output() == before
        assert cpu_seconds(pid) - used < 0.25
        assert handle.alive
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        await handle.wait_gone()
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.output() == b"ready\n" + b"".join(b"line %d\n" % i for i in range(1, 60_001))


async def test_a_stop_works_when_the_disk_is_full(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start("echo ready; yes")
    await attempt.until_output(b"ready")
    with attempt.handle() as handle:
        pid = handle.identity.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (attempt.spool.stat().st_size + 50_000, hard))
        await eventually(lambda: "cannot be written" in attempt.faults())
        (payload,) = [n.process_started.process.pid for n in attempt.notices("process_started")][1:2]
        await handle.stop(StopKind.ABORT, "full")
        await eventually(lambda: not is_alive(payload))
        assert handle.alive
        assert not attempt.notices("stop_begun")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        await handle.wait_gone()
    assert attempt.finished().outcome == pb.OUTCOME_STOPPED
    assert attempt.finished().evidence.tree_empty


async def test_growth_is_told_and_never_missed(attempts_anyhow: Attempts) -> None:
    script = f"echo ready; {UNTIL_GO}; for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.05; done"
    attempt = await attempts_anyhow.start(script)
    await attempt.until_output(b"ready")
    sequence, rounds = 0, 0
    with attempt.handle() as handle, SpoolReader(attempt.spool) as reader:
        attempt.go()
        alive = True
        while alive:
            alive = handle.alive
            while frames := reader.read(sequence, 4096):
                sequence += len(frames)
            # Without a word of growth this would last for half a minute.
            await handle.wait_growth(30.0)
            rounds += 1
        while frames := reader.read(sequence, 4096):
            sequence += len(frames)
    assert reader.finished is not None
    assert sequence == len(attempt.frames())
    assert rounds < 60


async def test_a_supervisor_that_hangs_does_not_answer(
    attempts_anyhow: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.sis_agent.agent.supervision.handle._COMMAND_SECONDS", 0.2)
    attempt = await attempts_anyhow.start("sleep 60")
    handle = SupervisorHandle.adopt(attempt.directory)
    assert handle is not None
    with handle:
        assert stop(handle.identity.pid)
        with pytest.raises(Exception, match="does not answer"):
            await handle.stop(StopKind.ABORT, "")
        assert handle.alive
        handle.kill()
        await handle.wait_gone()
    await asyncio.to_thread(finish_lost, attempt.directory)
    assert attempt.finished().failure_reason == "SUPERVISOR_LOST"
