"""Jobs: `sis.queue.v1.JobService`, as methods. Every one may raise ApiError; those that name a job, with
JOB_NOT_FOUND."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

from sis.client.connection import Connection
from sis.client.errors import ApiError
from sis.client.monitor import resuming
from sis.queue.v1 import job_pb2, job_service_pb2_grpc
from sis.queue.v1 import job_service_pb2 as pb


class Jobs:
    """The jobs on the queue."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = job_service_pb2_grpc.JobServiceStub(connection.channel)

    def create(self, request: pb.CreateJobRequest) -> job_pb2.Job:
        """Put a job on the queue. Without a request id it gets a random one, so that the retries within this
        call make one job; to repeat the call itself safely, choose the id."""
        if not request.request_id:
            named = pb.CreateJobRequest()
            named.CopyFrom(request)
            named.request_id = str(uuid.uuid4())
            request = named
        return self._connection.call(self._stub.CreateJob, request).job

    def get(self, job_id: int) -> job_pb2.Job:
        """One job, whole."""
        return self._connection.call(self._stub.GetJob, pb.GetJobRequest(job_id=job_id)).job

    def list(
        self,
        filter: pb.JobFilter | None = None,
        *,
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> pb.ListJobsResponse:
        """One page of the jobs that match."""
        request = pb.ListJobsRequest(filter=filter, order_by=order_by, page_size=page_size, page_token=page_token)
        return self._connection.call(self._stub.ListJobs, request)

    def pages(
        self,
        filter: pb.JobFilter | None = None,
        *,
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> Iterator[pb.ListJobsResponse]:
        """All pages from `page_token` on."""
        while True:
            page = self.list(filter, order_by=order_by, page_size=page_size, page_token=page_token)
            yield page
            page_token = page.next_page_token
            if not page_token:
                return

    def monitor(
        self,
        job_id: int,
        resume_token: str = "",
        *,
        on_interruption: Callable[[ApiError], None] | None = None,
    ) -> Iterator[pb.MonitorJobResponse]:
        """Follow a job until it has ended and its log is sealed. A broken connection is tried again for a
        minute before it is an error; nothing is lost by it, and only the snapshot of the job is repeated."""

        def open_stream(token: str) -> Iterator[pb.MonitorJobResponse]:
            request = pb.MonitorJobRequest(job_id=job_id, resume_token=token)
            return self._connection.stream(self._stub.MonitorJob, request)

        return resuming(open_stream, resume_token, on_interruption=on_interruption)

    def output(self, job_id: int) -> Iterator[pb.GetConsoleOutputResponse]:
        """The summary of the log, then what the payload wrote, as far as it is committed."""
        return self._connection.stream(self._stub.GetConsoleOutput, pb.GetConsoleOutputRequest(job_id=job_id))

    def debug_log(
        self, job_id: int, view: pb.DebugLogView.ValueType = pb.DEBUG_LOG_VIEW_STANDARD
    ) -> Iterator[pb.GetDebugLogResponse]:
        """The log of all attempts and the history, merged by time."""
        return self._connection.stream(self._stub.GetDebugLog, pb.GetDebugLogRequest(job_id=job_id, view=view))

    def history(self, job_id: int) -> Iterator[job_pb2.HistoryEntry]:
        """Who did what to the job, oldest first."""
        token = ""
        while True:
            request = pb.ListJobHistoryRequest(job_id=job_id, page_token=token)
            page = self._connection.call(self._stub.ListJobHistory, request)
            yield from page.entries
            token = page.next_page_token
            if not token:
                return

    def activate(self, job_id: int) -> job_pb2.Job:
        """Release a deferred job now. Safe to retry."""
        return self._connection.call(self._stub.ActivateJob, pb.ActivateJobRequest(job_id=job_id)).job

    def cancel(self, job_id: int, reason: str = "") -> job_pb2.Job:
        """End a job gracefully. Safe to retry."""
        return self._connection.call(self._stub.CancelJob, pb.CancelJobRequest(job_id=job_id, reason=reason)).job

    def abort(self, job_id: int, reason: str = "") -> job_pb2.Job:
        """End a job by force. Safe to retry."""
        return self._connection.call(self._stub.AbortJob, pb.AbortJobRequest(job_id=job_id, reason=reason)).job

    def delete(self, job_id: int) -> None:
        """Hide a job for good. The second time it is JOB_NOT_FOUND."""
        self._connection.call(self._stub.DeleteJob, pb.DeleteJobRequest(job_id=job_id))
