"""The parts alone: a bare grpc.aio call, a bare SKIP LOCKED drain. Nothing that is built on them can be faster."""

from __future__ import annotations

import asyncio
import time

import grpc
import psycopg
import uvloop

from bench.figures import Figure, quantiles, rate
from sis.stack.postgres import Postgres

CALLS = 3_000
CALLERS = 16
ROWS = 5_000


def grpc_calls() -> list[Figure]:
    """Unary calls of 300 bytes within one process, one caller and sixteen."""
    return uvloop.run(_grpc_calls())


async def _grpc_calls() -> list[Figure]:
    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("bench.Echo", {"Call": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/bench.Echo/Call")
        body = bytes(300)
        singly = []
        for _ in range(CALLS // 3):
            before = time.perf_counter()
            await call(body, timeout=5)
            singly.append(time.perf_counter() - before)

        async def caller() -> None:
            for _ in range(CALLS // CALLERS):
                await call(body, timeout=5)

        before = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        together = time.perf_counter() - before
    await server.stop(0)
    return [
        Figure("grpc.aio unary call, one caller", quantiles(singly), "client and server in one process"),
        Figure(f"grpc.aio unary calls, {CALLERS} callers", rate(CALLS, together, "calls")),
    ]


def skip_locked(postgres: Postgres) -> list[Figure]:
    """A table of rows, claimed and completed by one worker: one at a time, and a hundred at a time."""
    figures = []
    for batch, rows in ((1, ROWS // 5), (100, ROWS)):
        with postgres.connect("postgres") as connection:
            connection.execute("CREATE TEMP TABLE drain (id bigint PRIMARY KEY, state text NOT NULL)")
            connection.execute("INSERT INTO drain SELECT n, 'waiting' FROM generate_series(1, %s) n", [rows])
            connection.execute("CREATE INDEX ON drain (id) WHERE state = 'waiting'")
            before = time.perf_counter()
            while _claim(connection, batch):
                pass
            seconds = time.perf_counter() - before
        figures.append(
            Figure(f"SKIP LOCKED drain, claim then complete, batches of {batch}", rate(rows, seconds, "jobs"))
        )
    return figures


def _claim(connection: psycopg.Connection[tuple[object, ...]], batch: int) -> bool:
    claimed = connection.execute(
        "UPDATE drain SET state = 'running' WHERE id IN (SELECT id FROM drain WHERE state = 'waiting'"
        " ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id",
        [batch],
    ).fetchall()
    connection.execute("UPDATE drain SET state = 'done' WHERE id = ANY(%s)", [[row[0] for row in claimed]])
    return bool(claimed)
