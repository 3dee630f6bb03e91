"""What a queue would have left in its tables, written by hand, a second between one thing and the next."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from sis.queue.v1 import frame_pb2
from tests.support.agreed_states import TERMINAL
from tests.support.frames import Spool
from tests.support.promises import Key, Record, Row

SECOND = timedelta(seconds=1)


class Chronicle:
    """Nothing is checked and nothing follows from anything else, but for the sums that the rows of a job and of an
    attempt have of their history and their log."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.jobs: dict[int, Row] = {}
        self.attempts: dict[Key, Row] = {}
        self.histories: dict[int, list[Row]] = {}
        self.logs: dict[Key, list[Row]] = {}

    def record(self) -> Record:
        """As it is read now; the rows are the very ones, so what is changed in them is changed in the record."""
        return Record(self.now, self.jobs, self.attempts, self.histories, self.logs)

    def create(self, job_id: int, status: str = "WAITING") -> int:
        """A person creates a job."""
        self.jobs[job_id] = {
            "job_id": job_id, "status": "", "attempt": 0, "history_sequence": 0, "stop_state": "NONE",
            "completed_at": None, "hidden_at": None, "heartbeat_timeout": timedelta(seconds=60), "parameters": {},
        }  # fmt: skip
        self.histories[job_id] = []
        self.happens(job_id, "CREATE", status, by="alice")
        return job_id

    def happens(self, job_id: int, event: str, to: str = "", *, by: str = "agent a", message: str = "") -> None:
        """Something is recorded, and moves the job, if it says where to."""
        self.now += SECOND
        job, history = self.jobs[job_id], self.histories[job_id]
        before = job["status"]
        job["status"] = to or before
        job["history_sequence"] += 1
        if to in TERMINAL:
            job["completed_at"] = self.now
        row: Row = {
            "job_id": job_id, "sequence": job["history_sequence"], "at": self.now, "from_status": before or None,
            "to_status": job["status"], "event": event, "actor": by, "origin": "127.0.0.1", "message": message,
            "attempt": job["attempt"],
        }  # fmt: skip
        history.append(row)

    def claim(self, job_id: int, agent: str = "a") -> Key:
        """An agent is given it."""
        job = self.jobs[job_id]
        job["attempt"] += 1
        key = job_id, job["attempt"]
        self.happens(job_id, "CLAIM", "STARTING", by=f"agent {agent}")
        self.attempts[key] = {
            "job_id": job_id, "number": job["attempt"], "agent": agent, "claimed_at": self.now,
            "last_heard_at": self.now, "accepted_at": None, "sequence": 0, "digest": bytes(32), "output_bytes": 0,
            "verdict": "OPEN", "sealed_at": None, "evidence": None,
        }  # fmt: skip
        self.logs[key] = []
        return key

    def accept(self, key: Key) -> None:
        """Its agent has it in its journal."""
        self.happens(key[0], "ACCEPT")
        self.attempts[key] |= {"accepted_at": self.now, "last_heard_at": self.now}

    def store(self, key: Key, spool: Spool) -> None:
        """What was spooled since is committed."""
        attempt, log = self.attempts[key], self.logs[key]
        for body in spool.bodies[len(log) :]:
            frame = frame_pb2.Frame.FromString(body)
            row: Row = {"job_id": key[0], "attempt": key[1], "sequence": frame.sequence, "body": body}
            log.append(row | {"output_offset": attempt["output_bytes"]})
            attempt["sequence"] = frame.sequence
            attempt["digest"] = hashlib.sha256(attempt["digest"] + body).digest()
            attempt["output_bytes"] += len(frame.chunk.data)

    def seal(self, key: Key, verdict: str = "COMPLETE", *, stop: str = "", tree_empty: bool | None = None) -> None:
        """No more comes of an attempt; it may have evidence of its tree, and settle the stop of its job."""
        evidence = None if tree_empty is None else {"treeEmpty": tree_empty}
        self.attempts[key] |= {"sealed_at": self.now, "verdict": verdict, "evidence": evidence}
        if stop:
            self.jobs[key[0]]["stop_state"] = stop
