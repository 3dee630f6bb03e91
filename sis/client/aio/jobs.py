"""Jobs: `sis.queue.v1.JobService`, as methods. Every one may raise ApiError; those that name a job, with
JOB_NOT_FOUND."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from sis.client.aio.connection import Connection
from sis.client.aio.resuming import OnInterruption, resuming, resuming_bytes, until_begun
from sis.queue.v1 import job_pb2, job_service_pb2_grpc
from sis.queue.v1 import job_service_pb2 as pb


class _Resumable(Protocol):
    resume_token: str


_Request = TypeVar("_Request", bound=_Resumable)
_Response = TypeVar("_Response", bound=_Resumable)


class Jobs:
    """The jobs on the queue."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = job_service_pb2_grpc.JobServiceStub(connection.channel)

    async def create(self, request: pb.CreateJobRequest) -> job_pb2.Job:
        """Put a job on the queue. Without a request id it gets a random one, so that the retries within this
        call make one job; to repeat the call itself safely, choose the id."""
        if not request.request_id:
            named = pb.CreateJobRequest()
            named.CopyFrom(request)
            named.request_id = str(uuid.uuid4())
            request = named
        response = await self._connection.call(self._stub.CreateJob, request)
        return response.job

    async def get(self, job_id: int) -> job_pb2.Job:
        """One job, whole."""
        response = await self._connection.call(self._stub.GetJob, pb.GetJobRequest(job_id=job_id))
        return response.job

    async def list(
        self,
        filter: pb.JobFilter | None = None,
        *,
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> pb.ListJobsResponse:
        """One page of the jobs that match."""
        request = pb.ListJobsRequest(filter=filter, order_by=order_by, page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListJobs, request)

    async def pages(
        self,
        filter: pb.JobFilter | None = None,
        *,
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> AsyncIterator[pb.ListJobsResponse]:
        """All pages from `page_token` on."""
        while True:
            page = await self.list(filter, order_by=order_by, page_size=page_size, page_token=page_token)
            yield page
            page_token = page.next_page_token
            if not page_token:
                return

    def watch(
        self,
        filter: pb.JobFilter | None = None,
        resume_token: str = "",
        *,
        on_interruption: OnInterruption | None = None,
    ) -> AsyncGenerator[pb.WatchJobsResponse]:
        """Which jobs change, from `resume_token` on (a list's `watch_token`), until it is closed. A broken connection
        is tried again for a minute before it is an error, and nothing is lost by it.

        Raises:
            ResumeExpired: what came after the token is not known any more: list again.
        """
        request = pb.WatchJobsRequest(filter=filter, resume_token=resume_token)
        return self._follow(self._stub.WatchJobs, request, on_interruption)

    def export(
        self,
        filter: pb.JobFilter | None = None,
        job_ids: Sequence[int] = (),
        include_logs: bool = False,
        resume_token: str = "",
        *,
        on_interruption: OnInterruption | None = None,
    ) -> AsyncGenerator[pb.ExportJobsResponse]:
        """Jobs with their histories, by ascending id. After a broken connection, which is tried again for a minute, the
        job that it cut off begins anew with its `job`: drop what came of it before."""
        request = pb.ExportJobsRequest(
            filter=filter, job_ids=job_ids, include_logs=include_logs, resume_token=resume_token
        )
        return self._follow(self._stub.ExportJobs, request, on_interruption)

    def apply(
        self,
        verb: job_pb2.JobVerb.ValueType,
        *,
        job_ids: Sequence[int] = (),
        filter: pb.JobFilter | None = None,
        expected_count: int | None = None,
        validate_only: bool = False,
        reason: str = "",
        request_id: str = "",
        force: bool = False,
    ) -> AsyncGenerator[pb.ApplyVerbResponse]:
        """Do the same to many jobs, as this is iterated: how many they are, then the result for each
        (`sis.client.from_status` makes an ApiError of why one was refused). Closing it early ends the call.

        It is not repeated when the connection breaks: some of what was not answered for may have been done. A rerun
        without a request id gets a random one."""
        if verb == job_pb2.JOB_VERB_RERUN and not validate_only:
            request_id = request_id or str(uuid.uuid4())
        request = pb.ApplyVerbRequest(
            verb=verb,
            job_ids=job_ids,
            filter=filter,
            expected_count=expected_count,
            validate_only=validate_only,
            reason=reason,
            request_id=request_id,
            force=force,
        )
        return self._connection.stream(self._stub.ApplyVerb, request)

    async def explain(self, job_id: int) -> pb.ExplainJobResponse:
        """Why a job waits."""
        return await self._connection.call(self._stub.ExplainJob, pb.ExplainJobRequest(job_id=job_id))

    async def rerun(self, job_id: int, request_id: str = "", reason: str = "") -> job_pb2.Job:
        """Put a job on the queue that repeats one that has ended: the new one. The request id as with `create`."""
        request = pb.RerunJobRequest(job_id=job_id, request_id=request_id or str(uuid.uuid4()), reason=reason)
        response = await self._connection.call(self._stub.RerunJob, request)
        return response.job

    async def copy(self, job_id: int) -> pb.CreateJobRequest:
        """The request that would create the job again; nothing is made."""
        response = await self._connection.call(self._stub.CopyJob, pb.CopyJobRequest(job_id=job_id))
        return response.request

    def monitor(
        self, job_id: int, resume_token: str = "", *, tail_bytes: int = 0, on_interruption: OnInterruption | None = None
    ) -> AsyncGenerator[pb.MonitorJobResponse]:
        """Follow a job until it has ended and its log is sealed; with `tail_bytes`, and no token, from the last frames
        that are there on, of so many bytes. A broken connection is tried again for a minute before it is an error;
        nothing is lost by it, and only the snapshot of the job is repeated."""
        request = pb.MonitorJobRequest(job_id=job_id, resume_token=resume_token, tail_bytes=tail_bytes)
        return self._follow(self._stub.MonitorJob, request, on_interruption)

    async def read_log(
        self,
        job_id: int,
        *,
        first_sequence: int | None = None,
        before_sequence: int | None = None,
        time: Timestamp | None = None,
        max_bytes: int = 0,
    ) -> pb.ReadLogResponse:
        """Consecutive frames of the log of the current attempt: from one on, those before one, or from a time on;
        without any of the three, from the beginning.

        Raises:
            ValueError: more than one of the three is given.
        """
        if sum(place is not None for place in (first_sequence, before_sequence, time)) > 1:
            raise ValueError("give one of first_sequence, before_sequence and time")
        request = pb.ReadLogRequest(job_id=job_id, time=time, max_bytes=max_bytes)
        if first_sequence is not None:
            request.first_sequence = first_sequence
        if before_sequence is not None:
            request.before_sequence = before_sequence
        return await self._connection.call(self._stub.ReadLog, request)

    async def search_log(self, job_id: int, text: str, first_sequence: int = 0) -> AsyncIterator[pb.LogMatch]:
        """The lines of the log of the current attempt in which a text occurs, in any case, in the frames from one on:
        all that are there when the end is reached. A part of the log is searched at a time, as this is iterated."""
        while True:
            request = pb.SearchLogRequest(job_id=job_id, text=text, first_sequence=first_sequence)
            part = await self._connection.call(self._stub.SearchLog, request)
            for match in part.matches:
                yield match
            first_sequence = part.next_sequence
            if not first_sequence:
                return

    def output(
        self, job_id: int, offset: int = 0, length: int = 0, *, on_interruption: OnInterruption | None = None
    ) -> AsyncGenerator[pb.GetConsoleOutputResponse]:
        """The summary of the log, then what the payload wrote, as far as it is committed: from `offset` on, `length`
        bytes of it (0 for all). A broken connection is tried again for a minute; each byte comes once."""

        def open_stream(offset: int, length: int) -> AsyncGenerator[pb.GetConsoleOutputResponse]:
            request = pb.GetConsoleOutputRequest(job_id=job_id, offset=offset, length=length)
            return self._connection.stream(self._stub.GetConsoleOutput, request)

        return resuming_bytes(
            open_stream,
            lambda response: len(response.chunk.data),
            offset,
            length,
            on_interruption=on_interruption,
        )

    def debug_log(
        self, job_id: int, view: pb.DebugLogView.ValueType = pb.DEBUG_LOG_VIEW_STANDARD
    ) -> AsyncGenerator[pb.GetDebugLogResponse]:
        """The log of all attempts and the history, merged by time. A connection that breaks before the first of it is
        tried again for a minute."""
        request = pb.GetDebugLogRequest(job_id=job_id, view=view)
        return until_begun(lambda: self._connection.stream(self._stub.GetDebugLog, request))

    async def history(self, job_id: int) -> AsyncIterator[job_pb2.HistoryEntry]:
        """Who did what to the job, oldest first."""
        token = ""
        while True:
            request = pb.ListJobHistoryRequest(job_id=job_id, page_token=token)
            page = await self._connection.call(self._stub.ListJobHistory, request)
            for entry in page.entries:
                yield entry
            token = page.next_page_token
            if not token:
                return

    async def activate(self, job_id: int, reason: str = "") -> job_pb2.Job:
        """Release a deferred job now. Safe to retry."""
        request = pb.ActivateJobRequest(job_id=job_id, reason=reason)
        response = await self._connection.call(self._stub.ActivateJob, request)
        return response.job

    async def cancel(self, job_id: int, reason: str = "") -> job_pb2.Job:
        """End a job gracefully. Safe to retry."""
        request = pb.CancelJobRequest(job_id=job_id, reason=reason)
        response = await self._connection.call(self._stub.CancelJob, request)
        return response.job

    async def abort(self, job_id: int, reason: str = "", *, force: bool = False) -> job_pb2.Job:
        """End a job by force; with `force`, also let go of one whose agent is gone. Safe to retry."""
        request = pb.AbortJobRequest(job_id=job_id, reason=reason, force=force)
        response = await self._connection.call(self._stub.AbortJob, request)
        return response.job

    async def delete(self, job_id: int, reason: str = "") -> None:
        """Hide a job for good. The second time it is JOB_NOT_FOUND, which says who deleted it, when and why."""
        await self._connection.call(self._stub.DeleteJob, pb.DeleteJobRequest(job_id=job_id, reason=reason))

    def _follow(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[_Request, _Response],
        request: _Request,
        on_interruption: OnInterruption | None,
    ) -> AsyncGenerator[_Response]:
        """The responses of a stream that goes on behind the last token that it gave."""

        def note(response: _Response) -> None:
            request.resume_token = response.resume_token or request.resume_token

        return resuming(lambda: self._connection.stream(method, request), note, on_interruption=on_interruption)
