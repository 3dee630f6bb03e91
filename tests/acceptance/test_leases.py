"""Whatever is killed between claim, lease, assignment, journal and spawn: no second start, no lost job, no lease that
outlives its stop."""

from __future__ import annotations

import getpass
import secrets
import time
from collections.abc import Iterator

import pytest

from sis.client import Client
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.support.numbered_job import until
from tests.support.stack import Stack

ENDED = (
    job_pb2.JOB_STATUS_SUCCEEDED,
    job_pb2.JOB_STATUS_FAILED,
    job_pb2.JOB_STATUS_CANCELED,
    job_pb2.JOB_STATUS_AWOL,
)


@pytest.fixture
def credential(stack: Stack) -> Iterator[str]:
    """A credential for the account that runs the tests."""
    name = f"own-{secrets.token_hex(4)}"
    with stack.client() as client:
        client.credentials.create(
            credentials_pb.CreateCredentialRequest(
                name=name,
                kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                username=getpass.getuser(),
                value=credential_pb2.SecretValue(secret=secrets.token_hex(12).encode()),
            )
        )
        yield name
        client.credentials.delete(name)


def start(client: Client, credential: str) -> int:
    script = 'echo "begun as $(id -un): $SIS_CREDENTIAL_SECRET_PASSWORD"'
    return start_plain(client, script, "group:local", credential)


def start_plain(client: Client, script: str, site: str, credential: str = "") -> int:
    kind, _, name = site.partition(":")
    request = pb.CreateJobRequest(
        display_name="Leased" if credential else "Plain",
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="core.shell"),
        operation="run",
        parameters={"script": job_pb2.ParameterValue(plain=script)},
        admin=credential,
        credentials={"secret": credential} if credential else {},
        site_target=job_pb2.SiteTarget(**{kind: name}),
    )
    request.run_timeout.FromSeconds(30)
    return client.jobs.create(request).job_id


def ended(client: Client, job_id: int, seconds: float = 60.0) -> job_pb2.Job:
    deadline = time.monotonic() + seconds
    while True:
        job = client.jobs.get(job_id)
        if job.status in ENDED:
            return job
        assert time.monotonic() < deadline, f"{job}{list(client.jobs.history(job_id))}"
        time.sleep(0.1)


def output(client: Client, job_id: int) -> bytes:
    return b"".join(each.chunk.data for each in client.jobs.output(job_id) if each.WhichOneof("content") == "chunk")


@pytest.mark.parametrize(
    "point",
    [
        "hub.claimed",
        "hub.leased",
        "credentials.reading",
        "credentials.read",
        "credentials.leased",
        "agent.assigned",
        "agent.journalled",
        "agent.spawning",
        "supervisor.opened",
    ],
)
def test_a_kill_between_claim_and_spawn(stack: Stack, credential: str, point: str) -> None:
    with stack.client() as client:
        stack.arm(point)
        job_id = start(client, credential)
        job = ended(client, job_id)
        assert not stack.disarm(), f"nothing came by {point}"
        said = output(client, job_id)
        # Once the record says that a supervisor was asked for, nobody may ask again, whether it came or not.
        if point in ("agent.spawning", "supervisor.opened"):
            assert job.status == job_pb2.JOB_STATUS_FAILED, job
            assert job.failure_reason == "SUPERVISOR_LOST", job
            assert said == b""
        else:
            assert job.status == job_pb2.JOB_STATUS_SUCCEEDED, f"{job}{stack.logs()}"
            assert said == f"begun as {getpass.getuser()}: ***\n".encode()
        until(
            lambda: all(each.HasField("end_time") for each in client.credentials.usage(credential)), "the leases' end"
        )
        stack.wait_healthy()


def test_leases_end_with_every_kind_of_end(stack: Stack, credential: str) -> None:
    with stack.client() as client:
        succeeded, canceled, deleted = (start(client, credential) for _ in range(3))
        client.jobs.cancel(canceled)
        ended(client, succeeded)
        assert ended(client, canceled).status in (job_pb2.JOB_STATUS_CANCELED, job_pb2.JOB_STATUS_SUCCEEDED)
        ended(client, deleted)
        client.jobs.delete(deleted)

        def settled() -> bool:
            usage = list(client.credentials.usage(credential))
            return len({each.job_id for each in usage}) >= 2 and all(each.HasField("end_time") for each in usage)

        until(settled, "the leases' end")


def test_a_job_whose_credential_is_gone_fails_and_says_so(stack: Stack) -> None:
    with stack.client() as client:
        job = ended(client, start(client, "never-there"))
    assert job.status == job_pb2.JOB_STATUS_FAILED
    assert job.failure_reason == "CREDENTIAL_NOT_FOUND"
    assert "never-there" in job.status_message
