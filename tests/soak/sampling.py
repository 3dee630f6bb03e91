"""Measures everything that could grow, every few seconds."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from sis.stack.processes import Identity
from tests.soak import proc
from tests.soak.actor import Actor
from tests.soak.ledger import Ledger
from tests.soak.proc import Machine, Process
from tests.soak.samples import Sample, Samples
from tests.support.stack import Stack

TABLES_EVERY = 3
"""Tables are looked at with each third sample: that reads them."""

_log = logging.getLogger("soak.sampling")

_TABLES = """
    SELECT n.nspname || '.' || c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid),
           (t).approx_tuple_count, (t).dead_tuple_count
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, LATERAL pgstattuple_approx(c.oid) t
    WHERE n.nspname IN ('queue', 'credentials', 'agents') AND c.relkind = 'r' AND c.relname <> 'alembic_version'
"""
_COUNTS = """
    SELECT (SELECT count(*) FROM queue.attempts WHERE sealed_at IS NULL) AS "unsealed attempts",
           (SELECT count(*) FROM queue.lease_ends) AS "lease ends to deliver",
           (SELECT count(*) FROM queue.agent_sessions WHERE open) AS "open sessions",
           (SELECT count(*) FROM queue.jobs WHERE status = 'WAITING') AS "jobs waiting",
           (SELECT count(*) FROM queue.jobs WHERE status = 'AWOL') AS "jobs AWOL",
           (SELECT count(*) FROM queue.jobs WHERE hidden_at IS NULL AND completed_at IS NOT NULL) AS "jobs ended",
           (SELECT count(*) FROM queue.jobs WHERE hidden_at IS NOT NULL) AS "jobs deleted, not purged",
           (SELECT count(*) FROM pg_stat_activity WHERE datname = 'sis') AS "connections",
           (SELECT count(*) FROM queue.jobs WHERE completed_at > now() - make_interval(secs => %(seconds)s))
               / %(seconds)s AS "jobs ended per second"
"""
_LATENCIES = """
    SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - queued_at))
    FROM queue.jobs WHERE started_at > now() - make_interval(secs => %s) AND queued_at IS NOT NULL
"""


@dataclass(frozen=True)
class Subjects:
    """What there is to measure beside the processes that the stack names."""

    stack: Stack
    agents: Mapping[str, Path]
    """The state directory of every agent."""
    others: Callable[[], Mapping[str, int]]
    """Pids of processes that the stack does not know, by name."""


class Sampler(Actor):
    """Samples until it is told to stop. A measurement that fails, because what is measured was just killed, is left
    out."""

    def __init__(self, subjects: Subjects, samples: Samples, ledger: Ledger, began: float, interval: float) -> None:
        super().__init__("sampler", ledger, 60)
        self._subjects = subjects
        self._samples = samples
        self._began = began
        self._interval = interval
        self._database: psycopg.Connection[tuple[Any, ...]] | None = None
        self.failures = 0

    def join(self) -> None:
        super().join()
        if self._database is not None:
            self._database.close()

    def _run(self) -> None:
        number = 0
        while not self._over.wait(self._interval):
            number += 1
            at = time.monotonic() - self._began
            self._samples.add(self._of_processes(at))
            self._samples.add(self._of_directories(at))
            try:
                self._samples.add(self._of_database(at, tables=number % TABLES_EVERY == 1))
            except (psycopg.Error, AssertionError, StopIteration) as error:
                self.failures += 1
                _log.info("the database is not there to be measured: %s", str(error).strip())
                if self._database is not None:
                    self._database.close()
                    self._database = None

    def _of_processes(self, at: float) -> list[Sample]:
        machine = Machine.look()
        stack = self._subjects.stack
        state = stack.state
        found: list[Sample] = []
        known = {process.name: process.identity for process in state.processes}
        known["up"] = Identity(state.pid, state.start_ticks)
        for name, pid in self._subjects.others().items():
            if pid in machine.processes:
                known[name] = machine.processes[pid].identity
        for name, identity in known.items():
            if name == "postgres":
                found += _family(at, name, identity, machine)
            else:
                found += _single(at, name, identity, machine)
        forks: list[Process] = []
        for name in self._subjects.agents:
            for zygote in machine.titled(known[name].pid, "sis-zygote") if name in known else ():
                found += _single(at, f"zygote of {name}", zygote.identity, machine)
                forks += machine.children.get(zygote.identity.pid, ())
        found.append(Sample(at, "agents", "supervisors", "", len(forks)))
        found += _highest(at, "guardians", "sis-guardian", forks)
        below = [child for fork in forks for child in machine.children.get(fork.identity.pid, ())]
        found += _highest(at, "supervisors", "sis-supervisor", below)
        return found

    def _of_directories(self, at: float) -> list[Sample]:
        layout = self._subjects.stack.layout
        found = [
            Sample(at, "postgres", "WAL", "", proc.size_below(layout.cluster / "pg_wal")),
            Sample(at, "vault", "storage", "", proc.size_below(layout.vault / "storage")),
            Sample(at, "stack", "logs", "", proc.size_below(layout.log("up").parent)),
        ]
        for name, state in self._subjects.agents.items():
            found.append(Sample(at, name, "state directory", "", proc.size_below(state)))
            with contextlib.suppress(OSError):
                found.append(Sample(at, name, "attempts kept", "", len(list((state / "attempts").iterdir()))))
        return found

    def _of_database(self, at: float, *, tables: bool) -> list[Sample]:
        if self._database is None or self._database.closed:
            self._database = self._subjects.stack.database()
            self._database.execute("SET statement_timeout = '20s'")
        window = max(10.0, 2 * self._interval)
        cursor = self._database.execute(_COUNTS, {"seconds": window})
        names = [column.name for column in cursor.description or ()]
        row = cursor.fetchone() or ()
        found = [Sample(at, "queue", name, "", float(value)) for name, value in zip(names, row, strict=True)]
        latencies = (self._database.execute(_LATENCIES, [window]).fetchone() or (None,))[0]
        for name, value in zip(("p50", "p95"), latencies or (), strict=False):
            found.append(Sample(at, "queue", f"queued to started, {name}", "", 1000 * value))
        if tables:
            for table, heap, indexes, live, dead in self._database.execute(_TABLES):
                measures = {"table": heap, "indexes": indexes, "live tuples": live, "dead tuples": dead}
                found += [Sample(at, table, measure, "", float(value)) for measure, value in measures.items()]
        return found


def _single(at: float, name: str, identity: Identity, machine: Machine) -> Iterator[Sample]:
    process = machine.processes.get(identity.pid)
    if process is None or process.identity != identity:
        return
    measures = {
        "RSS": process.resident,
        "PSS": proc.proportional(identity.pid),
        "open files": proc.open_files(identity.pid),
        "threads": process.threads,
        "children": len(machine.children.get(identity.pid, ())),
    }
    yield from _measured(at, name, identity, measures)


def _highest(at: float, name: str, title: str, found: Iterable[Process]) -> Iterator[Sample]:
    """The most memory that any of those that call themselves so has: each lives for a job, so there is no long life to
    be judged."""
    sizes = [each.resident for each in found if proc.command(each.identity.pid).startswith(title)]
    if sizes:
        yield Sample(at, name, "highest RSS", "", max(sizes))


def _family(at: float, name: str, identity: Identity, machine: Machine) -> Iterator[Sample]:
    family = machine.below(identity.pid)
    if not family or family[0].identity != identity:
        return
    measures = {
        "PSS": sum(proc.proportional(process.identity.pid) for process in family),
        "open files": sum(proc.open_files(process.identity.pid) for process in family),
        "children": len(family) - 1,
    }
    yield from _measured(at, name, identity, measures)


def _measured(at: float, name: str, identity: Identity, measures: Mapping[str, float]) -> Sequence[Sample]:
    if not measures["open files"]:  # it went while it was looked at
        return ()
    return [Sample(at, name, measure, str(identity.pid), value) for measure, value in measures.items()]
