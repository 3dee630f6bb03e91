"""Two of each server: what is rolled, killed or stopped one at a time is noticed by nobody."""

from __future__ import annotations

import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.credentials.main import POOL as CREDENTIALS_POOL
from services.queue.main import POOL as QUEUE_POOL
from services.sis_agent.hub.main import POOL as HUB_POOL
from sis.stack.replicas import LISTENERS
from tests.support import promises
from tests.support.numbered_job import NumberedJob, until
from tests.support.stack import Stack
from tests.support.steady_load import SteadyLoad
from tests.support.stopping import stop

pytestmark = pytest.mark.long

AGENTS = 3
SERVERS = [f"{kind}-{number}" for kind in LISTENERS for number in (1, 2)]
ONE_OF_EACH = [f"{kind}-1" for kind in LISTENERS]

CONNECTIONS = {
    "sis-queue": 2 * QUEUE_POOL,
    "sis-queue listener": 2,
    "sis-hub hub-1": HUB_POOL,
    "sis-hub hub-2": HUB_POOL,
    "sis-credentials": 2 * CREDENTIALS_POOL,
    "sis-credentials listener": 2,
}
"""The most that the servers have of each, by docs/operations/postgresql.md."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with two of each server, which the tests of this module share: leave it healthy."""
    stack = Stack(tmp_path_factory.mktemp("pair") / "data")
    try:
        stack.up("--replicas", "2", "--agents", str(AGENTS))
        yield stack
    finally:
        stack.close()


class ConnectionCounts(threading.Thread):
    """The most connections that PostgreSQL had of each application, looked at again and again while the block lasts."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self._over = threading.Event()
        self.most: Counter[str] = Counter()
        self.looks = 0

    def __enter__(self) -> ConnectionCounts:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        with self._stack.database() as connection:
            while not self._over.wait(0.1):
                rows = connection.execute(
                    "SELECT application_name, count(*) FROM pg_stat_activity"
                    # One that is only being made has no name yet.
                    " WHERE backend_type = 'client backend' AND state <> 'starting' AND pid <> pg_backend_pid()"
                    " GROUP BY application_name"
                )
                self.most |= Counter(dict(rows.fetchall()))
                self.looks += 1


def test_everybody_is_there_and_the_agents_are_spread(pair: Stack) -> None:
    healthy = pair.wait_healthy()
    names = [process.name for process in healthy.processes]
    assert names == ["vault", "postgres", *SERVERS, *(f"local-{n}" for n in range(1, AGENTS + 1))]
    assert {"gateway", "gateway-2"} <= set(healthy.endpoints)
    with pair.client() as client:
        held = Counter(agent.hub for agent in client.agents.all() if agent.online)
    assert set(held) == {"hub-1", "hub-2"}
    assert held.total() == AGENTS


@pytest.mark.timeout(600)
def test_a_roll_under_load_loses_nothing_and_no_watcher_sees_a_gap(pair: Stack, tmp_path: Path) -> None:
    before = {each.name: each.identity for each in pair.state.processes}
    with (
        NumberedJob(pair.client, tmp_path / "long") as job,
        ConnectionCounts(pair) as connections,
        SteadyLoad(pair, tmp_path / "load", rate=2.0) as load,
    ):
        job.wait_lines()
        until(lambda: load.created() >= 3, "the first jobs")
        done = pair.cli("restart", *SERVERS, "agent", timeout=500)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{pair.logs()}"
        outcome = load.finish()
        job.wait_lines()
        job.check()
    rolled = {each.name for each in pair.state.processes if each.identity != before[each.name]}
    assert rolled == {each.name for each in pair.state.processes if each.name in SERVERS or each.kind == "agent"}
    outcome.check(pair)
    assert connections.looks > 10
    assert connections.most <= Counter(CONNECTIONS | {"sis-status": 1})
    assert set(connections.most) >= set(CONNECTIONS)
    with pair.database() as database:
        promises.check(promises.read(database))
    pair.wait_healthy()


def test_the_command_line_goes_on_while_one_of_each_is_gone(pair: Stack) -> None:
    former = {name: pair.pid(name) for name in ONE_OF_EACH}
    for name in ONE_OF_EACH:
        pair.kill(name)
    for noun in ("jobs", "agents", "credentials"):
        assert pair.json(noun, "list")
    for name, pid in former.items():
        pair.wait_restarted(name, pid)
    pair.wait_healthy()


def test_what_cannot_be_rolled_is_refused(pair: Stack, tmp_path: Path) -> None:
    before = pair.state.processes
    for words, refusal in (
        (["postgres"], "everything waits for postgres, which is alone: `sis down` and `sis up` restart it"),
        (["queue-1", "queue-3"], "there is no process 'queue-3'; `sis status` shows their names"),
        (["--data", tmp_path / "nowhere"], f"no stack is up in {tmp_path}/nowhere; start one with `sis up --detach`"),
    ):
        done = pair.cli("restart", *words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {refusal}\n")
    assert pair.state.processes == before


@pytest.mark.timeout(300)
def test_one_is_not_restarted_while_its_sibling_is_not_healthy(pair: Stack) -> None:
    former = pair.process("queue-1").identity
    stopped = pair.process("queue-2").identity
    assert stop(stopped.pid)
    try:
        with pair.started_cli("restart", "queue-1") as restart:
            assert restart.stdout is not None
            assert re.match(r"queue-1 +waits  .*queue-2: ", restart.stdout.readline())
            assert former.alive
            stopped.signal(signal.SIGCONT)
            told = restart.stdout.read()
            assert restart.wait(90) == 0, told
    finally:
        stopped.signal(signal.SIGCONT)
    assert not former.alive
    pair.wait_healthy()


@pytest.mark.timeout(300)
def test_another_number_of_replicas_has_the_same_jobs_at_the_same_place(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data")
    try:
        stack.up("--replicas", "2", "--agents", "2")
        before = stack.state
        with NumberedJob(stack.client, tmp_path / "first") as job:
            job.wait_lines()
            job.check()
        for replicas in ("1", "2"):
            stack.down()
            stack.up("--replicas", replicas)
            assert stack.process("queue-1").endpoint in before.queue_endpoint
            with NumberedJob(stack.client, tmp_path / replicas) as again:
                again.wait_lines()
                again.check()
            with stack.client() as client:
                assert client.jobs.get(job.job_id).job_id == job.job_id
        assert stack.state.queue_endpoint == before.queue_endpoint
    finally:
        stack.close()
