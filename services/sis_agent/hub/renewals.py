"""Keys that are certified anew, for agents that ask over their streams or without one."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from services.runtime.errors import Internal, PermissionDenied, SisError, to_status
from services.sis_agent.hub import convert
from services.sis_agent.hub.certificates import requested_key
from services.sis_agent.hub.chains import Chains
from services.sis_agent.hub.credentials_connection import CredentialsConnection
from services.sis_agent.hub.errors import AgentQuarantined, RenewalUnderWay
from services.sis_agent.hub.sessions import Session
from sis.agent.v1 import agent_service_pb2 as stream
from sis.credentials.v1 import certificate_pb2, certificate_service_pb2

_log = logging.getLogger("renewals")


class Certifier:
    """Has the credential service certify a key anew, unless it is in quarantine."""

    def __init__(self, connection: CredentialsConnection, chains: Chains) -> None:
        self._connection = connection
        self._chains = chains

    async def certify(
        self, request: certificate_service_pb2.RenewAgentCertificateRequest
    ) -> certificate_pb2.IssuedCertificate:
        """The new certificate. Safe to retry.

        Raises:
            AgentQuarantined: the key is in quarantine, and its stream closed.
            PermissionDenied: the credential service refuses it; with the reason of AgentQuarantined if it has proof of
                a second holder, then the key has been put into quarantine.
            InvalidArgument: the keys cannot be read.
            SisError: the registry or the credential service does not answer.
        """
        key_sha256 = requested_key(request.keys)
        await self._chains.check(request.agent, key_sha256)
        try:
            return (await self._connection.renew_agent_certificate(request)).certificate
        except PermissionDenied as error:
            if error.reason == AgentQuarantined.reason:
                await self._chains.quarantine(request.agent, key_sha256)
            raise


class Renewals:
    """The requests of one session, relayed one at a time, beside everything else that its agent says. The end of the
    block ends what is under way."""

    def __init__(self, certifier: Certifier, session: Session) -> None:
        self._certifier = certifier
        self._session = session
        self._under_way: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.wait([self._under_way])

    def ask(self, request: stream.CertificateRequest) -> None:
        """Have a request answered; at once, with RenewalUnderWay, while another one is under way."""
        if self._under_way is not None and not self._under_way.done():
            self._session.certify(stream.CertificateAnswer(error=to_status(RenewalUnderWay())))
        else:
            self._under_way = asyncio.create_task(self._renew(request))

    async def _renew(self, request: stream.CertificateRequest) -> None:
        try:
            certificate = await self._certifier.certify(convert.certificate_request(self._session.agent, request))
            answer = stream.CertificateAnswer(certificate=certificate)
        except SisError as error:
            _log.warning("agent %s gets no certificate: %s", self._session.agent, error.message)
            answer = stream.CertificateAnswer(error=to_status(error))
        except Exception:
            _log.exception("the renewal for agent %s failed", self._session.agent)
            answer = stream.CertificateAnswer(error=to_status(Internal("the hub failed; its log says why")))
        self._session.certify(answer)
