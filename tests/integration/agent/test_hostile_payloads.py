"""Payloads that fork without end, fill disks, or go for their supervisor: under real supervisors."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.linux.cgroup_mounts import own_pids_cgroup
from services.sis_agent.agent.linux.process_limit import PidsCgroup, ProcessLimit
from services.sis_agent.agent.supervision.handle import StopKind, TreeKind, Zygote
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.queue.v1 import frame_pb2 as pb
from tests.support.attempts import PYTHON, Attempt, Attempts, alive_with, eventually, is_alive
from tests.support.sealed import SealedIdentity

LIMIT = 40
# Another account may not be let in to where this interpreter is.
SYSTEM_PYTHON = ["/usr/bin/python3", "-c", "{param.script}"]

# Each forks again and again, deaf to all that can be ignored. It is the limit that stops it.
BOMB = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
refused = False
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        if not refused:
            os.write(1, b"refused\\n")
        refused = True
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def bob() -> Iterator[pwd.struct_passwd]:
    """A second account of this machine."""
    name = f"sis-bob-{os.getpid()}"
    subprocess.run(["/usr/sbin/useradd", "--no-create-home", "--home-dir", f"/nonexistent/{name}", name], check=True)
    yield pwd.getpwnam(name)
    subprocess.run(["/usr/sbin/userdel", name], check=True)


@pytest.fixture(params=[TreeKind.SUBREAPER, TreeKind.BEST])
async def limited(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Attempts]:
    """Attempts whose payloads may have no more than 40 processes."""
    zygote = Zygote(request.param, process_limit=LIMIT, identity_directory=tmp_path / "identity")
    yield Attempts(tmp_path, zygote)
    await zygote.stop()


def as_account(identity: SealedIdentity, account: pwd.struct_passwd) -> dict[str, object]:
    """What has a job run as that account."""
    return {"leases": lambda a: identity.lease(a, "run_as", b"password", username=account.pw_name, credential="bob")}


async def bombed(attempts: Attempts, attempt: Attempt) -> None:
    """A bomb has grown to its limit: another job runs all the same, the log says so, and an abort ends all of it."""
    await attempt.until(lambda a: a.output().count(b"refused") >= 3 and "can start no more" in a.text())
    other = await attempts.run("echo alive | cat")
    assert other.finished().outcome == pb.OUTCOME_SUCCEEDED
    assert other.output() == b"alive\n"
    with attempt.handle() as handle:
        await handle.stop(StopKind.ABORT, "a bomb")
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert finished.evidence.tree_empty
    assert not finished.evidence.survivors
    # All named: no more than the limit were there at once, besides those that died before it was reached, and those
    # that were forked in the place of others while these were killed.
    assert 10 < len(finished.evidence.processes) <= 5 * LIMIT
    assert not any(is_alive(process.pid) for process in finished.evidence.processes)
    after = await attempts.run("echo after")
    assert after.output() == b"after\n"
    assert "can start no more" not in after.text()


@pytest.mark.root
async def test_a_fork_bomb_of_another_account(
    limited: Attempts, identity: SealedIdentity, bob: pwd.struct_passwd
) -> None:
    attempt = await limited.start(
        BOMB, command=["/usr/bin/python3", "-c", "{param.script}"], **as_account(identity, bob)
    )
    await bombed(limited, attempt)
    assert not processes.has_threads(bob.pw_uid, 1)


@pytest.mark.root
async def test_a_fork_bomb_of_the_agents_own_account_where_a_cgroup_counts(limited: Attempts) -> None:
    assert own_pids_cgroup() is not None, "this machine has no pids controller of v1"
    attempt = await limited.start(BOMB, command=PYTHON)
    identity = SupervisorIdentity.read(attempt.directory)
    await bombed(limited, attempt)
    assert identity is not None
    assert identity.pids_cgroup
    await eventually(lambda: not Path(identity.pids_cgroup).exists())


@pytest.mark.root
async def test_a_fork_bomb_where_nothing_but_the_accounts_limit_holds_it(
    tmp_path: Path, identity: SealedIdentity, bob: pwd.struct_passwd, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A zygote that is in a mount namespace of its own does not see the cgroups.
    monkeypatch.setattr("sys.executable", str(_without_cgroups(tmp_path)))
    zygote = Zygote(TreeKind.SUBREAPER, process_limit=LIMIT, identity_directory=tmp_path / "identity")
    attempts = Attempts(tmp_path, zygote)
    try:
        attempt = await attempts.start(BOMB, command=SYSTEM_PYTHON, **as_account(identity, bob))
        await bombed(attempts, attempt)
    finally:
        await zygote.stop()
    assert f"runs as {bob.pw_name}, which has reached the limit of {LIMIT} processes" in attempt.text()


def _without_cgroups(scratch: Path) -> Path:
    script = scratch / "python"
    script.write_text(f'#!/bin/sh\numount -R /sys/fs/cgroup; exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    inside = scratch / "inside"
    inside.write_text(f'#!/bin/sh\nexec unshare --mount "{script}" "$@"\n')
    inside.chmod(0o755)
    return inside


@pytest.mark.root
async def test_an_account_that_kills_all_that_it_can(
    attempts: Attempts, identity: SealedIdentity, bob: pwd.struct_passwd
) -> None:
    script = "sleep 60 & kill -9 -1; echo alone; kill -9 $PPID || echo refused"
    attempt = await attempts.run(script, **as_account(identity, bob))
    finished = attempt.finished()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.output() == b"alone\nrefused\n"
    assert finished.evidence.tree_empty
    assert not processes.has_threads(bob.pw_uid, 1)


async def test_a_swarm_that_stops_itself_again_and_again_is_ended(attempts: Attempts) -> None:
    """Each stops itself, and each is set going again by another, so that no signal but KILL gets through."""
    mark = f"swarm-{os.getpid()}"
    code = f"""
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
pids = []
for _ in range(8):
    if (pid := os.fork()) == 0:
        os.setsid()
        os.execv(sys.executable, ["python", "-c", "import os\\nwhile True: os.kill(os.getpid(), 19)", {mark!r}])
    pids.append(pid)
print("ready", flush=True)
while True:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(0.01)
"""
    attempt = await attempts.start(code, command=PYTHON)
    await attempt.until_output(b"ready")
    with attempt.handle() as handle:
        await handle.stop(StopKind.CANCEL, "enough")
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert finished.evidence.tree_empty
    assert alive_with(mark) == []


async def test_a_line_of_ten_mebibytes_is_masked_and_whole(attempts_anyhow: Attempts, identity: SealedIdentity) -> None:
    secret = b"correct horse battery staple"
    code = """
import os, sys
secret = os.environ["SIS_CREDENTIAL_S_PASSWORD"]
for _ in range(10):
    sys.stdout.write("x" * (1 << 20) + secret)
sys.stdout.buffer.write(b"\\xff\\xc3\\x28")
"""
    attempt = await attempts_anyhow.run(
        code,
        command=PYTHON,
        credentials={"s": {}},
        leases=lambda assignment: identity.lease(assignment, "credential.s", secret),
    )
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED, attempt.text()
    assert attempt.output() == (b"x" * (1 << 20) + b"***") * 10 + b"\xff\xc3\x28"


async def test_what_fills_its_log_and_its_output_file_at_once_is_ended_as_asked(attempts: Attempts) -> None:
    script = "yes & while :; do echo more >> $SIS_OUTPUT; done & yes >&2 & yes > /dev/full; sleep 300"
    attempt = await attempts.start(script, log_cap_bytes=1 << 20)
    await attempt.until(lambda a: a.notices("log_truncated"))
    with attempt.handle() as handle:
        await handle.stop(StopKind.ABORT, "enough")
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert finished.evidence.tree_empty


def test_a_limit_is_held_by_whatever_can_hold_it(tmp_path: Path) -> None:
    """A directory stands for a cgroup of v2, whose files are alike."""
    (tmp_path / "pids.max").write_text("max\n")
    (tmp_path / "pids.events").write_text("max 0\n")
    limit = ProcessLimit.of(100, str(tmp_path), None)
    assert (tmp_path / "pids.max").read_text() == "102"
    assert limit.of_account(1000) == 0
    assert limit.reached(1000) == ""
    (tmp_path / "pids.events").write_text("max 3\n")
    said = "The payload has reached its limit of 100 processes, or that of a cgroup above its own; it can start no more"
    assert limit.reached(1000).startswith(said)
    # Without the controller, the account is counted; root cannot be.
    (tmp_path / "pids.max").unlink()
    (tmp_path / "pids.max").mkdir()
    limit = ProcessLimit.of(100, str(tmp_path), None)
    assert (limit.of_account(1000), limit.of_account(0)) == (100, 0)
    assert ProcessLimit.of(0, "", None).of_account(1000) == 0
    assert PidsCgroup(tmp_path / "gone").refusals == 0


def test_an_account_is_counted_only_on_a_machine_that_runs_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    assert processes.has_threads(own, 1)
    several = [process for process in processes.read_all() if process.pid == os.getpid()] * 3
    monkeypatch.setattr(processes, "read_all", lambda: several)
    threads = sum(process.threads for process in several)
    assert processes.has_threads(own, threads)
    assert not processes.has_threads(own + 1, threads)
    monkeypatch.setattr("builtins.open", pytest.fail)
    assert not processes.has_threads(own, threads + 1)
