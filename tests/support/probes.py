"""What an orchestrator's probe hears."""

from __future__ import annotations

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

SERVING = HealthCheckResponse.SERVING


def heard(address: str, service: str = "") -> int:
    """The status of a service at a plain listener; -1 where nothing answers."""
    with grpc.insecure_channel(address) as channel:
        try:
            return int(HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=5).status)
        except grpc.RpcError:
            return -1
