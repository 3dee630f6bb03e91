"""What a supervisor does to a payload that somebody stops, and how it proves that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator

import pytest

from services.sis_agent.agent.supervision.guardian import MARK
from services.sis_agent.agent.supervision.handle import StopKind, SupervisorUnreachable
from services.sis_agent.agent.supervision.supervisor_identity import WORK
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2
from tests.support.attempts import PATIENCE_SECONDS, PYTHON, UNTIL_GO, Attempt, Attempts, eventually, is_alive

PTRACE_CONT, PTRACE_SEIZE, PTRACE_O_TRACEEXIT, WALL = 7, 0x4206, 0x40, 0x40000000
DEAF = "trap '' TERM; (trap '' TERM; while :; do sleep 60; done) & echo ready; while :; do sleep 60; done"


def pids_of(attempt: Attempt) -> list[int]:
    return [process.pid for process in attempt.finished().evidence.processes]


def begun(attempt: Attempt) -> list[tuple[pb.StopKind.ValueType, str]]:
    return [(n.stop_begun.kind, n.stop_begun.reason) for n in attempt.notices("stop_begun")]


async def stop(attempt: Attempt, kind: StopKind, reason: str = "because") -> None:
    with attempt.handle() as handle:
        await handle.stop(kind, reason)


async def test_a_cancel_ends_children_that_ignore_it(attempts: Attempts) -> None:
    attempt = await attempts.start(DEAF)
    await attempt.until_output(b"ready")
    await stop(attempt, StopKind.CANCEL)
    finished = await attempt.end()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_STOPPED, "")
    assert finished.evidence.tree_empty
    assert not finished.evidence.survivors
    payload = next(p for p in finished.evidence.processes if p.role == job_pb2.PROCESS_ROLE_PAYLOAD)
    assert list(payload.signals) == ["TERM", "KILL"]
    term, kill = (each.ToMilliseconds() for each in payload.signal_times)
    assert payload.start_time.ToMilliseconds() < term < kill < finished.evidence.verify_time.ToMilliseconds()
    assert kill - term >= 250, "the grace is 300 ms"
    assert payload.end_signal == "KILL"
    others = [p for p in finished.evidence.processes if p.role == job_pb2.PROCESS_ROLE_DESCENDANT]
    assert len(others) >= 2  # the deaf shell, and the sleep of each
    assert all("KILL" in p.signals and p.ended for p in others)
    assert begun(attempt) == [(pb.STOP_KIND_CANCEL, "because")]
    assert not any(is_alive(pid) for pid in pids_of(attempt))


async def test_a_cancel_leaves_a_payload_its_grace(attempts: Attempts) -> None:
    attempt = await attempts.start("trap 'sleep 0.2; echo tidied; exit 9' TERM; echo ready; sleep 60 & wait", grace=5)
    await attempt.until_output(b"ready")
    await stop(attempt, StopKind.CANCEL)
    finished = await attempt.end()
    assert attempt.output() == b"ready\ntidied\n"
    assert (finished.outcome, finished.result_code) == (pb.OUTCOME_STOPPED, 9)
    # What it left behind got its TERM, and needed no more.
    left = [list(p.signals) for p in finished.evidence.processes if p.role == job_pb2.PROCESS_ROLE_DESCENDANT]
    assert ["TERM"] in left


async def test_no_grace_at_all_is_no_default(attempts: Attempts) -> None:
    attempt = await attempts.start(DEAF, grace=0)
    await attempt.until_output(b"ready")
    before = time.monotonic()
    await stop(attempt, StopKind.CANCEL)
    finished = await attempt.end()
    assert time.monotonic() - before < 8  # the default is 10 s
    payload = next(p for p in finished.evidence.processes if p.role == job_pb2.PROCESS_ROLE_PAYLOAD)
    assert (list(payload.signals), finished.evidence.tree_empty) == (["TERM", "KILL"], True)


async def test_what_is_left_behind_is_killed_before_the_output_is_waited_for_no_longer(attempts: Attempts) -> None:
    """A grace longer than the output timeout must leave no survivor that nobody has killed."""
    left = f"(trap '' TERM; touch go; while :; do sleep 60; done) & {UNTIL_GO}"
    attempt = await attempts.run(left, grace=3600, output_timeout=4)
    finished = attempt.finished()
    assert (finished.outcome, finished.evidence.tree_empty) == (pb.OUTCOME_SUCCEEDED, True)
    assert not finished.evidence.survivors
    assert any(list(p.signals) == ["TERM", "KILL"] for p in finished.evidence.processes)


@contextlib.contextmanager
def undying(pid: int) -> Iterator[None]:
    """Have a process that is killed stand still at the very end of its life until the block ends, as one does that
    hangs in the kernel: the debugger that it waits for then, this process, says nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request: int, data: int) -> None:
        if libc.ptrace(request, pid, None, data) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    ptrace(PTRACE_SEIZE, PTRACE_O_TRACEEXIT)
    try:
        yield
    finally:
        # It is dying, or is made to.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, WALL)
        ptrace(PTRACE_CONT, 0)
        os.waitpid(pid, WALL)


ALLOWING = """
import ctypes, os, time
if os.fork() == 0:
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: anybody, also where Yama asks for it
    print(os.getpid(), flush=True)
    time.sleep(300)
while not os.path.exists("go"):
    time.sleep(0.01)
"""


async def test_a_survivor_at_the_end_of_the_output_timeout_is_named(attempts: Attempts) -> None:
    """It was killed in time, and has not died: the agent's own limit says so, and the guardian waits on."""
    attempt = await attempts.start(ALLOWING, command=PYTHON, grace=3600, output_timeout=1)
    await attempt.until_output(b"\n")
    pid = int(attempt.output())
    with undying(pid):
        (attempt.directory / WORK / "go").touch()
        finished = await attempt.end()
        assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "STOP_UNCONFIRMED")
        assert (finished.result_code, finished.evidence.tree_empty) == (0, False)
        (survivor,) = finished.evidence.survivors
        assert (survivor.pid, list(survivor.signals), survivor.ended) == (pid, ["TERM", "KILL"], False)
        assert is_alive(pid)
        assert (attempt.directory / MARK).exists()
    await eventually(lambda: not (attempt.directory / MARK).exists())


async def test_an_abort_leaves_nothing_any_time(attempts: Attempts) -> None:
    attempt = await attempts.start(DEAF, grace=60)
    await attempt.until_output(b"ready")
    await stop(attempt, StopKind.ABORT)
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert all(list(p.signals) in ([], ["KILL"]) for p in finished.evidence.processes)
    assert not any(is_alive(pid) for pid in pids_of(attempt))


async def test_an_abort_overtakes_a_cancel_and_not_the_other_way(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start(DEAF, grace=60)
    await attempt.until_output(b"ready")
    for kind, reason in (
        (StopKind.CANCEL, "one"),
        (StopKind.CANCEL, "two"),
        (StopKind.ABORT, "three"),
    ):
        await stop(attempt, kind, reason)
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert begun(attempt) == [(pb.STOP_KIND_CANCEL, "one"), (pb.STOP_KIND_ABORT, "three")]


async def test_a_stopped_payload_gets_its_term(attempts: Attempts) -> None:
    attempt = await attempts.start("trap 'echo got it; exit 0' TERM; echo ready; kill -STOP $$; sleep 60", grace=20)
    await attempt.until_output(b"ready")
    await stop(attempt, StopKind.CANCEL)
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert attempt.output() == b"ready\ngot it\n"


async def test_a_stop_after_the_payload_has_ended_changes_nothing(attempts: Attempts) -> None:
    """The payload is reaped, and what it left behind still has its grace."""
    attempt = await attempts.start("trap '' TERM; sleep 60 & echo ready", grace=20)
    await attempt.until(lambda a: a.notices("payload_ended"))
    await stop(attempt, StopKind.ABORT)
    finished = await attempt.end()
    assert (finished.outcome, finished.result_code) == (pb.OUTCOME_SUCCEEDED, 0)
    assert finished.evidence.tree_empty
    assert begun(attempt) == [(pb.STOP_KIND_ABORT, "because")]
    with pytest.raises(AssertionError):
        attempt.handle()


async def test_a_stop_during_a_flood_of_output(attempts: Attempts) -> None:
    attempt = await attempts.start("yes & yes >&2 & yes", log_cap_bytes=1 << 20)
    await attempt.until(lambda a: a.notices("log_truncated"))
    await stop(attempt, StopKind.CANCEL)
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert finished.discarded_bytes > 0


async def test_a_fork_bomb_is_ended(attempts: Attempts) -> None:
    """Each process forks two and ends, ignoring all that can be ignored, up to a limit that spares this machine."""
    code = """
import os, resource, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
slots = open("slots", "ab+")
def spread(depth):
    while True:
        if len(os.listdir("/proc")) < 400 and os.fork() == 0:
            os.setsid()
            if depth > 3:
                depth = 0
            depth += 1
        else:
            time.sleep(0.05)
spread(0)
"""
    attempt = await attempts.start(code, command=PYTHON)
    await attempt.until_output(b"ready")
    await asyncio.sleep(0.5)  # for the bomb to grow; nothing depends on how far
    await stop(attempt, StopKind.CANCEL)
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert finished.evidence.tree_empty
    assert len(finished.evidence.processes) > 3
    assert not any(is_alive(pid) for pid in pids_of(attempt))


async def test_a_payload_that_signals_its_supervisor(attempts_anyhow: Attempts) -> None:
    signals = "HUP INT QUIT TERM PIPE ALRM USR1 USR2 TSTP TTIN TTOU CHLD"
    attempt = await attempts_anyhow.run(f"for s in {signals}; do kill -$s $PPID; done; sleep 0.1; echo on")
    assert attempt.output() == b"on\n"
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED


async def test_commands_that_make_no_sense(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.start("read line < /dev/zero; sleep 60")
    with attempt.handle() as handle:
        for line in (b"\n", b"[]\n", b'{"kind": 1}\n', b"[" * 15_000 + b"\n", b'{"kind": "DANCE"}\n', b"\xff\n"):
            reader, writer = await handle._connect()
            writer.write(line)
            assert (await reader.readline()).startswith(b"error: ")
            writer.close()
        reader, writer = await handle._connect()
        writer.write(b"x" * 20_000)
        assert await reader.read() == b""
        writer.close()
        # More at once than are served: the last ones wait or are turned away, and the supervisor goes on.
        crowd = [await handle._connect() for _ in range(30)]
        for _, writer in crowd:
            writer.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while handle.alive:
                with contextlib.suppress(SupervisorUnreachable):
                    await handle.stop(StopKind.ABORT, "\ud800\0" + "x" * 5000)
                    await handle.wait_gone()
        with pytest.raises(SupervisorUnreachable):
            await handle.stop(StopKind.ABORT, "again")
    assert (await attempt.end()).outcome == pb.OUTCOME_STOPPED
