"""Jobs with credentials, over gRPC and TLS: as people name them, as hubs lease for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google.rpc import code_pb2

from services.runtime.channels import from_status
from sis.credentials.v1 import credential_pb2, lease_pb2, lease_service_pb2
from sis.queue.v1 import dispatch_service_pb2 as dispatch_pb
from sis.queue.v1 import dispatch_service_pb2_grpc, job_pb2, package_service_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.integration.queue.api import SECONDS, Api, fields, refusal
from tests.integration.queue.rig import Rig


def create(rig: Rig, **changes: Any) -> pb.CreateJobRequest:
    found = pb.CreateJobRequest(display_name=f"secret {rig.group}", type="JOB_TYPE_PACKAGE", operation="use")
    found.package.name = "test.secretive"
    found.site_target.group = rig.group
    found.admin, found.run_as = "root-at-sites", "web"
    found.credentials["database"] = "main.db"
    found.parameters["phrase"].credential_ref = "phrase_1"
    found.MergeFrom(pb.CreateJobRequest(**changes))
    return found


async def test_a_job_shows_the_credentials_that_it_names(api: Api, served: Rig) -> None:
    made = (await api(api.jobs.CreateJob, create(served))).job
    assert (made.admin, made.run_as, dict(made.credentials)) == ("root-at-sites", "web", {"database": "main.db"})
    assert made.parameters["phrase"].credential_ref == "phrase_1"
    assert made.parameters["plain"].plain == "nothing" and set(made.parameters) == {"phrase", "plain"}
    assert not made.HasField("wait")
    assert (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=made.job_id))).job == made
    (listed,) = (await api(api.jobs.ListJobs, pb.ListJobsRequest(filter={"text": served.group}))).jobs
    assert (listed.admin, listed.run_as, dict(listed.credentials)) == (made.admin, made.run_as, dict(made.credentials))
    assert not listed.parameters


async def test_run_as_needs_no_admin_and_most_jobs_need_neither(api: Api, served: Rig) -> None:
    request = create(served)
    request.admin = ""
    made = (await api(api.jobs.CreateJob, request)).job
    assert (made.admin, made.run_as) == ("", "web")


async def test_a_request_id_is_of_the_credentials_too(api: Api, served: Rig) -> None:
    request = create(served, request_id=served.group)
    made = [(await api(api.jobs.CreateJob, request)).job.job_id for _ in range(2)]
    assert len(set(made)) == 1
    request.credentials["database"] = "another"
    error = await refusal(api(api.jobs.CreateJob, request))
    assert (error.code, error.reason) == (code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED")


Change = Callable[[pb.CreateJobRequest], object]

BAD: dict[str, tuple[str, str, Change]] = {
    "an admin that can be no name": ("INVALID_FIELD", "admin", lambda r: setattr(r, "admin", "a b")),
    "a long run as": ("INVALID_FIELD", "run_as", lambda r: setattr(r, "run_as", "a" * 64)),
    "a reference to nothing": (
        "INVALID_FIELD", "credentials.database", lambda r: r.credentials.update({"database": ""}),
    ),
    "a sensitive input with a name that can be none": (
        "INVALID_FIELD", "parameters.phrase", lambda r: setattr(r.parameters["phrase"], "credential_ref", "\n"),
    ),
    "a reference that is not declared": (
        "INVALID_PARAMETER", "credentials.surplus", lambda r: r.credentials.update({"surplus": "a"}),
    ),
    "a required reference that is missing": (
        "INVALID_PARAMETER", "credentials.database", lambda r: r.ClearField("credentials"),
    ),
    "a required account that is missing": (
        "INVALID_PARAMETER", "run_as", lambda r: (r.ClearField("run_as"), r.ClearField("admin")),
    ),
    "the account among the references": (
        "INVALID_PARAMETER", "credentials.admin", lambda r: r.credentials.update({"admin": "a"}),
    ),
    "a sensitive input with a value": (
        "INVALID_PARAMETER", "parameters.phrase", lambda r: setattr(r.parameters["phrase"], "plain", "open sesame"),
    ),
    "a sensitive input with a list": (
        "INVALID_PARAMETER", "parameters.phrase", lambda r: r.parameters["phrase"].list.items.append("open sesame"),
    ),
    "a required sensitive input that is missing": (
        "INVALID_PARAMETER", "parameters.phrase", lambda r: r.parameters.pop("phrase"),
    ),
    "an input that is no secret with a credential": (
        "INVALID_PARAMETER", "parameters.plain", lambda r: setattr(r.parameters["plain"], "credential_ref", "a"),
    ),
    "an input that is not declared with a credential": (
        "INVALID_PARAMETER", "parameters.surplus", lambda r: setattr(r.parameters["surplus"], "credential_ref", "a"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
async def test_credentials_that_do_not_fit_are_refused(api: Api, served: Rig, case: str) -> None:
    reason, field, change = BAD[case]
    request = create(served, request_id=f"bad {served.group}")
    change(request)
    error = await refusal(api(api.jobs.CreateJob, request))
    assert (error.code, error.reason, fields(error)) == (code_pb2.INVALID_ARGUMENT, reason, [field])
    assert "open sesame" not in str(error) and "open sesame" not in str(error.violations)
    page = await api(api.jobs.ListJobs, pb.ListJobsRequest(filter={"text": served.group}))
    assert page.total_size == 0


async def test_every_wrong_credential_is_named_at_once(api: Api, served: Rig) -> None:
    request = create(served)
    request.ClearField("credentials")
    request.ClearField("parameters")
    request.credentials["surplus"] = "a"
    error = await refusal(api(api.jobs.CreateJob, request))
    assert set(fields(error)) == {"parameters.phrase", "credentials.surplus", "credentials.database"}


async def test_the_library_shows_what_an_operation_wants(api: Api) -> None:
    found = await api(api.packages.GetPackage, package_service_pb2.GetPackageRequest(name="test.secretive"))
    (operation,) = found.package.operations
    wanted = {reference.ref: reference for reference in operation.credentials}
    assert set(wanted) == {"database", "other", "admin", "run_as"}
    assert (wanted["database"].required, wanted["database"].delivery) == (True, "file")
    assert wanted["database"].description == "of the application"
    assert list(wanted["database"].kinds) == [
        credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD, credential_pb2.CREDENTIAL_KIND_TOKEN,
    ]  # fmt: skip
    assert [i.name for i in operation.inputs if i.sensitive] == ["phrase", "spare"]


# Hubs.


class Hub:
    """A hub with one agent."""

    def __init__(self, stub: Any, rig: Rig) -> None:
        self.stub, self.rig = stub, rig
        self.records = 0

    async def hello(self) -> dispatch_pb.OpenSessionResponse:
        self.records += 1
        opened = dispatch_pb.OpenSessionRequest(hub=f"hub of {self.rig.group}")
        opened.agent.name, opened.agent.group = self.rig.agent("a"), self.rig.group
        opened.hello.journal_id, opened.hello.slots, opened.hello.record_number = "j", 4, self.records
        welcome = await self.stub.OpenSession(opened, timeout=SECONDS)
        self.session = dispatch_pb.Session(agent=opened.agent.name, epoch=welcome.epoch)
        return welcome

    async def claim(self) -> dispatch_pb.Assignment:
        capacity = dispatch_pb.Capacity(session=self.session, free_slots=4)
        claimed = await self.stub.Claim(dispatch_pb.ClaimRequest(capacities=[capacity]), timeout=SECONDS)
        (given,) = claimed.assignments
        return given.assignment

    async def refuse(self, attempt: dispatch_pb.Attempt, **refusal: Any) -> dispatch_pb.ReportResult:
        report = dispatch_pb.AttemptReport(
            session=self.session, attempt=attempt, lease_refused=lease_pb2.LeaseRefusal(**refusal)
        )
        told = await self.stub.Report(dispatch_pb.ReportRequest(reports=[report]), timeout=SECONDS)
        return told.results[0]


async def test_an_assignment_says_what_is_to_be_leased_and_for_whom(api: Api, hub: Any, served: Rig) -> None:
    site = Hub(hub, served)
    await site.hello()
    job_id = (await api(api.jobs.CreateJob, create(served))).job.job_id
    given = await site.claim()
    uses = {use.ref: (use.credential, list(use.kinds)) for use in given.credentials}
    password, key, token, domain = range(1, 5)
    assert uses == {
        "admin": ("root-at-sites", [key]),
        "run_as": ("web", [password, key, domain]),
        "credential.database": ("main.db", [password, token]),
        "param.phrase": ("phrase_1", []),
    }
    assert given.requester == "administrator" and not given.leases
    assert given.parameters["plain"].plain == "nothing"
    assert given.parameters["phrase"].credential_ref == "phrase_1"  # the value comes with its lease
    (again,) = (await site.hello()).assignments
    assert (again.attempt.job_id, again) == (job_id, given)


async def test_what_is_too_large_to_be_claimed_at_once_has_its_credentials_too(api: Api, hub: Any, served: Rig) -> None:
    site = Hub(hub, served)
    await site.hello()
    request = create(served)
    request.parameters["plain"].plain = "x" * 60_000
    await api(api.jobs.CreateJob, request)
    given = await site.claim()
    assert len(given.credentials) == 4 and given.requester == "administrator"
    assert len(given.parameters["plain"].plain) == 60_000


async def test_a_refusal_is_shown_until_the_next_claim(api: Api, hub: Any, served: Rig) -> None:
    site = Hub(hub, served)
    await site.hello()
    await api(api.jobs.CreateJob, create(served))
    given = await site.claim()
    told = await site.refuse(
        given.attempt, reason="LEASE_REFUSAL_REASON_VAULT_SEALED", message="unseal it", retry_after={"seconds": 5}
    )
    assert told.sealed and not told.HasField("error")
    request = pb.GetJobRequest(job_id=given.attempt.job_id)
    job = (await api(api.jobs.GetJob, request)).job
    assert (job.status, job.agent) == (job_pb2.JOB_STATUS_WAITING, "")
    assert (job.wait.reason, job.wait.message) == (job_pb2.WAIT_REASON_VAULT_SEALED, "unseal it")
    (listed,) = (await api(api.jobs.ListJobs, pb.ListJobsRequest(filter={"text": served.group}))).jobs
    assert listed.wait == job.wait
    history = await api(api.jobs.ListJobHistory, pb.ListJobHistoryRequest(job_id=given.attempt.job_id))
    assert history.entries[-1].message == "VAULT_SEALED: unseal it"
    refused_at = history.entries[-1].time.ToDatetime()
    assert 5.0 <= (job.wait.retry_time.ToDatetime() - refused_at).total_seconds() <= 5.5
    await served.execute("UPDATE queue.jobs SET retry_at = queue.now() WHERE job_id = :job_id", job_id=job.job_id)
    assert (await site.claim()).attempt.number == 2
    assert not (await api(api.jobs.GetJob, request)).job.HasField("wait")


async def test_a_refusal_for_good_is_the_failure_of_the_job(api: Api, hub: Any, served: Rig) -> None:
    site = Hub(hub, served)
    await site.hello()
    await api(api.jobs.CreateJob, create(served))
    given = await site.claim()
    # Nobody has to say that a credential which is not there will not appear.
    await site.refuse(given.attempt, reason="LEASE_REFUSAL_REASON_CREDENTIAL_NOT_FOUND", message="there is no main.db")
    job = (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=given.attempt.job_id))).job
    assert (job.status, job.failure_reason) == (job_pb2.JOB_STATUS_FAILED, "CREDENTIAL_NOT_FOUND")
    assert job.status_message == "there is no main.db" and not job.HasField("wait")


@pytest.mark.parametrize("reason", [0, 99, lease_pb2.LEASE_REFUSAL_REASON_ATTEMPT_ENDED])
async def test_a_refusal_that_is_none_is_refused_alone(api: Api, hub: Any, served: Rig, reason: int) -> None:
    site = Hub(hub, served)
    await site.hello()
    await api(api.jobs.CreateJob, create(served))
    given = await site.claim()
    told = await site.refuse(given.attempt, reason=reason)
    error = from_status(told.error)
    assert (error.reason, fields(error)) == ("INVALID_FIELD", ["lease_refused.reason"])
    job = (await api(api.jobs.GetJob, pb.GetJobRequest(job_id=given.attempt.job_id))).job
    assert job.status == job_pb2.JOB_STATUS_STARTING
    site.session.epoch += 1
    told = await site.refuse(given.attempt, reason=1)
    assert from_status(told.error).reason == "STALE_EPOCH"


async def ends(stream: Any, wanted: set[int]) -> list[lease_service_pb2.EndedAttempt]:
    """What a watcher is given of these jobs, until it has had each once."""
    found: list[lease_service_pb2.EndedAttempt] = []
    async with asyncio.timeout(SECONDS):
        while wanted - {end.job_id for end in found}:
            told = await stream.read()
            found += [end for end in told.lease_ends if end.job_id in wanted]
    return found


def watch(hub: Any, name: str) -> Any:
    return hub.Watch(dispatch_pb.WatchRequest(hub=name), timeout=SECONDS)


async def woken(stream: Any) -> None:
    """Wait for the wake-up with which a watch begins, behind what was left over for it."""
    async with asyncio.timeout(SECONDS):
        while not (await stream.read()).wake:
            pass


async def test_a_hub_is_woken_for_leases_that_end_and_they_are_gone_once_acknowledged(hub: Any, served: Rig) -> None:
    stream = watch(hub, served.group)
    await woken(stream)
    job_id = await served.create(admin="root")
    before = asyncio.get_running_loop().time()
    await served.cancel(job_id)
    (end,) = await ends(stream, {job_id})
    assert asyncio.get_running_loop().time() - before < 4, "woken, not found by the poll"
    assert (end.attempt, end.job_over) == (0, True)
    assert await served.lease_ends(job_id) == [(0, True)]
    for _ in range(2):
        await hub.AcknowledgeLeaseEnds(dispatch_pb.AcknowledgeLeaseEndsRequest(lease_ends=[end]), timeout=SECONDS)
        assert await served.lease_ends(job_id) == []
    stream.cancel()


async def test_what_a_watcher_has_in_hand_is_anothers_as_soon_as_its_stream_ends(hub: Any, served: Rig) -> None:
    """Not half a minute later."""
    job_id = await served.create(admin="root")
    await served.cancel(job_id)
    stream = watch(hub, f"{served.group}-1")
    await ends(stream, {job_id})
    other = watch(hub, f"{served.group}-2")
    await woken(other)
    stream.cancel()
    assert len(await ends(other, {job_id})) == 1
    other.cancel()


async def test_two_watchers_share_them(hub: Any, served: Rig) -> None:
    streams = [watch(hub, f"{served.group}-{n}") for n in range(2)]
    for stream in streams:
        await woken(stream)
    job_ids = set(await served.create_many(40, admin="root"))
    seen: list[int] = []

    async def read(stream: Any) -> None:
        while len(seen) < len(job_ids):
            told = await stream.read()
            seen.extend(end.job_id for end in told.lease_ends if end.job_id in job_ids)

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        readers = [group.create_task(read(stream)) for stream in streams]
        for job_id in job_ids:
            await served.cancel(job_id)
        await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
        for stream in streams:
            stream.cancel()
        for reader in readers:
            reader.cancel()
    assert sorted(seen) == sorted(job_ids), "each to one of them, once"


async def test_more_acknowledgements_than_fit_in_one_call_are_refused(hub: Any) -> None:
    one = lease_service_pb2.EndedAttempt(job_id=2**40, attempt=1)
    for count in (0, 1_000):
        await hub.AcknowledgeLeaseEnds(
            dispatch_pb.AcknowledgeLeaseEndsRequest(lease_ends=[one] * count), timeout=SECONDS
        )
    call = hub.AcknowledgeLeaseEnds(dispatch_pb.AcknowledgeLeaseEndsRequest(lease_ends=[one] * 1_001), timeout=SECONDS)
    error = await refusal(call)
    assert (error.reason, fields(error)) == ("INVALID_FIELD", ["lease_ends"])


async def test_people_do_not_acknowledge_for_hubs(server: Any, api: Api) -> None:
    async with server.public() as channel:
        stub: Any = dispatch_service_pb2_grpc.DispatchServiceStub(channel)
        error = await refusal(api(stub.AcknowledgeLeaseEnds, dispatch_pb.AcknowledgeLeaseEndsRequest()))
    assert error.code == code_pb2.PERMISSION_DENIED
