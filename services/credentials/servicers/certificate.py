"""CertificateService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from services.credentials.certificates import ServiceCertificates
from services.credentials.convert import identities as convert
from services.credentials.identities import Identities
from services.credentials.revocations import Revocations
from services.runtime.access import current_caller
from services.runtime.interceptors import Context
from sis.credentials.v1 import certificate_service_pb2, certificate_service_pb2_grpc


class CertificateServicer(certificate_service_pb2_grpc.CertificateServiceServicer):
    """Adapts CertificateService to `identities`, `certificates` and `revocations`."""

    def __init__(self, identities: Identities, services: ServiceCertificates, revocations: Revocations) -> None:
        self._identities = identities
        self._services = services
        self._revocations = revocations

    async def IssueServiceCertificate(
        self, request: certificate_service_pb2.IssueServiceCertificateRequest, context: Context
    ) -> certificate_service_pb2.IssueServiceCertificateResponse:
        service = current_caller().name
        csr, host_names = convert.issue_service_certificate(request, service)
        issued = await self._services.issue(service, csr, host_names)
        return certificate_service_pb2.IssueServiceCertificateResponse(certificate=convert.to_certificate(issued))

    async def EnrolAgent(
        self, request: certificate_service_pb2.EnrolAgentRequest, context: Context
    ) -> certificate_service_pb2.EnrolAgentResponse:
        issued, enrolled = await self._identities.enrol(convert.enrol_agent(request))
        return certificate_service_pb2.EnrolAgentResponse(
            certificate=convert.to_certificate(issued), name=enrolled.agent, group=enrolled.group, mac=enrolled.mac
        )

    async def RenewAgentCertificate(
        self, request: certificate_service_pb2.RenewAgentCertificateRequest, context: Context
    ) -> certificate_service_pb2.RenewAgentCertificateResponse:
        issued = await self._identities.renew(convert.renew_agent(request))
        return certificate_service_pb2.RenewAgentCertificateResponse(certificate=convert.to_certificate(issued))

    async def WatchRevocations(
        self, request: certificate_service_pb2.WatchRevocationsRequest, context: Context
    ) -> AsyncIterator[certificate_service_pb2.WatchRevocationsResponse]:
        complete = True
        async with aclosing(self._revocations.watch()) as news:
            async for found in news:
                yield convert.to_revocations(found, complete=complete)
                complete = False
