"""Calls to a queue as people make them, and what they are refused with."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from grpc_status import rpc_status

from services.runtime.channels import grpc_error
from services.runtime.errors import SisError
from sis.queue.v1 import job_service_pb2_grpc, package_service_pb2_grpc
from tests.support.queue_server import BEARER

SECONDS = 20.0


class Api:
    """The stubs of a channel; every call carries `metadata`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = BEARER) -> None:
        self.jobs: Any = job_service_pb2_grpc.JobServiceStub(channel)
        self.packages: Any = package_service_pb2_grpc.PackageServiceStub(channel)
        self._metadata = metadata

    async def __call__(self, method: Any, request: Any) -> Any:
        """The response, or all responses of a stream."""
        call = method(request, metadata=self._metadata, timeout=SECONDS)
        if isinstance(call, grpc.aio.UnaryStreamCall):
            return [response async for response in call]
        return await call

    def stream(self, method: Any, request: Any) -> Any:
        """A stream, to be read one by one."""
        return method(request, metadata=self._metadata, timeout=SECONDS)


async def refusal(call: Awaitable[Any]) -> SisError:
    """The error that a call ends with, once it is seen to be of the form that AIP-193 asks for."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None, f"no details: {caught.value.details()}"
    assert status.code != code_pb2.INTERNAL, status.message
    for word in ("Traceback", "psycopg", "sqlalchemy", "SELECT", 'File "'):
        assert word not in str(status)
    found = grpc_error(caught.value)
    infos = [d for d in status.details if d.type_url.endswith("google.rpc.ErrorInfo")]
    assert len(infos) == 1 and found.message
    return found


def fields(error: SisError) -> list[str]:
    return [violation.field for violation in error.violations]
