"""The nearest relative: procrastinate, no-op tasks, one worker process; it has no agents, logs or processes."""

from __future__ import annotations

import asyncio
import time

import procrastinate

from bench.figures import Figure, quantiles, rate
from sis.stack.postgres import USER, Postgres

JOBS = 2_000
SAMPLES = 50
CONCURRENCY = 16


def measure(postgres: Postgres) -> list[Figure]:
    """Drain of no-op tasks, and from the return of an enqueueing to the task's first line."""
    postgres.create_database("bench_procrastinate")
    return asyncio.run(_measure(f"host={postgres.sockets} user={USER} dbname=bench_procrastinate"))


async def _measure(conninfo: str) -> list[Figure]:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo))
    begun: dict[int, asyncio.Future[float]] = {}

    @app.task(name="noop")
    async def noop(number: int) -> None:
        if number in begun:
            begun[number].set_result(time.perf_counter())

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await noop.batch_defer_async(*({"number": n} for n in range(JOBS)))
        before = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=CONCURRENCY, install_signal_handlers=False)
        drain = time.perf_counter() - before
        worker = asyncio.create_task(app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False))
        waits = []
        for number in range(JOBS, JOBS + SAMPLES + 5):
            begun[number] = asyncio.get_running_loop().create_future()
            await noop.defer_async(number=number)
            returned = time.perf_counter()
            waits.append(max(0.0, await begun[number] - returned))
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    del waits[:5]  # the worker was only just beginning to listen
    return [
        Figure(f"procrastinate, drain of {JOBS:,} no-op tasks", rate(JOBS, drain, "jobs"), "no process is started"),
        Figure("procrastinate, deferred -> task's first line", quantiles(waits)),
    ]
