"""Certificates from a real CA in the hands of gRPC: services join, a hub relays, people pair and revoke."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.credentials.certificates import ServiceCertificates
from services.credentials.revocations import Revocations
from services.credentials.servicers.agent_identity import AgentIdentityServicer
from services.credentials.servicers.certificate import CertificateServicer
from services.runtime import joining
from services.runtime.channels import Peer, grpc_error, server_channel
from services.runtime.errors import InvalidArgument, PermissionDenied, SisError, Unauthenticated
from services.runtime.identity import Identity
from services.runtime.server import Listener, Server
from services.runtime.settings import ServiceSettings
from services.runtime.tls import TlsFiles
from sis.credentials.v1 import agent_identity_service_pb2 as identity_pb
from sis.credentials.v1 import certificate_service_pb2 as pb
from sis.credentials.v1.agent_identity_service_pb2_grpc import (
    AgentIdentityServiceStub,
    add_AgentIdentityServiceServicer_to_server,
)
from sis.credentials.v1.certificate_service_pb2_grpc import (
    CertificateServiceStub,
    add_CertificateServiceServicer_to_server,
)
from tests.integration.credentials.agent_side import AgentSide
from tests.integration.credentials.identity_rig import IdentityRig, identity_template, identity_url, rig

__all__ = ["identity_template", "identity_url", "rig"]  # fixtures

ADMIN = "the administrator's token"
JOIN_TOKENS = {name: f"the {name}'s join token" for name in ("queue", "hub")}


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class Suite:
    """A server with the two services, and those who call it."""

    def __init__(self, rig: IdentityRig, directory: Path, stack: AsyncExitStack) -> None:
        self.rig = rig
        self._directory = directory
        self._stack = stack
        self.ca = rig.openbao.output / "ca.pem"
        self._services = ServiceCertificates(rig.vault, life=timedelta(hours=1))

    async def start(self) -> None:
        own = Identity(
            self._directory / "credentials", self.ca, self._services.obtain("credentials", []), name="credentials"
        )
        await own.ready()
        revocations = Revocations(self.rig.database)
        self.server = Server(
            "credentials",
            [
                (
                    add_CertificateServiceServicer_to_server,
                    CertificateServicer(self.rig.identities, self._services, revocations),
                ),
                (add_AgentIdentityServiceServicer_to_server, AgentIdentityServicer(self.rig.identities)),
            ],
            [Listener("127.0.0.1:0", own.tls), Listener("127.0.0.1:0", own.tls, demand_client_certificate=True)],
            admin_token_sha256=sha256(ADMIN),
            join_tokens={sha256(token): name for name, token in JOIN_TOKENS.items()},
        )
        self.public, self.internal = (f"127.0.0.1:{port}" for port in await self.server.start())
        self._stack.push_async_callback(self.server.stop, 0)
        listening = asyncio.create_task(revocations.listen())
        self._stack.push_async_callback(asyncio.wait, [listening])
        self._stack.callback(listening.cancel)
        channel = server_channel(self.public, self.ca.read_bytes(), server_name="credentials")
        await self._stack.enter_async_context(channel)
        self.people: Any = AgentIdentityServiceStub(channel)
        self.joiners: Any = CertificateServiceStub(channel)

    def identity(self, name: str, *host_names: str) -> Identity:
        """Of a service that joins by its token."""
        token = self._directory / f"{name}.token"
        token.write_text(JOIN_TOKENS[name])
        settings = ServiceSettings(
            tls_ca=self.ca,
            identity=self._directory / name,
            host_names=host_names,
            join_endpoint=self.public,
            join_token_file=token,
        )
        return joining.identity(settings, name)

    def peer(self, identity: Identity) -> Any:
        """CertificateService as other services call it."""
        peer = Peer(self.internal, identity, CertificateServiceStub, server_name="credentials")
        self._stack.push_async_callback(peer.close)
        return peer.stub

    async def pair(self) -> str:
        request = identity_pb.PairAgentRequest(name=self.rig.name, group="g")
        return str((await self.people.PairAgent(request, metadata=bearer(ADMIN))).code)


@pytest.fixture
async def suite(rig: IdentityRig, tmp_path: Path) -> AsyncIterator[Suite]:
    async with AsyncExitStack() as stack:
        found = Suite(rig, tmp_path, stack)
        await found.start()
        yield found


def csr() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def names(certificate: bytes) -> set[str]:
    leaf = x509.load_pem_x509_certificate(certificate)
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


async def refused(call: Any) -> SisError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return grpc_error(caught.value)


async def test_services_join_and_meet(suite: Suite) -> None:
    hub, queue = suite.identity("hub", "HUB.example.com", "127.0.0.1", "hub-0.sis.svc"), suite.identity("queue")
    await hub.ready()
    await queue.ready()
    assert names(hub.tls.certificate.read_bytes()) == {
        "spiffe://sis/service/hub", "hub", "hub.example.com", "127.0.0.1", "hub-0.sis.svc",
    }  # fmt: skip
    code = await suite.pair()
    request = AgentSide().enrolment_request(code)
    answer = await suite.peer(hub).EnrolAgent(request)
    assert (answer.name, answer.group) == (suite.rig.name, "g")
    # The queue proves itself as well, but this is not for it.
    assert isinstance(await refused(suite.peer(queue).EnrolAgent(request)), PermissionDenied)


async def test_an_agents_certificate_makes_nobody_else_of_it(suite: Suite, tmp_path: Path) -> None:
    hub = suite.identity("hub")
    await hub.ready()
    side = AgentSide()
    answer = await suite.peer(hub).EnrolAgent(side.enrolment_request(await suite.pair()))
    files = TlsFiles(ca=suite.ca, certificate=tmp_path / "a.pem", key=tmp_path / "a.key")
    files.certificate.write_bytes(answer.certificate.certificate_chain)
    files.key.write_bytes(
        side.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )

    class Agent(Identity):
        def __init__(self) -> None:
            self.tls, self.generation = files, 0

    stub = suite.peer(Agent())
    for call in (
        stub.EnrolAgent(side.enrolment_request(await suite.pair())),
        stub.RenewAgentCertificate(side.renewal_request(suite.rig.name, 2)),
    ):
        assert isinstance(await refused(call), PermissionDenied)
    joining_call = stub.IssueServiceCertificate(pb.IssueServiceCertificateRequest(csr=csr()))
    assert isinstance(await refused(joining_call), Unauthenticated)


async def test_a_certificate_is_no_join_token(suite: Suite) -> None:
    """Whoever has a copy of a service's key and certificate has them until they expire, and not for ever."""
    hub = suite.identity("hub")
    await hub.ready()
    stub, request = suite.peer(hub), pb.IssueServiceCertificateRequest(csr=csr())
    assert isinstance(await refused(stub.IssueServiceCertificate(request)), Unauthenticated)
    wrong = bearer("no join token")
    assert isinstance(await refused(stub.IssueServiceCertificate(request, metadata=wrong)), Unauthenticated)
    # With the token it may well come by the listener for certificates.
    answer = await stub.IssueServiceCertificate(request, metadata=bearer(JOIN_TOKENS["hub"]))
    assert "spiffe://sis/service/hub" in names(answer.certificate.certificate_chain)


@pytest.mark.parametrize(
    "name", ["queue", "Credentials", "gateway", "*.example.com", "a b", "-a.b", "", "a..b", "x" * 64, "1.2.3.4/8"]
)
async def test_a_service_gets_no_name_that_is_not_its_own(suite: Suite, name: str) -> None:
    request = pb.IssueServiceCertificateRequest(csr=csr(), host_names=["hub.example.com", name])
    metadata = bearer(JOIN_TOKENS["hub"])
    error = await refused(suite.joiners.IssueServiceCertificate(request, metadata=metadata))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["host_names[1]"]


async def test_its_own_name_may_be_among_them(suite: Suite) -> None:
    request = pb.IssueServiceCertificateRequest(csr=csr(), host_names=["hub", "::1", "localhost"])
    answer = await suite.joiners.IssueServiceCertificate(request, metadata=bearer(JOIN_TOKENS["hub"]))
    assert names(answer.certificate.certificate_chain) == {"spiffe://sis/service/hub", "hub", "::1", "localhost"}


async def test_the_watch_begins_with_everything(suite: Suite) -> None:
    hub = suite.identity("hub")
    await hub.ready()
    stub, side = suite.peer(hub), AgentSide()
    await stub.EnrolAgent(side.enrolment_request(await suite.pair()))
    watch = stub.WatchRevocations(pb.WatchRevocationsRequest())
    first = await asyncio.wait_for(watch.read(), 10)
    assert (list(first.revocations), first.complete) == ([], True)
    request = identity_pb.RevokeAgentRequest(name=suite.rig.name, reason="stolen")
    answer = await suite.people.RevokeAgent(request, metadata=bearer(ADMIN))
    assert answer.identity.revoked
    assert (answer.identity.revoker, answer.identity.revoke_reason) == ("administrator", "stolen")
    second = await asyncio.wait_for(watch.read(), 10)
    assert not second.complete
    (revocation,) = second.revocations
    assert (revocation.serial, revocation.agent) == (answer.identity.serial, suite.rig.name)
    watch.cancel()
    error = await refused(stub.RenewAgentCertificate(side.renewal_request(suite.rig.name, 2)))
    assert error.reason == "AGENT_REVOKED"
    wrong = side.enrolment_request(await suite.pair())
    wrong.mac = bytes(32)
    assert (await refused(stub.EnrolAgent(wrong))).reason == "PAIRING_REFUSED"
    listed = await suite.people.ListAgentIdentities(identity_pb.ListAgentIdentitiesRequest(), metadata=bearer(ADMIN))
    assert [identity.name for identity in listed.identities] == [suite.rig.name]
