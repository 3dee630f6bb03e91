"""What a supervisor makes of a payload that nobody stops."""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
from pathlib import Path

import pytest

from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.supervision.private_directory import name_of
from services.sis_agent.agent.supervision.supervisor_identity import SupervisorIdentity
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2
from tests.support.attempts import PYTHON, UNTIL_GO, Attempts, alive_with


async def test_every_line_of_both_streams_once_and_in_order(attempts: Attempts) -> None:
    script = "for i in $(seq 1 500); do echo out $i; echo err $i >&2; done; sleep 0.05; echo last"
    attempt = await attempts.run(script)
    finished = attempt.finished()
    assert attempt.output() == b"".join(b"out %d\n" % i for i in range(1, 501)) + b"last\n"
    assert attempt.output(job_pb2.CHANNEL_STDERR) == b"".join(b"err %d\n" % i for i in range(1, 501))
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_SUCCEEDED, "")
    assert finished.HasField("result_code") and finished.result_code == 0
    assert finished.discarded_bytes == 0
    assert finished.evidence.tree_empty
    assert not finished.evidence.survivors


async def test_the_log_names_the_processes(attempts: Attempts) -> None:
    attempt = await attempts.start("sleep 60 & wait; echo done")
    started = await attempt.until_started(3)
    os.kill(started[-1].pid, signal.SIGKILL)
    await attempt.end()
    roles = [process.role for process in started]
    assert roles == [
        job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR,
        job_pb2.PROCESS_ROLE_PAYLOAD,
        job_pb2.PROCESS_ROLE_DESCENDANT,
    ]
    executor, payload, child = started
    me = processes.account_name(os.geteuid())
    assert {process.identity for process in started} == {me}
    assert (executor.name, child.name) == ("sis-supervisor", "sleep")
    assert (payload.parent_pid, child.parent_pid) == (executor.pid, payload.pid)
    assert executor.start_time.seconds <= payload.start_time.seconds <= child.start_time.seconds
    recorded = {process.pid: process for process in attempt.finished().evidence.processes}
    assert recorded.keys() == {payload.pid, child.pid}
    assert all(process.ended for process in recorded.values())
    assert recorded[payload.pid].exit_code == 0


async def test_the_tree_is_looked_at_as_it_should_be(attempts: Attempts, request: pytest.FixtureRequest) -> None:
    expected = "cgroup" if "best" in request.node.name else "subreaper"
    assert (await attempts.run("true")).finished().evidence.method == expected


@pytest.mark.parametrize(
    ("script", "reason", "code"),
    [("exit 3", "EXIT_CODE", 3), ("kill -SEGV $$", "SIGNAL", None), ("kill -KILL $$", "SIGNAL", None)],
)
async def test_a_payload_that_fails(attempts_anyhow: Attempts, script: str, reason: str, code: int | None) -> None:
    attempt = await attempts_anyhow.run(script)
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, reason)
    assert finished.HasField("result_code") == (code is not None)
    assert finished.result_code == (code or 0)
    (ended,) = attempt.notices("payload_ended")
    assert ended.payload_ended.signal == {"exit 3": "", "kill -SEGV $$": "SEGV", "kill -KILL $$": "KILL"}[script]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["no-such-program-at-all"], "the program no-such-program-at-all was not found"),
        (["/no/such/program"], "the program /no/such/program was not found"),
        (["{package}/package.yaml"], "cannot be executed"),
        (["{package}"], "cannot be executed"),
    ],
)
async def test_a_command_that_cannot_be_executed(attempts: Attempts, command: list[str], text: str) -> None:
    attempt = await attempts.run(command=command)
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_FAILED, "EXEC_FAILED")
    assert text in attempt.text()
    assert finished.evidence.tree_empty
    roles = [notice.process_started.process.role for notice in attempt.notices("process_started")]
    assert job_pb2.PROCESS_ROLE_PAYLOAD not in roles


async def test_a_script_whose_interpreter_is_missing(attempts_anyhow: Attempts) -> None:
    attempt = attempts_anyhow.prepare(command=["{package}/run"])
    (attempt.package / "run").write_text("#!/no/such/interpreter\n")
    (attempt.package / "run").chmod(0o755)
    await attempts_anyhow.spawn(attempt)
    await attempt.end()
    assert "the interpreter that the first line of" in attempt.text()


async def test_a_package_that_cannot_be_used(attempts_anyhow: Attempts) -> None:
    attempt = attempts_anyhow.prepare("true")
    (attempt.package / "package.yaml").write_text("name: x\n")
    await attempts_anyhow.spawn(attempt)
    finished = await attempt.end()
    assert finished.failure_reason == "EXEC_FAILED"
    assert "the package cannot be used: version: is missing" in attempt.text()


async def test_a_package_for_another_platform(attempts_anyhow: Attempts) -> None:
    attempt = attempts_anyhow.prepare("true")
    manifest = json.loads((attempt.package / "package.yaml").read_text()) | {"platforms": ["darwin", "windows"]}
    (attempt.package / "package.yaml").write_text(json.dumps(manifest))
    await (await attempts_anyhow.spawn(attempt)).end()
    assert (attempt.finished().outcome, attempt.finished().failure_reason) == (
        pb.OUTCOME_FAILED,
        "PLATFORM_UNSUPPORTED",
    )
    assert "Failed: the package runs on darwin or windows, this agent on linux: give the job to" in attempt.text()


async def test_the_environment_is_clean(attempts_anyhow: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIS_AGENT_TLS_KEY", "of the agent")
    attempt = await attempts_anyhow.run("cat /proc/$$/environ")
    environment = dict(entry.split("=", 1) for entry in attempt.output().decode().rstrip("\0").split("\0"))
    script, job = environment.pop("SIS_PARAM_SCRIPT"), environment["SIS_JOB_ID"]
    assert script == "cat /proc/$$/environ"
    token = environment.pop("SIS_ATTEMPT")
    assert token.startswith(f"{job}.1.")
    private = Path(environment["SIS_OUTPUT"]).parent
    assert private.name in (name_of(token, "private"), "private")
    assert not private.exists()
    assert environment == {
        "PATH": os.environ["PATH"],
        "HOME": pwd.getpwuid(os.geteuid()).pw_dir,
        "LANG": "C.UTF-8",
        "SIS_JOB_ID": attempt.directory.name.partition(".")[0],
        "SIS_OPERATION": "run",
        "SIS_PACKAGE_DIR": str(attempt.package),
        "SIS_WORK_DIR": str(attempt.directory / "work"),
        "SIS_OUTPUT": str(private / "output"),
        "SIS_PROGRESS": str(private / "progress"),
    }


async def test_a_payload_has_its_streams_and_nothing_else(attempts: Attempts) -> None:
    code = """
import os, signal
print(sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/fd/0"), os.getcwd())
print(os.getsid(0) == os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ()), oct(os.umask(0)))
masks = dict(line.split() for line in open("/proc/self/status") if line.startswith(("SigIgn", "SigBlk")))
# 32 and 33 are the C library's own: nobody can set them, so they are as they were inherited from whoever runs this.
print({name: hex(int(mask, 16) & ~(3 << 31)) for name, mask in masks.items()})
"""
    attempt = await attempts.run(code, command=PYTHON)
    first, second, third = attempt.output().decode().splitlines()
    assert first == f"['0', '1', '2', '3'] /dev/null {attempt.directory}/work"  # 3 is the listing itself
    assert second == "True set() 0o22"
    # Python itself ignores PIPE and XFSZ.
    assert third == "{'SigBlk:': '0x0', 'SigIgn:': '0x1001000'}"


async def test_outputs(attempts_anyhow: Attempts) -> None:
    script = 'printf "a=1\\nb<<END\\ntwo\\nlines\\nEND\\nextra=x\\n" >> "$SIS_OUTPUT"'
    attempt = await attempts_anyhow.run(script, outputs={"a": True, "b": False, "c": False})
    finished = attempt.finished()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert {output.name: output.value for output in finished.outputs} == {"a": "1", "b": "two\nlines"}
    assert "the operation does not declare extra" in attempt.text()


async def test_outputs_among_the_output(attempts_anyhow: Attempts) -> None:
    script = """
start() { printf '{{SISJobOutputParameterStart:%s}}' "$1"; }
end='{{SISJobOutputParameterEnd}}'
start a; printf 'one\\ntwo{{SISJobOutput'; sleep 0.1; echo "ParameterEnd}}"
echo "b=of the file" >> "$SIS_OUTPUT"
echo "$(start b)of the stream$end $(start extra)x$end"
echo "$(start c)from standard error$end" >&2
start d
"""
    declared = {"a": True, "b": True, "c": False, "d": False}
    attempt = await attempts_anyhow.run(script, outputs=declared, output_markers=True)
    finished = attempt.finished()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert {output.name: output.value for output in finished.outputs} == {"a": "one\ntwo", "b": "of the file"}
    written = attempt.output()
    assert written.startswith(b"{{SISJobOutputParameterStart:a}}one\ntwo{{SISJobOutputParameterEnd}}\n{{SIS")
    assert "the operation does not declare extra" in attempt.text()
    assert "standard output begins, and does not end, the value of 'd'; not kept" in attempt.text()


@pytest.mark.parametrize(
    ("script", "reason", "text"),
    [
        ("true", "OUTPUT_MISSING", "the required output needed"),
        ('echo "no entry" >> "$SIS_OUTPUT"', "OUTPUT_INVALID", "line 1"),
        ('printf "needed=\\377\\n" >> "$SIS_OUTPUT"', "OUTPUT_INVALID", "needed is not valid UTF-8"),
        ('head -c 1100000 /dev/zero > "$SIS_OUTPUT"', "OUTPUT_INVALID", "larger than 1 MiB"),
        ('rm "$SIS_OUTPUT"; ln -s /etc/passwd "$SIS_OUTPUT"', "OUTPUT_INVALID", "cannot be read"),
        ('ln "$SIS_OUTPUT" "$SIS_OUTPUT.too"', "OUTPUT_INVALID", "another name"),
        ('rm "$SIS_OUTPUT"; mkfifo "$SIS_OUTPUT"', "OUTPUT_INVALID", "not a regular file"),
        ("printf '{{SISJobOutputParameterStart:needed}}\\377{{SISJobOutputParameterEnd}}'", "OUTPUT_INVALID", "UTF-8"),
        ("exit 4", "EXIT_CODE", "exit code 4"),
    ],
)
async def test_outputs_that_are_wrong(attempts_anyhow: Attempts, script: str, reason: str, text: str) -> None:
    attempt = await attempts_anyhow.run(script, outputs={"needed": True}, output_markers=True)
    assert (attempt.finished().outcome, attempt.finished().failure_reason) == (pb.OUTCOME_FAILED, reason)
    assert text in attempt.notices()[-1].text


async def test_markers_are_text_where_the_operation_does_not_ask_for_them(attempts_anyhow: Attempts) -> None:
    marked = "{{SISJobOutputParameterStart:a}}of a page{{SISJobOutputParameterEnd}} {{SISJobOutputParameterStart:b c}}"
    attempt = await attempts_anyhow.run(f"echo '{marked}'", outputs={"a": False})
    assert attempt.finished().outcome == pb.OUTCOME_SUCCEEDED
    assert not attempt.finished().outputs


async def test_progress(attempts_anyhow: Attempts) -> None:
    script = f'echo 10 begun > "$SIS_PROGRESS"; {UNTIL_GO}; echo "100 done" >> "$SIS_PROGRESS"'
    attempt = await attempts_anyhow.start(script)
    await attempt.until(lambda attempt: attempt.notices("progress"))
    attempt.go()
    await attempt.end()
    told = [(n.progress.percent, n.progress.text) for n in attempt.notices("progress")]
    assert told == [(10, "begun"), (100, "done")]


async def test_the_cap_of_the_log(attempts_anyhow: Attempts) -> None:
    attempt = await attempts_anyhow.run("yes 123456789 | head -c 1000000; echo over >&2", log_cap_bytes=100_001)
    finished = attempt.finished()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.output() == (b"123456789\n" * 10_001)[:100_001]
    assert attempt.output(job_pb2.CHANNEL_STDERR) == b""
    assert finished.discarded_bytes == 1_000_000 + 5 - 100_001
    (truncated,) = attempt.notices("log_truncated")
    assert truncated.log_truncated.cap_bytes == 100_001


async def test_long_lines_and_hostile_bytes(attempts_anyhow: Attempts) -> None:
    code = "import sys; w = sys.stdout.buffer.write; w(b'x' * (10 << 20)); w(bytes(range(256)) * 4)"
    attempt = await attempts_anyhow.run(code, command=PYTHON)
    assert attempt.output() == b"x" * (10 << 20) + bytes(range(256)) * 4
    assert all(len(frame.chunk.data) <= 65536 for frame in attempt.frames())


async def test_a_payload_that_closes_its_output_and_lives_on(attempts: Attempts) -> None:
    attempt = await attempts.run("echo said; exec >&- 2>&-; sleep 0.4; exit 7")
    finished = attempt.finished()
    assert attempt.output() == b"said\n"
    assert finished.result_code == 7
    assert attempt.notices("payload_ended")[0].payload_ended.run_time.ToTimedelta().total_seconds() > 0.35


async def test_what_a_payload_leaves_behind_is_ended_and_named(attempts: Attempts) -> None:
    """A daemon of the classic kind: forked twice, in a session of its own, with nothing of its environment."""
    mark = f"sis-test-{id(attempts)}"
    daemon = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('daemon', flush=True);"
        " open('up', 'x').close(); time.sleep(60)"
    )
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve({sys.executable!r}, ["python", "-c", {daemon!r}, "{mark}"], {{}})
    os._exit(0)
os.wait()
while not os.path.exists("up"):
    time.sleep(0.01)
print("payload ends", flush=True)
"""
    attempt = await attempts.run(code, command=PYTHON)
    finished = attempt.finished()
    assert alive_with(mark) == []
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert finished.evidence.tree_empty
    assert sorted(attempt.output().split(b"\n")) == [b"", b"daemon", b"payload ends"]
    daemons = [process for process in finished.evidence.processes if list(process.signals) == ["TERM", "KILL"]]
    assert [(process.ended, process.end_signal) for process in daemons] == [(True, "KILL")]
    assert "Ending the processes that the payload has left behind" in attempt.text()


async def test_processes_that_are_made_the_supervisors_own_children(attempts: Attempts) -> None:
    """By CLONE_PARENT: they are no descendants of the payload."""
    code = """
import ctypes, os, time
clone_parent, clone3 = 0x8000, 435
arguments = (ctypes.c_uint64 * 8)(clone_parent)
sibling = ctypes.PyDLL(None).syscall(clone3, arguments, ctypes.sizeof(arguments))
if sibling == 0:
    os.execv("/bin/sleep", ["sleep", "60"])
while open(f"/proc/{sibling}/comm").read() != "sleep\\n":
    time.sleep(0.01)
"""
    attempt = await attempts.run(code, command=PYTHON)
    finished = attempt.finished()
    (payload, sibling) = finished.evidence.processes
    assert (sibling.name, sibling.parent_pid) == ("sleep", payload.parent_pid)
    assert sibling.ended
    assert finished.evidence.tree_empty
    assert finished.outcome == pb.OUTCOME_SUCCEEDED


async def test_a_work_directory_that_cannot_be_made(attempts_anyhow: Attempts) -> None:
    attempt = attempts_anyhow.prepare("true")
    (attempt.directory / "work").write_text("in the way")
    await attempts_anyhow.spawn(attempt)
    assert (await attempt.end()).failure_reason == "EXEC_FAILED"


async def test_an_orphan_that_ends_by_itself_is_reaped_and_recorded(attempts: Attempts) -> None:
    """While the payload runs: a process that is dead and not reaped can be signalled still."""
    orphan = "sh -c 'echo $$ > orphan; until [ -e go ]; do sleep 0.02; done; exit 5'"
    reaped = "until [ -s orphan ]; do sleep 0.02; done; touch go; while kill -0 $(cat orphan); do sleep 0.02; done"
    attempt = await attempts.run(f"({orphan} &); {reaped}")
    codes = [process.exit_code for process in attempt.finished().evidence.processes]
    assert 5 in codes


async def test_the_run_timeout(attempts: Attempts) -> None:
    attempt = await attempts.run("trap '' TERM; echo begun; sleep 30 & wait; sleep 30", run_timeout=2)
    finished = attempt.finished()
    assert (finished.outcome, finished.failure_reason) == (pb.OUTCOME_TIMED_OUT, "RUN_TIMEOUT")
    assert finished.evidence.tree_empty
    (begun,) = attempt.notices("stop_begun")
    assert begun.stop_begun.kind == pb.STOP_KIND_TIME_OUT
    assert attempt.output() == b"begun\n"


async def test_nobody_can_learn_from_the_cgroup_what_the_directories_are_called(attempts: Attempts) -> None:
    """/proc/PID/cgroup is everybody's to read, before the directories are made."""
    attempt = await attempts.start(f"cat /proc/self/cgroup; {UNTIL_GO}")
    await attempt.until_output(b"\n")
    identity = SupervisorIdentity.read(attempt.directory)
    assert identity is not None
    token = identity.attempt.rpartition(".")[2]
    assert token not in identity.cgroup
    assert token not in Path(f"/proc/{identity.pid}/cgroup").read_text()
    attempt.go()
    finished = await attempt.end()
    assert finished.outcome == pb.OUTCOME_SUCCEEDED
    assert attempt.output()
    assert token.encode() not in attempt.output()


async def test_no_cgroup_is_left(attempts: Attempts) -> None:
    attempt = await attempts.run("sleep 30 & echo bye")
    identity = SupervisorIdentity.read(attempt.directory)
    assert identity is not None
    assert not identity.cgroup or not Path(identity.cgroup).exists()
