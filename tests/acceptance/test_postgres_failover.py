"""PostgreSQL fails over to a streaming standby while a job prints: nothing acknowledged is lost, and nobody starts a
process again."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest

from sis.client import ApiError, Client
from sis.queue.v1 import job_pb2
from sis.queue.v1.job_service_pb2 import CreateJobRequest
from sis.stack.health import HEALTHY
from tests.support import promises
from tests.support.numbered_job import NumberedJob, shell_job, until
from tests.support.own_suite import OwnSuite
from tests.support.postgres_servers import Pair, Server, copy, replicated
from tests.support.stack import Stack

NO_PRIMARY = "it is a standby or read-only, and no primary is known"
WAITS = f"waits for PostgreSQL: {NO_PRIMARY}"


class Creator:
    """Creates jobs one after another, each by request id until it is acknowledged, until the block ends."""

    def __init__(self, client: Client, group: str, directory: Path) -> None:
        self._client = client
        self._group = group
        self._starts = directory / "created"
        self.acknowledged: dict[str, int] = {}
        self.refusal = ""
        """What the last call that failed was told."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(60)

    def _request(self, request_id: str) -> CreateJobRequest:
        script = f'echo "$SIS_ATTEMPT" >> {self._starts}'
        return shell_job(script, site=f"group:{self._group}", request_id=request_id)

    def _run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            request = self._request(f"job {number}")
            while not self._over.is_set():
                try:
                    self.acknowledged[request.request_id] = self._client.jobs.create(request).job_id
                except ApiError as error:
                    assert error.passing, error
                    self.refusal = error.message
                    self._over.wait(0.1)
                else:
                    break

    def wait_more(self, count: int = 3) -> None:
        """Wait until so many more are acknowledged."""
        target = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= target or not self._thread.is_alive(), "more jobs")
        assert self._thread.is_alive()

    def check(self) -> None:
        """End, and prove: each is there, a repetition gives the same one, and each was started once."""
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        for request_id, job_id in self.acknowledged.items():
            assert self._client.jobs.create(self._request(request_id)).job_id == job_id
        wanted = list(self.acknowledged.values())
        until(lambda: all(self._client.jobs.get(n).status == job_pb2.JOB_STATUS_SUCCEEDED for n in wanted), "the jobs")
        assert all(self._client.jobs.get(n).attempt == 1 for n in wanted)
        starts = Counter(int(token.partition(".")[0]) for token in self._starts.read_text().split())
        assert set(starts) >= set(wanted)
        assert set(starts.values()) == {1}, starts


def kill_primary(pair: Pair) -> None:
    pair.primary.stop(signal.SIGKILL)


def demote_primary(pair: Pair) -> None:
    """As a cluster manager switches over: what was the primary goes on, and takes no writes."""
    pair.primary.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.sql("SELECT pg_reload_conf()")


def rebuild(pair: Pair) -> Pair:
    """What was the primary becomes the standby of the other."""
    pair.primary.stop()
    copy(pair.standby, pair.primary)
    pair.primary.start()
    return Pair(pair.standby, pair.primary)


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("lose_primary", [kill_primary, demote_primary])
def test_a_failover_loses_nothing(stack: Stack, tmp_path: Path, lose_primary) -> None:  # type: ignore[no-untyped-def]
    """And meanwhile each service says what it waits for."""
    with replicated(tmp_path / "postgres") as pair, OwnSuite(stack, tmp_path / "suite", pair.url) as suite:
        suite.start()
        with (
            suite.client() as client,
            NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job,
            Creator(client, suite.group, tmp_path) as creator,
        ):
            job.wait_lines()
            creator.wait_more()
            lose_primary(pair)
            for name in ("queue", "credentials"):
                suite.wait_health(name, WAITS)
            until(lambda: NO_PRIMARY in suite.health("hub"), "the hub to say so")
            until(lambda: creator.refusal == f"waiting for PostgreSQL: {NO_PRIMARY}; try again", "a refusal to say so")
            pair.promote()
            creator.wait_more()
            job.wait_lines()
            suite.wait_healthy()
            job.check()
            creator.check()
        suite.check_processes()
        _check(pair.standby)
        until(lambda: _listeners(pair.standby) == 1, "the listener to have moved too")


@pytest.mark.long
@pytest.mark.timeout(240)
def test_there_and_back_again(stack: Stack, tmp_path: Path) -> None:
    with replicated(tmp_path / "postgres") as pair, OwnSuite(stack, tmp_path / "suite", pair.url) as suite:
        suite.start()
        with (
            suite.client() as client,
            NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job,
            Creator(client, suite.group, tmp_path) as creator,
        ):
            job.wait_lines()
            for _ in range(2):
                kill_primary(pair)
                pair.promote()
                creator.wait_more()
                job.wait_lines()
                pair = rebuild(pair)
            suite.wait_healthy()
            job.check()
            creator.check()
        suite.check_processes()
        _check(pair.primary)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_nothing_is_acknowledged_that_the_standby_does_not_have(stack: Stack, tmp_path: Path) -> None:
    """A commit that nobody waits for any more is neither shown nor acknowledged before it is safe: not by the call, not
    by its repetition, not by a list."""
    with replicated(tmp_path / "postgres") as pair, OwnSuite(stack, tmp_path / "suite", pair.url) as suite:
        suite.start()
        request = shell_job("true", site="group:nobody", request_id="the one")
        with suite.client() as client:
            pair.standby.signal_all(signal.SIGSTOP)
            with ThreadPoolExecutor(2) as pool:
                for _ in range(2):
                    for answer in [pool.submit(_create_shortly, client, request) for _ in range(2)]:
                        assert answer.result() is None
            assert not [job for page in client.jobs.pages() for job in page.jobs]
            # The primary dies with what only it has, and the standby knows nothing of it.
            pair.primary.stop(signal.SIGKILL)
            pair.standby.stop(signal.SIGKILL)
            pair.standby.start()
            pair.promote()
            suite.wait_healthy()
            made = client.jobs.create(request).job_id
            assert client.jobs.create(request).job_id == made
            assert [job.job_id for page in client.jobs.pages() for job in page.jobs] == [made]
        suite.check_processes()
        assert suite.health("queue") == HEALTHY


def _listeners(server: Server) -> int:
    with psycopg.connect(host=str(server.sockets), user="sis", dbname="sis") as connection:
        found = connection.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'sis-queue listener'")
        return found.rowcount


def _create_shortly(client: Client, request) -> int | None:  # type: ignore[no-untyped-def]
    """The job, or None when nobody says within two seconds that there is one."""
    call = client.jobs._stub.CreateJob
    try:
        return call(request, timeout=2, metadata=client.jobs._connection._metadata).job.job_id  # type: ignore[no-any-return]
    except Exception:
        return None


def _check(server: Server) -> None:
    with psycopg.connect(host=str(server.sockets), user="sis", dbname="sis") as connection:
        promises.check(promises.read(connection))
