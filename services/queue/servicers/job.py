"""JobService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from services.queue import jobs, listing, logs
from services.queue.convert import jobs as convert
from services.queue.model import Actor, HistoryEntry
from services.queue.wakes import Wakes
from services.runtime import paging
from services.runtime.access import current_caller
from services.runtime.database import Database
from services.runtime.interceptors import Context
from sis.queue.v1 import frame_pb2, job_service_pb2, job_service_pb2_grpc


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Adapts JobService to `jobs` and `logs`."""

    def __init__(self, database: Database, wakes: Wakes) -> None:
        self._database = database
        self._wakes = wakes

    async def CreateJob(
        self, request: job_service_pb2.CreateJobRequest, context: Context
    ) -> job_service_pb2.CreateJobResponse:
        command = convert.create_job(request)
        async with self._database.begin() as connection:
            view = await jobs.create(connection, command, _actor())
        return job_service_pb2.CreateJobResponse(job=convert.to_job(view))

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: Context) -> job_service_pb2.GetJobResponse:
        job_id = convert.job_id(request.job_id)
        async with self._database.begin() as connection:
            view = await jobs.get(connection, job_id)
        return job_service_pb2.GetJobResponse(job=convert.to_job(view))

    async def ListJobs(
        self, request: job_service_pb2.ListJobsRequest, context: Context
    ) -> job_service_pb2.ListJobsResponse:
        query = convert.list_jobs(request)
        async with self._database.begin() as connection:
            page = await listing.list_page(connection, query)
        return convert.to_page(page)

    async def MonitorJob(
        self, request: job_service_pb2.MonitorJobRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.MonitorJobResponse]:
        job_id = convert.job_id(request.job_id)
        start = logs.from_token(job_id, request.resume_token)
        async with aclosing(logs.monitor(self._database, self._wakes, job_id, start)) as news:
            async for item in news:
                yield convert.to_news(job_id, item)

    async def GetConsoleOutput(
        self, request: job_service_pb2.GetConsoleOutputRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.GetConsoleOutputResponse]:
        job_id = convert.job_id(request.job_id)
        async with self._database.begin() as connection:
            view = await jobs.get(connection, job_id)
        yield job_service_pb2.GetConsoleOutputResponse(log=convert.to_log_summary(view))
        async with aclosing(logs.console_output(self._database, job_id)) as parts:
            async for rows in parts:
                for row in rows:
                    chunk = frame_pb2.Frame.FromString(row.body).chunk
                    yield job_service_pb2.GetConsoleOutputResponse(chunk=chunk)

    async def GetDebugLog(
        self, request: job_service_pb2.GetDebugLogRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.GetDebugLogResponse]:
        job_id = convert.job_id(request.job_id)
        view = convert.debug_log_view(request.view)
        async with aclosing(logs.debug_log(self._database, job_id, view)) as parts:
            async for part in parts:
                if isinstance(part, HistoryEntry):
                    yield job_service_pb2.GetDebugLogResponse(history=convert.to_history_entry(part))
                else:
                    yield job_service_pb2.GetDebugLogResponse(frames=convert.to_frames(part))

    async def ListJobHistory(
        self, request: job_service_pb2.ListJobHistoryRequest, context: Context
    ) -> job_service_pb2.ListJobHistoryResponse:
        job_id, size = convert.job_id(request.job_id), convert.history_size(request)
        bound = b"history %d" % job_id
        after = paging.decode(request.page_token, bound, "page_token", (int,))[0] if request.page_token else 0
        assert isinstance(after, int)
        async with self._database.begin() as connection:
            entries = await jobs.history_page(connection, job_id, after, size + 1)
        more = len(entries) > size
        return job_service_pb2.ListJobHistoryResponse(
            entries=[convert.to_history_entry(entry) for entry in entries[:size]],
            next_page_token=paging.encode([entries[size - 1].sequence], bound) if more else "",
        )

    async def ActivateJob(
        self, request: job_service_pb2.ActivateJobRequest, context: Context
    ) -> job_service_pb2.ActivateJobResponse:
        job_id = convert.job_id(request.job_id)
        async with self._database.begin() as connection:
            view = await jobs.activate(connection, job_id, _actor())
        return job_service_pb2.ActivateJobResponse(job=convert.to_job(view))

    async def CancelJob(
        self, request: job_service_pb2.CancelJobRequest, context: Context
    ) -> job_service_pb2.CancelJobResponse:
        job_id, reason = convert.job_id(request.job_id), convert.reason(request.reason)
        async with self._database.begin() as connection:
            view = await jobs.cancel(connection, job_id, _actor(), reason)
        return job_service_pb2.CancelJobResponse(job=convert.to_job(view))

    async def AbortJob(
        self, request: job_service_pb2.AbortJobRequest, context: Context
    ) -> job_service_pb2.AbortJobResponse:
        job_id, reason = convert.job_id(request.job_id), convert.reason(request.reason)
        async with self._database.begin() as connection:
            view = await jobs.abort(connection, job_id, _actor(), reason)
        return job_service_pb2.AbortJobResponse(job=convert.to_job(view))

    async def DeleteJob(
        self, request: job_service_pb2.DeleteJobRequest, context: Context
    ) -> job_service_pb2.DeleteJobResponse:
        job_id = convert.job_id(request.job_id)
        async with self._database.begin() as connection:
            await jobs.delete(connection, job_id, _actor())
        return job_service_pb2.DeleteJobResponse()


def _actor() -> Actor:
    caller = current_caller()
    return Actor(caller.name, caller.origin)
