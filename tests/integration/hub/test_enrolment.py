"""EnrolmentService, and certificates that agents ask for over their streams."""

from __future__ import annotations

from collections.abc import Awaitable

import grpc
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
from google.rpc import code_pb2

from services.runtime.channels import from_status, grpc_error, server_channel
from services.runtime.errors import InvalidArgument, PermissionDenied, SisError, Unavailable
from services.runtime.tls import TlsFiles
from sis.agent.v1 import agent_service_pb2 as pb
from sis.agent.v1 import agent_service_pb2_grpc as agent_rpc
from sis.agent.v1 import enrolment_service_pb2 as enrolment
from sis.agent.v1 import enrolment_service_pb2_grpc as rpc
from sis.stack.postgres import Postgres
from tests.integration.hub.agent_client import AgentClient, output
from tests.integration.hub.conftest import Bench, Endpoints, database_away, hub_in_process
from tests.support.certificates import agent_keys

ENROL = enrolment.EnrolRequest(pairing_id="abcdefgh", keys=b"the keys", mac=bytes(32))
SECOND_HOLDER = PermissionDenied("another program has this key, too", reason="AGENT_QUARANTINED")


@pytest.fixture
def tls(bench: Bench) -> TlsFiles:
    """The identity of a1."""
    return bench.where.authority.agent("g", "a1")


def rejoin(tls: TlsFiles) -> enrolment.RejoinRequest:
    return enrolment.RejoinRequest(agent="a1", keys=agent_keys(tls), signature=b"signed")


async def stub(bench: Bench, hub: Endpoints | None = None) -> rpc.EnrolmentServiceAsyncStub:
    """As a program has it that is no agent yet."""
    channel = server_channel((hub or bench.hub).enrolment, bench.where.authority.ca.read_bytes(), server_name="hub")
    found: rpc.EnrolmentServiceAsyncStub = rpc.EnrolmentServiceStub(await bench.stack.enter_async_context(channel))
    return found


async def refusal(call: Awaitable[object]) -> SisError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return grpc_error(caught.value)


async def test_an_enrolment_is_relayed(bench: Bench) -> None:
    response = await (await stub(bench)).Enrol(ENROL, timeout=5)
    (asked,) = bench.credentials.enrolments
    assert (asked.pairing_id, asked.keys, asked.mac) == ("abcdefgh", b"the keys", bytes(32))
    assert asked.origin in ("127.0.0.1", "::1")
    assert (response.name, response.group, response.mac) == ("a1", "berlin", b"a proof")
    assert response.certificate.certificate_chain == b"a chain"
    port = bench.hub.agents.rpartition(":")[2]
    assert list(response.agent_endpoints) == [f":{port}"]


async def test_a_rejoin_is_relayed(bench: Bench, tls: TlsFiles) -> None:
    request = rejoin(tls)
    response = await (await stub(bench)).Rejoin(request, timeout=5)
    (asked,) = bench.credentials.renewals
    assert (asked.agent, asked.keys, asked.signature) == ("a1", request.keys, b"signed")
    assert response.certificate.serial == "abc"
    assert len(response.agent_endpoints) == 1


async def test_agents_are_told_the_endpoints_of_the_settings(bench: Bench) -> None:
    environment = {**bench.where.of_hub("hub-2"), "SIS_HUB_AGENT_ENDPOINTS": "hub.example:8443, :9443"}
    _, endpoints = await bench.stack.enter_async_context(hub_in_process(environment))
    response = await (await stub(bench, endpoints)).Enrol(ENROL, timeout=5)
    assert list(response.agent_endpoints) == ["hub.example:8443", ":9443"]


async def test_a_refusal_of_the_credential_service_is_the_agents(bench: Bench, tls: TlsFiles) -> None:
    client = await stub(bench)
    bench.credentials.failures["EnrolAgent"].append(PermissionDenied("no", reason="PAIRING_REFUSED"))
    error = await refusal(client.Enrol(ENROL, timeout=5))
    assert (error.code, error.reason) == (code_pb2.PERMISSION_DENIED, "PAIRING_REFUSED")
    sealed = Unavailable("Vault is sealed", reason="VAULT_SEALED", retry_after=7)
    bench.credentials.failures["RenewAgentCertificate"].append(sealed)
    error = await refusal(client.Rejoin(rejoin(tls), timeout=5))
    assert (error.code, error.reason, error.retry_after) == (code_pb2.UNAVAILABLE, "VAULT_SEALED", 7)


async def test_a_refusal_of_the_hub_is_not_the_agents(bench: Bench) -> None:
    bench.credentials.failures["EnrolAgent"].append(PermissionDenied("this is for the hub"))
    assert isinstance(await refusal((await stub(bench)).Enrol(ENROL, timeout=5)), Unavailable)


async def test_without_the_credential_service_nobody_enrols(bench: Bench) -> None:
    await bench.stop_credentials()
    assert isinstance(await refusal((await stub(bench)).Enrol(ENROL, timeout=5)), Unavailable)


async def test_what_cannot_be_is_not_relayed(bench: Bench) -> None:
    client = await stub(bench)
    assert isinstance(await refusal(client.Enrol(enrolment.EnrolRequest(), timeout=5)), InvalidArgument)
    for request in (enrolment.RejoinRequest(), enrolment.RejoinRequest(agent="a1", keys=b"none", signature=b"s")):
        assert isinstance(await refusal(client.Rejoin(request, timeout=5)), InvalidArgument)
    assert not bench.credentials.enrolments and not bench.credentials.renewals


async def test_only_enrolment_works_without_a_certificate(bench: Bench) -> None:
    channel = server_channel(bench.hub.enrolment, bench.where.authority.ca.read_bytes(), server_name="hub")
    async with channel:
        found: agent_rpc.AgentServiceAsyncStub = agent_rpc.AgentServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in found.Connect():
                pass
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def ask(agent: AgentClient, keys: bytes) -> None:
    request = pb.CertificateRequest(keys=keys, signature=b"signed")
    await agent.call.write(pb.ConnectRequest(certificate_request=request))


async def test_a_certificate_is_renewed_over_the_stream(bench: Bench) -> None:
    tls = bench.where.authority.agent("g", "a7")
    keys = agent_keys(tls)
    agent = await bench.agent(tls=tls)
    await agent.hello()
    await ask(agent, keys)
    await agent.until(lambda: agent.certificates)
    (asked,) = bench.credentials.renewals
    assert (asked.agent, asked.keys, asked.signature) == ("a7", keys, b"signed")
    assert agent.certificates[0].certificate.certificate_chain == b"a chain"
    assert not agent.certificates[0].HasField("error")


async def test_a_renewal_does_not_hold_up_the_stream_and_is_alone(bench: Bench, tls: TlsFiles) -> None:
    bench.credentials.gate.clear()
    keys, other = agent_keys(tls), agent_keys(tls)
    agent = await bench.agent(tls=tls)
    await agent.hello()
    await ask(agent, keys)
    await bench.credentials.until(lambda: bench.credentials.renewals)
    await agent.report(output(1, 1))
    await agent.until(lambda: agent.acknowledgements)
    await ask(agent, other)
    await agent.until(lambda: agent.certificates)
    error = from_status(agent.certificates[0].error)
    assert (error.code, error.reason) == (code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert error.retry_after == 5
    bench.credentials.gate.set()
    await agent.until(lambda: len(agent.certificates) == 2)
    assert agent.certificates[1].HasField("certificate")
    await ask(agent, other)
    await agent.until(lambda: len(agent.certificates) == 3)
    assert [asked.keys for asked in bench.credentials.renewals] == [keys, other]


async def test_a_refused_renewal_leaves_the_stream_open(bench: Bench, tls: TlsFiles) -> None:
    agent = await bench.agent(tls=tls)
    await agent.hello()
    bench.credentials.failures["RenewAgentCertificate"].append(PermissionDenied("no", reason="AGENT_REVOKED"))
    await ask(agent, agent_keys(tls))
    await agent.until(lambda: agent.certificates)
    await ask(agent, b"")
    await agent.until(lambda: len(agent.certificates) == 2)
    revoked, invalid = (from_status(answer.error) for answer in agent.certificates)
    assert revoked.reason == "AGENT_REVOKED"
    assert invalid.violations[0].field == "keys"
    assert not agent.ended


async def test_a_stream_that_ends_takes_its_renewal_with_it(bench: Bench, tls: TlsFiles) -> None:
    bench.credentials.gate.clear()
    agent = await bench.agent(tls=tls)
    await agent.hello()
    await ask(agent, agent_keys(tls))
    await bench.credentials.until(lambda: bench.credentials.renewals)
    await agent.call.done_writing()
    assert await agent.end() is None
    await bench.queue.until(lambda: bench.queue.closed)


async def quarantine(bench: Bench) -> None:
    """As another hub does."""
    engine = sqlalchemy.ext.asyncio.create_async_engine(bench.where.database_url)
    async with engine.begin() as connection:
        await connection.execute(sqlalchemy.text("UPDATE agents.chains SET quarantined_at = now()"))
    await engine.dispose()


async def test_a_key_in_quarantine_does_not_rejoin(bench: Bench, tls: TlsFiles) -> None:
    agent = await bench.agent(tls=tls)
    await agent.hello()
    await quarantine(bench)
    client = await stub(bench)
    assert (await refusal(client.Rejoin(rejoin(tls), timeout=5))).reason == "AGENT_QUARANTINED"
    assert not bench.credentials.renewals
    error = await agent.end()
    assert error is not None and error.reason == "AGENT_QUARANTINED"
    await client.Rejoin(rejoin(bench.where.authority.agent("g", "a1")), timeout=5)  # enrolled again


async def test_a_key_in_quarantine_is_not_certified_over_its_stream(bench: Bench, tls: TlsFiles) -> None:
    agent = await bench.agent(tls=tls)
    await agent.hello()
    await quarantine(bench)
    await ask(agent, agent_keys(tls))
    error = await agent.end()
    assert error is not None and error.reason == "AGENT_QUARANTINED"
    assert not bench.credentials.renewals and not agent.certificates


@pytest.mark.parametrize("over_stream", [False, True])
async def test_proof_of_a_second_holder_puts_the_key_into_quarantine(
    bench: Bench, tls: TlsFiles, over_stream: bool
) -> None:
    agent = await bench.agent(tls=tls)
    offered = await agent.hello()
    bench.credentials.failures["RenewAgentCertificate"].append(SECOND_HOLDER)
    if over_stream:
        await ask(agent, agent_keys(tls))
    else:
        error = await refusal((await stub(bench)).Rejoin(rejoin(tls), timeout=5))
        assert (error.code, error.reason) == (code_pb2.PERMISSION_DENIED, "AGENT_QUARANTINED")
    ended = await agent.end()
    assert ended is not None and ended.reason == "AGENT_QUARANTINED"
    again = await bench.agent(tls=tls)
    ended = await again.refused(offered)
    assert ended is not None and ended.reason == "AGENT_QUARANTINED"


async def test_proof_of_a_second_holder_counts_before_the_key_has_ever_connected(bench: Bench, tls: TlsFiles) -> None:
    former = await bench.agent(tls=tls)
    await former.hello()
    tls = bench.where.authority.agent("g", "a1")
    bench.credentials.failures["RenewAgentCertificate"].append(SECOND_HOLDER)
    assert (await refusal((await stub(bench)).Rejoin(rejoin(tls), timeout=5))).reason == "AGENT_QUARANTINED"
    client = await bench.agent(tls=tls)
    ended = await client.refused()
    assert ended is not None and ended.reason == "AGENT_QUARANTINED"
    enrolled = await bench.agent()
    await enrolled.hello()


async def test_without_the_registry_no_key_is_certified(bench: Bench, tls: TlsFiles, postgres: Postgres) -> None:
    """It may be in quarantine, and what the credential service says of it could not be kept."""
    client = await stub(bench)
    with database_away(bench, postgres):
        assert isinstance(await refusal(client.Rejoin(rejoin(tls), timeout=10)), Unavailable)
    assert not bench.credentials.renewals
    await client.Rejoin(rejoin(tls), timeout=5)
