"""JobService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from services.queue import bulk, creation, excerpts, explanations, exports, jobs, listing, logs, ranges, watching
from services.queue.convert import bulk as convert_bulk
from services.queue.convert import excerpts as convert_excerpts
from services.queue.convert import explanations as convert_explanations
from services.queue.convert import exports as convert_exports
from services.queue.convert import jobs as convert
from services.queue.convert import repeats as convert_repeats
from services.queue.convert import watching as convert_watching
from services.queue.convert.output import to_chunks
from services.queue.creation import Limits
from services.queue.model import Actor, HistoryEntry
from services.queue.ranges import Window
from services.queue.wakes import Wakes
from services.runtime import paging
from services.runtime.access import current_caller
from services.runtime.database import Database
from services.runtime.interceptors import Context
from sis.queue.v1 import job_service_pb2, job_service_pb2_grpc


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Adapts JobService to the operations on jobs."""

    def __init__(self, database: Database, wakes: Wakes, limits: Limits) -> None:
        self._database = database
        self._wakes = wakes
        self._limits = limits

    async def CreateJob(
        self, request: job_service_pb2.CreateJobRequest, context: Context
    ) -> job_service_pb2.CreateJobResponse:
        command = convert.create_job(request, self._limits)
        async with self._database.begin("queue.create") as connection:
            view = await creation.create(connection, command, _actor())
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
            # Before the page, so that nothing falls between the two.
            position = await watching.here(connection)
            page = await listing.list_page(connection, query)
        return convert.to_page(page, convert_watching.to_token(request.filter, position))

    async def WatchJobs(
        self, request: job_service_pb2.WatchJobsRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.WatchJobsResponse]:
        wanted, start = convert_watching.watch_jobs(request)
        async with aclosing(watching.watch(self._database, self._wakes, wanted, start)) as changes:
            async for item in changes:
                yield convert_watching.to_changes(request.filter, item)

    async def ExportJobs(
        self, request: job_service_pb2.ExportJobsRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.ExportJobsResponse]:
        wanted = convert_exports.export_jobs(request)
        async with aclosing(exports.export(self._database, self._wakes, wanted)) as parts:
            async for part in parts:
                yield convert_exports.to_part(request, part)

    async def MonitorJob(
        self, request: job_service_pb2.MonitorJobRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.MonitorJobResponse]:
        job_id = convert.job_id(request.job_id)
        start, tail = logs.from_token(job_id, request.resume_token), convert_excerpts.tail_bytes(request)
        if tail:
            async with self._database.begin() as connection:
                start = await excerpts.tail(connection, job_id, tail)
        async with aclosing(logs.monitor(self._database, self._wakes, job_id, start)) as news:
            async for item in news:
                yield convert.to_news(job_id, item)

    async def ReadLog(
        self, request: job_service_pb2.ReadLogRequest, context: Context
    ) -> job_service_pb2.ReadLogResponse:
        job_id, place, max_bytes = convert_excerpts.read_log(request)
        async with self._database.begin() as connection:
            excerpt = await excerpts.read(connection, job_id, place, max_bytes)
        return convert_excerpts.to_log(excerpt)

    async def SearchLog(
        self, request: job_service_pb2.SearchLogRequest, context: Context
    ) -> job_service_pb2.SearchLogResponse:
        job_id, wanted, first = convert_excerpts.search_log(request)
        findings = await excerpts.search(self._database, job_id, wanted, first, convert_excerpts.feed)
        return convert_excerpts.to_findings(findings)

    async def GetConsoleOutput(
        self, request: job_service_pb2.GetConsoleOutputRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.GetConsoleOutputResponse]:
        job_id = convert.job_id(request.job_id)
        wanted = ranges.requested(request.offset, request.length)
        async with self._database.begin() as connection:
            view = await jobs.get(connection, job_id)
            log = convert.to_log_summary(view)
            count = wanted.count(log.output_bytes)
            first, before = await logs.output_start(connection, view, wanted.offset)
        yield job_service_pb2.GetConsoleOutputResponse(log=log)
        window = Window(wanted.offset - before, count)
        async with aclosing(logs.console_output(self._database, view, first)) as parts:
            async for chunk in to_chunks(parts, window):
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
        job_id, reason = convert.job_id(request.job_id), convert.reason(request.reason)
        async with self._database.begin("queue.activate") as connection:
            view = await jobs.activate(connection, job_id, _actor(), reason)
        return job_service_pb2.ActivateJobResponse(job=convert.to_job(view))

    async def CancelJob(
        self, request: job_service_pb2.CancelJobRequest, context: Context
    ) -> job_service_pb2.CancelJobResponse:
        job_id, reason = convert.job_id(request.job_id), convert.reason(request.reason)
        async with self._database.begin("queue.cancel") as connection:
            view = await jobs.cancel(connection, job_id, _actor(), reason)
        return job_service_pb2.CancelJobResponse(job=convert.to_job(view))

    async def AbortJob(
        self, request: job_service_pb2.AbortJobRequest, context: Context
    ) -> job_service_pb2.AbortJobResponse:
        job_id, reason = convert.job_id(request.job_id), convert.reason(request.reason)
        async with self._database.begin("queue.abort") as connection:
            view = await jobs.abort(connection, job_id, _actor(), reason, force=request.force)
        return job_service_pb2.AbortJobResponse(job=convert.to_job(view))

    async def DeleteJob(
        self, request: job_service_pb2.DeleteJobRequest, context: Context
    ) -> job_service_pb2.DeleteJobResponse:
        job_id, reason = convert.job_id(request.job_id), convert.reason(request.reason)
        async with self._database.begin("queue.delete") as connection:
            await jobs.delete(connection, job_id, _actor(), reason)
        return job_service_pb2.DeleteJobResponse()

    async def RerunJob(
        self, request: job_service_pb2.RerunJobRequest, context: Context
    ) -> job_service_pb2.RerunJobResponse:
        job_id, request_id, reason = convert_repeats.rerun(request)
        async with self._database.begin("queue.rerun") as connection:
            view = await creation.rerun(connection, job_id, request_id, _actor(), reason)
        return job_service_pb2.RerunJobResponse(job=convert.to_job(view))

    async def CopyJob(
        self, request: job_service_pb2.CopyJobRequest, context: Context
    ) -> job_service_pb2.CopyJobResponse:
        job_id = convert.job_id(request.job_id)
        async with self._database.begin() as connection:
            view = await jobs.get(connection, job_id, contents=True)
        return job_service_pb2.CopyJobResponse(request=convert_repeats.to_request(view))

    async def ExplainJob(
        self, request: job_service_pb2.ExplainJobRequest, context: Context
    ) -> job_service_pb2.ExplainJobResponse:
        job_id = convert.job_id(request.job_id)
        async with self._database.begin() as connection:
            found = await explanations.explain(connection, job_id)
        return convert_explanations.to_explanation(found)

    async def ApplyVerb(
        self, request: job_service_pb2.ApplyVerbRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.ApplyVerbResponse]:
        command = convert_bulk.apply_verb(request)
        async with aclosing(bulk.apply(self._database, self._wakes, command, _actor())) as items:
            async for item in items:
                yield convert_bulk.to_response(item)


def _actor() -> Actor:
    caller = current_caller()
    return Actor(caller.name, caller.origin)
