"""Ways to keep logs that are removed with their jobs: one table, as it is, or partitions by ranges of job ids.

`python -m bench.retention`. Both take turns, so that what else the machine does meets both.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from bench.figures import Figure, show
from services.queue.purge import FRAMES as PURGE_FRAMES
from sis.stack import postgres
from sis.stack.postgres import Postgres

JOBS = 2_000
JOB_FRAMES = 20
AT_ONCE = 16
"""Jobs whose frames are reported together."""
RANGE = 50
"""Jobs of a partition."""
ROUNDS = 5
READS = 200
CYCLES = 10
READER_SECONDS = 0.5
PATIENCE_SECONDS = 60.0

SETTINGS = {"autovacuum": "off"}
"""Of its server: it vacuums by itself, when it is due."""

Connection = psycopg.Connection[Any]

_COLUMNS = """
    job_id bigint NOT NULL, attempt integer NOT NULL, sequence bigint NOT NULL, channel smallint NOT NULL,
    severity smallint NOT NULL, at timestamptz NOT NULL, body bytea NOT NULL, output_offset bigint,
    PRIMARY KEY (job_id, attempt, sequence)
"""
_READ = "SELECT attempt, sequence, at, body FROM {} WHERE job_id = %s ORDER BY attempt, sequence LIMIT 2000"


def measure(server: Postgres) -> list[Figure]:
    """What each way costs when frames are written, read and removed, and what is left of the space."""
    server.create_database("logs")
    with server.connect("logs") as connection:
        return [
            *_one_life(server, connection),
            *_churn(connection),
        ]


def _one_life(server: Postgres, connection: Connection) -> list[Figure]:
    connection.execute(f"CREATE TABLE plain ({_COLUMNS})".encode())
    connection.execute(f"CREATE TABLE parted ({_COLUMNS}) PARTITION BY RANGE (job_id)".encode())
    for start in range(0, 2 * JOBS, RANGE):
        connection.execute(
            f"CREATE TABLE parted_{start} PARTITION OF parted FOR VALUES FROM ({start}) TO ({start + RANGE})".encode()
        )
    chance = random.Random(1)
    rates: dict[str, list[float]] = {"plain": [], "parted": []}
    step = JOBS // ROUNDS
    for start in range(0, JOBS, step):
        for table, found in rates.items():
            found.append(step * JOB_FRAMES / _timed(lambda: _insert(connection, table, start, step, chance)))  # noqa: B023
    connection.execute("VACUUM ANALYZE")
    asked = [chance.randrange(JOBS) for _ in range(READS)]
    reads: dict[str, list[float]] = {"plain": [], "parted": []}
    plans: dict[str, list[float]] = {"plain": [], "parted": []}
    for job_id in asked:
        for table in reads:
            query = _READ.format(table).encode()
            reads[table].append(_timed(lambda: connection.execute(query, [job_id]).fetchall()))  # noqa: B023
            plan = connection.execute(b"EXPLAIN (SUMMARY) " + query, [job_id]).fetchall()
            plans[table].append(float(plan[-1][0].split()[-2]))
    inserted = _medians(rates)
    read, planned = _medians(reads), _medians(plans)
    third = JOBS // 3 // RANGE * RANGE
    deleted, delete_wal = _cost(connection, lambda: _delete(connection, "plain", range(third)))
    vacuumed, vacuum_wal = _cost(connection, lambda: connection.execute("VACUUM plain"))
    dropped, drop_wal = _cost(connection, lambda: _drop(connection, third))
    waited = _behind_a_reader(server, connection, third)
    partitions = 2 * JOBS // RANGE
    return [
        Figure(
            "frames written as reports write them, plain / partitioned",
            f"{inserted['plain']:,.0f} / {inserted['parted']:,.0f} a second",
            f"ratio {statistics.median(p / q for p, q in zip(rates['parted'], rates['plain'], strict=True)):.2f}",
        ),
        Figure(
            "the log of one job is read, plain / partitioned",
            f"{read['plain'] * 1000:.2f} / {read['parted'] * 1000:.2f} ms",
            f"planned in {planned['plain']:.3f} / {planned['parted']:.3f} ms with {partitions} partitions",
        ),
        Figure(
            f"the oldest third, {third * JOB_FRAMES:,} frames, deleted in parts",
            f"{deleted:.2f} s, {delete_wal / 1e6:,.1f} MB of WAL",
            f"VACUUM {vacuumed:.2f} s, {vacuum_wal / 1e6:,.1f} MB",
        ),
        Figure(
            "the same, dropped as partitions",
            f"{dropped:.3f} s, {drop_wal / 1e6:,.2f} MB of WAL",
            "possible only where no job of a range is kept",
        ),
        Figure(
            f"a report while a partition is dropped behind a reader of {READER_SECONDS} s",
            f"waits {waited:.2f} s",
            "the drop locks the whole table",
        ),
    ]


def _churn(connection: Connection) -> list[Figure]:
    """A fifth of the jobs leaves and as many come, again and again, vacuumed as autovacuum does it at two settings."""
    figures = []
    for share in (0.2, 0.05, 0.02):
        chance = random.Random(2)
        connection.execute(f"DROP TABLE IF EXISTS churned; CREATE TABLE churned ({_COLUMNS})".encode())
        _insert(connection, "churned", 0, JOBS, chance)
        connection.execute("VACUUM churned")
        fresh = _size(connection, "churned")
        part, dead, passes, vacuuming = JOBS // 50, 0, 0, 0.0
        for start in range(0, CYCLES * JOBS // 5, part):
            _delete(connection, "churned", range(start, start + part))
            _insert(connection, "churned", JOBS + start, part, chance)
            dead += part
            if dead > share * JOBS:
                vacuuming += _timed(lambda: connection.execute("VACUUM churned"))
                passes, dead = passes + 1, 0
        figures.append(
            Figure(
                f"after {CYCLES / 5:.1f} turnovers, vacuumed at {share:.0%} dead",
                f"{_size(connection, 'churned') / fresh:.2f} x the size of what is live",
                f"{passes} VACUUMs, {vacuuming:.2f} s in all",
            )
        )
    return figures


def _insert(connection: Connection, table: str, first: int, count: int, chance: random.Random) -> None:
    """Frames of jobs, AT_ONCE of which run at the same time, four of each in a transaction."""
    copy_in = f"COPY {table} FROM STDIN (FORMAT BINARY)".encode()
    now = datetime.now(UTC)
    for start in range(first, first + count, AT_ONCE):
        running = range(start, min(start + AT_ONCE, first + count))
        for sequence in range(1, JOB_FRAMES, 4):
            with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
                copy.set_types(["int8", "int4", "int8", "int2", "int2", "timestamptz", "bytea", "int8"])
                for job_id in running:
                    for number in range(sequence, sequence + 4):
                        size = 8_000 if chance.random() < 0.25 else 400
                        copy.write_row((job_id, 1, number, 1, 1, now, chance.randbytes(size), 0))


def _delete(connection: Connection, table: str, job_ids: range) -> None:
    """As a purge does it."""
    statement = f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table} WHERE job_id >= %s AND job_id < %s ORDER BY job_id, attempt, sequence LIMIT %s))
    """.encode()
    start = job_ids.start
    while start < job_ids.stop:
        stop = min(start + PURGE_FRAMES // JOB_FRAMES, job_ids.stop)
        connection.execute(statement, [start, stop, PURGE_FRAMES])
        start = stop


def _drop(connection: Connection, end: int) -> None:
    for start in range(0, end, RANGE):
        connection.execute(f"DROP TABLE parted_{start}".encode())


def _behind_a_reader(server: Postgres, connection: Connection, start: int) -> float:
    """How long a report waits for the lock that a drop waits for, because somebody reads a log."""
    with server.connect("logs") as reader, server.connect("logs") as dropper:
        reader.autocommit = False
        reader.execute(_READ.format("parted").encode(), [start + RANGE]).fetchall()
        dropping = threading.Thread(target=dropper.execute, args=(f"DROP TABLE parted_{start}".encode(),))
        dropping.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchall()[0][0]:
            if time.monotonic() > deadline:
                raise SystemExit("a partition is dropped although somebody reads it")
            time.sleep(0.001)
        ending = threading.Timer(READER_SECONDS, reader.commit)
        ending.start()
        waited = _timed(lambda: _insert(connection, "parted", 2 * JOBS - 1, 1, random.Random(3)))
        ending.join()
        dropping.join()
        return waited


def _timed(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _cost(connection: Connection, act: Callable[[], object]) -> tuple[float, int]:
    """Seconds and bytes of WAL."""
    before = _wal(connection)
    seconds = _timed(act)
    return seconds, _wal(connection) - before


def _wal(connection: Connection) -> int:
    query = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
    return int(connection.execute(query).fetchall()[0][0])


def _size(connection: Connection, table: str) -> int:
    return int(connection.execute("SELECT pg_total_relation_size(%s)", [table]).fetchall()[0][0])


def _medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}{'  (others are at work: trust ratios only)' if load > 0.5 else ''}")
    with (
        tempfile.TemporaryDirectory(prefix="sis-bench-") as name,
        postgres.running(Path(name) / "postgres", SETTINGS) as server,
    ):
        show("Retention", measure(server))


if __name__ == "__main__":
    main()
