"""The suite itself, whole: real processes, TLS, a real PostgreSQL with fsync, a process for every job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.figures import Figure, quantiles, rate
from sis.client import Client
from sis.packages import archive
from sis.queue.v1 import job_pb2, job_service_pb2

SAMPLES = 60
JOBS = 5_000
CLIENTS = 16
LINES = 2_000_000
PATIENCE_SECONDS = 300


def push(client: Client) -> None:
    """Bring in the package whose operations are measured."""
    client.packages.push(archive.pack(Path(__file__).parent / "packages" / "bench.noop"))


def latency(client: Client) -> list[Figure]:
    """An idle system: from the return of a create to the agent, and to the payload's first instruction."""
    to_agent, to_supervisor, to_payload = [], [], []
    for _ in range(SAMPLES):
        job = _create(client, "clock")
        returned = time.time()
        frames = list(_frames(client, job.job_id))
        times = {f.notice.text.partition(" started")[0]: f.time.ToMicroseconds() / 1e6 for f in frames}
        clock = b"".join(f.chunk.data for f in frames if f.HasField("chunk"))
        to_agent.append(times["Assignment received"] - returned)
        to_supervisor.append(times["Package processing"] - returned)
        to_payload.append(float(clock.decode().replace(",", ".")) - returned)
    return [
        Figure(
            "create returned -> assignment in the journal of the agent", quantiles(to_agent), "the aim: p50 under 10 ms"
        ),
        Figure("create returned -> supervisor at the agent", quantiles(to_supervisor), "accepted, journalled, forked"),
        Figure("create returned -> payload's first instruction", quantiles(to_payload), "the aim: p50 under 50 ms"),
    ]


def dispatch(client: Client) -> list[Figure]:
    """Jobs that do nothing, created by concurrent clients, each run as a supervised process to its sealed log."""
    created, drained = drain(client, JOBS)
    return [
        Figure(f"create, {CLIENTS} clients", rate(JOBS, created, "jobs"), "while they are dispatched"),
        Figure(f"{JOBS:,} no-op jobs, create to sealed log", rate(JOBS, drained, "jobs"), "a process tree for each"),
    ]


def drain(client: Client, jobs: int) -> tuple[float, float]:
    """The seconds until so many jobs that do nothing were created, and until they had ended."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: _create(client, "nothing"), range(jobs)))
    created = time.perf_counter() - begun
    deadline = time.monotonic() + PATIENCE_SECONDS
    waiting = [job_pb2.RUN_STATE_READY, job_pb2.RUN_STATE_ACTIVE]
    while _count(client, waiting):
        if time.monotonic() > deadline:
            raise SystemExit(f"{_count(client, waiting)} jobs have not ended after {PATIENCE_SECONDS} s")
        time.sleep(0.05)
    return created, time.perf_counter() - begun


def log_lines(client: Client) -> list[Figure]:
    """One payload that prints as fast as it can, and one watcher that reads it live."""
    job = _create(client, "lines", count=str(LINES))
    begun, seen = time.perf_counter(), 0
    for frame in _frames(client, job.job_id):
        seen += frame.chunk.data.count(b"\n")
    seconds = time.perf_counter() - begun
    if seen != LINES:
        raise SystemExit(f"{LINES:,} lines were printed and {seen:,} arrived")
    return [Figure("log lines of 100 bytes, payload to watcher", rate(LINES, seconds, "lines"), "stored on the way")]


def held_job(client: Client) -> job_pb2.Job:
    """A job that nobody runs."""
    request = _request("nothing")
    request.deferred = True
    return client.jobs.create(request)


def _create(client: Client, operation: str, **parameters: str) -> job_pb2.Job:
    return client.jobs.create(_request(operation, **parameters))


def _request(operation: str, **parameters: str) -> job_service_pb2.CreateJobRequest:
    request = job_service_pb2.CreateJobRequest(
        display_name=f"bench {operation}",
        type=job_pb2.JOB_TYPE_PACKAGE,
        package=job_pb2.PackageReference(name="bench.noop"),
        operation=operation,
        site_target=job_pb2.SiteTarget(group="local"),
    )
    for name, value in parameters.items():
        request.parameters[name].plain = value
    return request


def _frames(client: Client, job_id: int) -> Iterator[object]:
    for response in client.jobs.monitor(job_id):
        yield from response.frames.frames


def _count(client: Client, run_states: list[job_pb2.RunState.ValueType]) -> int:
    return client.jobs.list(filter=job_service_pb2.JobFilter(run_states=run_states), page_size=1).total_size
