"""Which agents belong to the suite: `sis.credentials.v1.AgentIdentityService`, as methods. Every one may raise
ApiError."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sis.client.aio.connection import Connection
from sis.credentials.v1 import agent_identity_service_pb2 as pb
from sis.credentials.v1 import agent_identity_service_pb2_grpc


class AgentIdentities:
    """The agents as the suite's PKI knows them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = agent_identity_service_pb2_grpc.AgentIdentityServiceStub(connection.channel)

    async def pair(self, name: str, group: str) -> pb.PairAgentResponse:
        """Make a pairing code, good for one agent within an hour. It is a secret."""
        return await self._connection.call(self._stub.PairAgent, pb.PairAgentRequest(name=name, group=group))

    async def revoke(self, name: str, reason: str = "") -> pb.AgentIdentity:
        """Revoke an agent's certificates; its stream is closed at once. Safe to repeat."""
        response = await self._connection.call(self._stub.RevokeAgent, pb.RevokeAgentRequest(name=name, reason=reason))
        return response.identity

    async def all(self) -> AsyncIterator[pb.AgentIdentity]:
        """Every identity, by name."""
        token = ""
        while True:
            request = pb.ListAgentIdentitiesRequest(page_token=token)
            page = await self._connection.call(self._stub.ListAgentIdentities, request)
            for identity in page.identities:
                yield identity
            token = page.next_page_token
            if not token:
                return
