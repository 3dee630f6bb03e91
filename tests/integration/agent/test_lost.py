"""What becomes of an attempt whose supervisor is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.attempts import ASSIGNMENT
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.records import sealed
from services.sis_agent.agent.supervision.handle import SpawnFailed, StopKind, SupervisorHandle
from services.sis_agent.agent.supervision.lost import finish_lost
from services.sis_agent.agent.supervision.sightings import read_leaders
from services.sis_agent.agent.supervision.supervisor_identity import (
    EMPTIED,
    IDENTITY,
    MARK,
    PROCESSES,
    SupervisorIdentity,
)
from sis.queue.v1 import frame_pb2 as pb
from tests.support.attempts import PYTHON, UNTIL_GO, Attempt, Attempts, alive_with, eventually, is_alive
from tests.support.fault_points import FaultPoints
from tests.support.stopping import stop

DEAF = "trap '' TERM; (trap '' TERM; sleep 60) & echo ready; sleep 60"


async def kill_supervisor(attempt: Attempt) -> None:
    with attempt.handle() as handle:
        handle.kill()
        await handle.wait_gone()
    assert SupervisorHandle.adopt(attempt.directory) is None


async def finish(attempt: Attempt, spawned_in: str = "") -> pb.Finished:
    await asyncio.to_thread(finish_lost, attempt.directory, spawned_in=spawned_in)
    return attempt.finished()


async def test_the_rest_is_killed_and_named(attempts: Attempts, request: pytest.FixtureRequest) -> None:
    attempt = await attempts.start(DEAF)
    await attempt.until_output(b"ready")
    await kill_supervisor(attempt)
    finished = await finish(attempt)
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "SUPERVISOR_LOST")
    assert finished.evidence.method == ("cgroup" if "best" in request.node.name else "guardian")
    assert finished.evidence.tree_empty
    assert not finished.evidence.survivors
    assert len(finished.evidence.processes) >= 2
    assert any("KILL" in process.signals for process in finished.evidence.processes)
    assert all(len(process.signals) == len(process.signal_times) for process in finished.evidence.processes)
    assert all(process.ended for process in finished.evidence.processes)
    assert not any(is_alive(process.pid) for process in finished.evidence.processes)
    assert attempt.output() == b"ready\n"
    assert finished.output_cut, "what it had not read of the output is lost with it"


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
    await eventually(lambda: len(alive_with(mark)) == 1)  # it is in the payload's command line, too
    finished = await finish(attempt)
    assert finished.evidence.tree_empty
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
    assert finished.evidence.tree_empty
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
    identity.unlink()
    del values["checksum"]
    SupervisorIdentity(**{**values, "boot_id": "another"}).write(attempt.directory)
    assert SupervisorHandle.adopt(attempt.directory) is None
    os.kill(values["pid"], 9)
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    keys = attempt.directory / "processes"
    keys.write_bytes(sealed({"pid": stranger.pid, "start_ticks": 1}))
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
        patch.setattr("services.sis_agent.agent.supervision.lost.Remains.kill", lambda *_: [])
        await asyncio.to_thread(finish_lost, attempt.directory, confirm_seconds=0.1)
    finished = attempt.finished()
    assert not finished.evidence.tree_empty
    assert len(finished.evidence.survivors) >= 1
    assert not any(survivor.ended for survivor in finished.evidence.survivors)


SHED = """
import os, sys, time
go, mark = sys.argv[1:]
if os.fork() == 0:
    os.closerange(0, 3)
    while not os.path.exists(go):
        time.sleep(0.01)
    for _ in range(2):
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
    os.execve(sys.executable, ["python", "-c", "import time; time.sleep(300)", mark], {})
print("ready", flush=True)
time.sleep(300)
"""


async def shed(attempts: Attempts, tmp_path: Path, mark: str) -> Attempt:
    """An attempt whose supervisor is dead, and whose daemon bears no mark and was never seen."""
    go = tmp_path / f"go-{mark}"
    attempt = await attempts.start(SHED, command=[*PYTHON, str(go), mark])
    await attempt.until_output(b"ready")
    with attempt.handle() as handle:
        assert stop(handle.identity.pid)
        go.touch()
        await eventually(lambda: len(alive_with(f"time.sleep(300) {mark}")) == 1)
        handle.kill()
        await handle.wait_gone()
    return attempt


def guardian_of(attempt: Attempt) -> processes.ProcessInfo:
    identity = SupervisorIdentity.read(attempt.directory)
    assert identity is not None
    found = identity.guardian()
    assert found is not None
    return found


async def test_what_nobody_has_seen_and_bears_no_mark_is_found_by_its_descent(
    attempts: Attempts, tmp_path: Path
) -> None:
    mark = f"shed-{os.getpid()}-{id(attempts)}"
    attempt = await shed(attempts, tmp_path, mark)
    guardian = guardian_of(attempt)
    finished = await finish(attempt)
    assert finished.evidence.tree_empty
    assert alive_with(mark) == []
    assert "no process of it is left" in attempt.text()
    await eventually(lambda: not is_alive(guardian.pid))


async def test_two_lost_at_once_are_told_apart(attempts: Attempts, tmp_path: Path) -> None:
    marks = [f"twin-{number}-{os.getpid()}-{id(attempts)}" for number in (1, 2)]
    first, second = await asyncio.gather(*(shed(attempts, tmp_path, mark) for mark in marks))
    finished = await finish(first)
    assert finished.evidence.tree_empty
    assert alive_with(marks[0]) == []
    assert len(alive_with(f"time.sleep(300) {marks[1]}")) == 1, "the other one's is none of its business"
    of_first = {process.pid for process in finished.evidence.processes}
    finished = await finish(second)
    assert finished.evidence.tree_empty
    assert alive_with(marks[1]) == []
    assert not of_first & {process.pid for process in finished.evidence.processes}


async def test_the_zygote_need_not_live_for_that(attempts: Attempts, tmp_path: Path) -> None:
    attempt = await shed(attempts, tmp_path, mark := f"heir-{os.getpid()}-{id(attempts)}")
    running = attempts.zygote._running
    assert running is not None
    os.kill(running._process.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(running._process.pid))
    assert (await finish(attempt)).evidence.tree_empty
    assert alive_with(mark) == []


async def test_without_its_guardian_nothing_is_proven(attempts: Attempts) -> None:
    attempt = await attempts.start(DEAF)
    await attempt.until_output(b"ready")
    guardian = guardian_of(attempt)
    await kill_supervisor(attempt)
    os.kill(guardian.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(guardian.pid))
    finished = await finish(attempt)
    assert not finished.evidence.tree_empty
    assert not finished.evidence.survivors
    assert "no process of it was found, which is no proof" in attempt.text()
    assert not any(is_alive(process.pid) for process in finished.evidence.processes)


async def test_a_guardian_that_was_stopped_goes_on(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start(DEAF)
    await attempt.until_output(b"ready")
    assert stop(guardian_of(attempt).pid)
    await kill_supervisor(attempt)
    assert (await finish(attempt)).evidence.tree_empty


async def test_a_supervisor_outlives_its_guardian(attempts: Attempts) -> None:
    attempt = await attempts.start(f"echo ready; {UNTIL_GO}; (sleep 60 &); echo over")
    await attempt.until_output(b"ready")
    os.kill(guardian_of(attempt).pid, signal.SIGKILL)
    attempt.go()
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert finished.evidence.tree_empty
    assert attempt.output() == b"ready\nover\n"


async def test_a_second_order_proves_nothing_of_the_first(attempts_anyhow: Attempts) -> None:
    """A supervisor that finds the attempt taken leaves the mark of the one that has it alone."""
    attempt = await attempts_anyhow.start(DEAF)
    await attempt.until_output(b"ready")
    with pytest.raises(SpawnFailed):
        await attempts_anyhow.spawn(attempt)
    assert (attempt.directory / MARK).exists()
    await kill_supervisor(attempt)
    with pytest.raises(SpawnFailed, match="was started before"):
        await attempts_anyhow.spawn(attempt)
    assert (attempt.directory / MARK).exists()
    assert (await finish(attempt)).evidence.tree_empty


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(processes.boot_id().encode(), b"0" * 36)),
}


@contextlib.contextmanager
def lost_files(attempt: Attempt, damage: str, *names: str) -> Iterator[None]:
    """Of what is written of its supervisor, these files are not what they were, until the end."""
    whole = {name: (attempt.directory / name).read_bytes() for name in names}
    for name in names:
        DAMAGE[damage](attempt.directory / name)
    yield
    for name, content in whole.items():
        (attempt.directory / name).write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("names", [(IDENTITY,), (IDENTITY, MARK)], ids=["record", "record and mark"])
async def test_a_supervisor_whose_record_is_lost_is_followed_and_stopped(
    attempts_anyhow: Attempts, damage: str, names: tuple[str, ...]
) -> None:
    attempt = await attempts_anyhow.start(DEAF)
    await attempt.until_output(b"ready")
    with lost_files(attempt, damage, *names), attempt.handle() as handle:
        await handle.stop(StopKind.ABORT, "enough")
        await handle.wait_gone()
    assert attempt.finished().outcome == pb.OUTCOME_STOPPED
    assert attempt.finished().evidence.tree_empty


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_a_lost_supervisor_has_left_is_found_and_proven_though_its_record_is_lost(
    attempts: Attempts, tmp_path: Path, damage: str
) -> None:
    mark = f"lost-record-{os.getpid()}-{id(attempts)}"
    attempt = await shed(attempts, tmp_path, mark)
    with lost_files(attempt, damage, IDENTITY):
        finished = await finish(attempt)
    assert finished.evidence.method in ("cgroup", "guardian")
    assert finished.evidence.tree_empty
    assert len(finished.evidence.processes) >= 2
    assert alive_with(mark) == []


async def test_what_a_lost_supervisor_has_left_in_memory_is_removed_though_its_record_is_lost(
    attempts_anyhow: Attempts,
) -> None:
    attempt = await attempts_anyhow.start('dirname "$SIS_OUTPUT"; exec sleep 60')
    await attempt.until_output(b"\n")
    left = Path(os.fsdecode(attempt.output()).strip())
    await kill_supervisor(attempt)
    assert left.exists()
    await eventually(lambda: not (attempt.directory / MARK).exists())
    with lost_files(attempt, "empty", IDENTITY):
        finished = await finish(attempt)
    assert not left.exists()
    assert finished.evidence.tree_empty, "its guardian saw its end"


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_lost_supervisor_of_whom_nothing_is_known_proves_nothing(
    attempts_anyhow: Attempts, damage: str
) -> None:
    """Above all not that the machine has restarted since, nor that there was none."""
    attempt = await attempts_anyhow.start(DEAF)
    await attempt.until_output(b"ready")
    guardian = guardian_of(attempt)
    await kill_supervisor(attempt)
    with lost_files(attempt, damage, IDENTITY, MARK):
        finished = await finish(attempt, processes.boot_id())
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "SUPERVISOR_LOST")
    assert finished.evidence.method == "environment"
    assert not finished.evidence.tree_empty
    assert "was started" not in attempt.text()
    for process in processes.descendants(processes.read_all(), [guardian.pid]):
        processes.send_signal(process, signal.SIGKILL)


@pytest.mark.parametrize("damage", ["gone", "empty"])
async def test_a_power_cut_that_has_taken_what_was_written_of_a_fresh_supervisor_is_a_proof_all_the_same(
    attempts_anyhow: Attempts, damage: str
) -> None:
    """The journal knows in which life of the machine it was asked for. A stop that was begun counts, too."""
    attempt = await attempts_anyhow.start("trap '' TERM; echo ready; sleep 60", grace=60)
    await attempt.until_output(b"ready")
    with attempt.handle() as handle:
        await handle.stop(StopKind.CANCEL, "enough")
    guardian = guardian_of(attempt)
    await kill_supervisor(attempt)
    for process in processes.descendants(processes.read_all(), [guardian.pid]):
        processes.send_signal(process, signal.SIGKILL)
    await eventually((attempt.directory / EMPTIED).exists)
    with lost_files(attempt, damage, IDENTITY, EMPTIED):
        finished = await finish(attempt, "another")
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert (finished.evidence.method, finished.evidence.tree_empty) == ("reboot", True)


async def test_nothing_is_sent_to_whoever_has_an_id_of_before_a_restart(attempts_anyhow: Attempts) -> None:
    """Not even where nothing tells of the restart, and it started at the same moment."""
    attempt = await attempts_anyhow.start("echo ready; exec sleep 60")
    await attempt.until_output(b"ready")
    await kill_supervisor(attempt)
    await eventually((attempt.directory / EMPTIED).exists)
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    found = processes.read(stranger.pid)
    assert found is not None
    seen = {"boot": "another", "pid": found.pid, "start_ticks": found.start_ticks}
    (attempt.directory / PROCESSES).write_bytes(sealed(seen))
    with lost_files(attempt, "empty", IDENTITY, EMPTIED):
        finished = await finish(attempt)
    assert found.pid not in {process.pid for process in finished.evidence.processes}
    assert stranger.returncode is None
    stranger.kill()
    await stranger.wait()


async def test_a_lost_supervisor_whose_assignment_cannot_be_read_is_finished_for(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start(DEAF)
    await attempt.until_output(b"ready")
    await kill_supervisor(attempt)
    (attempt.directory / ASSIGNMENT).unlink()
    (attempt.directory / ASSIGNMENT).mkdir()
    finished = await finish(attempt)
    assert finished.evidence.tree_empty
    assert {process.name for process in finished.evidence.processes if "KILL" in process.signals} == {"?"}


async def test_a_supervisor_that_is_killed_behind_its_last_frame_leaves_no_cgroup(
    attempts: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = FaultPoints(tmp_path / "faults")
    monkeypatch.setenv("SIS_FAULTS", points.environment["SIS_FAULTS"])
    points.arm("supervisor.end.written")
    attempt = await attempts.run("true")
    assert not points.is_armed("supervisor.end.written")
    identity = SupervisorIdentity.read(attempt.directory)
    assert identity is not None
    await finish(attempt)
    for cgroup in filter(None, (identity.cgroup, identity.pids_cgroup)):
        await eventually(lambda: not Path(cgroup).exists())  # noqa: B023  (awaited here)


async def test_a_guardian_holds_neither_standard_output_nor_error_of_its_agent(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start("echo ready; sleep 60")
    await attempt.until_output(b"ready")
    guardian = guardian_of(attempt)
    standard = [f"/proc/{guardian.pid}/fd/{number}" for number in range(3)]
    await eventually(lambda: {os.readlink(each) for each in standard} == {os.devnull})
    with attempt.handle() as handle:
        await handle.stop(StopKind.ABORT, "")
        await handle.wait_gone()


async def test_a_log_that_was_damaged_is_not_called_complete(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start(f"echo line 1; {UNTIL_GO}; echo line 2; echo line 3")
    await attempt.until_output(b"line 1")
    attempt.go()
    await attempt.end()
    attempt.spool.write_bytes(attempt.spool.read_bytes().replace(b"line 2", b"line 7"))
    await asyncio.to_thread(finish_lost, attempt.directory)
    finished = attempt.frames()[-1].notice.finished
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "LOG_DAMAGED")
    assert finished.digest == b""
    assert finished.evidence.tree_empty, "the guardian saw its end all the same"
    assert attempt.output() == b"line 1\n"
    assert "This log was damaged at its site" in attempt.text()


async def kill_guardian(attempt: Attempt, guardian: processes.ProcessInfo) -> None:
    await kill_supervisor(attempt)
    os.kill(guardian.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(guardian.pid))


@pytest.mark.parametrize("known", ["guarded", "proven", "it never led", "it had ended"])
async def test_who_has_a_recycled_session_is_left_alone(attempts_anyhow: Attempts, known: str) -> None:
    """Long after a process of the attempt has ended, somebody else gets its id, leads a session by it, leaves something
    in that and ends. Whoever led that session cannot be asked any more."""
    attempt = await attempts_anyhow.start("echo ready; exec sleep 60" if known == "proven" else DEAF)
    await attempt.until_output(b"ready")
    guardian = guardian_of(attempt)
    if known in ("guarded", "proven"):
        await kill_supervisor(attempt)
    else:
        await kill_guardian(attempt, guardian)
    if known == "proven":
        await eventually((attempt.directory / EMPTIED).exists)
    leader = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 60 >/dev/null & echo $!", stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    said, _ = await leader.communicate()
    stranger = processes.read(int(said))
    assert stranger is not None
    assert stranger.session == leader.pid
    seen = {"boot": processes.boot_id(), "pid": leader.pid, "start_ticks": stranger.start_ticks - 200}
    if known != "it never led":
        seen["led"] = True
    if known == "it had ended":
        seen["ended_ticks"] = stranger.start_ticks - 100
    with (attempt.directory / PROCESSES).open("ab") as file:
        file.write(sealed(seen))
    finished = await finish(attempt)
    assert stranger.pid not in {process.pid for process in finished.evidence.processes}
    assert processes.send_signal(stranger, signal.SIGKILL), "it lives"


LED = """
import os, sys, time
go, mark = sys.argv[1:]
if os.fork() == 0:
    os.closerange(0, 3)
    os.setsid()
    while not os.path.exists(go):
        time.sleep(0.01)
    if os.fork() != 0:
        os._exit(0)
    os.execve(sys.executable, ["python", "-c", "import time; time.sleep(300)", mark], {})
time.sleep(300)
"""


async def test_what_nobody_has_seen_is_found_by_the_session_that_one_was_seen_to_lead(
    attempts: Attempts, tmp_path: Path
) -> None:
    """Without a guardian, and without any mark: a daemon whose parent, that was seen, has ended."""
    go, mark = tmp_path / "go", f"led-{os.getpid()}-{id(attempts)}"
    attempt = await attempts.start(LED, command=[*PYTHON, str(go), mark])
    await attempt.until(lambda a: len(a.notices("process_started")) >= 3)
    payload, child = (notice.process_started.process.pid for notice in attempt.notices("process_started")[1:3])
    await eventually(lambda: {payload, child} <= read_leaders(attempt.directory / PROCESSES).keys())
    guardian = guardian_of(attempt)
    with attempt.handle() as handle:
        assert stop(handle.identity.pid)
        go.touch()
        await eventually(lambda: len(alive_with(f"time.sleep(300) {mark}")) == 1)
    await kill_guardian(attempt, guardian)
    await eventually(lambda: not is_alive(child))
    finished = await finish(attempt)
    assert alive_with(mark) == []
    assert not finished.evidence.tree_empty, "which proves nothing"
