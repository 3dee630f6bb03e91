"""The release before this one, as it was frozen, on the schema of this one and of a later one: alone, beside this one
with each kind of process crossed with each, and alone again.

An upgrade is each of these steps; a rollback is to go back by one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.client import Client
from sis.client.endpoints import Endpoints, Token
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from tests.migration.beside import NEW, Beside, ReleasedStack, unpack
from tests.support import promises
from tests.support.numbered_job import shell_job, until
from tests.support.stack import Stack

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LATER = (
    "ALTER TABLE queue.jobs ADD COLUMN later TEXT DEFAULT 'x' NOT NULL",
    "ALTER TABLE queue.attempts ADD COLUMN later TEXT DEFAULT 'x' NOT NULL",
    "ALTER TABLE queue.history ADD COLUMN later TEXT",
    "ALTER TABLE queue.log ADD COLUMN later BIGINT",
    "ALTER TABLE queue.agent_sessions ADD COLUMN later BOOLEAN DEFAULT true NOT NULL",
    "CREATE TABLE queue.later (job_id BIGINT PRIMARY KEY)",
    "ALTER TABLE agents.agents ADD COLUMN later TEXT DEFAULT 'x' NOT NULL",
    "ALTER TABLE agents.chains ADD COLUMN later TEXT",
    "ALTER TABLE credentials.credentials ADD COLUMN later TEXT DEFAULT 'x' NOT NULL",
    "ALTER TABLE credentials.leases ADD COLUMN later TEXT",
    "ALTER TABLE credentials.agents ADD COLUMN later TEXT",
    *(f"UPDATE {schema}.alembic_version SET version_num = '9000'" for schema in ("queue", "agents", "credentials")),
)
"""What migrations of a later release may do before its code starts."""


@pytest.fixture
def old_code(tmp_path: Path) -> Path:
    return unpack(tmp_path / "released")


@pytest.fixture
def stack(tmp_path: Path, old_code: Path) -> Iterator[ReleasedStack]:
    """A stack of the release before."""
    stack = ReleasedStack(tmp_path / "data", old_code)
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


class People:
    """Who uses a queue, of either release."""

    def __init__(self, stack: Stack, queue: str, credential: str) -> None:
        token = Token(stack.token)
        state = stack.state
        ca, credentials = state.ca.read_bytes(), state.credentials_endpoint
        self.client = Client(Endpoints(queue, token, ca, hub=state.hub_endpoint, credentials=credentials))
        self._credential = credential

    def start(self, site: str, script: str = 'echo "it is $SIS_CREDENTIAL_SECRET_TOKEN"') -> int:
        request = shell_job(script, site=site)
        request.credentials["secret"] = self._credential
        return self.client.jobs.create(request).job_id

    def expect(self, job_id: int, status: job_pb2.JobStatus, output: str | None = None) -> None:
        until(lambda: self.client.jobs.get(job_id).status == status, f"job {job_id}: {job_pb2.JobStatus.Name(status)}")
        if output is not None:
            chunks = (e.chunk.data for e in self.client.jobs.output(job_id) if e.WhichOneof("content") == "chunk")
            assert b"".join(chunks).decode() == output


SUCCEEDED, CANCELED, RUNNING = (
    job_pb2.JOB_STATUS_SUCCEEDED,
    job_pb2.JOB_STATUS_CANCELED,
    job_pb2.JOB_STATUS_RUNNING,
)


def online(client: Client, name: str) -> bool:
    return any(agent.name == name and agent.online for agent in client.agents.list().agents)


def work(*everybody: People, sites: tuple[str, ...]) -> None:
    """At each site a job runs that leases a secret, and one is canceled; who created it and who follows it ask
    different queues where there are two."""
    for creator, follower in zip(everybody, (*everybody[1:], everybody[0]), strict=True):
        started = [(creator.start(site), creator.start(site, "while :; do sleep 0.1; done")) for site in sites]
        for finite, endless in started:
            follower.expect(finite, SUCCEEDED, "it is ***\n")
            follower.expect(endless, RUNNING)
            follower.client.jobs.cancel(endless)
            creator.expect(endless, CANCELED)


def test_an_upgrade_step_by_step_and_back(stack: ReleasedStack, old_code: Path, tmp_path: Path) -> None:
    state = stack.state
    hub = stack.process_environment("hub-1")
    with Beside(stack, tmp_path / "beside") as beside, stack.client() as client:
        value = credential_pb2.SecretValue(secret=secrets.token_hex(12).encode())
        create = credentials_pb.CreateCredentialRequest
        client.credentials.create(create(name="c", kind=credential_pb2.CREDENTIAL_KIND_TOKEN, value=value))
        old = People(stack, state.queue_endpoint, "c")
        end = tmp_path / "end"
        through = old.start("group:local", f"until [ -e '{end}' ]; do sleep 0.1; done; echo ended")
        old.expect(through, RUNNING)

        # The schema first, under the old code's feet: that of this release, then what a later one may add.
        for service in ("credentials", "queue", "hub"):
            beside.migrate(service, NEW)
        work(old, sites=("agent:local-1",))
        with stack.database() as database:
            revision = database.execute("SELECT version_num FROM queue.alembic_version").fetchone()
            assert revision is not None
            assert revision[0] > "0003"  # what the release before knows: else this would show nothing
            for statement in LATER:
                database.execute(statement.encode())
        work(old, sites=("agent:local-1",))

        # Then the processes, one kind after the other, each kind beside the old one.
        beside.serve("credentials", "new-credentials", NEW)
        leases = beside.endpoints["new-credentials", "INTERNAL_LISTEN"]
        beside.serve("queue", "new-queue", NEW)
        internal = beside.endpoints["new-queue", "INTERNAL_LISTEN"]
        beside.serve("hub", "new-hub", NEW, CREDENTIALS_ENDPOINT=leases)
        beside.serve("hub", "old-hub", old_code, QUEUE_ENDPOINT=internal)
        beside.serve("hub", "all-new-hub", NEW, QUEUE_ENDPOINT=internal, CREDENTIALS_ENDPOINT=leases)
        at = {name: beside.endpoints[name, "AGENT_LISTEN"] for name in ("new-hub", "old-hub", "all-new-hub")}
        enrolment = state.enrolment_endpoint
        beside.agent("a-new-agent", NEW, enrolment=enrolment, hub=hub["SIS_HUB_AGENT_LISTEN"])
        beside.agent("an-old-agent", old_code, enrolment=enrolment, hub=at["new-hub"])
        beside.agent("a-new-agent-2", NEW, enrolment=enrolment, hub=at["old-hub"])
        beside.agent("an-old-agent-2", old_code, enrolment=enrolment, hub=at["all-new-hub"])
        crossed = ("a-new-agent", "an-old-agent", "a-new-agent-2", "an-old-agent-2")
        new = People(stack, beside.endpoints["new-queue", "LISTEN"], "c")
        for name in crossed:
            until(lambda name=name: online(client, name), f"{name} to come")
        work(old, new, sites=("agent:local-1", *(f"agent:{name}" for name in crossed)))
        beside.alive()

        # Back: the new ones go, and what they have done is there.
        beside.end("an-old-agent", "a-new-agent-2", "an-old-agent-2")
        beside.end("new-hub", "old-hub", "all-new-hub", "new-queue", "new-credentials")
        work(old, sites=("agent:local-1", "agent:a-new-agent"))
        stack.wait_healthy()
        beside.end("a-new-agent")
        with stack.database() as database:
            before = promises.read(database)
            promises.check(before)
        new.client.close()
        old.client.close()
    stack.down()

    # And on: `sis up` of this release, on the same data.
    upgraded = Stack(stack.data)
    try:
        upgraded.up()
        people = People(upgraded, upgraded.state.queue_endpoint, "c")
        people.expect(through, RUNNING)
        work(people, sites=("agent:local-1",))
        end.touch()
        people.expect(through, SUCCEEDED, "ended\n")
        people.client.close()
        with upgraded.database() as database:
            after = promises.read(database)
            promises.check(after)
            promises.check_kept(before, after)
    finally:
        upgraded.close()
