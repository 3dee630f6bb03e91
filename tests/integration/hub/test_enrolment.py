"""EnrolmentService, and certificates that agents ask for over their streams."""

from __future__ import annotations

from collections.abc import Awaitable

import grpc
import pytest
from google.rpc import code_pb2

from services.runtime.channels import from_status, grpc_error, server_channel
from services.runtime.errors import InvalidArgument, PermissionDenied, SisError, Unavailable
from sis.agent.v1 import agent_service_pb2 as pb
from sis.agent.v1 import agent_service_pb2_grpc as agent_rpc
from sis.agent.v1 import enrolment_service_pb2 as enrolment
from sis.agent.v1 import enrolment_service_pb2_grpc as rpc
from tests.integration.hub.agent_client import AgentClient, output
from tests.integration.hub.conftest import Bench, Endpoints, hub_in_process

ENROL = enrolment.EnrolRequest(pairing_id="abcdefgh", keys=b"the keys", mac=bytes(32))
REJOIN = enrolment.RejoinRequest(agent="a1", keys=b"the keys", signature=b"signed")


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
    assert (response.name, response.group) == ("a1", "berlin")
    assert response.certificate.certificate_chain == b"a chain"
    port = bench.hub.agents.rpartition(":")[2]
    assert list(response.agent_endpoints) == [f":{port}"]


async def test_a_rejoin_is_relayed(bench: Bench) -> None:
    response = await (await stub(bench)).Rejoin(REJOIN, timeout=5)
    (asked,) = bench.credentials.renewals
    assert (asked.agent, asked.keys, asked.signature) == ("a1", b"the keys", b"signed")
    assert response.certificate.serial == "abc"
    assert len(response.agent_endpoints) == 1


async def test_agents_are_told_the_endpoints_of_the_settings(bench: Bench) -> None:
    environment = {**bench.where.of_hub("hub-2"), "SIS_HUB_AGENT_ENDPOINTS": "hub.example:8443, :9443"}
    _, endpoints = await bench.stack.enter_async_context(hub_in_process(environment))
    response = await (await stub(bench, endpoints)).Enrol(ENROL, timeout=5)
    assert list(response.agent_endpoints) == ["hub.example:8443", ":9443"]


async def test_a_refusal_of_the_credential_service_is_the_agents(bench: Bench) -> None:
    client = await stub(bench)
    bench.credentials.failures["EnrolAgent"].append(PermissionDenied("no", reason="PAIRING_REFUSED"))
    error = await refusal(client.Enrol(ENROL, timeout=5))
    assert (error.code, error.reason) == (code_pb2.PERMISSION_DENIED, "PAIRING_REFUSED")
    sealed = Unavailable("Vault is sealed", reason="VAULT_SEALED", retry_after=7)
    bench.credentials.failures["RenewAgentCertificate"].append(sealed)
    error = await refusal(client.Rejoin(REJOIN, timeout=5))
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
    assert isinstance(await refusal(client.Rejoin(enrolment.RejoinRequest(), timeout=5)), InvalidArgument)
    assert not bench.credentials.enrolments and not bench.credentials.renewals


async def test_only_enrolment_works_without_a_certificate(bench: Bench) -> None:
    channel = server_channel(bench.hub.enrolment, bench.where.authority.ca.read_bytes(), server_name="hub")
    async with channel:
        found: agent_rpc.AgentServiceAsyncStub = agent_rpc.AgentServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in found.Connect():
                pass
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def ask(agent: AgentClient, keys: bytes = b"the keys") -> None:
    request = pb.CertificateRequest(keys=keys, signature=b"signed")
    await agent.call.write(pb.ConnectRequest(certificate_request=request))


async def test_a_certificate_is_renewed_over_the_stream(bench: Bench) -> None:
    agent = await bench.agent("a7")
    await agent.hello()
    await ask(agent)
    await agent.until(lambda: agent.certificates)
    (asked,) = bench.credentials.renewals
    assert (asked.agent, asked.keys, asked.signature) == ("a7", b"the keys", b"signed")
    assert agent.certificates[0].certificate.certificate_chain == b"a chain"
    assert not agent.certificates[0].HasField("error")


async def test_a_renewal_does_not_hold_up_the_stream_and_is_alone(bench: Bench) -> None:
    bench.credentials.gate.clear()
    agent = await bench.agent()
    await agent.hello()
    await ask(agent)
    await bench.credentials.until(lambda: bench.credentials.renewals)
    await agent.report(output(1, 1))
    await agent.until(lambda: agent.acknowledgements)
    await ask(agent, b"other keys")
    await agent.until(lambda: agent.certificates)
    error = from_status(agent.certificates[0].error)
    assert (error.code, error.reason) == (code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert error.retry_after == 5
    bench.credentials.gate.set()
    await agent.until(lambda: len(agent.certificates) == 2)
    assert agent.certificates[1].HasField("certificate")
    await ask(agent, b"other keys")
    await agent.until(lambda: len(agent.certificates) == 3)
    assert [asked.keys for asked in bench.credentials.renewals] == [b"the keys", b"other keys"]


async def test_a_refused_renewal_leaves_the_stream_open(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.hello()
    bench.credentials.failures["RenewAgentCertificate"].append(PermissionDenied("no", reason="AGENT_REVOKED"))
    await ask(agent)
    await agent.until(lambda: agent.certificates)
    await ask(agent, b"")
    await agent.until(lambda: len(agent.certificates) == 2)
    revoked, invalid = (from_status(answer.error) for answer in agent.certificates)
    assert revoked.reason == "AGENT_REVOKED"
    assert invalid.violations[0].field == "keys"
    assert not agent.ended


async def test_a_stream_that_ends_takes_its_renewal_with_it(bench: Bench) -> None:
    bench.credentials.gate.clear()
    agent = await bench.agent()
    await agent.hello()
    await ask(agent)
    await bench.credentials.until(lambda: bench.credentials.renewals)
    await agent.call.done_writing()
    assert await agent.end() is None
    await bench.queue.until(lambda: bench.queue.closed)
