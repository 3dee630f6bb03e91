"""The agents: `sis.agent.v1.AgentAdminService`, as methods. Every one may raise ApiError."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sis.agent.v1 import agent_admin_service_pb2 as pb
from sis.agent.v1 import agent_admin_service_pb2_grpc
from sis.client.aio.connection import Connection


class Agents:
    """The agents that have ever been connected."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = agent_admin_service_pb2_grpc.AgentAdminServiceStub(connection.channel)

    async def list(self, *, group: str = "", page_size: int = 0, page_token: str = "") -> pb.ListAgentsResponse:
        """One page of the agents, by name."""
        request = pb.ListAgentsRequest(group=group, page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListAgents, request)

    async def all(self, *, group: str = "") -> AsyncIterator[pb.Agent]:
        """Every agent (of a group), by name."""
        token = ""
        while True:
            page = await self.list(group=group, page_token=token)
            for agent in page.agents:
                yield agent
            token = page.next_page_token
            if not token:
                return

    async def get(self, name: str) -> pb.Agent:
        """One agent."""
        response = await self._connection.call(self._stub.GetAgent, pb.GetAgentRequest(name=name))
        return response.agent
