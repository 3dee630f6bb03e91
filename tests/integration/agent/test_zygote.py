"""The zygote: quick, small, and gone with its agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.cgroup_mounts import own_pids_cgroup
from services.sis_agent.agent.linux.process_limit import PidsCgroup
from services.sis_agent.agent.supervision.handle import SpawnFailed, Zygote
from services.sis_agent.agent.supervision.lost import finish_lost
from sis.queue.v1 import frame_pb2 as pb
from tests.support.attempts import PATIENCE_SECONDS, UNTIL_GO, Attempts, eventually, is_alive
from tests.support.stopping import stop


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
    attempt = await attempts_anyhow.start(f"{UNTIL_GO}; echo on")
    pid = pid_of(zygote)
    await zygote.stop()
    assert not is_alive(pid)
    attempt.go()
    assert (await attempt.end()).outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.output() == b"on\n"


async def test_it_serves_an_agent_that_has_many_files_open(attempts_anyhow: Attempts) -> None:
    """It has its socket by the agent's number, and select takes none from 1,024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1_500), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        opened = 0
        while opened < 1_024:
            opened = stack.enter_context(Path(os.devnull).open("rb")).fileno()
        assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED


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
        killed = {spare.pid for spare in children_of(pid_of(zygote)) if processes.send_signal(spare, signal.SIGKILL)}
        # Another one may take its place at once.
        await eventually(lambda: not any(p.alive for p in children_of(pid_of(zygote)) if p.pid in killed))  # noqa: B023  (awaited here)
        assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED


HELD = """
import os, socket
from services.sis_agent.agent.supervision import zygote
from services.sis_agent.agent.supervision.supervisor_process import Means

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
dead = os.fork()
if dead == 0:
    os._exit(0)
os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
made = zygote.Zygote(socket.socketpair()[0], Means(cgroups=False, process_limit=0, identity_directory=None))
made._spare = zygote._Spare(dead, ours)
made._reap()
print(made._spare, made._idle() > 10 * zygote._IDLE_SECONDS)
"""


async def test_a_spare_whose_death_is_known_gets_no_order_though_its_socket_is_open_still() -> None:
    """Its guardian is reaped before the supervisor below has gone: what was handed to that one was never answered. And
    no other spare is made at once: at the machine's limit of processes, one after the other would die."""
    arguments = [sys.executable, "-P", "-c", HELD]
    done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("None True\n", "")


ASKED = """
import json, os, socket
from services.sis_agent.agent.supervision import zygote
from services.sis_agent.agent.supervision.supervisor_process import Means

agent, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
theirs.setblocking(False)
dead = os.fork()
if dead == 0:
    os._exit(0)
os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
made = zygote.Zygote(connection, Means(cgroups=False, process_limit=0, identity_directory=None))
made._spare = zygote._Spare(dead, ours)
zygote._fork = lambda: 1
agent.send(json.dumps({"id": 7, "directory": "/nowhere", "package_directory": "/nowhere"}).encode())
print(made._receive(), theirs.recv(1), made._requests)
"""


async def test_a_spare_that_has_died_gets_no_order_though_its_death_was_not_heard_of_yet() -> None:
    """The request was seen first, of two things that had happened. The crash matrix came by it when it killed the
    guardian of a spare while the agent was about to ask (agent.spawning.journalled): the job was lost, though nothing
    of it had begun."""
    arguments = [sys.executable, "-P", "-c", ASKED]
    done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True b'' {1: 7}\n", "")


LIMITED = """
import os, sys
from pathlib import Path
from services.sis_agent.agent.supervision import guardian
from services.sis_agent.agent.linux.cgroup_mounts import own_pids_cgroup
from services.sis_agent.agent.linux.process_limit import PidsCgroup

cgroup = PidsCgroup(Path(sys.argv[1]))
cgroup.directory.mkdir()
cgroup.limit(1)
cgroup.enter()
assert own_pids_cgroup() == cgroup.directory
try:
    guardian.fork_guarded(100)
except BlockingIOError:
    print([path.name for path in cgroup.directory.iterdir() if path.is_dir()])
"""


@pytest.mark.root
async def test_a_guardian_that_cannot_fork_leaves_no_cgroup() -> None:
    home = own_pids_cgroup()
    assert home is not None, "this machine has no pids controller of v1"
    cgroup = PidsCgroup(home / f"sis-limited-{os.getpid()}")
    arguments = [sys.executable, "-P", "-c", LIMITED, str(cgroup.directory)]
    done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=60, check=False)
    cgroup.remove()
    assert (done.stdout, done.stderr) == ("[]\n", "")


async def test_one_that_was_killed_leaves_no_zombie_though_no_job_asks_for_another(attempts_anyhow: Attempts) -> None:
    await attempts_anyhow.zygote.start()
    pid = pid_of(attempts_anyhow.zygote)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: processes.read(pid) is None)


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


FORKED = """
import asyncio, ctypes, uvloop
from services.sis_agent.agent.supervision.handle import Zygote

forks = []
prepare = ctypes.CFUNCTYPE(None)(lambda: forks.append("fork"))
assert ctypes.CDLL(None).__register_atfork(prepare, None, None, None) == 0

async def start():
    zygote = Zygote()
    await zygote.start()
    await zygote.stop()

uvloop.run(start())
print(forks)
"""


async def test_it_is_started_without_the_handlers_of_a_fork() -> None:
    """gRPC has some in the agent, which abort the child now and then: then a job failed whose agent had just lost its
    zygote."""
    arguments = [sys.executable, "-P", "-c", FORKED]
    done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


async def test_one_that_ends_at_its_start_is_started_again_for_the_job(
    attempts_anyhow: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sys.executable
    popen = subprocess.Popen
    commands = iter(["/bin/false", "/bin/false"])

    def start(arguments: list[str], **options: object) -> object:
        return popen([next(commands, python), *arguments[1:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr("subprocess.Popen", start)
    assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED
    assert next(commands, None) is None


async def ask_a_stopped_one(zygote: Zygote, nowhere: Path) -> list[asyncio.Task[object]]:
    """More than its socket holds is asked of a zygote that does not run, about attempts that are not there: the answer
    to each takes a supervisor, and nothing else."""
    await zygote.start()
    running = zygote._running
    assert running is not None
    assert stop(pid_of(zygote))
    asked: list[asyncio.Task[object]] = [
        asyncio.create_task(zygote.spawn(nowhere / str(number), nowhere)) for number in range(300)
    ]
    await eventually(lambda: len(running._answers) == len(asked) or any(task.done() for task in asked))
    return asked


async def test_more_requests_than_its_socket_holds_all_start(
    attempts_anyhow: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of assignments: those beyond what the kernel keeps in hand failed, though nothing was wrong."""
    monkeypatch.setattr("services.sis_agent.agent.supervision.handle._SPAWN_SECONDS", 60.0)
    asked = await ask_a_stopped_one(attempts_anyhow.zygote, tmp_path / "nowhere")
    os.kill(pid_of(attempts_anyhow.zygote), signal.SIGCONT)
    for task in asked:
        with pytest.raises(SpawnFailed, match="No such file or directory"):
            await task
    assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED


async def test_requests_that_it_never_had_are_made_of_another_one(
    attempts_anyhow: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.sis_agent.agent.supervision.handle._SPAWN_SECONDS", 60.0)
    asked = await ask_a_stopped_one(attempts_anyhow.zygote, tmp_path / "nowhere")
    os.kill(pid_of(attempts_anyhow.zygote), signal.SIGKILL)
    failed = [error for error in await asyncio.gather(*asked, return_exceptions=True) if isinstance(error, SpawnFailed)]
    assert len(failed) == len(asked)
    lost = [error.may_have_started for error in failed]
    assert 0 < sum(lost) < len(asked)
    assert lost == sorted(lost, reverse=True), "they are made in order"
    assert all("No such file or directory" in str(error) for error in failed if not error.may_have_started)


async def test_a_request_that_it_takes_not_in_time_has_started_nothing(
    attempts_anyhow: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.sis_agent.agent.supervision.handle._SPAWN_SECONDS", 60.0)
    monkeypatch.setattr("services.sis_agent.agent.supervision.handle._TURN_SECONDS", 0.2)
    asked = await ask_a_stopped_one(attempts_anyhow.zygote, tmp_path / "nowhere")
    running = attempts_anyhow.zygote._running
    assert running is not None
    # Those that it was handed are waited for longer, and end with it.
    await eventually(lambda: len(running._answers) == sum(not task.done() for task in asked) < len(asked))
    os.kill(pid_of(attempts_anyhow.zygote), signal.SIGKILL)
    failed = [error for error in await asyncio.gather(*asked, return_exceptions=True) if isinstance(error, SpawnFailed)]
    assert len(failed) == len(asked)
    assert {(str(error), error.may_have_started) for error in failed} == {
        ("the zygote ended before the supervisor answered", True),
        ("the zygote takes no request in time", False),
    }


async def test_one_that_hangs_is_replaced(
    attempts_anyhow: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job of the site failed after ten seconds, until somebody restarted the agent. The one that it was handed
    starts at no time: it is finished as lost, and nobody is left who could start it."""
    zygote = attempts_anyhow.zygote
    await zygote.start()
    hung = pid_of(zygote)
    assert stop(hung)
    attempt = attempts_anyhow.prepare(f"touch {tmp_path}/started")
    with monkeypatch.context() as impatient, pytest.raises(SpawnFailed, match="did not answer in time") as caught:
        impatient.setattr("services.sis_agent.agent.supervision.handle._SPAWN_SECONDS", 0.2)
        await attempts_anyhow.spawn(attempt)
    assert caught.value.may_have_started
    assert (await attempts_anyhow.run("echo on")).output() == b"on\n"
    assert pid_of(zygote) != hung
    assert not is_alive(hung)
    await asyncio.to_thread(finish_lost, attempt.directory)
    assert attempt.finished().failure_reason == "SUPERVISOR_LOST"
    assert not (tmp_path / "started").exists()


async def test_a_supervisor_that_hangs_is_not_taken_for_its_zygote(
    attempts_anyhow: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    zygote = attempts_anyhow.zygote
    await zygote.start()
    pid = pid_of(zygote)
    # The spare that takes the order is a guardian, and below it the supervisor to be.
    await eventually(lambda: [child for spare in children_of(pid) for child in children_of(spare.pid)])
    supervisors = [child.pid for spare in children_of(pid) for child in children_of(spare.pid)]
    assert stop(*supervisors)
    attempt = attempts_anyhow.prepare("echo on")
    with monkeypatch.context() as impatient, pytest.raises(SpawnFailed, match="did not answer in time"):
        impatient.setattr("services.sis_agent.agent.supervision.handle._SPAWN_SECONDS", 2.0)
        await attempts_anyhow.spawn(attempt)
    assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED
    assert pid_of(zygote) == pid
    for supervisor in supervisors:
        os.kill(supervisor, signal.SIGCONT)
    await eventually(lambda: attempt.notices("finished"))
    assert attempt.output() == b"on\n"


async def test_one_that_cannot_even_be_killed_holds_up_nobody(
    attempts_anyhow: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for a file system which does not answer ends when that does."""
    monkeypatch.setattr("services.sis_agent.agent.supervision.handle._STOP_SECONDS", 0.1)
    zygote = attempts_anyhow.zygote
    await zygote.start()
    hung = pid_of(zygote)
    assert stop(hung)
    with monkeypatch.context() as unable:
        unable.setattr("signal.pidfd_send_signal", lambda *_: None)
        unable.setattr(subprocess.Popen, "kill", lambda _: None)
        unable.setattr("services.sis_agent.agent.supervision.handle._SPAWN_SECONDS", 0.2)
        with pytest.raises(SpawnFailed, match="did not answer in time"):
            await attempts_anyhow.spawn(attempts_anyhow.prepare(f"touch {tmp_path}/started"))
        unable.setattr("services.sis_agent.agent.supervision.handle._SPAWN_SECONDS", 20.0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await zygote.start()
    assert is_alive(hung)
    assert pid_of(zygote) != hung
    os.kill(hung, signal.SIGKILL)
    await eventually(lambda: processes.read(hung) is None)
    assert (await attempts_anyhow.run("true")).finished().outcome == pb.OUTCOME_SUCCEEDED
