"""The health of a process for an orchestrator whose probes speak no TLS and show no certificate, as Kubernetes' do."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from services.runtime.chain import Chain
from services.runtime.health import Health
from services.runtime.interceptors import Context, layers

LIVENESS: Final = "liveness"
"""The service that is SERVING for as long as the event loop answers, whatever is waited for."""
_MESSAGE_BYTES: Final = 4 * 1024
_IDLE_MS: Final = 60_000

_log = logging.getLogger("probes")


class _Probes(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers one check at a time; there is nothing to watch here, and no list."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        if request.service == LIVENESS:
            return HealthCheckResponse(status=HealthCheckResponse.SERVING)
        return await self._health.Check(request, context)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        raise NotImplementedError

    async def List(self, request: object, context: Context) -> object:
        raise NotImplementedError


@asynccontextmanager
async def probed(listen: str | None) -> AsyncIterator[Health]:
    """The health of this process, NOT_SERVING until somebody says otherwise, which the block tells. While the block
    lasts, `grpc.health.v1.Health/Check` answers with it on the plain listener `listen`; None: nowhere.

    Raises:
        SystemExit: with status 1, the address cannot be bound; the log says so.
    """
    health = Health()
    await health.set_serving(False)
    if listen is None:
        yield health
        return
    server = grpc.aio.server(
        interceptors=[Chain(layers(admin_token_sha256=None, join_tokens={}))],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            ("grpc.so_reuseport", 0),
        ],
    )
    health_pb2_grpc.add_HealthServicer_to_server(_Probes(health), server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        _log.error("cannot listen on %s for probes: is the address in use?", listen)
        raise SystemExit(1) from None
    await server.start()
    _log.info("answers probes", extra={"ports": [port]})
    try:
        yield health
    finally:
        await server.stop(0)
