"""Lets time pass for what the suite keeps for days: it is dated back, so that it is swept within minutes.

What is deleted is kept for a quarter of an hour, what makes requests repeatable for a week, who used what for a year.
A soak is shorter, and must see that all of it goes in the end. Jobs are judged before they are let go.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable

import psycopg

from sis.client import ApiError, Client
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb
from tests.soak.actor import Actor
from tests.soak.churn import PATIENCE_SECONDS
from tests.soak.ledger import Ledger
from tests.support import promises
from tests.support.stack import Stack

REPEATED_SECONDS = PATIENCE_SECONDS + 60.0
"""For which the soak itself relies on what makes requests repeatable."""

_log = logging.getLogger("soak.ageing")

KEPT_WHOLE = b"SELECT job_id FROM queue.jobs WHERE hidden_at IS NULL OR hidden_at > now() - interval '10 min'"
"""The jobs that nobody is about to purge: of others a part may be gone. They were judged before they were aged."""

_ENDED = """
    SELECT j.job_id FROM queue.jobs j
    LEFT JOIN queue.attempts a ON a.job_id = j.job_id AND a.number = j.attempt
    WHERE j.completed_at < now() - make_interval(secs => %s) AND j.stop_state <> 'PENDING'
      AND (a.job_id IS NULL OR a.sealed_at IS NOT NULL) AND {which}
    ORDER BY j.job_id LIMIT 400
"""
_KEPT = {
    "queue.request_ids": ("created_at", "7 days"),
    "queue.removals": ("removed_at", "366 days"),
    "credentials.request_ids": ("created_at", "7 days"),
    "credentials.attempts": ("ended_at", "7 days"),
    "credentials.leases": ("ended_at", "400 days"),
    "credentials.credentials": ("deleted_at", "400 days"),
}
"""By which column, and for how long at the most, the suite keeps what."""


class Ageing(Actor):
    """Deletes jobs that ended a while ago, by their ids and by a filter, and dates back what was deleted."""

    def __init__(self, stack: Stack, client: Client, ledger: Ledger, seconds: float) -> None:
        """`seconds` is how long a thing is left before it is aged."""
        super().__init__("ageing", ledger, 120)
        self._stack = stack
        self._client = client
        self._seconds = seconds

    def _run(self) -> None:
        for number in itertools.count():
            # That one fails must not put off the other.
            for step in (self._age, self._delete_by_filter if number % 3 == 2 else self._delete_by_id):
                if self._over.wait(self._seconds / 8):
                    return
                self._try(step)

    def _try(self, step: Callable[[psycopg.Connection[tuple[object, ...]]], None]) -> None:
        try:
            with self._stack.database() as connection:
                step(connection)
        except (psycopg.OperationalError, StopIteration) as error:
            _log.info("ageing is put off: %s", error)
        except ApiError as error:
            _log.info("ageing is put off: %s", error)
            if not error.passing:
                self._ledger.trouble(f"deleting: {error.code} {error.reason} {error.message}")
        except AssertionError as error:
            self._ledger.trouble(str(error))
        except Exception as error:
            _log.exception("ageing")
            self._ledger.trouble(f"ageing: {error!r}")

    def _delete_by_id(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        query = _ENDED.format(which="j.hidden_at IS NULL")
        due = [int(str(row[0])) for row in connection.execute(query.encode(), [self._seconds])]
        if due:
            for _ in self._client.jobs.apply(job_pb2.JOB_VERB_DELETE, job_ids=due, reason="the soak"):
                pass

    def _delete_by_filter(self, _connection: psycopg.Connection[tuple[object, ...]]) -> None:
        before = pb.JobFilter()
        before.complete_time_before.FromNanoseconds(time.time_ns() - int(self._seconds * 10**9))
        for _ in self._client.jobs.apply(job_pb2.JOB_VERB_DELETE, filter=before, reason="the soak"):
            pass

    def _age(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        query = _ENDED.format(which="j.hidden_at BETWEEN now() - interval '10 min' AND now() - interval '5 s'")
        due = [int(str(row[0])) for row in connection.execute(query.encode(), [self._seconds])]
        if due:
            record = promises.read(connection, due)
            promises.check(record)
            self._ledger.settle(record)
            connection.execute(
                "UPDATE queue.jobs SET hidden_at = hidden_at - interval '16 min' WHERE job_id = ANY(%s)", [due]
            )
        for table, (column, kept) in _KEPT.items():
            statement = f"""
                UPDATE {table} SET {column} = {column} - interval '{kept}'
                WHERE {column} BETWEEN now() - interval '1 hour' AND now() - make_interval(secs => %s)
            """
            connection.execute(statement.encode(), [max(3 * self._seconds, REPEATED_SECONDS)])
