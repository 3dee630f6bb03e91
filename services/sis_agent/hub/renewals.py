"""Certificates that agents ask for over their streams."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from services.runtime.errors import Internal, SisError, to_status
from services.sis_agent.hub import convert
from services.sis_agent.hub.credentials_connection import CredentialsConnection
from services.sis_agent.hub.errors import RenewalUnderWay
from services.sis_agent.hub.sessions import Session
from sis.agent.v1 import agent_service_pb2 as stream

_log = logging.getLogger("renewals")


class Renewals:
    """The requests of one session, relayed one at a time, beside everything else that its agent says. The end of the
    block ends what is under way."""

    def __init__(self, connection: CredentialsConnection, session: Session) -> None:
        self._connection = connection
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
            response = await self._connection.renew_agent_certificate(
                convert.certificate_request(self._session.agent, request)
            )
            answer = stream.CertificateAnswer(certificate=response.certificate)
        except SisError as error:
            _log.warning("agent %s gets no certificate: %s", self._session.agent, error.message)
            answer = stream.CertificateAnswer(error=to_status(error))
        except Exception:
            _log.exception("the renewal for agent %s failed", self._session.agent)
            answer = stream.CertificateAnswer(error=to_status(Internal("the hub failed; its log says why")))
        self._session.certify(answer)
