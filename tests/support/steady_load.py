"""A steady load on a stack: jobs that are created at a given rate, each watched by somebody, and proof afterwards that
nothing was lost, doubled or displaced."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sis.client import ApiError
from sis.client.aio import AsyncClient
from sis.queue.v1 import job_pb2
from tests.support.event_source import EventSource
from tests.support.numbered_job import shell_job
from tests.support.stack import Stack

LIST_WATCHERS = 2
EVERY_NTH_OVER_HTTP = 3
"""Which of the jobs are monitored through a gateway; the others are over gRPC."""
END_SECONDS = 60.0
"""For what is under way when no more jobs are created."""

SCRIPT = """
echo "$SIS_JOB_ID $(date +%s.%N)" >> '{starts}'
for i in 1 2 3; do echo "line $i"; sleep 0.1; done
"""
LINES = b"line 1\nline 2\nline 3\n"


@dataclass
class Seen:
    """What one monitor of a job was shown, in the order in which it came."""

    history: list[int] = field(default_factory=list)
    """Sequences of the entries."""
    frames: list[tuple[int, int]] = field(default_factory=list)
    """Attempts and sequences."""


@dataclass
class Outcome:
    """What became of the load."""

    asked: dict[int, float] = field(default_factory=dict)
    """When the creation of each job was asked for, on the clock of the wall."""
    failures: list[str] = field(default_factory=list)
    """Creations and watchers that came to nothing."""
    seen: dict[int, Seen] = field(default_factory=dict)
    listed: list[dict[int, int]] = field(default_factory=list)
    """For each watcher of the list, the last status that it was told of each job."""
    interruptions: int = 0
    """How often a stream broke and went on elsewhere."""
    starts: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """When payloads of each job began, by their own clocks."""

    def latencies(self) -> list[float]:
        """From asking for each job to its payload's first instruction, in seconds."""
        return [self.starts[job_id][0] - asked for job_id, asked in self.asked.items()]

    def check(self, stack: Stack) -> None:
        """Assert that every job was created, ran once to its success, and was shown whole to all who watched."""
        assert not self.failures, self.failures
        assert set(self.starts) == set(self.asked)
        assert Counter(len(times) for times in self.starts.values()) == {1: len(self.asked)}
        with stack.client() as client:
            for job_id in self.asked:
                job = client.jobs.get(job_id)
                assert (job.status, job.attempt) == (job_pb2.JOB_STATUS_SUCCEEDED, 1), job
                assert b"".join(each.chunk.data for each in client.jobs.output(job_id)) == LINES
                entries = [entry.sequence for entry in client.jobs.history(job_id)]
                seen = self.seen[job_id]
                assert seen.history == entries == list(range(1, len(entries) + 1)), (job_id, seen, entries)
                assert seen.frames == [(1, n + 1) for n in range(len(seen.frames))], (job_id, seen)
                assert len(seen.frames) == job.log.frames, (job_id, seen, job.log)
        for listed in self.listed:
            assert {job_id: listed.get(job_id) for job_id in self.asked} == dict.fromkeys(
                self.asked, job_pb2.JOB_STATUS_SUCCEEDED
            )


class SteadyLoad:
    """A load on a stack, from the beginning of the block on until `finish`. `rate` is in jobs a second; each is created
    at its time, however long those before it take."""

    def __init__(self, stack: Stack, directory: Path, *, rate: float) -> None:
        directory.mkdir(exist_ok=True)
        self._stack = stack
        self._starts = directory / "starts"
        self._rate = rate
        self._over = threading.Event()
        self._outcome = Outcome()
        self._failure: BaseException | None = None
        self._shown = asyncio.Event()
        self._readers = ThreadPoolExecutor(64)
        self._thread = threading.Thread(target=self._work, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._starts.touch()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(2 * END_SECONDS)
        self._readers.shutdown(wait=False, cancel_futures=True)

    def created(self) -> int:
        """How many jobs have been created."""
        return len(self._outcome.asked)

    def finish(self) -> Outcome:
        """Create no more, and wait until all have ended and everybody has seen it."""
        self._over.set()
        self._thread.join(2 * END_SECONDS)
        assert not self._thread.is_alive(), "the load does not come to its end"
        if self._failure is not None:
            raise self._failure
        starts: dict[int, list[float]] = {}
        for line in self._starts.read_text().splitlines():
            job_id, at = line.split()
            starts.setdefault(int(job_id), []).append(float(at))
        self._outcome.starts = starts
        return self._outcome

    def _work(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # `finish` raises it
            self._failure = error

    async def _run(self) -> None:
        async with AsyncClient.find(self._stack.data) as client:
            position = (await client.jobs.list(page_size=1)).watch_token
            self._outcome.listed = [{} for _ in range(LIST_WATCHERS)]
            watchers = [asyncio.create_task(self._list(client, position, seen)) for seen in self._outcome.listed]
            jobs = []
            began = time.monotonic()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began + number / self._rate - time.monotonic()))
                if self._over.is_set():
                    break
                jobs.append(asyncio.create_task(self._job(client, number)))
            async with asyncio.timeout(END_SECONDS):
                await asyncio.gather(*jobs)
                while not all(map(self._shows_the_end, self._outcome.listed)):
                    self._shown.clear()
                    await self._shown.wait()
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    def _shows_the_end(self, listed: Mapping[int, int]) -> bool:
        return all(listed.get(job_id) == job_pb2.JOB_STATUS_SUCCEEDED for job_id in self._outcome.asked)

    async def _job(self, client: AsyncClient, number: int) -> None:
        """Create one, and follow it to its end."""
        request = shell_job(
            SCRIPT.replace("{starts}", str(self._starts)), request_id=f"{self._starts.parent.name} {number}"
        )
        asked = time.time()
        try:
            job_id = (await client.jobs.create(request)).job_id
            self._outcome.asked[job_id] = asked
            seen = self._outcome.seen.setdefault(job_id, Seen())
            if number % EVERY_NTH_OVER_HTTP:
                await self._monitor(client, job_id, seen)
            else:
                await asyncio.get_running_loop().run_in_executor(self._readers, self._monitor_over_http, job_id, seen)
        except (ApiError, AssertionError) as error:
            self._outcome.failures.append(f"job {number}: {error}")

    async def _monitor(self, client: AsyncClient, job_id: int, seen: Seen) -> None:
        async for response in client.jobs.monitor(job_id, on_interruption=self._interrupted):
            if response.HasField("history"):
                seen.history.append(response.history.sequence)
            frames = response.frames
            seen.frames += [(frames.attempt, frame.sequence) for frame in frames.frames]

    def _monitor_over_http(self, job_id: int, seen: Seen) -> None:
        urls = [f"http://{each}/v1/jobs/{job_id}:monitor" for each in self._stack.state.gateway_endpoints]
        turn = job_id % len(urls)
        source = EventSource(urls[turn], self._stack.token, *urls[turn + 1 :], *urls[:turn])
        for event in source:
            if event.kind == "failure":  # the stream ends with it, and goes on elsewhere
                continue
            data: dict[str, Any] = event.data
            if "history" in data:
                seen.history.append(int(data["history"]["sequence"]))
            frames = data.get("frames", {})
            seen.frames += [(frames["attempt"], int(frame["sequence"])) for frame in frames.get("frames", ())]
        self._outcome.interruptions += source.connections - 1

    async def _list(self, client: AsyncClient, position: str, seen: dict[int, int]) -> None:
        async for response in client.jobs.watch(resume_token=position, on_interruption=self._interrupted):
            for job in response.jobs:
                seen[job.job_id] = job.status
            self._shown.set()

    def _interrupted(self, _: ApiError) -> None:
        self._outcome.interruptions += 1
