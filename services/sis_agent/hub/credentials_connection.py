"""The hub's side of LeaseService and CertificateService: each call with its deadline, its refusals as this process's
errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from typing import NamedTuple, TypeVar

import grpc

from services.runtime.channels import Peer, refusals
from services.runtime.errors import PermissionDenied, Unauthenticated
from services.runtime.identity import Identity
from services.sis_agent.hub.errors import HubRefused
from sis.credentials.v1 import certificate_service_pb2 as certificates
from sis.credentials.v1 import certificate_service_pb2_grpc as certificates_rpc
from sis.credentials.v1 import lease_service_pb2 as leases
from sis.credentials.v1 import lease_service_pb2_grpc as leases_rpc

TAKE_SECONDS = 8.0

_END_SECONDS = 10.0
_CERTIFY_SECONDS = 15.0

Answer = TypeVar("Answer")


class _Stubs(NamedTuple):
    leases: leases_rpc.LeaseServiceAsyncStub
    certificates: certificates_rpc.CertificateServiceAsyncStub


def _stubs(channel: grpc.aio.Channel) -> _Stubs:
    return _Stubs(leases_rpc.LeaseServiceStub(channel), certificates_rpc.CertificateServiceStub(channel))


class CredentialsConnection:
    """The credential service. Every method raises what it refused with, Unavailable if it does not answer, HubRefused
    if it does not take this hub for one."""

    def __init__(self, target: str, identity: Identity) -> None:
        self._peer = Peer(
            target, identity, _stubs, server_name="credentials", retried=["sis.credentials.v1.LeaseService"]
        )

    async def take_leases(self, request: leases.TakeLeasesRequest) -> leases.TakeLeasesResponse:
        return await _answer(self._peer.stub.leases.TakeLeases(request, timeout=TAKE_SECONDS))

    async def end_leases(self, request: leases.EndLeasesRequest) -> None:
        await _answer(self._peer.stub.leases.EndLeases(request, timeout=_END_SECONDS))

    async def enrol_agent(self, request: certificates.EnrolAgentRequest) -> certificates.EnrolAgentResponse:
        return await _answer(self._peer.stub.certificates.EnrolAgent(request, timeout=_CERTIFY_SECONDS))

    async def renew_agent_certificate(
        self, request: certificates.RenewAgentCertificateRequest
    ) -> certificates.RenewAgentCertificateResponse:
        return await _answer(self._peer.stub.certificates.RenewAgentCertificate(request, timeout=_CERTIFY_SECONDS))

    async def watch_revocations(self) -> AsyncGenerator[certificates.WatchRevocationsResponse]:
        """All revocations, then each new one, for as long as they are sent; a dead connection ends it by keepalive."""
        call = self._peer.stub.certificates.WatchRevocations(certificates.WatchRevocationsRequest())
        try:
            with refusals():
                async for response in call:
                    yield response
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._peer.close()


async def _answer(call: Awaitable[Answer]) -> Answer:
    try:
        with refusals():
            return await call
    except (PermissionDenied, Unauthenticated) as error:
        if error.reason in (PermissionDenied.reason, Unauthenticated.reason):
            raise HubRefused("credential service", error.message) from error
        raise
