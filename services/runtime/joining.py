"""How a server process gets its certificate: from the credential service, by its join token."""

from __future__ import annotations

from services.runtime.channels import refusals, server_channel
from services.runtime.identity import Identity, canonical_host_name
from services.runtime.settings import ServiceSettings
from sis.credentials.v1 import certificate_service_pb2 as pb
from sis.credentials.v1.certificate_service_pb2_grpc import CertificateServiceStub

_SERVER_NAME = "credentials"
_DEADLINE_SECONDS = 15.0


def identity(settings: ServiceSettings, name: str) -> Identity:
    """The identity of the service `name`; nothing is read or sent yet."""

    async def obtain(request: bytes) -> bytes:
        token = settings.join_token_file.read_text(encoding="ascii").strip()
        channel = server_channel(settings.join_endpoint, settings.tls_ca.read_bytes(), server_name=_SERVER_NAME)
        async with channel:
            with refusals():
                response = await CertificateServiceStub(channel).IssueServiceCertificate(
                    pb.IssueServiceCertificateRequest(csr=request, host_names=settings.host_names),
                    metadata=(("authorization", f"Bearer {token}"),),
                    timeout=_DEADLINE_SECONDS,
                )
        return response.certificate.certificate_chain

    names = [canonical_host_name(each) for each in settings.host_names]
    return Identity(settings.identity, settings.tls_ca, obtain, name=name, host_names=names)
