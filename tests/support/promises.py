"""The promises of DESIGN, read off a database after the fact: by its rows alone, whoever wrote them and however.

    record = promises.read(connection)          # all jobs, or those with these ids
    promises.check(record)                      # what holds of every database at any moment
    promises.check_kept(earlier, record)        # what holds of two moments: nothing is unsaid
    promises.check_sites(record, sites)         # what the sites know themselves: starts, output, living processes
    promises.check_secrets(record, search.find) # that no row has a secret in it

A violation is an AssertionError that names the job, the attempt and the promise.

It shares nothing with the services: the table of the states is `agreed_states`, and the running digest is made anew.
`tests/unit/support/test_promises.py` has a violation of each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

from sis.queue.v1 import frame_pb2, job_pb2
from tests.support.agreed_states import HELD_BY_AGENT, MOVES, REPORTS, TERMINAL

Key = tuple[int, int]
"""Of an attempt: job id and number."""
Row = dict[str, Any]

LEFT_OUT = 8
"""So many attempts of what it holds a restore gives to nobody."""
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
    acknowledged: dict[Key, int] = field(default_factory=dict)
    """The last frame of each that was acknowledged to its site."""
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

    each attempt was claimed once and accepted at most once, none was followed by another once it was accepted, and only
    accepted ones have a log (1); the history is without a gap, follows the table in the order of time and ends in the
    status that the job has, and nothing leaves a terminal status (2); the log of each attempt is without a gap and has
    the digest that its row says, a sealed one has a verdict, and a whole one the last frame and the digest of its
    site (3); a confirmed stop has evidence of an empty tree, or of a start that never was, and none is pending of which
    nothing more can be heard (5).
    """
    for job_id, job in record.jobs.items():
        _check_history(job, record.histories.get(job_id, ()))
        _check_attempts(job, record)
        _check_stop(job, record)
    for key, attempt in record.attempts.items():
        _check_log(key, attempt, record.logs.get(key, ()))
    assert not record.logs.keys() - record.attempts.keys(), "a log without an attempt"


def check_kept(before: Record, after: Record) -> None:
    """Assert that what a database said is what it still says: histories and logs have only grown, what had ended has
    ended as it had (2), what was accepted, sealed and confirmed is so (1, 3, 5), and a job is gone only if it was
    deleted."""
    for job_id, job in before.jobs.items():
        if job_id not in after.jobs:
            assert job["hidden_at"] is not None, f"job {job_id} is gone, and nobody deleted it"
            continue
        later = after.jobs[job_id]
        _check_grown(f"the history of job {job_id}", before.histories.get(job_id, ()), after.histories.get(job_id, ()))
        if job["status"] in TERMINAL:
            _check_same(f"job {job_id} had ended", job, later, "status", "completed_at")
        if job["stop_state"] == "CONFIRMED":
            _check_same(f"job {job_id}: its stop was CONFIRMED", job, later, "stop_state")
    for key, attempt in before.attempts.items():
        if key[0] not in after.jobs:
            continue
        assert key in after.attempts, f"attempt {key} is gone, and its job is not"
        _check_grown(f"the log of attempt {key}", before.logs.get(key, ()), after.logs.get(key, ()))
        if attempt["accepted_at"] is not None:
            _check_same(f"attempt {key} was accepted", attempt, after.attempts[key], "accepted_at", "agent")
        if attempt["sealed_at"] is not None:
            _check_same(f"attempt {key} was sealed", attempt, after.attempts[key], "sealed_at", "verdict", "sequence")


def _check_grown(what: str, before: Sequence[Row], after: Sequence[Row]) -> None:
    for old, new in itertools.zip_longest(before, after[: len(before)]):
        assert old == new, f"{what} says {new}, where it said {old}"


def _check_same(what: str, before: Row, after: Row, *columns: str) -> None:
    for column in columns:
        assert before[column] == after[column], f"{what}: {column} was {before[column]}, and is {after[column]}"


def check_heard(record: Record) -> None:
    """Assert that no job is in an active state of which nothing was heard for longer than its heartbeat timeout (6).

    True while a sweeper works that has itself watched for as long.
    """
    for violation in unheard(record):
        raise AssertionError(violation)


def unheard(record: Record) -> Iterator[str]:
    """What `check_heard` finds, for whoever waits for the sweeper."""
    for job in record.jobs.values():
        if job["status"] in HELD_BY_AGENT:
            attempt = record.attempts[job["job_id"], job["attempt"]]
            silence = record.now - attempt["last_heard_at"]
            if silence > job["heartbeat_timeout"] + HEARD_MARGIN:
                yield f"job {job['job_id']} is {job['status']}, and nothing was heard of it for {silence}"


def check_sites(record: Record, sites: Sites) -> None:
    """Assert that the database and the sites tell the same: no attempt was started twice, and none that was not
    accepted (1); what was acknowledged, and what was shown as committed, is there (3); a stop that is confirmed is
    true (5).

    Of what goes on, `sites` is asked before `record` is read, but for `living`.
    """
    for key, count in sites.starts.items():
        assert count == 1, f"attempt {key} was started {count} times"
        if key[0] in record.jobs:
            assert record.attempts[key]["accepted_at"] is not None, f"attempt {key} was started and never accepted"
    for key, sequence in sites.acknowledged.items():
        if key[0] in record.jobs:
            stored = len(record.logs.get(key, ()))
            assert stored >= sequence, f"attempt {key}: frame {sequence} was acknowledged, and {stored} are there"
    for key, shown in sites.seen.items():
        if key[0] in record.jobs:
            assert record.output(key).startswith(shown), f"attempt {key}: output that was shown is gone"
    for key, written in sites.written.items():
        if key in record.attempts and record.attempts[key]["verdict"] == "COMPLETE":
            assert record.output(key) == written, f"attempt {key}: its log is COMPLETE, and not what it wrote"
    for job_id, job in record.jobs.items():
        if job["stop_state"] == "CONFIRMED":
            living = list(sites.living((job_id, job["attempt"])))
            assert not living, f"job {job_id}: its stop is CONFIRMED, and {living} live"


def check_secrets(record: Record, find: Callable[[bytes, str], Iterable[str]]) -> None:
    """Assert that no row has a form of a secret in it (4): `find` says which ones are in some bytes, as
    `LeakSearch.find` does."""
    tables = {"jobs": record.jobs.values(), "attempts": record.attempts.values()}
    rows = [(name, row) for name, of_table in tables.items() for row in of_table]
    rows += [("history", row) for history in record.histories.values() for row in history]
    rows += [("log", row) for frames in record.logs.values() for row in frames]
    for name, row in rows:
        found = sorted(find(b"\n".join(map(_as_bytes, row.values())), f"{name} of job {row['job_id']}"))
        assert not found, f"a secret is stored: {found}"


def _as_bytes(value: object) -> bytes:
    if isinstance(value, bytes | memoryview):
        return bytes(value)
    return (value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)).encode()


def _check_history(job: Row, history: Sequence[Row]) -> None:
    told = f"job {job['job_id']}: {[(e['event'], e['to_status'], e['message']) for e in history]}"
    assert [e["sequence"] for e in history] == list(range(1, job["history_sequence"] + 1)), f"a gap: {told}"
    before: str | None = None
    attempt, accepted, canceled = 0, False, False
    for entry, former in zip(history, [None, *history], strict=False):
        event, to = entry["event"], entry["to_status"]
        assert entry["from_status"] == before, f"{event} is from {entry['from_status']}: {told}"
        assert entry["actor"], f"nobody did it: {told}"
        if former is not None:
            assert entry["at"] >= former["at"], f"{event} is at {entry['at']}, after {former['at']}: {told}"
        if event == "CLAIM":
            attempt, accepted = attempt + 1, False
        if event == "ADOPT":
            attempt, accepted = entry["attempt"], True
        assert entry["attempt"] == attempt, f"{event} is of attempt {entry['attempt']}, not {attempt}: {told}"
        if before is None:
            assert event == "CREATE" and to in ("DEFERRED", "WAITING"), f"it begins with {event} -> {to}: {told}"
        else:
            _check_move(before, entry, accepted=accepted, canceled=canceled, told=told)
        if event == "RESTORE" and to == "DEFERRED":
            attempt += LEFT_OUT
        accepted |= event == "ACCEPT" or (event == "RESTORE" and to != "DEFERRED")
        canceled |= event == "CANCEL"
        before = to
    assert before == job["status"], f"it is {job['status']}: {told}"
    assert attempt == job["attempt"], f"it is at attempt {job['attempt']}: {told}"
    assert (job["completed_at"] is not None) == (before in TERMINAL), f"completed {job['completed_at']}: {told}"


def _check_move(before: str, entry: Row, *, accepted: bool, canceled: bool, told: str) -> None:
    """The table has it; or it is a report that the table has not, and was ignored."""
    event, to = entry["event"], entry["to_status"]
    assert to == before or before not in TERMINAL, f"a terminal status was left: {told}"
    agreed = MOVES.get((before, event, accepted, canceled))
    if agreed is None:
        ignored = to == before and event in REPORTS and entry["message"].startswith("ignored")
        assert ignored, f"{event} does nothing in {before}, but {to} is recorded: {told}"
    else:
        assert to == agreed, f"{event} leads from {before} to {agreed}, not to {to}: {told}"


def _check_attempts(job: Row, record: Record) -> None:
    job_id = job["job_id"]
    own = sorted(number for of, number in record.attempts if of == job_id)
    assert own == list(range(1, job["attempt"] + 1)), f"job {job_id} has the attempts {own}"
    accepts = Counter(e["attempt"] for e in record.histories.get(job_id, ()) if e["event"] == "ACCEPT")
    taken_for = {e["attempt"] for e in record.histories.get(job_id, ()) if e["event"] in ("RESTORE", "ADOPT")}
    for number in own:
        attempt = record.attempts[job_id, number]
        accepted = attempt["accepted_at"] is not None
        # After a restore, one that was not accepted counts as such, and so does one that its agent comes back with.
        restored = not accepts[number] and number in taken_for
        assert restored or accepts[number] == accepted, f"attempt {(job_id, number)}: {accepts[number]} ACCEPT"
        assert accepted or not attempt["sequence"], f"attempt {(job_id, number)} has a log, and no acceptance"
        if number < job["attempt"]:
            assert attempt["sealed_at"] is not None, f"attempt {(job_id, number)} is over, and not sealed"


def _check_stop(job: Row, record: Record) -> None:
    attempt = record.attempts.get((job["job_id"], job["attempt"]))
    state = job["stop_state"]
    if state == "NONE":
        return
    assert attempt is not None, f"job {job['job_id']}: a stop of nothing is {state}"
    sealed = attempt["sealed_at"] is not None
    assert state != "PENDING" or not sealed, f"job {job['job_id']}: its stop is PENDING, and its log is sealed"
    if state == "CONFIRMED":
        evidence = attempt["evidence"]
        assert sealed, f"job {job['job_id']}: its stop is CONFIRMED, and more may be heard of it"
        never = attempt["accepted_at"] is None
        assert never or (evidence and evidence.get("treeEmpty", evidence.get("tree_empty"))), (
            f"job {job['job_id']}: its stop is CONFIRMED by {evidence}"
        )


def _check_log(key: Key, attempt: Row, frames: Sequence[Row]) -> None:
    assert [f["sequence"] for f in frames] == list(range(1, attempt["sequence"] + 1)), f"attempt {key}: a gap"
    digest = before_last = bytes(32)
    output = 0
    for row in frames:
        body = bytes(row["body"])
        before_last, digest = digest, hashlib.sha256(digest + body).digest()
        frame = frame_pb2.Frame.FromString(body)
        assert frame.sequence == row["sequence"], f"attempt {key}: frame {row['sequence']} says {frame.sequence}"
        if row["output_offset"] is not None and frame.HasField("chunk"):
            assert row["output_offset"] == output, f"attempt {key}: frame {row['sequence']} begins elsewhere"
        if frame.chunk.channel in (job_pb2.CHANNEL_STDOUT, job_pb2.CHANNEL_STDERR):
            output += len(frame.chunk.data)
    assert bytes(attempt["digest"]) == digest, f"attempt {key}: its digest is not that of its frames"
    assert output == attempt["output_bytes"], f"attempt {key}: {output} bytes, its row says {attempt['output_bytes']}"
    verdict = attempt["verdict"]
    if verdict in ("COMPLETE", "TRUNCATED") and attempt["accepted_at"] is not None:
        last = frame_pb2.Frame.FromString(bytes(frames[-1]["body"])) if frames else frame_pb2.Frame()
        assert last.notice.HasField("finished"), f"attempt {key}: its log is {verdict}, and has no last frame"
        finished = last.notice.finished
        assert finished.digest == before_last, f"attempt {key}: its log is {verdict}, and not what its site cut"
        assert not finished.output_cut, f"attempt {key}: its log is {verdict}, and was cut at its site"
        whole = verdict == "COMPLETE"
        assert whole == (not finished.discarded_bytes), f"attempt {key}: {verdict}, {finished.discarded_bytes} left out"
    sealed = attempt["sealed_at"] is not None
    assert sealed == (verdict != "OPEN"), f"attempt {key}: {verdict}, sealed {sealed}"
