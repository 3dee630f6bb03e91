"""The promises of DESIGN, read off a database after the fact: by its rows alone, whoever wrote them and however.

    record = promises.read(connection)       # all jobs, or those with these ids
    promises.check(record)                   # what holds of every database at any moment
    promises.check_sites(record, sites)      # what the sites know themselves: starts, output, living processes

A violation is an AssertionError that names the job, the attempt and the promise.

It shares nothing with the queue but the rulebook (`services.queue.states`) and the definition of the running digest.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

from services.queue.states import HELD_BY_AGENT, TERMINAL, TRANSITIONS, Event, Status
from sis.queue.v1 import frame_pb2, job_pb2

Key = tuple[int, int]
"""Of an attempt: job id and number."""
Row = dict[str, Any]

HEARD_MARGIN = timedelta(seconds=15)
"""A sweep and its transaction may come this much after a heartbeat timeout."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a database says, at one moment."""

    now: datetime
    jobs: Mapping[int, Row]
    attempts: Mapping[Key, Row]
    histories: Mapping[int, Sequence[Row]]
    logs: Mapping[Key, Sequence[Row]]

    def output(self, key: Key) -> bytes:
        """What the payload of an attempt wrote, as far as it is committed, in the order of its arrival."""
        frames = (frame_pb2.Frame.FromString(bytes(row["body"])) for row in self.logs.get(key, ()))
        return b"".join(frame.chunk.data for frame in frames if frame.HasField("chunk"))


@dataclass(slots=True)
class Sites:
    """What the sites know of attempts without asking the suite: told by payloads, seen in /proc."""

    starts: Counter[Key] = field(default_factory=Counter)
    """How often the payload of each was started."""
    seen: dict[Key, bytes] = field(default_factory=dict)
    """Output that the suite has shown to somebody as committed."""
    written: dict[Key, bytes] = field(default_factory=dict)
    """All that the payloads wrote that have ended by themselves."""
    living: Callable[[Key], Iterable[int]] = lambda _: ()
    """The pids of the processes of an attempt that live now."""


def read(connection: psycopg.Connection[Any], job_ids: Sequence[int] | None = None) -> Record:
    """Read these jobs, all of them by default, in one snapshot."""
    which = "" if job_ids is None else "WHERE job_id = ANY(%(job_ids)s)"
    values = {"job_ids": list(job_ids or ())}

    def rows(table: str, order: str) -> list[Row]:
        query = f"SELECT * FROM queue.{table} {which} ORDER BY {order}"
        return cursor.execute(query.encode(), values).fetchall()

    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        now = cursor.execute("SELECT queue.now() AS now").fetchall()[0]["now"]
        jobs = rows("jobs", "job_id")
        attempts = rows("attempts", "job_id, number")
        history = rows("history", "job_id, sequence")
        log = rows("log", "job_id, attempt, sequence")
    histories: defaultdict[int, list[Row]] = defaultdict(list)
    for row in history:
        histories[row["job_id"]].append(row)
    return Record(
        now,
        {row["job_id"]: row for row in jobs},
        {(row["job_id"], row["number"]): row for row in attempts},
        histories,
        {k: list(r) for k, r in itertools.groupby(log, key=lambda row: (row["job_id"], row["attempt"]))},
    )


def check(record: Record) -> None:
    """Assert what holds of every database at any moment, whatever happened before:

    each attempt was claimed once, accepted at most once, and only accepted ones have a log (1); the history is without
    a gap, follows the rulebook and ends in the status that the job has, and nothing leaves a terminal status (2); the
    log of each attempt is without a gap and has the digest that its row says, a sealed one has a verdict, and a whole
    one its last frame (3); a confirmed stop has evidence of an empty tree, or of a start that never was (5).
    """
    for job_id, job in record.jobs.items():
        _check_history(job, record.histories.get(job_id, ()))
        _check_attempts(job, record)
        _check_stop(job, record)
    for key, attempt in record.attempts.items():
        _check_log(key, attempt, record.logs.get(key, ()))
    assert not record.logs.keys() - record.attempts.keys(), "a log without an attempt"


def check_heard(record: Record) -> None:
    """Assert that no job is in an active state of which nothing was heard for longer than its heartbeat timeout (6).

    True while a sweeper works that has itself watched for as long.
    """
    for job in record.jobs.values():
        if Status(job["status"]) in HELD_BY_AGENT:
            attempt = record.attempts[job["job_id"], job["attempt"]]
            silence = record.now - attempt["last_heard_at"]
            assert silence <= job["heartbeat_timeout"] + HEARD_MARGIN, (
                f"job {job['job_id']} is {job['status']}, and nothing was heard of it for {silence}"
            )


def check_sites(record: Record, sites: Sites) -> None:
    """Assert that the database and the sites tell the same: no attempt was started twice, and none that was not
    accepted (1); what was shown as committed is there (3); a stop that is confirmed is true (5)."""
    for key, count in sites.starts.items():
        assert count == 1, f"attempt {key} was started {count} times"
        if key[0] in record.jobs:
            assert record.attempts[key]["accepted_at"] is not None, f"attempt {key} was started and never accepted"
    for key, shown in sites.seen.items():
        if key[0] in record.jobs:
            assert record.output(key).startswith(shown), f"attempt {key}: output that was acknowledged is gone"
    for key, written in sites.written.items():
        if key in record.attempts and record.attempts[key]["verdict"] == "COMPLETE":
            assert record.output(key) == written, f"attempt {key}: its log is COMPLETE, and not what it wrote"
    for job_id, job in record.jobs.items():
        if job["stop_state"] == "CONFIRMED":
            living = list(sites.living((job_id, job["attempt"])))
            assert not living, f"job {job_id}: its stop is CONFIRMED, and {living} live"


_MOVES: defaultdict[tuple[Status, Event], set[Status]] = defaultdict(set)
for _rule in TRANSITIONS:
    _MOVES[_rule.status, _rule.event].add(_rule.to)


def _check_history(job: Row, history: Sequence[Row]) -> None:
    told = f"job {job['job_id']}: {[(e['event'], e['to_status'], e['message']) for e in history]}"
    assert [e["sequence"] for e in history] == list(range(1, job["history_sequence"] + 1)), told
    before: Status | None = None
    for entry in history:
        to = Status(entry["to_status"])
        assert entry["from_status"] == before, told
        assert entry["actor"], f"nobody did it: {told}"
        if before is None:
            assert entry["event"] == "CREATE", told
        elif to is not before:
            assert before not in TERMINAL, f"a terminal status was left: {told}"
            assert to in _MOVES[before, Event(entry["event"])], told
        before = to
    assert before == job["status"], told
    assert (job["completed_at"] is not None) == (before in TERMINAL), told


def _check_attempts(job: Row, record: Record) -> None:
    job_id = job["job_id"]
    own = sorted(number for of, number in record.attempts if of == job_id)
    assert own == list(range(1, job["attempt"] + 1)), f"job {job_id} has the attempts {own}"
    events = Counter((e["event"], e["attempt"]) for e in record.histories.get(job_id, ()))
    for number in own:
        attempt = record.attempts[job_id, number]
        accepted = attempt["accepted_at"] is not None
        assert events["CLAIM", number] == 1, f"attempt {(job_id, number)} was claimed {events['CLAIM', number]} times"
        assert events["ACCEPT", number] == accepted, f"attempt {(job_id, number)}: {events['ACCEPT', number]} ACCEPT"
        assert accepted or not attempt["sequence"], f"attempt {(job_id, number)} has a log, and no acceptance"
        if number < job["attempt"]:
            assert attempt["sealed_at"] is not None, f"attempt {(job_id, number)} is over, and not sealed"
            assert not accepted, f"attempt {(job_id, number)} was accepted, and another one followed it"


def _check_stop(job: Row, record: Record) -> None:
    attempt = record.attempts.get((job["job_id"], job["attempt"]))
    if job["stop_state"] == "CONFIRMED":
        assert attempt is not None, f"job {job['job_id']}: a stop of nothing is CONFIRMED"
        evidence = attempt["evidence"]
        never = attempt["accepted_at"] is None
        assert never or (evidence and evidence.get("treeEmpty", evidence.get("tree_empty"))), (
            f"job {job['job_id']}: its stop is CONFIRMED by {evidence}"
        )


def _check_log(key: Key, attempt: Row, frames: Sequence[Row]) -> None:
    assert [f["sequence"] for f in frames] == list(range(1, attempt["sequence"] + 1)), f"attempt {key}: a gap"
    digest, output = bytes(32), 0
    for row in frames:
        body = bytes(row["body"])
        digest = hashlib.sha256(digest + body).digest()
        frame = frame_pb2.Frame.FromString(body)
        assert frame.sequence == row["sequence"], f"attempt {key}: frame {row['sequence']} says {frame.sequence}"
        if row["output_offset"] is not None and frame.HasField("chunk"):
            assert row["output_offset"] == output, f"attempt {key}: frame {row['sequence']} begins elsewhere"
        if frame.chunk.channel in (job_pb2.CHANNEL_STDOUT, job_pb2.CHANNEL_STDERR):
            output += len(frame.chunk.data)
    assert bytes(attempt["digest"]) == digest, f"attempt {key}: its digest is not that of its frames"
    assert output == attempt["output_bytes"], f"attempt {key}: {output} bytes, its row says {attempt['output_bytes']}"
    if attempt["verdict"] in ("COMPLETE", "TRUNCATED") and attempt["accepted_at"] is not None:
        last = frame_pb2.Frame.FromString(bytes(frames[-1]["body"])) if frames else frame_pb2.Frame()
        assert last.notice.HasField("finished"), (
            f"attempt {key}: its log is {attempt['verdict']}, and has no last frame"
        )
    sealed = attempt["sealed_at"] is not None
    assert sealed == (attempt["verdict"] != "OPEN"), f"attempt {key}: {attempt['verdict']}, sealed {sealed}"
