"""LeaseService."""

from __future__ import annotations

from collections.abc import Callable

from services.credentials.convert import leases as convert
from services.credentials.leases import Leasing
from services.runtime.interceptors import Context
from sis.credentials.v1 import lease_service_pb2 as pb
from sis.credentials.v1 import lease_service_pb2_grpc


class LeaseServicer(lease_service_pb2_grpc.LeaseServiceServicer):
    """Adapts LeaseService to `leases`; `on_job_over` is called when a job has ended."""

    def __init__(self, leasing: Leasing, on_job_over: Callable[[], None]) -> None:
        self._leasing = leasing
        self._on_job_over = on_job_over

    async def TakeLeases(self, request: pb.TakeLeasesRequest, context: Context) -> pb.TakeLeasesResponse:
        answers = await self._leasing.take(convert.take_leases(request))
        return pb.TakeLeasesResponse(results=map(convert.to_result, answers))

    async def EndLeases(self, request: pb.EndLeasesRequest, context: Context) -> pb.EndLeasesResponse:
        ended = convert.end_leases(request)
        await self._leasing.end(ended)
        if any(each.job_over for each in ended):
            self._on_job_over()
        return pb.EndLeasesResponse()
