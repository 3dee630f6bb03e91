"""What people do to jobs, and what those see who follow one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sis.client import ApiError, AsyncClient, Client
from sis.queue.v1 import frame_pb2, job_pb2, job_service_pb2
from tests.acceptance.lifecycle.model import Violation
from tests.acceptance.lifecycle.rulebook import DONE
from tests.support.promises import Row

VERBS = ("ACTIVATE", "CANCEL", "ABORT", "DELETE", "FORCE", "RERUN")
"""What people ask for; FORCE is an abort by force."""
WHY = "because of the model"


def answer(call: Callable[[], Any]) -> tuple[str | None, Any]:
    """The reason of a call's refusal, "" when it was done, None when nobody knows; and what it gave."""
    try:
        return DONE, call()
    except ApiError as error:
        return (error.reason or None), error


def verb(client: Client, name: str, job_id: int) -> Callable[[], Any]:
    """One of VERBS, as a call."""
    jobs = client.jobs
    return {
        "ACTIVATE": lambda: jobs.activate(job_id, WHY),
        "CANCEL": lambda: jobs.cancel(job_id, WHY),
        "ABORT": lambda: jobs.abort(job_id, WHY),
        "FORCE": lambda: jobs.abort(job_id, WHY, force=True),
        "DELETE": lambda: jobs.delete(job_id, WHY),
        "RERUN": lambda: jobs.rerun(job_id, reason=WHY),
    }[name]


def status(job: job_pb2.Job) -> str:
    """Its status, without the prefix."""
    return _status(job.status)


def _status(status: job_pb2.JobStatus) -> str:
    return job_pb2.JobStatus.Name(status).removeprefix("JOB_STATUS_")


def stop_state(job: job_pb2.Job) -> str:
    return job_pb2.StopState.Name(job.stop_state).removeprefix("STOP_STATE_")


Told = tuple[int, datetime, str | None, str, str, str, str, str, int]
"""An entry of a history: sequence, time, from and to which status, event, actor, origin, message, attempt."""


def told(entry: job_pb2.HistoryEntry) -> Told:
    """As it was shown."""
    before = _status(entry.from_status)
    return (
        entry.sequence, entry.time.ToDatetime(UTC), None if before == "UNSPECIFIED" else before,
        _status(entry.to_status), entry.event, entry.actor, entry.origin, entry.message, entry.attempt,
    )  # fmt: skip


def recorded(row: Row) -> Told:
    """As it is in its row."""
    return (
        row["sequence"], row["at"], row["from_status"], row["to_status"], row["event"], row["actor"], row["origin"],
        row["message"], row["attempt"],
    )  # fmt: skip


class Watcher:
    """Follows one job from its beginning; may be cut off and go on, with any queue, from its last token."""

    def __init__(self, job_id: int) -> None:
        self.job_id = job_id
        self.history: list[job_pb2.HistoryEntry] = []
        self.frames: defaultdict[int, list[frame_pb2.Frame]] = defaultdict(list)
        self.over = False
        self.deleted = False
        self.failure: BaseException | None = None
        self._token = ""
        self._task: asyncio.Task[None] | None = None

    async def follow(self, client: AsyncClient) -> None:
        """Go on with this client, also behind the end: people may have asked for more since."""
        await self.cut()
        if not self.deleted:
            self._task = asyncio.create_task(self._follow(client))

    async def cut(self) -> None:
        """Be cut off."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def ended(self) -> None:
        """Wait for the end of what is followed."""
        if self._task is not None:
            await asyncio.wait_for(self._task, 20)

    async def _follow(self, client: AsyncClient) -> None:
        try:
            async with contextlib.aclosing(client.jobs.monitor(self.job_id, self._token)) as responses:
                async for response in responses:
                    self._take(response)
            self.over = True
        except ApiError as error:
            self.over = self.deleted = error.reason == "JOB_NOT_FOUND"
            if not self.over and not error.passing:
                self.failure = error
        except Violation as error:
            self.failure = error

    def _take(self, response: job_service_pb2.MonitorJobResponse) -> None:
        self._token = response.resume_token
        match response.WhichOneof("content"):
            case "history":
                self._next(len(self.history), response.history.sequence, "history")
                self.history.append(response.history)
            case "frames":
                seen = self.frames[response.frames.attempt]
                for frame in response.frames.frames:
                    self._next(len(seen), frame.sequence, f"attempt {response.frames.attempt}")
                    seen.append(frame)

    def _next(self, before: int, sequence: int, what: str) -> None:
        if sequence != before + 1:
            raise Violation(f"job {self.job_id}: a watcher was shown {what} {sequence} after {before}")
