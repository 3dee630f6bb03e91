"""What a process says of its health: whether it serves, and what it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from services.runtime.dependencies import Dependency, Trouble
from services.runtime.errors import DOMAIN, Unavailable
from services.runtime.interceptors import Context

WAITS_FOR = "sis-waits-for-bin"
"""Trailing metadata of Health/Check: an ErrorInfo for each dependency that is waited for, with `dependency`, `title`,
`cause` and `words` in its metadata."""


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard health service, which tells with each check what the process waits for. A dependency's name is a
    service too."""

    def __init__(self) -> None:
        super().__init__()
        self._waits: dict[str, tuple[Dependency, Trouble]] = {}
        self._changed = asyncio.Event()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        name = request.service
        found = [self._waits[name]] if name in self._waits else list(self._waits.values())
        context.set_trailing_metadata(tuple((WAITS_FOR, _info(*each).SerializeToString()) for each in found))
        return await super().Check(request, context)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        """As the library does it, which holds a lock while it writes: a watcher that does not read would have every
        change of the status wait for it."""
        told = None
        while True:
            changed = self._changed
            status = self._server_status.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            await changed.wait()

    async def _set(self, service: str, status: Any) -> None:
        self._server_status[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def set_serving(self, serving: bool, services: Sequence[str] = ()) -> None:
        """Whether the process serves, and each of these services of it."""
        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        for service in ("", *services):
            await self.set(service, status)

    async def tell(self, dependency: Dependency, trouble: Trouble | None) -> None:
        """What is wrong with a dependency; None: it serves."""
        if trouble is None:
            self._waits.pop(dependency.name, None)
        else:
            self._waits[dependency.name] = (dependency, trouble)
        status = HealthCheckResponse.SERVING if trouble is None else HealthCheckResponse.NOT_SERVING
        await self.set(dependency.name, status)


def _info(dependency: Dependency, trouble: Trouble) -> ErrorInfo:
    told = {"dependency": dependency.name, "title": dependency.title, "cause": trouble.cause, "words": trouble.words}
    return ErrorInfo(reason=Unavailable.reason, domain=DOMAIN, metadata=told)
