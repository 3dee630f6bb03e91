"""The health service, and those who watch it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from services.runtime.health import Health

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class Reader:
    """A context whose client reads, or does not."""

    def __init__(self, *, reads: bool = True) -> None:
        self.told: asyncio.Queue[int] = asyncio.Queue()
        self._reads = reads

    async def write(self, response: HealthCheckResponse) -> None:
        self.told.put_nowait(response.status)
        if not self._reads:
            await asyncio.Event().wait()


@pytest.mark.parametrize("service", ["", "sis.queue.v1.JobService", "postgresql"])
async def test_a_watcher_that_does_not_read_keeps_nobody_waiting(service: str) -> None:
    health = Health()
    await health.set_serving(True, ["sis.queue.v1.JobService"])
    silent: Any = Reader(reads=False)
    other: Any = Reader()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        watchers: list[asyncio.Task[Any]] = [
            group.create_task(health.Watch(HealthCheckRequest(service=name), context))
            for name, context in ((service, silent), ("", other))
        ]
        await silent.told.get()
        assert await other.told.get() == SERVING
        await health.set_serving(False, ["sis.queue.v1.JobService"])
        assert await other.told.get() == NOT_SERVING
        await health.enter_graceful_shutdown()
        for watcher in watchers:
            watcher.cancel()
