"""AgentService, EnrolmentService and AgentAdminService: convert, one call, convert back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

from services.runtime.access import current_caller
from services.runtime.database import Database
from services.runtime.errors import PermissionDenied
from services.runtime.interceptors import Context
from services.sis_agent.hub import convert, registry
from services.sis_agent.hub.certificates import AgentCertificate
from services.sis_agent.hub.chains import Chains
from services.sis_agent.hub.credentials_connection import CredentialsConnection
from services.sis_agent.hub.queue_connection import QueueConnection
from services.sis_agent.hub.renewals import Certifier
from services.sis_agent.hub.revocations import Revocations
from services.sis_agent.hub.streams import LAST_WORD_SECONDS, Streams
from sis.agent.v1 import agent_admin_service_pb2 as admin
from sis.agent.v1 import agent_admin_service_pb2_grpc as admin_rpc
from sis.agent.v1 import agent_service_pb2 as stream
from sis.agent.v1 import agent_service_pb2_grpc as rpc
from sis.agent.v1 import enrolment_service_pb2 as enrolment
from sis.agent.v1 import enrolment_service_pb2_grpc as enrolment_rpc
from sis.queue.v1 import dispatch_service_pb2 as queue


class AgentServicer(rpc.AgentServiceServicer):
    """Adapts AgentService to `streams` and the queue's archives."""

    def __init__(self, streams: Streams, chains: Chains, revocations: Revocations, connection: QueueConnection) -> None:
        self._streams = streams
        self._chains = chains
        self._revocations = revocations
        self._connection = connection

    # Typed as if it had to yield; it writes instead, because a write can be given up, and what is yielded cannot.
    async def Connect(  # type: ignore[override]
        self, request_iterator: AsyncIterator[stream.ConnectRequest], context: Context
    ) -> None:
        caller = current_caller()
        agent = queue.AgentIdentity(name=caller.name, group=caller.group)
        session = await self._streams.open(agent, AgentCertificate.parse(caller.certificate), request_iterator)
        call = asyncio.current_task()
        try:
            # Now, since a status cannot bring it along behind a first message whose write was given up.
            await context.send_initial_metadata(())
            await self._streams.converse(session, request_iterator, context.write)
        except PermissionDenied:
            # The status is sent behind what the agent has left unread. That it gets there is not waited for.
            if call is not None:
                asyncio.get_running_loop().call_later(LAST_WORD_SECONDS, call.cancel)
            raise
        finally:
            session.close()

    async def FetchPackage(
        self, request: stream.FetchPackageRequest, context: Context
    ) -> AsyncIterator[stream.FetchPackageResponse]:
        caller = current_caller()
        certificate = AgentCertificate.parse(caller.certificate)
        self._revocations.check(caller.name, certificate)
        if not self._chains.connected(caller.name, certificate.key_sha256):
            await self._chains.check(caller.name, certificate.key_sha256)
        digest, offset = convert.fetch_package(request)
        async with aclosing(self._connection.package_archive(digest, offset)) as chunks:
            async for chunk in chunks:
                yield stream.FetchPackageResponse(chunk=chunk.chunk, size_bytes=chunk.size_bytes)


class EnrolmentServicer(enrolment_rpc.EnrolmentServiceServicer):
    """Relays EnrolmentService to the credential service."""

    def __init__(
        self, connection: CredentialsConnection, certifier: Certifier, agent_endpoints: Callable[[], Sequence[str]]
    ) -> None:
        self._connection = connection
        self._certifier = certifier
        self._agent_endpoints = agent_endpoints

    async def Enrol(self, request: enrolment.EnrolRequest, context: Context) -> enrolment.EnrolResponse:
        response = await self._connection.enrol_agent(convert.enrol(request, current_caller().origin))
        return enrolment.EnrolResponse(
            certificate=response.certificate,
            name=response.name,
            group=response.group,
            mac=response.mac,
            agent_endpoints=self._agent_endpoints(),
        )

    async def Rejoin(self, request: enrolment.RejoinRequest, context: Context) -> enrolment.RejoinResponse:
        certificate = await self._certifier.certify(convert.rejoin(request))
        return enrolment.RejoinResponse(certificate=certificate, agent_endpoints=self._agent_endpoints())


class AgentAdminServicer(admin_rpc.AgentAdminServiceServicer):
    """Adapts AgentAdminService to `registry`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListAgents(self, request: admin.ListAgentsRequest, context: Context) -> admin.ListAgentsResponse:
        query = convert.list_agents(request)
        async with self._database.begin() as connection:
            agents, more = await registry.list_agents(connection, query)
        return admin.ListAgentsResponse(
            agents=map(convert.agent_to_proto, agents),
            next_page_token=convert.page_token(agents[-1].name, query.agent_group) if more else "",
        )

    async def GetAgent(self, request: admin.GetAgentRequest, context: Context) -> admin.GetAgentResponse:
        name = convert.agent_name(request)
        async with self._database.begin() as connection:
            agent = await registry.get_agent(connection, name)
        return admin.GetAgentResponse(agent=convert.agent_to_proto(agent))
