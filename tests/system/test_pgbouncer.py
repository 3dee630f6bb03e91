"""The suite behind PgBouncer in transaction mode, as docs/operations/postgresql.md sets it up: everything goes through
it but LISTEN and migrations."""

from __future__ import annotations

import contextlib
import getpass
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from tests.support import promises
from tests.support.numbered_job import NumberedJob, shell_job, until
from tests.support.own_suite import OwnSuite
from tests.support.pgbouncer import PORT, PgBouncer
from tests.support.postgres_servers import Server
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)

NO_CONNECTION = "waits for PostgreSQL: it takes no more connections"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("postgres")) as server:
        yield server.make()


@pytest.fixture(scope="module")
def bouncer(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    settings = {"max_client_conn": "100", "default_pool_size": "6", "query_wait_timeout": "3"}
    with PgBouncer(tmp_path_factory.mktemp("bouncer") / "of", server, settings) as bouncer:
        yield bouncer


@pytest.fixture(scope="module")
def suite(
    stack: Stack, server: Server, bouncer: PgBouncer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnSuite]:
    directory = tmp_path_factory.mktemp("bounced")
    with OwnSuite(stack, directory / "suite", bouncer.url, direct_url=server.url) as suite:
        yield suite.start()


@pytest.fixture(autouse=True)
def everything_is_well(suite: OwnSuite, server: Server) -> Iterator[None]:
    """After each test: the same processes, healthy by themselves, and every promise kept."""
    yield
    suite.wait_healthy()
    suite.check_processes()
    with psycopg.connect(host=str(server.sockets), user="sis", dbname="sis") as connection:
        promises.check(promises.read(connection))


def test_the_whole_path(suite: OwnSuite, server: Server, tmp_path: Path) -> None:
    with suite.client() as client, NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job:
        job.wait_lines()
        with_secret = _with_secret(suite)
        job.check()
        until(lambda: client.jobs.get(with_secret).status == job_pb2.JOB_STATUS_SUCCEEDED, "the job with a secret")
        canceled = client.jobs.create(shell_job("sleep 1000", site=f"group:{suite.group}")).job_id
        until(lambda: client.jobs.get(canceled).status == job_pb2.JOB_STATUS_RUNNING, "the job")
        client.jobs.cancel(canceled)
        until(lambda: client.jobs.get(canceled).status == job_pb2.JOB_STATUS_CANCELED, "the cancel")
        assert [agent.name for agent in client.agents.all()] == [f"{suite.group}-1"]
    names = {name for (name,) in server.sql("SELECT DISTINCT application_name FROM pg_stat_activity")}
    assert {"sis-queue listener", "sis-credentials listener"} <= names, "LISTEN goes past it"


def _with_secret(suite: OwnSuite) -> int:
    """A job that succeeds by a lease alone."""
    with suite.client() as client:
        client.credentials.create(
            credentials_pb.CreateCredentialRequest(
                name="bounced",
                kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                username=getpass.getuser(),
                value=credential_pb2.SecretValue(secret=b"a-secret-of-some-length"),
            )
        )
        script = '[ "${#SIS_CREDENTIAL_SECRET_PASSWORD}" = 23 ]'
        request = shell_job(script, site=f"group:{suite.group}", credentials={"secret": "bounced"})
        return client.jobs.create(request).job_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_bouncer(suite: OwnSuite, bouncer: PgBouncer, tmp_path: Path, number: int) -> None:
    with NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job:
        job.wait_lines()
        bouncer.stop(number)
        suite.wait_health("queue", "waits for PostgreSQL: nothing listens at its address")
        bouncer.start()
        job.wait_lines()
        job.check()


def test_a_restart_of_the_server_behind_it(suite: OwnSuite, server: Server, tmp_path: Path) -> None:
    with NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job:
        job.wait_lines()
        server.stop(signal.SIGKILL)
        until(lambda: suite.health("queue").startswith("waits for PostgreSQL: "), "the queue to say so")
        server.start()
        job.wait_lines()
        job.check()


def test_no_more_clients(suite: OwnSuite, bouncer: PgBouncer, tmp_path: Path) -> None:
    with NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job:
        job.wait_lines()
        with _only_client(bouncer):
            suite.wait_health("queue", NO_CONNECTION)
        bouncer.restart(max_client_conn="100")
        job.wait_lines()
        job.check()


def _only_client(bouncer: PgBouncer) -> psycopg.Connection[Any]:
    """A client beside whom there can be no other. Those of the suite try to be that too."""
    for _ in range(20):
        bouncer.restart(max_client_conn="1")
        with contextlib.suppress(psycopg.OperationalError):
            return psycopg.connect(host=str(bouncer.sockets), port=PORT, user="sis", dbname="sis", connect_timeout=10)
    raise AssertionError("another client was the first each time")


def test_the_pool_is_exhausted(suite: OwnSuite, bouncer: PgBouncer, tmp_path: Path) -> None:
    """Somebody else's transactions hold every connection for longer than a query may wait."""
    with NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job:
        job.wait_lines()
        bouncer.restart(default_pool_size="1", query_wait_timeout="1")
        with psycopg.connect(host=str(bouncer.sockets), port=PORT, user="sis", dbname="sis") as holder:
            holder.execute("SELECT 1")
            suite.wait_health("queue", NO_CONNECTION)
        bouncer.restart(default_pool_size="6", query_wait_timeout="3")
        job.wait_lines()
        job.check()


def test_a_reset_query_after_each_transaction(suite: OwnSuite, bouncer: PgBouncer, tmp_path: Path) -> None:
    """Nothing is left in a session that anybody relies on."""
    bouncer.restart(server_reset_query="DISCARD ALL", server_reset_query_always="1")
    with NumberedJob(suite.client, tmp_path, site=f"group:{suite.group}") as job:
        job.wait_lines()
        job.check()
        bouncer.restart(server_reset_query_always="0")
        suite.wait_healthy()
