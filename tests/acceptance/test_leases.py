"""Whatever is killed between claim, lease, assignment, journal and spawn: no second start, no lost job, no lease that
outlives its stop."""

from __future__ import annotations

import getpass
import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.runtime.sealing import LeaseBinding, Unsealable, unseal
from services.sis_agent.agent.settings import identity_in
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.client import Client
from sis.credentials.v1 import credential_pb2, lease_pb2
from sis.credentials.v1 import credential_service_pb2 as credentials_pb
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.support.numbered_job import until
from tests.support.stack import Stack

ENDED = (
    job_pb2.JOB_STATUS_SUCCEEDED,
    job_pb2.JOB_STATUS_FAILED,
    job_pb2.JOB_STATUS_CANCELED,
    job_pb2.JOB_STATUS_ABORTED,
    job_pb2.JOB_STATUS_AWOL,
    job_pb2.JOB_STATUS_TIMED_OUT,
)
SECRET = secrets.token_hex(12).encode()


@pytest.fixture(scope="module")
def credential(stack: Stack) -> Iterator[str]:
    """A credential for the account that runs the tests. Whatever they do, none of its leases is left in the end."""
    name = f"own-{secrets.token_hex(4)}"
    with stack.client() as client:
        client.credentials.create(
            credentials_pb.CreateCredentialRequest(
                name=name,
                kind=credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
                username=getpass.getuser(),
                value=credential_pb2.SecretValue(secret=SECRET),
            )
        )
        yield name
        until(lambda: leases_ended(client, name), "the leases' end")
        client.credentials.delete(name)


def start(client: Client, credential: str) -> int:
    script = 'echo "begun as $(id -un): $SIS_CREDENTIAL_SECRET_PASSWORD"'
    return start_plain(client, script, "group:local", credential)


def start_plain(client: Client, script: str, site: str, credential: str = "", seconds: int = 30) -> int:
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
    request.run_timeout.FromSeconds(seconds)
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
        "credentials.lease.committed",
        "hub.claimed",
        "hub.leased",
        "credentials.reading",
        "credentials.read",
        "agent.assigned",
        "agent.accepted.journalled",
        "agent.spawning.journalled",
        "supervisor.opened",
    ],
)
def test_a_kill_between_claim_and_spawn(stack: Stack, credential: str, point: str) -> None:
    with stack.client() as client:
        stack.faults.arm(point)
        job_id = start(client, credential)
        job = ended(client, job_id)
        assert not stack.faults.disarm(point), f"nothing came by {point}"
        said = output(client, job_id)
        # Once the record says that a supervisor was asked for, nobody may ask again, whether it came or not.
        if point in ("agent.spawning.journalled", "supervisor.opened"):
            assert job.status == job_pb2.JOB_STATUS_FAILED, job
            assert job.failure_reason == "SUPERVISOR_LOST", job
            assert said == b""
        else:
            assert job.status == job_pb2.JOB_STATUS_SUCCEEDED, f"{job}{stack.logs()}"
            assert said == f"begun as {getpass.getuser()}: ***\n".encode()
        assert job_id in {each.job_id for each in client.credentials.usage(credential)}
        stack.wait_healthy()


def leases_ended(client: Client, credential: str, *jobs: int) -> bool:
    """Whether each of these jobs took leases, of which none is left; if none is named, whether any job did."""
    usage = [each for each in client.credentials.usage(credential) if not jobs or each.job_id in jobs]
    took = {each.job_id for each in usage}
    return bool(took) and took >= set(jobs) and all(each.HasField("end_time") for each in usage)


def running(client: Client, job_id: int) -> job_pb2.Job:
    until(lambda: client.jobs.get(job_id).status == job_pb2.JOB_STATUS_RUNNING, f"job {job_id} to run")
    return client.jobs.get(job_id)


def test_leases_end_with_every_kind_of_end(stack: Stack, credential: str) -> None:
    endless = "while :; do sleep 1; done"
    with stack.client() as client:
        succeeding, deleted = (start(client, credential) for _ in range(2))
        failing = start_plain(client, "exit 3", "group:local", credential)
        timing_out = start_plain(client, endless, "group:local", credential, seconds=1)
        canceled, aborted, orphaned = (start_plain(client, endless, "group:local", credential) for _ in range(3))
        running(client, canceled)
        client.jobs.cancel(canceled)
        running(client, aborted)
        client.jobs.abort(aborted)
        os.kill(supervisor(running(client, orphaned)), signal.SIGKILL)
        ended(client, deleted)
        client.jobs.delete(deleted)
        jobs = (succeeding, failing, timing_out, canceled, aborted, orphaned)
        ends = {job_id: ended(client, job_id) for job_id in jobs}
        assert {job_id: (end.status, end.failure_reason) for job_id, end in ends.items()} == {
            succeeding: (job_pb2.JOB_STATUS_SUCCEEDED, ""),
            failing: (job_pb2.JOB_STATUS_FAILED, "EXIT_CODE"),
            timing_out: (job_pb2.JOB_STATUS_TIMED_OUT, "RUN_TIMEOUT"),
            canceled: (job_pb2.JOB_STATUS_CANCELED, ""),
            aborted: (job_pb2.JOB_STATUS_ABORTED, ""),
            orphaned: (job_pb2.JOB_STATUS_FAILED, "SUPERVISOR_LOST"),
        }
        until(lambda: leases_ended(client, credential, *jobs, deleted), "the leases' end")


def supervisor(job: job_pb2.Job) -> int:
    return next(each.pid for each in job.processes if each.role == job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR)


def test_what_the_database_has_of_a_lease_is_for_one_key_and_one_use(stack: Stack, credential: str) -> None:
    identity = AgentIdentity.load(identity_in(Path(stack.process_environment("local-1")["SIS_AGENT_STATE"])))
    with stack.client() as client, stack.database() as database:
        job_id = start_plain(client, "while :; do sleep 1; done", "group:local", credential)
        job = running(client, job_id)
        rows = database.execute(
            "SELECT lease_id::text, ref, sealing_key_id, ciphertext FROM credentials.leases WHERE job_id = %s", [job_id]
        ).fetchall()
        assert {ref for _, ref, _, _ in rows} == {"admin", "credential.secret"}
        for lease_id, ref, key_id, ciphertext in rows:
            key = identity.sealing_key(key_id)
            assert key is not None
            binding = LeaseBinding(job_id, job.attempt, "local-1", lease_id, ref)
            found = lease_pb2.LeasedSecret.FromString(unseal(ciphertext, key, binding))
            assert (found.credential, found.value.secret) == (credential, SECRET)
            for other in (
                replace(binding, job_id=job_id + 1),
                replace(binding, attempt=job.attempt + 1),
                replace(binding, agent="local-2"),
                replace(binding, lease_id=next(each for each, *_ in rows if each != lease_id)),
                replace(binding, ref="run_as"),
            ):
                with pytest.raises(Unsealable):
                    unseal(ciphertext, key, other)
            with pytest.raises(Unsealable):
                unseal(ciphertext, X25519PrivateKey.generate(), binding)
        client.jobs.abort(job_id)
        until(lambda: leases_ended(client, credential, job_id), "the leases' end")
        left = database.execute("SELECT ciphertext FROM credentials.leases WHERE job_id = %s", [job_id]).fetchall()
        assert left == [(None,)] * len(rows)


def test_a_job_whose_credential_is_gone_fails_and_says_so(stack: Stack) -> None:
    with stack.client() as client:
        job = ended(client, start(client, "never-there"))
    assert job.status == job_pb2.JOB_STATUS_FAILED
    assert job.failure_reason == "CREDENTIAL_NOT_FOUND"
    assert "never-there" in job.status_message
