"""AgentIdentityService."""

from __future__ import annotations

from services.credentials.convert import identities as convert
from services.credentials.identities import Identities
from services.runtime.access import current_caller
from services.runtime.fields import to_timestamp
from services.runtime.interceptors import Context
from sis.credentials.v1 import agent_identity_service_pb2, agent_identity_service_pb2_grpc


class AgentIdentityServicer(agent_identity_service_pb2_grpc.AgentIdentityServiceServicer):
    """Adapts AgentIdentityService to `identities`."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def PairAgent(
        self, request: agent_identity_service_pb2.PairAgentRequest, context: Context
    ) -> agent_identity_service_pb2.PairAgentResponse:
        name, group = convert.pair_agent(request)
        code, expires_at = await self._identities.pair(name, group, current_caller().name)
        return agent_identity_service_pb2.PairAgentResponse(code=code, expire_time=to_timestamp(expires_at))

    async def RevokeAgent(
        self, request: agent_identity_service_pb2.RevokeAgentRequest, context: Context
    ) -> agent_identity_service_pb2.RevokeAgentResponse:
        name, reason = convert.revoke_agent(request)
        found = await self._identities.revoke(name, reason, current_caller().name)
        return agent_identity_service_pb2.RevokeAgentResponse(identity=convert.to_identity(found))

    async def ListAgentIdentities(
        self, request: agent_identity_service_pb2.ListAgentIdentitiesRequest, context: Context
    ) -> agent_identity_service_pb2.ListAgentIdentitiesResponse:
        found, token = await self._identities.list_page(convert.page_size(request), request.page_token)
        return agent_identity_service_pb2.ListAgentIdentitiesResponse(
            identities=[convert.to_identity(each) for each in found], next_page_token=token
        )
