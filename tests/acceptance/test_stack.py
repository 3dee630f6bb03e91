"""`sis up`, `sis status`, `sis down` with the real processes: whatever is killed comes back."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest

from sis import stack as local
from sis.queue.v1.job_pb2 import JobStatus
from sis.stack import processes
from sis.stack.postgres import USER
from tests.support.stack import Stack

NAMES = ["vault", "postgres", "credentials-1", "queue-1", "hub-1", "gateway-1", "local-1"]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test's own that is not up."""
    stack = Stack(tmp_path / "data")
    yield stack
    stack.close()


def test_status_lists_every_process(stack: Stack) -> None:
    done = stack.cli("status", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["processes"]
    assert [process["name"] for process in found] == NAMES
    assert {process["health"] for process in found} == {"healthy"}
    assert all(process["pid"] > 0 for process in found)
    endpoints = {process["name"]: process["endpoint"] for process in found}
    assert endpoints["postgres"].startswith("unix:/")
    assert endpoints["vault"].startswith("https://127.0.0.1:")
    assert all(endpoints[name].startswith("127.0.0.1:") for name in ("credentials-1", "queue-1", "hub-1"))


def test_the_shipped_packages_are_there(stack: Stack) -> None:
    with stack.client() as client:
        assert {package.name for package in client.packages.all()} >= {"core.shell", "linux.facts"}


def test_secrets_are_the_owners_alone(stack: Stack) -> None:
    data = stack.data
    files = [data / name for name in ("stack.json", "admin.token", "tls/role-id", "tls/secret-id", "vault/keys.json")]
    files += [data / "vault" / name for name in ("unseal.key", "certificate.key", "storage/vault.db")]
    for pattern in ("join/*", "identities/*/key.pem", "agents/*/identity/key.pem", "agents/*/identity/sealing/*.key"):
        found = list(data.glob(pattern))
        assert found, pattern
        files += found
    assert {path for path in files if stat.S_IMODE(path.stat().st_mode) != 0o600} == set()
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_nothing_is_served_without_tls(stack: Stack) -> None:
    with grpc.insecure_channel(stack.state.queue_endpoint) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_killed_comes_back_at_the_same_endpoint(stack: Stack, name: str) -> None:
    before = stack.process(name)
    stack.kill(name, signal.SIGKILL)
    stack.wait_restarted(name, before.pid)
    after = {process.name: process for process in stack.wait_healthy().processes}[name]
    assert after.restarts == before.restarts + 1
    assert after.endpoint == before.endpoint


@pytest.mark.long
def test_a_server_that_hangs_is_started_again_and_one_that_waits_is_not(stack: Stack) -> None:
    before = {name: stack.process(name) for name in ("queue-1", "vault", "postgres")}
    stack.kill("vault", signal.SIGSTOP)
    stack.kill("queue-1", signal.SIGSTOP)
    try:
        stack.wait_restarted("queue-1", before["queue-1"].pid, timeout=60)
        after = stack.process("queue-1")
        assert (after.restarts, after.hangs) == (before["queue-1"].restarts + 1, before["queue-1"].hangs + 1)
        assert "queue-1 has given no answer for 3" in stack.layout.log("up").read_text()
        # The credential service waits for Vault, and says so; Vault itself is nobody's to kill.
        assert stack.process("vault").identity == before["vault"].identity
        assert not [each for each in stack.state.processes if each.kind == "credentials" and each.hangs]
    finally:
        before["vault"].identity.signal(signal.SIGCONT)
    found = {each.name: each for each in stack.wait_healthy().processes}
    assert found["queue-1"].hangs == after.hangs
    assert found["postgres"].restarts == before["postgres"].restarts
    assert f"{after.restarts} ({after.hangs} hung)" in stack.cli("status").stdout


def test_everything_is_killed_at_once(stack: Stack) -> None:
    pids = {name: stack.pid(name) for name in NAMES}
    for name in NAMES:
        stack.kill(name, signal.SIGKILL)
    for name, pid in pids.items():
        stack.wait_restarted(name, pid)
    stack.wait_healthy()


def test_a_second_up_is_content_in_the_background_and_refused_in_the_foreground(stack: Stack) -> None:
    pid = stack.pid("up")
    again = stack.cli("up", "--detach")
    assert (again.returncode, again.stdout) == (0, f"the stack is up already, kept by PID {pid}\n")
    foreground = stack.cli("up")
    assert foreground.returncode == 1
    assert foreground.stderr == f"error: the stack is up already, kept by PID {pid}\n"
    other = stack.cli("up", "--detach", "--agents", "2")
    assert other.returncode == 1
    assert "other settings; run `sis down` first" in other.stderr
    assert stack.pid("up") == pid


@pytest.mark.long
def test_kill_9_of_up_takes_everything_along_and_the_next_up_works(stack: Stack) -> None:
    with psycopg.connect(host=str(stack.state.runtime), user=USER, dbname="sis") as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    before = stack.state
    stack.kill("up", signal.SIGKILL)
    assert processes.wait_gone([process.identity for process in before.processes], 15) == []
    status = stack.cli("status")
    assert status.returncode == 1
    stack.up()
    assert stack.state.queue_endpoint == before.queue_endpoint
    assert not before.runtime.exists()
    with psycopg.connect(host=str(stack.state.runtime), user=USER, dbname="sis") as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (42,)


@pytest.mark.long
def test_up_and_postgres_are_killed_while_the_queue_is_frozen(stack: Stack) -> None:
    before = stack.state
    stack.kill("queue-1", signal.SIGSTOP)
    stack.kill("up", signal.SIGKILL)
    stack.kill("postgres", signal.SIGKILL)
    stack.up()
    assert processes.wait_gone([process.identity for process in before.processes], 0) == []


def test_down_names_the_payloads_that_go_on_and_up_keeps_everything(stack: Stack) -> None:
    token = (stack.data / "admin.token").read_text()
    script = f"touch {stack.data}/begun; until [ -e {stack.data}/enough ]; do sleep 0.1; done"
    what = ("--type", "package", "--package", "core.shell", "--operation", "run", "--param", f"script={script}")
    created = stack.cli("jobs", "create", "--name", "long", *what, "--site", "group:local")
    assert created.returncode == 0, created.stderr
    deadline = time.monotonic() + 20
    while not (stack.data / "begun").exists():
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(0.05)
    down = stack.down().splitlines()
    assert down[0] == "the stack is down"
    assert re.fullmatch(r"goes on: job \d+ \(attempt 1\) under its supervisor, PID \d+, of .*", down[1])
    assert stack.down().splitlines() == [f"no stack is up in {stack.data}", down[1]]
    (stack.data / "enough").touch()
    stack.up()
    assert (stack.data / "admin.token").read_text() == token
    job = down[1].split()[3]
    deadline = time.monotonic() + 60
    with stack.client() as client:
        while client.jobs.get(int(job)).status != JobStatus.JOB_STATUS_SUCCEEDED:
            assert time.monotonic() < deadline, stack.logs()
            time.sleep(0.1)


@pytest.mark.long
def test_two_at_the_same_time_make_one_stack(fresh: Stack) -> None:
    starts = [fresh.started_cli("up", "--detach") for _ in range(2)]
    told = [start.communicate(timeout=90)[0] for start in starts]
    assert [start.returncode for start in starts] == [0, 0], told
    assert sorted("already" in text for text in told) == [False, True]
    assert fresh.wait_healthy().up is not None
    assert fresh.down() == "the stack is down\n"


def test_a_foreground_up_stops_everything_on_sigterm(fresh: Stack) -> None:
    with fresh.started_cli("up", "--replicas", "2", "--agents", "2") as up:
        assert up.stdout is not None
        lines = []
        for line in up.stdout:
            lines.append(line.rstrip())
            if line.startswith("the stack is up"):
                break
        names = [line.split()[0] for line in lines if " ready " in line]
        servers = [f"{kind}-{number}" for kind in ("credentials", "queue", "hub", "gateway") for number in (1, 2)]
        assert names == ["postgres", "vault", *servers, "local-1", "local-2"], lines
        running = fresh.state
        up.send_signal(signal.SIGTERM)
        assert up.wait(30) == 0
        assert up.stdout.read() == ""
    assert processes.wait_gone([process.identity for process in running.processes], 0) == []
    assert not running.runtime.exists()
    assert not (fresh.data / "stack.json").exists()
    assert "was killed" not in fresh.layout.log("up").read_text()


@pytest.mark.parametrize("why", ["damaged", pytest.param("revoked", marks=pytest.mark.long)])
def test_an_agent_that_does_not_come_keeps_no_stack_down(fresh: Stack, why: str) -> None:
    fresh.up()
    if why == "revoked":
        assert fresh.cli("agents", "revoke", "local-1").returncode == 0
    fresh.down()
    state = fresh.layout.agent("local-1")
    if why == "damaged":
        (state / "identity" / "key.pem").write_text("no key")
    done = fresh.cli("up", "--detach", timeout=180)
    assert done.returncode == 0, f"{done.stderr}{fresh.logs()}"
    assert {"damaged": "local-1 ends again and again", "revoked": "local-1 is not healthy in time"}[why] in done.stdout
    assert f"see {fresh.layout.log('local-1')}: " in done.stdout
    remedy = re.search(
        "the stack is up without local-1; .* `sis (agents pair .*)`, then `sis-agent (enrol .*)`", done.stdout
    )
    assert remedy, done.stdout
    health = {process.name: process.health for process in local.status(fresh.data).processes}
    assert {health.pop(name) for name in NAMES if name != "local-1"} == {"healthy"}
    assert health["local-1"] != "healthy"
    # What it says mends it.
    code = fresh.cli(*shlex.split(remedy[1]))
    assert code.returncode == 0, code.stderr
    enrol = [sys.executable, "-P", "-m", "services.sis_agent.agent.main", *shlex.split(remedy[2])]
    enrolled = subprocess.run(enrol, input=code.stdout, capture_output=True, text=True, timeout=60, check=False)
    assert enrolled.returncode == 0, enrolled.stderr
    fresh.wait_healthy()


def test_a_start_that_fails_says_why_and_leaves_nothing(fresh: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        done = fresh.cli("up", "--detach", "--queue-port", str(port))
    assert done.returncode == 1
    assert f"error: port {port} on 127.0.0.1 cannot be had" in done.stderr
    assert str(fresh.layout.log("up")) in done.stderr
    assert "Traceback" not in done.stderr + fresh.layout.log("up").read_text()
    assert fresh.cli("down").stdout == f"no stack is up in {fresh.data}\n"
