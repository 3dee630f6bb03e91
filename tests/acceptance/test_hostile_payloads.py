"""Payloads that do all they can to get away, to wedge their job, or to harm who watches: through a whole stack.

After each of them the stack is as healthy as before, and the next job runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from google.protobuf.duration_pb2 import Duration

from services.sis_agent.agent.linux import processes
from sis.client import Client
from sis.queue.v1 import job_pb2
from tests.support import promises
from tests.support.attempts import alive_with
from tests.support.numbered_job import WAIT_SECONDS, runs, shell_job, until
from tests.support.stack import Stack

ENDED = (
    job_pb2.JOB_STATUS_SUCCEEDED,
    job_pb2.JOB_STATUS_FAILED,
    job_pb2.JOB_STATUS_CANCELED,
    job_pb2.JOB_STATUS_ABORTED,
    job_pb2.JOB_STATUS_TIMED_OUT,
    job_pb2.JOB_STATUS_AWOL,
)


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with stack.client() as client:
        yield client
        stack.wait_healthy()
        after = ended(client, start(client, "echo after"))
        assert after.status == job_pb2.JOB_STATUS_SUCCEEDED
        assert output(client, after.job_id) == b"after\n"


@pytest.fixture
def mark(tmp_path: Path) -> str:
    """What no other process has on its command line."""
    return f"hostile-{tmp_path.name}-{os.getpid()}"


def start(client: Client, script: str, **fields: Any) -> int:
    return client.jobs.create(shell_job(script, cancel_grace=Duration(seconds=1), **fields)).job_id


def python(code: str) -> str:
    """A script that runs it."""
    return f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def ended(client: Client, job_id: int, seconds: float = WAIT_SECONDS) -> job_pb2.Job:
    """The job, once it has ended and its stop is settled."""

    def settled() -> bool:
        job = client.jobs.get(job_id)
        return job.status in ENDED and job.stop_state != job_pb2.STOP_STATE_PENDING

    until(settled, f"the end of job {job_id}", seconds)
    return client.jobs.get(job_id)


def output(client: Client, job_id: int, channel: job_pb2.Channel.ValueType = job_pb2.CHANNEL_STDOUT) -> bytes:
    return b"".join(r.chunk.data for r in client.jobs.output(job_id) if r.chunk.channel == channel)


def confirmed(job: job_pb2.Job) -> None:
    """The stop is confirmed, the log complete, and none of the processes that are named lives."""
    assert job.stop_state == job_pb2.STOP_STATE_CONFIRMED
    assert job.stop_evidence.tree_empty
    assert not job.stop_evidence.survivors
    assert job.log.verdict == job_pb2.LOG_VERDICT_COMPLETE
    living = {(p.pid, p.name) for p in processes.read_all() if p.alive}
    assert not [p for p in job.stop_evidence.processes if (p.pid, p.name.encode()) in living]


def test_daemons_and_orphans_end_with_the_job(client: Client, mark: str, tmp_path: Path) -> None:
    sleeper = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "a").write("deaf\\n")
time.sleep(300)
"""
    code = f"""
import os, sys, time
def daemon(sessions, environment):
    if os.fork() == 0:
        for _ in range(sessions):
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
        os.closerange(0, 100)
        os.execve(sys.executable, ["python", "-c", {sleeper!r}, "{tmp_path}/deaf", {mark!r}], environment)
daemon(1, {{}})
daemon(2, {{}})
daemon(0, dict(os.environ))  # a child that outlives its parent
while not os.path.exists("{tmp_path}/deaf") or open("{tmp_path}/deaf").read().count("deaf") < 3:
    time.sleep(0.02)
print("begun", flush=True)
"""
    job = ended(client, start(client, python(code)))
    assert (job.status, job.result_code) == (job_pb2.JOB_STATUS_SUCCEEDED, 0)
    assert output(client, job.job_id) == b"begun\n"
    confirmed(job)
    assert alive_with(mark) == []
    assert [list(p.signals) for p in job.stop_evidence.processes].count(["TERM", "KILL"]) == 3


def test_a_payload_that_stops_itself_and_ignores_all_is_canceled(client: Client, mark: str, tmp_path: Path) -> None:
    script = f"""
        trap '' TERM INT HUP QUIT
        {shlex.quote(sys.executable)} -c {shlex.quote("import os; os.kill(os.getpid(), 19)")} {mark} &
        sh -c 'trap "" TERM; kill -STOP $$' {mark} &
        touch {tmp_path}/up
        while :; do kill -STOP $$; done
    """
    job_id = start(client, script)
    until((tmp_path / "up").exists, "the payload")
    until(lambda: client.jobs.get(job_id).status == job_pb2.JOB_STATUS_RUNNING, "the job to run")
    client.jobs.cancel(job_id, reason="enough")
    job = ended(client, job_id)
    assert job.status == job_pb2.JOB_STATUS_CANCELED
    confirmed(job)
    assert alive_with(mark) == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_payload_that_stops_its_supervisor_at_its_run_timeout_is_ended(client: Client, mark: str) -> None:
    """The supervisor has said that it stops, and never comes to it; nobody but the queue asks again."""
    code = f"""
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGSTOP))
{mark!r}
print("begun", flush=True)
while True:
    time.sleep(1)
"""
    job_id = start(client, python(code), run_timeout=Duration(seconds=3))
    until(lambda: client.jobs.get(job_id).status == job_pb2.JOB_STATUS_TIMED_OUT, "the run timeout", 60)
    job = ended(client, job_id, seconds=200)
    assert (job.status, job.failure_reason) == (job_pb2.JOB_STATUS_TIMED_OUT, "RUN_TIMEOUT")
    assert job.stop_state == job_pb2.STOP_STATE_CONFIRMED
    assert job.log.verdict == job_pb2.LOG_VERDICT_GAPPED, "what its supervisor had not read went with it"
    assert alive_with(mark) == []


def test_a_payload_that_closes_its_output_while_a_child_lives(client: Client, mark: str) -> None:
    child = f"{shlex.quote(sys.executable)} -c {shlex.quote('import time; time.sleep(300)')} {mark}"
    job = ended(client, start(client, f"echo said; {child} & exec >&- 2>&-; sleep 0.2; exit 7"))
    assert (job.status, job.result_code, job.failure_reason) == (job_pb2.JOB_STATUS_FAILED, 7, "EXIT_CODE")
    assert output(client, job.job_id) == b"said\n"
    confirmed(job)
    assert alive_with(mark) == []


def test_bytes_of_any_kind_are_kept_and_can_do_no_harm(client: Client, stack: Stack) -> None:
    every = bytes(range(256)) + b"\xc3\x28\xed\xa0\x80\xf8\x88\n"
    escapes = b"\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m\x1b[8mhidden\x9b1m\r\x08\xe2\x80\xaeevil\n"
    code = f"import os; os.write(1, {every + escapes!r}); os.write(2, {escapes!r})"
    job = ended(client, start(client, python(code)))
    assert job.status == job_pb2.JOB_STATUS_SUCCEEDED
    confirmed(job)
    number = str(job.job_id)
    assert output(client, job.job_id) == every + escapes
    assert output(client, job.job_id, job_pb2.CHANNEL_STDERR) == escapes
    raw = subprocess.run(
        stack.command("jobs", "output", number, "--raw"), env=stack.environment(), capture_output=True, timeout=90
    ).stdout
    assert raw.count(escapes) == 2
    assert every in raw
    for shown in (stack.cli("jobs", "output", number), stack.cli("jobs", "monitor", number)):
        assert shown.returncode == 0
        assert not set(shown.stdout) & set(map(chr, [*range(9), *range(11, 32), 127, *range(128, 160), 0x202E]))
        assert "owned" in shown.stdout
        assert r"\xed\xa0\x80" in shown.stdout
    for line in stack.cli("jobs", "output", number, "--json").stdout.splitlines():
        json.loads(line)


def test_a_line_of_ten_mebibytes_and_devices_that_are_full(client: Client, stack: Stack) -> None:
    code = """
import os, subprocess, sys
full = open("/dev/full", "wb")
child = subprocess.run([sys.executable, "-c", "print('x' * 100000)"], stdout=full, stderr=full)
os.unlink(os.environ["SIS_PROGRESS"]); os.symlink("/dev/full", os.environ["SIS_PROGRESS"])
sys.stdout.write("x" * (10 << 20))
sys.stdout.flush()
sys.exit(child.returncode != 120)
"""
    job = ended(client, start(client, python(code)))
    assert (job.status, job.result_code) == (job_pb2.JOB_STATUS_SUCCEEDED, 0)
    assert output(client, job.job_id) == b"x" * (10 << 20)
    confirmed(job)
    assert stack.cli("jobs", "monitor", str(job.job_id)).stdout.count("x") >= 10 << 20
    script = 'rm "$SIS_OUTPUT"; ln -s /dev/full "$SIS_OUTPUT"; echo a=b >> "$SIS_OUTPUT" || echo full'
    job = ended(client, start(client, script))
    assert (job.status, job.failure_reason) == (job_pb2.JOB_STATUS_FAILED, "OUTPUT_INVALID")
    assert output(client, job.job_id) == b"full\n"
    confirmed(job)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [32 << 20, pytest.param((1 << 30) + (1 << 20), marks=pytest.mark.long)])
def test_a_flood_of_output_reaches_a_slow_watcher_whole_and_bloats_nobody(
    client: Client, stack: Stack, tmp_path: Path, size: int
) -> None:
    """At full speed, up to the cap of a log, which is 1 GiB."""
    kept = min(size, 1 << 30)
    code = f"""
import os, time
left, number = {size}, 0
while left:
    piece = (number.to_bytes(8, "big") * 8192)[:left]
    while piece:
        piece = piece[os.write(1, piece):]
    left -= min(left, 65536)
    number += 1
open("{tmp_path}/flooded", "x").close()
for _ in range(600):
    if os.path.exists("{tmp_path}/measured"):
        break
    time.sleep(0.1)
"""
    services = {name: stack.pid(name) for name in ("queue", "hub-1", "local-1")}
    before = {name: peak(pid) for name, pid in services.items()}
    job_id = start(client, python(code))
    with SlowWatcher(stack, job_id) as watcher:

        def status() -> job_pb2.JobStatus.ValueType:
            job = client.jobs.get(job_id)
            watcher.allowed = job.log.output_bytes // 4
            return job.status

        def flooded() -> bool:
            assert status() not in ENDED, client.jobs.get(job_id)
            return (tmp_path / "flooded").exists()

        until(flooded, "the flood", seconds=600)
        supervisors = {
            p.pid: peak(p.pid) >> 20
            for p in client.jobs.get(job_id).processes
            if p.role == job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR
        }
        (tmp_path / "measured").touch()
        until(lambda: status() in ENDED, "the end of the job", seconds=600)
        behind = kept - watcher.received
        job = ended(client, job_id)
        assert job.status == job_pb2.JOB_STATUS_SUCCEEDED
        assert job.log.verdict == (job_pb2.LOG_VERDICT_COMPLETE if kept == size else job_pb2.LOG_VERDICT_TRUNCATED)
        assert (job.log.output_bytes, job.log.discarded_bytes) == (kept, size - kept)
        assert behind > kept // 2, "the watcher was to be slow"
        watcher.hurry()
    assert watcher.received == kept
    assert watcher.digest == numbered_digest(kept)
    grown = {name: (peak(pid) - before[name]) >> 20 for name, pid in services.items()}
    # MiB. What one un-acknowledged window and one message take, and never the size of the log.
    assert max(grown.values()) < 200, grown
    assert supervisors and all(0 < size < 200 for size in supervisors.values()), supervisors
    assert job.stop_state == job_pb2.STOP_STATE_CONFIRMED
    with stack.database() as connection:
        promises.check(promises.read(connection, [job_id]))


class SlowWatcher:
    """Follows a job's output, and remembers a digest of it. Until it is told to hurry, it reads on only while it has
    less than it is allowed. The block ends when it has seen the end of the job."""

    def __init__(self, stack: Stack, job_id: int) -> None:
        self.received = 0
        self.allowed = 0
        self._job_id = job_id
        self._client = stack.client()
        self._hash = hashlib.sha256()
        self._hurry = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._thread.join(600)
        self._hurry.set()
        self._client.close()  # which breaks off a watch that goes on
        self._thread.join(60)
        if error is None:
            assert self._failure is None, self._failure

    def _follow(self) -> None:
        try:
            for response in self._client.jobs.monitor(self._job_id):
                data = b"".join(frame.chunk.data for frame in response.frames.frames)
                self._hash.update(data)
                self.received += len(data)
                while self.received > self.allowed and not self._hurry.wait(0.02):
                    pass
        except BaseException as error:  # shown at the end of the block
            self._failure = error

    def hurry(self) -> None:
        """Read on, as fast as it comes."""
        self._hurry.set()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def numbered_digest(size: int) -> str:
    found = hashlib.sha256()
    for number in range(-(-size // 65536)):
        found.update((number.to_bytes(8, "big") * 8192)[: size - number * 65536])
    return found.hexdigest()


def peak(pid: int) -> int:
    """The most memory that a process has had in RAM, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        ("flipped", job_pb2.JOB_STATUS_AWOL),
        ("without ACCEPTED", job_pb2.JOB_STATUS_AWOL),
        ("without SPAWNING", job_pb2.JOB_STATUS_RUNNING),
    ],
)
def test_a_journal_that_was_damaged_starts_nothing_again(
    client: Client, stack: Stack, tmp_path: Path, damage: str, status: job_pb2.JobStatus.ValueType
) -> None:
    script = f"echo $$ >> {tmp_path}/starts; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo over"
    job_id = start(client, script)
    until((tmp_path / "starts").exists, "the payload")
    until(lambda: client.jobs.get(job_id).status == job_pb2.JOB_STATUS_RUNNING, "the job to run")
    journal = stack.layout.agent("local-1") / "journal"
    former = stack.pid("local-1")
    stack.kill("local-1", signal.SIGSTOP)
    content = journal.read_bytes()
    if damage == "flipped":
        place = content.rindex(b"SPAWNING")
        journal.write_bytes(content[:place] + b"T" + content[place + 1 :])
    else:
        os.truncate(journal, content.rindex(b"\n", 0, content.rindex(damage.split()[1].encode())) + 1)
    stack.kill("local-1")
    stack.wait_restarted("local-1", former)
    stack.wait_healthy()
    until(lambda: client.jobs.get(job_id).status == status, f"the job to be {job_pb2.JobStatus.Name(status)}")
    (pid,) = map(int, (tmp_path / "starts").read_text().split())
    assert runs(pid)
    if status == job_pb2.JOB_STATUS_AWOL:
        assert "JOURNAL_LOST" in {entry.event for entry in client.jobs.history(job_id)}
        assert client.jobs.abort(job_id, reason="the test is over").status == job_pb2.JOB_STATUS_ABORTED
    (tmp_path / "go").touch()
    until(lambda: not runs(pid), "the payload to end")
    if status == job_pb2.JOB_STATUS_RUNNING:
        confirmed(ended(client, job_id))
        assert output(client, job_id) == b"over\n"
    assert len((tmp_path / "starts").read_text().split()) == 1
    with stack.database() as connection:
        promises.check(promises.read(connection, [job_id]))
