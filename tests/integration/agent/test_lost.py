"""What becomes of an attempt whose supervisor is killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from services.sis_agent.agent.handle import StopKind, SupervisorHandle
from services.sis_agent.agent.lost import finish_lost
from services.sis_agent.agent.supervisor_identity import IDENTITY
from sis.queue.v1 import frame_pb2 as pb
from tests.support.attempts import PYTHON, Attempt, Attempts, alive_with, eventually, is_alive

DEAF = "trap '' TERM; (trap '' TERM; sleep 60) & echo ready; sleep 60"


async def kill_supervisor(attempt: Attempt) -> None:
    with attempt.handle() as handle:
        handle.kill()
        await handle.wait_gone()
    assert SupervisorHandle.adopt(attempt.directory) is None


async def finish(attempt: Attempt) -> pb.Finished:
    await asyncio.to_thread(finish_lost, attempt.directory)
    return attempt.finished()


async def test_the_rest_is_killed_and_named(attempts: Attempts, request: pytest.FixtureRequest) -> None:
    attempt = await attempts.start(DEAF)
    await attempt.until_output(b"ready")
    await kill_supervisor(attempt)
    finished = await finish(attempt)
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "SUPERVISOR_LOST")
    assert finished.evidence.method == ("cgroup" if "best" in request.node.name else "environment")
    # Without a cgroup, finding nothing proves nothing.
    assert finished.evidence.tree_empty == (finished.evidence.method == "cgroup")
    assert not finished.evidence.survivors
    assert len(finished.evidence.processes) >= 2
    assert any("KILL" in process.signals for process in finished.evidence.processes)
    assert all(process.ended for process in finished.evidence.processes)
    assert not any(is_alive(process.pid) for process in finished.evidence.processes)
    assert attempt.output() == b"ready\n"


async def test_daemons_without_any_environment_are_found(attempts: Attempts) -> None:
    """They have left the session and the line of descent; the supervisor had seen them."""
    mark = f"sis-lost-{id(attempts)}"
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve({sys.executable!r}, ["python", "-c", "import time; time.sleep(60)", "{mark}"], {{}})
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(60)
"""
    attempt = await attempts.start(code, command=PYTHON)
    await attempt.until(lambda a: len(a.notices("process_started")) >= 3)
    await kill_supervisor(attempt)
    assert len(alive_with(mark)) == 1
    finished = await finish(attempt)
    # Without a cgroup, finding nothing proves nothing.
    assert finished.evidence.tree_empty == (finished.evidence.method == "cgroup")
    assert not finished.evidence.survivors
    assert alive_with(mark) == []


async def test_a_cancel_that_was_under_way_has_ended_it(attempts: Attempts) -> None:
    attempt = await attempts.start(DEAF, grace=60)
    await attempt.until_output(b"ready")
    with attempt.handle() as handle:
        await handle.stop(StopKind.CANCEL, "enough")
    await kill_supervisor(attempt)
    finished = await finish(attempt)
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_STOPPED, "")
    # Without a cgroup, finding nothing proves nothing.
    assert finished.evidence.tree_empty == (finished.evidence.method == "cgroup")
    assert not finished.evidence.survivors


async def test_a_stop_after_the_payload_has_not(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start("trap '' TERM; sleep 60 & exit 3", grace=60)
    await attempt.until(lambda a: a.notices("payload_ended"))
    with attempt.handle() as handle:
        await handle.stop(StopKind.CANCEL, "enough")
    await kill_supervisor(attempt)
    finished = await finish(attempt)
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "SUPERVISOR_LOST")
    assert finished.result_code == 3


async def test_what_has_ended_stays_as_it_is(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.run("echo fine")
    before = attempt.spool.read_bytes()
    assert (await finish(attempt)).outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.spool.read_bytes() == before


async def test_a_torn_frame_is_cut_off(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start("echo one; sleep 60")
    await attempt.until_output(b"one")
    await kill_supervisor(attempt)
    whole = attempt.spool.read_bytes()
    attempt.spool.write_bytes(whole + whole[:30])
    finished = await finish(attempt)
    assert finished.failure_reason == "SUPERVISOR_LOST"
    assert attempt.spool.read_bytes().startswith(whole)


async def test_after_a_restart_of_the_machine_nothing_is_looked_for(attempts_anyhow: Attempts) -> None:
    """A process that has the recorded pid by now, and a supervisor's, are strangers."""
    attempt = await attempts_anyhow.start("echo ready; sleep 60")
    await attempt.until_output(b"ready")
    identity = attempt.directory / IDENTITY
    values = json.loads(identity.read_text())
    identity.write_text(json.dumps({**values, "boot_id": "another"}))
    assert SupervisorHandle.adopt(attempt.directory) is None
    os.kill(values["pid"], 9)
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    keys = attempt.directory / "processes"
    keys.write_text(f"{stranger.pid} 1\n")
    await eventually(lambda: not is_alive(values["pid"]))
    finished = await finish(attempt)
    assert finished.evidence.method == "reboot"
    assert stranger.returncode is None
    stranger.kill()
    await stranger.wait()


async def test_survivors_are_named(attempts_anyhow: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here outlives a KILL, so none is sent."""
    attempt = await attempts_anyhow.start(DEAF)
    await attempt.until_output(b"ready")
    await kill_supervisor(attempt)
    with monkeypatch.context() as patch:
        patch.setattr("services.sis_agent.agent.lost.Remains.kill", lambda *_: [])
        await asyncio.to_thread(finish_lost, attempt.directory, confirm_seconds=0.1)
    finished = attempt.finished()
    assert not finished.evidence.tree_empty
    assert len(finished.evidence.survivors) >= 1
    assert not any(survivor.ended for survivor in finished.evidence.survivors)
