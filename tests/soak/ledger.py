"""What was asked for and what became of it: every job of a soak must end in a way that its kind allows."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.queue.states import TERMINAL, Status
from tests.support.promises import Key, Record


@dataclass(frozen=True, slots=True)
class Order:
    """One job that was created."""

    kind: str
    ends: frozenset[Status]
    """How it may end when nobody kills its supervisor."""
    written: bytes | None = None
    """What its payload prints, if it ends by itself."""
    size: int | None = None
    """The same where it is too much to keep."""


@dataclass(slots=True)
class Ledger:
    """For many threads."""

    orders: dict[int, Order] = field(default_factory=dict)
    fates: dict[int, Status] = field(default_factory=dict)
    """Of jobs that were judged before they were purged, or at the end."""
    orphaned: set[Key] = field(default_factory=set)
    """Attempts whose supervisor was killed."""
    kills: list[tuple[str, datetime]] = field(default_factory=list)
    """Agents that were killed, or whose zygote was, and when."""
    secrets: dict[str, bytes] = field(default_factory=dict)
    """All that were stored, by the names of their credentials."""
    troubles: list[str] = field(default_factory=list)
    """What must not be."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ordered(self, job_id: int, order: Order) -> None:
        with self._lock:
            if job_id in self.orders:
                self._trouble(f"job {job_id} ({order.kind}) was the answer to an earlier order as well")
            self.orders[job_id] = order

    def trouble(self, text: str) -> None:
        """Note what must not be."""
        with self._lock:
            self._trouble(text)

    def _trouble(self, text: str) -> None:
        if text not in self.troubles and len(self.troubles) < 1_000:
            self.troubles.append(text)

    def bereaved(self, key: Key) -> None:
        """The supervisor of this attempt is about to be killed."""
        with self._lock:
            self.orphaned.add(key)

    def killed(self, agent: str) -> None:
        """This agent, or its zygote, is about to be killed."""
        with self._lock:
            self.kills.append((agent, datetime.now(UTC)))

    def secret(self, name: str, secret: str) -> None:
        """This is about to be stored, and must be found nowhere else."""
        with self._lock:
            self.secrets[name] = secret.encode()

    def settle(self, record: Record) -> None:
        """Judge the jobs of a record, all of which have ended for good. Repeatable."""
        with self._lock:
            for job_id, row in record.jobs.items():
                status = Status(row["status"])
                before = self.fates.setdefault(job_id, status)
                if before is not status:
                    self._trouble(f"job {job_id} was {before} for good, and is {status}")
                self._judge(job_id, status, row["failure_reason"], record)

    def _judge(self, job_id: int, status: Status, reason: str, record: Record) -> None:
        order = self.orders.get(job_id)
        key = (job_id, record.jobs[job_id]["attempt"])
        if order is None:
            self._trouble(f"job {job_id} is {status}, and nobody was told of it")
        elif status not in TERMINAL:
            self._trouble(f"job {job_id} ({order.kind}) has not ended: {status}")
        elif status not in order.ends and key not in self.orphaned and not self._never_born(key, record):
            self._trouble(f"job {job_id} ({order.kind}) is {status} {reason}: {record.jobs[job_id]['status_message']}")
        elif status is Status.SUCCEEDED and record.attempts[key]["verdict"] != "COMPLETE":
            if key not in self.orphaned:
                self._trouble(f"job {job_id} ({order.kind}): its log is {record.attempts[key]['verdict']}")
        elif status is Status.SUCCEEDED:
            size = record.attempts[key]["output_bytes"]
            if order.size is not None and size != order.size:
                self._trouble(f"job {job_id} ({order.kind}) wrote {order.size} bytes, and its log has {size}")
            if order.written is not None and record.output(key) != order.written:
                self._trouble(f"job {job_id} ({order.kind}): its log is not what it wrote")

    def close(self) -> None:
        """No more is coming: what was ordered and has no fate is lost."""
        with self._lock:
            for job_id in sorted(self.orders.keys() - self.fates.keys()):
                self._trouble(f"job {job_id} ({self.orders[job_id].kind}) is gone, and nobody saw its end")

    def tally(self) -> Counter[tuple[str, str]]:
        """How many of each kind ended how."""
        with self._lock:
            return Counter(
                (self.orders[job_id].kind, str(fate)) for job_id, fate in self.fates.items() if job_id in self.orders
            )

    def _never_born(self, key: Key, record: Record) -> bool:
        """Whether its agent or the zygote was killed while the supervisor was to be made: whether there is one nobody
        can know, so there is no second try."""
        job, attempt = record.jobs[key[0]], record.attempts.get(key)
        if attempt is None or attempt["accepted_at"] is None or not job["status_message"].endswith(_UNBORN):
            return False
        return any(
            agent == attempt["agent"] and attempt["accepted_at"] <= at <= job["completed_at"]
            for agent, at in self.kills
        )


_UNBORN = ("no supervisor was started for this job", "the zygote ends whenever it is started")
