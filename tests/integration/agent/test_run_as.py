"""Run As: a payload that becomes another account of the machine, and what it cannot get at."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.attempts import ASSIGNMENT
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.recording.spool import SpoolReader
from services.sis_agent.agent.supervision import private_directory, run_as, stage
from services.sis_agent.agent.supervision.handle import StopKind, Zygote
from services.sis_agent.agent.supervision.leases import LeasedAccount
from services.sis_agent.agent.supervision.lost import finish_lost
from services.sis_agent.agent.supervision.private_directory import OUTPUT, PrivateDirectory, name_of
from services.sis_agent.agent.supervision.run_as import Account
from services.sis_agent.agent.supervision.start_failed import StartFailed
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.packages.values import File
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2
from tests.support.attempts import Attempt, Attempts, alive_with, eventually, is_alive
from tests.support.fault_points import FaultPoints
from tests.support.sealed import TOKEN, SealedIdentity
from tests.support.stopping import stop

pytestmark = pytest.mark.root

SECRET = b"correct horse battery staple"
Leases = Callable[[dispatch.Assignment], object]


@pytest.fixture(scope="module")
def alice() -> Iterator[pwd.struct_passwd]:
    """An account of this machine, with another group and without a home."""
    name = f"sis-test-{os.getpid()}"
    home = f"/nonexistent/{name}"
    # Root's programs, which are not on everybody's PATH.
    subprocess.run(
        ["/usr/sbin/useradd", "--no-create-home", "--home-dir", home, "--groups", "daemon", name], check=True
    )
    yield pwd.getpwnam(name)
    subprocess.run(["/usr/sbin/userdel", name], check=True)


@pytest.fixture
def as_alice(identity: SealedIdentity, alice: pwd.struct_passwd) -> Leases:
    """What has a job run as her."""
    return lambda assignment: identity.lease(
        assignment, "run_as", SECRET, username=alice.pw_name, credential="ops-alice"
    )


def resolved(alice: pwd.struct_passwd) -> Account:
    found = run_as.find(LeasedAccount(alice.pw_name, "", "ops-alice"))
    assert found is not None
    return found


def started(attempt: Attempt) -> dict[int, job_pb2.Process]:
    """The first process of each role."""
    found = [notice.process_started.process for notice in attempt.notices("process_started")]
    return {process.role: process for process in reversed(found)}


def roles(attempt: Attempt) -> tuple[job_pb2.Process, job_pb2.Process, job_pb2.Process]:
    by_role = started(attempt)
    return (
        by_role[job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR],
        by_role[job_pb2.PROCESS_ROLE_RUN_AS_EXECUTOR],
        by_role[job_pb2.PROCESS_ROLE_PAYLOAD],
    )


def left_of(attempt: Attempt) -> list[Path]:
    """What an attempt has outside of its directory."""
    found = SupervisorIdentity.read(attempt.directory)
    assert found is not None
    names = [name_of(found.attempt, what) for what in ("private", "shared")]
    roots = ("/run", "/dev/shm", tempfile.gettempdir())
    return [path for root in roots for name in names if (path := Path(root, name)).exists()]


# ---- what it is


async def test_it_is_the_other_account(attempts: Attempts, as_alice: Leases, alice: pwd.struct_passwd) -> None:
    script = """
id -u; id -g; id -G; umask; pwd
touch file; stat -c '%U %a' . file "$SIS_OUTPUT" "$(dirname "$SIS_OUTPUT")"
echo done > /dev/stderr; echo done > /dev/stdout; echo 'answer=42' >> "$SIS_OUTPUT"; exit 0
"""
    attempt = await attempts.run(script, leases=as_alice, outputs={"answer": True})
    finished = attempt.finished()
    groups = os.getgrouplist(alice.pw_name, alice.pw_gid)
    uid, gid, all_groups, umask, cwd, *owners, done = attempt.output().decode().splitlines()
    assert (int(uid), int(gid), umask) == (alice.pw_uid, alice.pw_gid, "0022")
    assert {int(group) for group in all_groups.split()} == set(groups) >= {grp.getgrnam("daemon").gr_gid}
    assert owners == [f"{alice.pw_name} {mode}" for mode in (700, 644, 600, 700)]
    assert done == "done"
    assert attempt.output(job_pb2.CHANNEL_STDERR) == b"done\n"
    assert (finished.outcome, finished.result_code) == (pb.OUTCOME_SUCCEEDED, 0)
    assert [(output.name, output.value) for output in finished.outputs] == [("answer", "42")]
    assert not Path(cwd).is_relative_to(attempt.directory)
    assert left_of(attempt) == []


async def test_the_log_shows_three_processes(attempts: Attempts, as_alice: Leases, alice: pwd.struct_passwd) -> None:
    attempt = await attempts.run("echo $$ $PPID; tr -d '\\0' < /proc/$PPID/cmdline; echo", leases=as_alice)
    executor, between, payload = roles(attempt)
    assert [each.identity for each in (executor, between, payload)] == ["root", "root", alice.pw_name]
    assert (between.parent_pid, payload.parent_pid) == (executor.pid, between.pid)
    job = attempt.directory.name
    assert attempt.output().decode() == f"{payload.pid} {between.pid}\nsis-run-as: job {job}\n"
    text = attempt.text()
    assert f"Run as {alice.pw_name} (credential ops-alice)" in text
    assert f"Package processing started as root, PID {executor.pid}" in text
    assert f"Run-as executor started as root, PID {between.pid}" in text
    assert f"Payload processing started as {alice.pw_name}, PID {payload.pid}" in text
    evidence = attempt.finished().evidence
    assert [process.role for process in evidence.processes] == [between.role, payload.role]
    assert all(process.ended for process in evidence.processes)
    assert [process.exit_code for process in evidence.processes] == [0, 0]


async def test_its_environment_is_its_own(
    attempts_anyhow: Attempts, as_alice: Leases, alice: pwd.struct_passwd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIS_AGENT_STATE", "of the agent")
    monkeypatch.setenv("PATH", f"/opt/agent/bin:{os.environ['PATH']}")
    script = "tr '\\0' '\\n' < /proc/self/environ; ls /proc/self/fd | tr '\\n' ' '"
    attempt = await attempts_anyhow.run(script, leases=as_alice)
    *lines, descriptors = attempt.output().decode().splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    assert {name: environment[name] for name in environment if not name.startswith("SIS_")} == {
        "HOME": alice.pw_dir,
        "USER": alice.pw_name,
        "LOGNAME": alice.pw_name,
        "SHELL": alice.pw_shell or "/bin/sh",
        "PATH": run_as.DEFAULT_PATH,
        "LANG": "C.UTF-8",
    }
    assert "SIS_AGENT_STATE" not in environment
    assert environment["SIS_WORK_DIR"].startswith(tempfile.gettempdir())
    assert descriptors.split() == ["0", "1", "2", "3"]  # 3 is the listing itself


async def test_the_package_is_a_copy_that_it_can_only_read(attempts_anyhow: Attempts, as_alice: Leases) -> None:
    attempt = attempts_anyhow.prepare(command=["{package}/bin/run.sh", "{work}"], leases=as_alice)
    (attempt.package / "bin").mkdir()
    script = attempt.package / "bin" / "run.sh"
    script.write_text(
        '#!/bin/sh\ncat "$SIS_PACKAGE_DIR/package.yaml" > "$1/copy" && echo read\n'
        'echo x >> "$0" || echo no; touch "$SIS_PACKAGE_DIR/new" || echo no; rm "$0" || echo no\n'
        'mv "$SIS_PACKAGE_DIR" "$SIS_PACKAGE_DIR.old" || echo no; ls "$SIS_PACKAGE_DIR/.." || echo no\n'
    )
    script.chmod(0o755)
    await attempts_anyhow.spawn(attempt)
    await attempt.end()
    assert attempt.output() == b"read\nno\nno\nno\nno\nno\n"
    assert script.exists()


async def test_the_files_that_it_is_given_are_its_own(
    attempts: Attempts, as_alice: Leases, alice: pwd.struct_passwd
) -> None:
    script = 'stat -c "%U %a" "$SIS_PARAM_CONFIG"; cat "$SIS_PARAM_CONFIG"; echo x >> "$SIS_PARAM_CONFIG" || id -un'
    attempt = await attempts.run(script, leases=as_alice, files={"config": File("a", b"content\n")})
    assert attempt.output().decode().splitlines() == [f"{alice.pw_name} 400", "content", alice.pw_name]
    assert left_of(attempt) == []


async def test_its_credentials_are_its_own(attempts: Attempts, identity: SealedIdentity, as_alice: Leases) -> None:
    def leases(assignment: dispatch.Assignment) -> None:
        as_alice(assignment)
        identity.lease(assignment, "credential.file", SECRET, TOKEN)
        identity.lease(assignment, "credential.input", SECRET)

    script = """
stat -c '%U %a' "$SIS_CREDENTIAL_FILE_TOKEN_FILE"; cksum < "$SIS_CREDENTIAL_FILE_TOKEN_FILE" | cut -d' ' -f2
cat /dev/stdin | cksum | cut -d' ' -f2; printf %s "$SIS_CREDENTIAL_RUN_AS_PASSWORD" | cksum | cut -d' ' -f2
"""
    credentials = {"file": {"delivery": "file"}, "input": {"delivery": "stdin"}, "run_as": {}}
    attempt = await attempts.run(script, leases=leases, credentials=credentials)
    owner, *lengths = attempt.output().decode().splitlines()
    assert owner.endswith(" 600") and owner.startswith("sis-test-")
    assert [int(length) for length in lengths] == [len(SECRET), len(SECRET) + 1, len(SECRET)]


async def test_two_accounts_and_their_secrets(
    attempts_anyhow: Attempts, identity: SealedIdentity, as_alice: Leases
) -> None:
    """A job of root's, and one of another account that tries to get at it."""
    first = await attempts_anyhow.start(
        'echo "$SIS_CREDENTIAL_FILE_TOKEN_FILE"; exec sleep 60',
        credentials={"env": {}, "file": {"delivery": "file"}},
        leases=lambda assignment: (
            identity.lease(assignment, "credential.env", SECRET),
            identity.lease(assignment, "credential.file", SECRET, TOKEN),
        ),
    )
    await first.until_output(b"\n")
    file = Path(first.output().decode().strip())
    victim = started(first)[job_pb2.PROCESS_ROLE_PAYLOAD].pid
    supervisor = started(first)[job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR].pid
    readable = [
        file,
        identity.key_file,
        identity.directory / "identity.json",
        first.directory / ASSIGNMENT,
        first.spool,
        *(Path(f"/proc/{pid}/{name}") for pid in (victim, supervisor) for name in ("environ", "mem", "maps")),
    ]
    listable = [
        file.parent,
        identity.directory,
        first.directory,
        *(Path(f"/proc/{p}/fd") for p in (victim, supervisor)),
    ]
    looks = [
        *(f"head -c 1 {shlex.quote(str(path))}" for path in readable if path.name != "mem"),
        *(f"ls {shlex.quote(str(path))}/." for path in listable),
        *(f"ls /proc/{pid}/cwd/." for pid in (victim, supervisor)),
        *(f"kill -0 {pid}" for pid in (victim, supervisor, "$PPID")),
        f"cat {shlex.quote(str(first.package))}/package.yaml",
        'head -c 1 /proc/$PPID/environ; ls "/proc/$PPID/fd/."',
    ]
    attacks = [
        *(f"kill -{number} {pid}" for number in ("STOP", "KILL") for pid in (victim, supervisor, "$PPID")),
        *(f"dd if=/proc/{pid}/mem bs=1 count=1" for pid in (victim, supervisor, "$PPID")),
        f"touch {shlex.quote(str(file.parent))}/new",
        f"mv {shlex.quote(str(file.parent))} {shlex.quote(str(file.parent))}.mine",
    ]

    def script(tries: list[str]) -> str:
        """Prints the number of each one that succeeds."""
        return "\n".join(f"if ( {each} ) > got 2>&1; then echo {n}; fi" for n, each in enumerate(tries)) + "\necho over"

    as_root = await attempts_anyhow.run(script(looks))
    assert as_root.output().split() == [b"%d" % number for number in range(len(looks))] + [b"over"]
    second = await attempts_anyhow.run(script(looks + attacks), leases=as_alice)
    found = second.output().decode().split()
    assert found == ["over"], [(looks + attacks)[int(number)] for number in found[:-1]]
    assert is_alive(victim)
    with first.handle() as handle:
        await handle.stop(StopKind.ABORT, "")
    await first.end()


# ---- what it cannot get back


def in_child(act: Callable[[], object]) -> int:
    """The exit code of a fork that does it: 0, or 1 where it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_there_is_no_way_back(alice: pwd.struct_passwd) -> None:
    account = resolved(alice)

    def try_all() -> None:
        run_as.become(account)
        ways: list[Callable[[], object]] = [
            *(lambda f=f: f(0) for f in (os.setuid, os.seteuid, os.setgid, os.setegid)),
            lambda: os.setresuid(0, 0, 0),
            lambda: os.setresuid(-1, 0, -1),
            lambda: os.setresgid(0, 0, 0),
            lambda: os.setgroups([0]),
            lambda: os.open("/etc/shadow", os.O_RDONLY),
            lambda: os.kill(os.getppid(), signal.SIGSTOP),
            lambda: os.chroot("/"),
            lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY),
        ]
        for way in ways:
            with pytest.raises(PermissionError):
                way()
        status = Path("/proc/self/status").read_text()
        assert [line for line in status.splitlines() if line.startswith(("CapPrm", "CapEff", "CapInh"))] == [
            f"{kind}:\t{0:016x}" for kind in ("CapInh", "CapPrm", "CapEff")
        ]

    assert in_child(try_all) == 0


def test_what_is_not_taken_on_for_good_is_refused(alice: pwd.struct_passwd) -> None:
    account = resolved(alice)

    def with_a_way_back() -> None:
        # Capabilities outlive the change of account then, as an agent's service may have been told.
        secbit_no_setuid_fixup = 1 << 2
        set_securebits = 28
        assert run_as._libc.prctl(set_securebits, secbit_no_setuid_fixup, 0, 0, 0) == 0
        with pytest.raises(OSError, match="not taken on for good"):
            run_as.become(account)

    assert in_child(with_a_way_back) == 0


async def test_what_it_puts_in_the_place_of_its_directory_is_not_read(
    attempts_anyhow: Attempts, as_alice: Leases, tmp_path: Path
) -> None:
    """The supervisor is root: it must not read for the payload what that cannot."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "output").write_text("answer=of root\n")
    script = f"""
private=$(dirname "$SIS_OUTPUT"); echo "answer=of alice" >> "$SIS_OUTPUT"
mv "$private" "$private.mine" && ln -s {shlex.quote(str(treasure))} "$private" && echo moved
"""
    attempt = await attempts_anyhow.run(script, leases=as_alice, outputs={"answer": False})
    assert attempt.output() == b"moved\n"
    assert [output.value for output in attempt.finished().outputs] == ["of alice"]
    assert (treasure / "output").exists()
    for root in ("/run", "/dev/shm"):
        for left in Path(root).glob(f"sis-{attempt.directory.name}.*.mine"):
            assert list(left.iterdir()) == []
            left.rmdir()


# ---- how it ends


@pytest.mark.parametrize(
    ("script", "reason", "code"),
    [("exit 3", "EXIT_CODE", 3), ("kill -SEGV $$", "SIGNAL", None), ("exit 0", "", 0)],
)
async def test_its_exit_status_is_handed_over(
    attempts: Attempts, as_alice: Leases, script: str, reason: str, code: int | None
) -> None:
    finished = (await attempts.run(script, leases=as_alice)).finished()
    assert finished.failure_reason == reason
    assert (finished.result_code if finished.HasField("result_code") else None) == code
    assert finished.evidence.tree_empty


@pytest.mark.parametrize(
    ("command", "reason"), [(["no-such-program"], "EXEC_FAILED"), (["{package}/package.yaml"], "EXEC_FAILED")]
)
async def test_a_program_that_cannot_be_executed(
    attempts: Attempts, as_alice: Leases, command: list[str], reason: str
) -> None:
    attempt = await attempts.run(command=command, leases=as_alice)
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, reason)
    assert finished.evidence.tree_empty
    assert left_of(attempt) == []


async def test_a_cancel_is_the_payload_s_to_handle(attempts: Attempts, as_alice: Leases) -> None:
    script = "trap 'echo tidied; exit 4' TERM; echo begun; while :; do sleep 0.05; done"
    attempt = await attempts.start(script, leases=as_alice, grace=10.0)
    await attempt.until_output(b"begun")
    with attempt.handle() as handle:
        await handle.stop(StopKind.CANCEL, "enough")
    finished = await attempt.end()
    assert attempt.output() == b"begun\ntidied\n"
    assert (finished.outcome, finished.result_code) == (pb.OUTCOME_STOPPED, 4)
    _, between, payload = roles(attempt)
    signals = {process.pid: list(process.signals) for process in finished.evidence.processes}
    assert (signals[payload.pid], signals[between.pid]) == (["TERM"], [])
    assert finished.evidence.tree_empty


@pytest.mark.parametrize("kind", [StopKind.CANCEL, StopKind.ABORT])
async def test_what_does_not_want_to_end_is_ended(attempts: Attempts, as_alice: Leases, kind: StopKind) -> None:
    mark = f"sis-run-as-{id(attempts)}"
    script = f"trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 60; : {mark}' & echo begun; sleep 60; : {mark}"
    attempt = await attempts.start(script, leases=as_alice)
    await attempt.until_output(b"begun")
    with attempt.handle() as handle:
        await handle.stop(kind, "")
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_STOPPED
    assert finished.evidence.tree_empty
    assert alive_with(mark) == []
    assert left_of(attempt) == []


async def test_what_it_leaves_behind_is_ended(attempts: Attempts, as_alice: Leases) -> None:
    mark = f"sis-run-as-{id(attempts)}"
    attempt = await attempts.run(f"(setsid sh -c 'sleep 60; : {mark}' &) ; echo bye", leases=as_alice)
    finished = attempt.finished()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert finished.evidence.tree_empty
    assert alive_with(mark) == []
    assert "Ending the processes that the payload has left behind" in attempt.text()


async def test_with_its_executor_the_payload_dies(attempts: Attempts, as_alice: Leases) -> None:
    mark = f"sis-run-as-{id(attempts)}"
    attempt = await attempts.start(f"(sh -c 'sleep 60; : {mark}' &) ; echo begun; sleep 60; : {mark}", leases=as_alice)
    await attempt.until_output(b"begun")
    os.kill(roles(attempt)[1].pid, signal.SIGKILL)
    finished = await attempt.end()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "SIGNAL")
    assert finished.evidence.tree_empty
    assert alive_with(mark) == []
    ends = {process.role: process.end_signal for process in finished.evidence.processes}
    assert ends[job_pb2.PROCESS_ROLE_RUN_AS_EXECUTOR] == ends[job_pb2.PROCESS_ROLE_PAYLOAD] == "KILL"
    assert left_of(attempt) == []


async def test_the_exit_status_outlives_the_executor(attempts: Attempts, as_alice: Leases) -> None:
    """It is killed when the payload has ended and it has not noticed."""
    attempt = await attempts.start("mkfifo go; echo begun; read line < go; exit 7", leases=as_alice)
    attempt_go = await _fifo_of(attempt)
    _, between, payload = roles(attempt)
    assert stop(between.pid)
    await asyncio.to_thread(attempt_go.write_text, "go\n")
    await eventually(lambda: (found := processes.read(payload.pid)) is None or not found.alive)
    os.kill(between.pid, signal.SIGKILL)
    finished = await attempt.end()
    assert (finished.failure_reason, finished.result_code) == ("EXIT_CODE", 7)
    assert finished.evidence.tree_empty


async def _fifo_of(attempt: Attempt) -> Path:
    await attempt.until_output(b"begun")
    found = SupervisorIdentity.read(attempt.directory)
    assert found is not None
    return Path(tempfile.gettempdir(), name_of(found.attempt, "shared"), "work", "go")


async def test_with_its_supervisor_everything_dies(
    attempts: Attempts, as_alice: Leases, identity: SealedIdentity
) -> None:
    mark = f"sis-run-as-{id(attempts)}"
    attempt = await attempts.start(f"echo begun; sleep 60; : {mark}", leases=as_alice)
    await attempt.until_output(b"begun")
    _, between, payload = roles(attempt)
    with attempt.handle() as handle:
        handle.kill()
        await handle.wait_gone()
    await eventually(lambda: not is_alive(between.pid) and not is_alive(payload.pid))
    assert left_of(attempt) != []
    finish_lost(attempt.directory, identity.directory)
    with SpoolReader(attempt.spool) as spool:
        assert spool.last_sequence > 0
        assert spool.finished is not None
        assert spool.finished.failure_reason == "SUPERVISOR_LOST"
    assert alive_with(mark) == []
    assert left_of(attempt) == []


@pytest.mark.parametrize("killed", [False, True])
async def test_the_end_is_told_before_a_large_working_directory_is_gone(
    attempts_anyhow: Attempts,
    as_alice: Leases,
    identity: SealedIdentity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    faults = FaultPoints(tmp_path / "faults")
    faults.arm("supervisor.end.written", "stop")
    monkeypatch.setenv("SIS_FAULTS", faults.environment["SIS_FAULTS"])
    attempt = await attempts_anyhow.start("mkdir large; touch large/file", leases=as_alice)
    supervisor = await asyncio.to_thread(faults.wait_passed, "supervisor.end.written")
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED
    (left,) = left_of(attempt)
    assert (left / "work" / "large" / "file").exists()
    assert not (left / "private").exists()
    if killed:
        os.kill(supervisor, signal.SIGKILL)
    else:
        faults.release("supervisor.end.written")
    await attempt.end()
    assert (left_of(attempt) == []) != killed
    finish_lost(attempt.directory, identity.directory)
    assert left_of(attempt) == []


async def test_the_end_of_what_has_lost_its_supervisor_is_told_before_the_rest_is_gone(
    attempts_anyhow: Attempts, as_alice: Leases, identity: SealedIdentity
) -> None:
    attempt = await attempts_anyhow.start("echo begun; sleep 60", leases=as_alice)
    await attempt.until_output(b"begun")
    with attempt.handle() as handle:
        handle.kill()
        await handle.wait_gone()
    told: list[tuple[str, list[Path]]] = []
    finish_lost(
        attempt.directory,
        identity.directory,
        told=lambda: told.append((attempt.finished().failure_reason, left_of(attempt))),
    )
    ((reason, left),) = told
    assert reason == "SUPERVISOR_LOST"
    assert left != []
    assert left_of(attempt) == []


# ---- an agent that may not


ORDINARY = """
import encodings.ascii, encodings.utf_8_sig, os, sys
from pathlib import Path
from services.sis_agent.agent.supervision import guardian, supervisor_process
from services.sis_agent.agent.secrecy.masking import Masker
from sis.packages import manifest
uid, gid, directory, package, identity = int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:])
loaded = manifest.load(package)
Masker([b"hunter22"])
# From here on, the interpreter's own files may be closed to it.
os.setgroups([]); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
guarded = guardian.fork_guarded(0)
supervisor_process.detach(guarded.descriptors)
means = supervisor_process.Means(cgroups=False, process_limit=0, identity_directory=identity)
supervisor_process.supervise(directory, package, loaded, lambda _: None, guarded, means)
"""


async def as_ordinary(attempt: Attempt, identity: SealedIdentity, account: pwd.struct_passwd) -> pb.Finished:
    """Supervised by a process of this account, to which everything belongs."""
    root = attempt.directory.parent
    for path in (root, *root.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid)
    arguments = [str(account.pw_uid), str(account.pw_gid), attempt.directory, attempt.package, identity.directory]
    supervisor = await asyncio.create_subprocess_exec(sys.executable, "-c", ORDINARY, *map(str, arguments))
    async with asyncio.timeout(30):
        assert await supervisor.wait() == 0, attempt.faults()
    assert attempt.faults() == ""
    return attempt.finished()


@pytest.fixture
def open_attempts(alice: pwd.struct_passwd) -> Iterator[tuple[Attempts, SealedIdentity]]:
    """In a directory that an ordinary account can get to."""
    with tempfile.TemporaryDirectory() as directory:
        yield Attempts(Path(directory), Zygote()), SealedIdentity(Path(directory) / "identity")


@pytest.mark.parametrize("name", ["root", "daemon"])
async def test_an_ordinary_agent_is_refused(
    open_attempts: tuple[Attempts, SealedIdentity], alice: pwd.struct_passwd, name: str
) -> None:
    attempts, identity = open_attempts
    attempt = attempts.prepare(
        "touch started", leases=lambda a: identity.lease(a, "run_as", SECRET, username=name, credential="ops")
    )
    finished = await as_ordinary(attempt, identity, alice)
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "RUN_AS_REFUSED")
    assert attempt.notices()[-1].text == (
        f"Failed: the agent runs as {alice.pw_name} and may run nothing as {name} (credential ops): "
        f"run the agent as root, or name a credential of {alice.pw_name}"
    )
    assert list(attempt.directory.rglob("started")) == []


async def test_an_ordinary_agent_runs_its_own_account(
    open_attempts: tuple[Attempts, SealedIdentity], alice: pwd.struct_passwd
) -> None:
    attempts, identity = open_attempts

    def leases(assignment: dispatch.Assignment) -> None:
        identity.lease(assignment, "run_as", SECRET, username=alice.pw_name, credential="ops")
        identity.lease(assignment, "credential.db", SECRET)

    script = """
id -un; printf %s "$SIS_CREDENTIAL_DB_PASSWORD" | cksum | cut -d' ' -f2; echo answer=42 >> "$SIS_OUTPUT"
# The supervisor is of the same account, and yet closed to it.
head -c 1 /proc/$PPID/environ || head -c 1 /proc/$PPID/mem || ls /proc/$PPID/fd || echo closed
"""
    attempt = attempts.prepare(script, leases=leases, credentials={"db": {}}, outputs={"answer": True})
    finished = await as_ordinary(attempt, identity, alice)
    assert finished.outcome == pb.OUTCOME_SUCCEEDED, attempt.text()
    assert attempt.output().decode() == f"{alice.pw_name}\n{len(SECRET)}\nclosed\n"
    assert [output.value for output in finished.outputs] == ["42"]


def test_a_container_that_withholds_a_capability_is_named(alice: pwd.struct_passwd) -> None:
    def without_kill() -> None:
        drop_from_bounding_set, cap_kill = 24, 5
        assert run_as._libc.prctl(drop_from_bounding_set, cap_kill, 0, 0, 0) == 0
        ended = subprocess.run(
            [
                *(sys.executable, "-c"),
                "from services.sis_agent.agent.supervision import run_as\n"
                "from services.sis_agent.agent.supervision.leases import LeasedAccount\n"
                f"run_as.find(LeasedAccount({alice.pw_name!r}, '', 'ops'))",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "it lacks CAP_KILL; give that to its container or service" in ended.stderr

    assert in_child(without_kill) == 0


def test_a_stage_that_cannot_be_made_leaves_nothing(alice: pwd.struct_passwd, tmp_path: Path) -> None:
    attempt = f"test.{os.getpid()}"
    with pytest.raises(OSError, match="No such file"):
        stage.make(attempt, tmp_path, tmp_path / "no package", resolved(alice))
    assert not Path(tempfile.gettempdir(), name_of(attempt, "shared")).exists()


def test_without_a_file_system_in_memory_its_private_directory_can_be_reached(
    alice: pwd.struct_passwd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_directory, "memory_file_systems", tuple)
    (tmp_path / "package").mkdir()
    made = stage.make(f"test.{os.getpid()}.p", tmp_path, tmp_path / "package", resolved(alice))
    assert made.shared is not None
    assert made.private.path == made.shared / "private"
    assert made.private.path.stat().st_uid == made.private.inside(OUTPUT).stat().st_uid == alice.pw_uid
    made.remove_private()
    made.remove_shared()
    assert not made.shared.exists()


def test_memory_that_others_have_filled_is_no_reason_to_go_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "none", full], check=True)
    try:
        monkeypatch.setattr(private_directory, "memory_file_systems", lambda: (full,))
        with pytest.raises(OSError, match="No space left"):
            PrivateDirectory.make(f"test.{os.getpid()}.f", tmp_path, None)
        assert not (tmp_path / "private").exists()
        # The next one may have room.
        monkeypatch.setattr(private_directory, "memory_file_systems", lambda: (full, tmp_path))
        made = PrivateDirectory.make(f"test.{os.getpid()}.f", tmp_path, None)
        assert made.in_memory
        made.remove()
    finally:
        subprocess.run(["umount", full], check=True)


def test_the_agent_s_own_account_is_not_switched() -> None:
    assert run_as.find(LeasedAccount("root", "", "c")) is None
    with pytest.raises(StartFailed):
        run_as.find(LeasedAccount("a\0b", "", "c"))


def test_modes_do_not_depend_on_the_umask(alice: pwd.struct_passwd, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    former = os.umask(0o077)
    made = stage.make(f"test.{os.getpid()}.m", tmp_path, tmp_path / "package", resolved(alice))
    os.umask(former)
    assert made.shared is not None
    assert stat.S_IMODE(made.shared.stat().st_mode) == 0o711
    assert stat.S_IMODE(made.work.stat().st_mode) == stat.S_IMODE(made.private.path.stat().st_mode) == 0o700
    made.remove_private()
    made.remove_shared()
    assert not made.shared.exists()
    assert not made.private.path.exists()
