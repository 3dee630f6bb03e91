"""The credential service as a process: every method with every bad input, and killed at every fault point."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.credentials.tables import State
from services.credentials.vault import Vault
from services.runtime import sealing
from services.runtime.channels import grpc_error
from services.runtime.database import Database
from services.runtime.errors import SisError
from services.runtime.sealing import LeaseBinding
from sis.credentials.v1 import credential_pb2, lease_pb2
from sis.credentials.v1 import credential_service_pb2 as pb
from sis.credentials.v1 import lease_service_pb2 as lease_service_pb
from sis.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sis.credentials.v1.lease_service_pb2_grpc import LeaseServiceStub
from sis.stack.postgres import Postgres
from tests.integration.credentials.keysafe import SECRET, Agent, KeySafe, keysafe_template, keysafe_url
from tests.support.credentials_server import BEARER, CredentialsServer
from tests.support.leaks import LeakSearch
from tests.support.openbao import OpenBaoServer

__all__ = ["keysafe_template", "keysafe_url"]  # fixtures

TOKEN = credential_pb2.CREDENTIAL_KIND_TOKEN
SECONDS = 20.0


class Api:
    """The server as people and a hub see it."""

    def __init__(
        self, server: CredentialsServer, safe: KeySafe, people: grpc.aio.Channel, hub: grpc.aio.Channel
    ) -> None:
        self.server = server
        self.safe = safe
        self.people: Any = CredentialServiceStub(people)
        self.hub: Any = LeaseServiceStub(hub)
        self.people_channel, self.hub_channel = people, hub

    async def __call__(self, method: str, request: Any) -> Any:
        return await getattr(self.people, method)(request, metadata=BEARER, timeout=SECONDS)

    async def create(self, name: str, secret: bytes = SECRET, **fields: Any) -> credential_pb2.Credential:
        value = credential_pb2.SecretValue(secret=secret)
        request = pb.CreateCredentialRequest(**{"name": name, "kind": TOKEN, "value": value, **fields})
        found: credential_pb2.Credential = (await self("CreateCredential", request)).credential
        return found

    async def take(self, *requests: lease_service_pb.LeaseRequest) -> list[lease_service_pb.LeaseResult]:
        response = await self.hub.TakeLeases(lease_service_pb.TakeLeasesRequest(requests=requests), timeout=SECONDS)
        return list(response.results)


@pytest.fixture(scope="module")
def server_url(postgres: Postgres, keysafe_template: str) -> Iterator[str]:
    postgres.create_database("keysafe_api", template=keysafe_template)
    try:
        yield postgres.url("keysafe_api")
    finally:
        postgres.drop_database("keysafe_api")


@pytest.fixture(scope="module")
def server(
    server_url: str, shared_openbao: OpenBaoServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CredentialsServer]:
    """One for the tests of its API; do not stop it. None of their calls may end with a fault."""
    with CredentialsServer(server_url, shared_openbao, tmp_path_factory.mktemp("credentials")) as found:
        yield found
        assert [line for line in found.log() if "fault" in line] == []


@pytest.fixture
async def api(server: CredentialsServer, server_url: str, openbao: OpenBaoServer, vault: Vault) -> AsyncIterator[Api]:
    """That server, with nothing stored in it yet."""
    database = Database(server_url, application_name="test")
    safe = KeySafe(server_url, database, vault, openbao)
    # Each by itself: the server's reconciler goes on meanwhile, and takes its locks in an order of its own.
    for table in ("leases", "attempts", "request_ids", "credentials", "agents"):
        await safe.execute(f"DELETE FROM credentials.{table}")
    async with server.public() as people, await server.internal() as hub:
        yield Api(server, safe, people, hub)
    await database.dispose()


async def refusal(call: Awaitable[Any], code: int, reason: str) -> SisError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = grpc_error(caught.value)
    assert (found.code, found.reason) == (code, reason), caught.value
    assert found.message
    return found


async def fields(call: Awaitable[Any]) -> list[str]:
    return [each.field for each in (await refusal(call, code_pb2.INVALID_ARGUMENT, "INVALID_FIELD")).violations]


# --- CredentialService ---


async def test_the_day_of_a_credential(api: Api) -> None:
    made = await api.create("web", description="the servers", request_id="r")
    assert (made.name, made.version, made.creator, made.description) == ("web", 1, "administrator", "the servers")
    assert made.state == credential_pb2.CREDENTIAL_STATE_READY
    assert await api.create("web", description="the servers", request_id="r") == made

    value = credential_pb2.SecretValue(secret=b"the next secret")
    replacement = pb.ReplaceCredentialRequest(name="web", value=value, description="", version=1)
    replaced = (await api("ReplaceCredential", replacement)).credential
    assert (replaced.version, replaced.description, replaced.updater) == (2, "", "administrator")
    assert (await api("GetCredential", pb.GetCredentialRequest(name="web"))).credential == replaced

    await api.create("typed", for_one_job=True)
    page = await api("ListCredentials", pb.ListCredentialsRequest(page_size=1))
    assert [each.name for each in page.credentials] == ["web"] and page.next_page_token == ""
    request = pb.ListCredentialsRequest(page_size=1, include_for_one_job=True)
    first = await api("ListCredentials", request)
    request.page_token = first.next_page_token
    second = await api("ListCredentials", request)
    assert [each.name for each in (*first.credentials, *second.credentials)] == ["typed", "web"]

    bound = (await api("BindCredential", pb.BindCredentialRequest(name="typed", job_id=9))).credential
    assert bound.job_id == 9 and not bound.HasField("expire_time")

    await api("DeleteCredential", pb.DeleteCredentialRequest(name="web"))
    gone = api("DeleteCredential", pb.DeleteCredentialRequest(name="web"))
    await refusal(gone, code_pb2.NOT_FOUND, "CREDENTIAL_NOT_FOUND")
    # Nobody used it; that it was there is known.
    assert (await api("ListCredentialUsage", pb.ListCredentialUsageRequest(name="web"))).usage == []


async def test_a_private_key_is_stored_whole(api: Api) -> None:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    await api.create("key", key, kind=credential_pb2.CREDENTIAL_KIND_SSH_KEY, username="root")
    assert await api.safe.secret(await api.safe.get("key")) == key


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"name": ""}, ["name"]),
        ({"name": "-a"}, ["name"]),
        ({"name": "x" * 64}, ["name"]),
        ({"kind": 0}, ["kind"]),
        ({"kind": 17}, ["kind"]),
        ({"username": "root"}, ["username"]),
        ({"username": "x" * 256}, ["username"]),
        ({"domain": "CORP"}, ["domain"]),
        ({"description": "x" * 501}, ["description"]),
        ({"request_id": "x" * 65}, ["request_id"]),
        ({"value": None}, ["value.secret"]),
        ({"value": credential_pb2.SecretValue(secret=b"1234567")}, ["value.secret"]),
        ({"value": credential_pb2.SecretValue(secret=b"x" * 65_537)}, ["value.secret"]),
        ({"value": credential_pb2.SecretValue(secret=b"1234\x005678")}, ["value.secret"]),
        ({"value": credential_pb2.SecretValue(secret=SECRET, passphrase=b"open sesame")}, ["value.passphrase"]),
        ({"kind": credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD}, ["username"]),
        ({"kind": credential_pb2.CREDENTIAL_KIND_DOMAIN_ACCOUNT}, ["username", "domain"]),
        ({"kind": credential_pb2.CREDENTIAL_KIND_SSH_KEY, "username": "root"}, ["value.secret"]),
    ],
)
async def test_every_field_of_a_creation_is_checked(api: Api, change: dict[str, Any], wrong: list[str]) -> None:
    assert await fields(api.create(**{"name": "web", **change})) == wrong
    assert await api.safe.all() == []
    told = json.dumps(api.server.log())
    assert SECRET.decode() not in told and "1234567" not in told


@pytest.mark.parametrize(
    ("method", "request_", "wrong"),
    [
        ("GetCredential", pb.GetCredentialRequest(), ["name"]),
        ("GetCredential", pb.GetCredentialRequest(name="x" * 64), ["name"]),
        ("DeleteCredential", pb.DeleteCredentialRequest(), ["name"]),
        ("BindCredential", pb.BindCredentialRequest(), ["name", "job_id"]),
        ("ReplaceCredential", pb.ReplaceCredentialRequest(version=-1), ["name", "version"]),
        ("ReplaceCredential", pb.ReplaceCredentialRequest(name="web"), ["value.secret"]),
        ("ListCredentials", pb.ListCredentialsRequest(page_size=-1), ["page_size"]),
        ("ListCredentialUsage", pb.ListCredentialUsageRequest(page_size=-1, name="web"), ["page_size"]),
    ],
)
async def test_every_field_of_the_others_is_checked(api: Api, method: str, request_: Any, wrong: list[str]) -> None:
    await api.create("web")
    assert await fields(api(method, request_)) == wrong


async def test_what_is_not_there_is_not_found(api: Api) -> None:
    value = credential_pb2.SecretValue(secret=SECRET)
    for method, request in (
        ("GetCredential", pb.GetCredentialRequest(name="web")),
        ("DeleteCredential", pb.DeleteCredentialRequest(name="web")),
        ("ReplaceCredential", pb.ReplaceCredentialRequest(name="web", value=value)),
        ("BindCredential", pb.BindCredentialRequest(name="web", job_id=1)),
        ("ListCredentialUsage", pb.ListCredentialUsageRequest(name="web")),
    ):
        await refusal(api(method, request), code_pb2.NOT_FOUND, "CREDENTIAL_NOT_FOUND")


async def test_conflicts_are_told_apart(api: Api) -> None:
    await api.create("web", request_id="r")
    await refusal(api.create("web"), code_pb2.ALREADY_EXISTS, "CREDENTIAL_EXISTS")
    other_secret = api.create("web", b"another secret", request_id="r")
    await refusal(other_secret, code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    await refusal(api.create("other", request_id="r"), code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    value = credential_pb2.SecretValue(secret=SECRET)
    old = api("ReplaceCredential", pb.ReplaceCredentialRequest(name="web", value=value, version=7))
    await refusal(old, code_pb2.FAILED_PRECONDITION, "CREDENTIAL_CHANGED")
    bind = api("BindCredential", pb.BindCredentialRequest(name="web", job_id=1))
    await refusal(bind, code_pb2.FAILED_PRECONDITION, "CREDENTIAL_CHANGED")
    for method, request in (
        ("ListCredentials", pb.ListCredentialsRequest(page_token="nonsense")),
        ("ListCredentialUsage", pb.ListCredentialUsageRequest(name="web", page_token="nonsense")),
    ):
        await refusal(api(method, request), code_pb2.INVALID_ARGUMENT, "INVALID_TOKEN")


async def test_without_vault_the_reason_is_told(api: Api) -> None:
    await api.create("web")
    api.safe.openbao.seal()
    found = await refusal(api.create("other"), code_pb2.UNAVAILABLE, "VAULT_SEALED")
    assert found.retry_after
    # What needs PostgreSQL alone goes on, and the server with it.
    assert (await api("GetCredential", pb.GetCredentialRequest(name="web"))).credential.version == 1
    health: Any = health_pb2_grpc.HealthStub(api.people_channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


# --- who may ---


async def test_nobody_does_what_is_not_his(api: Api) -> None:
    hub_as_person: Any = CredentialServiceStub(api.hub_channel)
    call = hub_as_person.GetCredential(pb.GetCredentialRequest(name="web"), timeout=SECONDS)
    await refusal(call, code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED")
    person_as_hub: Any = LeaseServiceStub(api.people_channel)
    call = person_as_hub.TakeLeases(lease_service_pb.TakeLeasesRequest(), metadata=BEARER, timeout=SECONDS)
    await refusal(call, code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED")
    call = api.people.ListCredentials(pb.ListCredentialsRequest(), timeout=SECONDS)
    await refusal(call, code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED")
    async with await api.server.internal("queue") as queue:
        stub: Any = LeaseServiceStub(queue)
        call = stub.TakeLeases(lease_service_pb.TakeLeasesRequest(), timeout=SECONDS)
        await refusal(call, code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED")


# --- LeaseService ---


def wanted(of: Agent, credential: str = "web", number: int = 1, **changes: Any) -> lease_service_pb.LeaseRequest:
    uses = [lease_pb2.CredentialUse(ref="admin", credential=credential, kinds=[TOKEN])]
    return lease_service_pb.LeaseRequest(
        **{"job_id": number, "attempt": 1, "agent": of.name, "requester": "alice", "uses": uses, **changes}
    )


async def test_the_day_of_a_lease(api: Api) -> None:
    agent = await api.safe.enrol()
    await api.create("web")
    await api.create("typed", for_one_job=True)
    taken, refused = await api.take(wanted(agent), wanted(agent, "unknown", 2))
    (lease,) = taken.leases
    assert not taken.HasField("refusal") and (await api.take(wanted(agent)))[0] == taken
    assert refused.refusal.reason == lease_pb2.LEASE_REFUSAL_REASON_CREDENTIAL_NOT_FOUND and refused.refusal.permanent

    binding = LeaseBinding(1, 1, agent.name, lease.lease_id, "admin")
    opened = lease_pb2.LeasedSecret.FromString(sealing.unseal(lease.ciphertext, agent.key, binding))
    assert (opened.credential, opened.kind, opened.value.secret) == ("web", TOKEN, SECRET)

    await api("BindCredential", pb.BindCredentialRequest(name="typed", job_id=1))
    end = lease_service_pb.EndLeasesRequest(
        attempts=[lease_service_pb.EndedAttempt(job_id=1, attempt=1, job_over=True)]
    )
    for _ in range(2):
        await api.hub.EndLeases(end, timeout=SECONDS)
    (ended,) = await api.take(wanted(agent))
    assert ended.refusal.reason == lease_pb2.LEASE_REFUSAL_REASON_ATTEMPT_ENDED and not ended.leases
    (use,) = (await api("ListCredentialUsage", pb.ListCredentialUsageRequest(name="web"))).usage
    assert (use.job_id, use.attempt, use.agent, use.ref, use.requester) == (1, 1, agent.name, "admin", "alice")
    assert use.HasField("end_time")
    # The process is woken for what the job leaves behind.
    async with asyncio.timeout(SECONDS):
        while True:
            if State.DELETED in {each.state for each in await api.safe.all()}:
                break
            await asyncio.sleep(0.02)
    await api.safe.agree()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"job_id": 0}, "job_id"),
        ({"attempt": -1}, "attempt"),
        ({"agent": ""}, "agent"),
        ({"requester": "\n"}, "requester"),
        ({"uses": [lease_pb2.CredentialUse(credential="web")]}, "uses[0].ref"),
    ],
)
async def test_every_field_of_a_lease_is_checked(api: Api, change: dict[str, Any], wrong: str) -> None:
    assert await fields(api.take(wanted(Agent("a"), **change))) == [f"requests[0].{wrong}"]


async def test_batches_are_bounded(api: Api) -> None:
    assert await fields(api.take(*[wanted(Agent("a"))] * 101)) == ["requests"]
    many = lease_service_pb.EndLeasesRequest(attempts=[lease_service_pb.EndedAttempt(job_id=1)] * 1_001)
    assert await fields(api.hub.EndLeases(many, timeout=SECONDS)) == ["attempts"]
    most = lease_service_pb.EndLeasesRequest(
        attempts=[lease_service_pb.EndedAttempt(job_id=job_id, attempt=1) for job_id in range(1, 1_001)]
    )
    await api.hub.EndLeases(most, timeout=SECONDS)
    bad = lease_service_pb.EndLeasesRequest(attempts=[lease_service_pb.EndedAttempt(attempt=-1)])
    assert await fields(api.hub.EndLeases(bad, timeout=SECONDS)) == ["attempts[0].job_id", "attempts[0].attempt"]


async def test_neither_the_log_nor_the_answers_hold_a_secret(api: Api) -> None:
    agent = await api.safe.enrol()
    secret, bad = b"Tr0ub4dor & 3, sincerely", b"a secret with\0a NUL in it"
    answers = [await api.create("web", secret)]
    await fields(api.create("bad", bad))
    answers += await api.take(wanted(agent))
    api.safe.openbao.seal()
    await refusal(api.create("other", secret), code_pb2.UNAVAILABLE, "VAULT_SEALED")
    search = LeakSearch({"secret": secret, "bad": bad})
    for answer in answers:
        assert search.find(answer.SerializeToString()) == set()
    assert search.find(json.dumps(api.server.log()).encode()) == set()


# --- the process ---


def _set_fault(server: CredentialsServer, name: str) -> None:
    server.faults.arm(name)


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        ("credentials.created", "created again"),
        ("credentials.stored", "created again"),
        ("credentials.replacing", "replaced"),
        ("credentials.replaced", "replaced"),
        ("credentials.deleting", "deleted"),
        ("credentials.erased", "deleted"),
    ],
)
async def test_killed_in_between_it_goes_on(
    keysafe_url: str, openbao: OpenBaoServer, vault: Vault, tmp_path: Path, fault: str, ends: str
) -> None:
    database = Database(keysafe_url, application_name="test")
    safe = KeySafe(keysafe_url, database, vault, openbao)
    server = CredentialsServer(keysafe_url, openbao, tmp_path)
    value = credential_pb2.SecretValue(secret=SECRET)
    creation = ("CreateCredential", pb.CreateCredentialRequest(name="web", kind=TOKEN, value=value, request_id="r"))
    replacement = ("ReplaceCredential", pb.ReplaceCredentialRequest(name="web", value=value, version=1))
    deletion = ("DeleteCredential", pb.DeleteCredentialRequest(name="web"))
    method, request = {"created again": creation, "replaced": replacement, "deleted": deletion}[ends]
    if ends != "created again":
        await safe.create("web")
    server.start()
    _set_fault(server, fault)
    async with server.public() as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await getattr(CredentialServiceStub(channel), method)(request, metadata=BEARER, timeout=SECONDS)
    assert server.wait_for_death() == -9
    server.start()
    async with server.public() as channel:
        await getattr(CredentialServiceStub(channel), method)(request, metadata=BEARER, timeout=SECONDS)
    assert server.stop() == 0
    await safe.sweep()
    await safe.agree()
    assert [each.version for each in await safe.all()] == [2 if ends == "replaced" else 1]
    await database.dispose()


async def test_it_starts_and_serves_without_vault_once_it_has_a_certificate(
    keysafe_url: str, openbao: OpenBaoServer, tmp_path: Path
) -> None:
    server = CredentialsServer(keysafe_url, openbao, tmp_path)
    server.start()
    assert server.stop() == 0
    openbao.stop()
    with server:
        async with server.public() as channel:
            stub: Any = CredentialServiceStub(channel)
            page = await stub.ListCredentials(pb.ListCredentialsRequest(), metadata=BEARER, timeout=SECONDS)
            assert page.credentials == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("VAULT_ADDRESS", "", "SIS_CREDENTIALS_VAULT_ADDRESS: give https://HOST:PORT"),
        ("VAULT_ADDRESS", None, "SIS_CREDENTIALS_VAULT_ADDRESS is not set"),
        ("VAULT_ROLE_ID_FILE", None, "SIS_CREDENTIALS_VAULT_ROLE_ID_FILE: name the file"),
        ("JOIN_TOKENS", "queue", "SIS_CREDENTIALS_JOIN_TOKENS: give service=<SHA-256"),
        ("DATABASE_URL", None, "SIS_CREDENTIALS_DATABASE_URL is not set"),
    ],
)
def test_wrong_settings_are_refused_in_words(
    keysafe_url: str, openbao: OpenBaoServer, tmp_path: Path, name: str, value: str | None, told: str
) -> None:
    environment = CredentialsServer(keysafe_url, openbao, tmp_path).environment()
    environment.pop(f"SIS_CREDENTIALS_{name}")
    if value is not None:
        environment[f"SIS_CREDENTIALS_{name}"] = value
    done = subprocess.run(
        [sys.executable, "-P", "-m", "services.credentials.main"],
        env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
