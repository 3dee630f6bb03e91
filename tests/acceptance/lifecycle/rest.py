"""The end of a machine: everything is brought to rest, then everything that is written down is checked."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from tests.acceptance.lifecycle import causes
from tests.acceptance.lifecycle.people import Watcher, recorded, told
from tests.acceptance.lifecycle.world import CREDENTIAL, REAL_AGENT
from tests.support import promises
from tests.support.agreed_states import TERMINAL

if TYPE_CHECKING:
    from tests.acceptance.lifecycle.run import Run

REST_SECONDS = 60.0
MASK = b"***"


class Rest:
    """Of one machine."""

    def __init__(self, machine: Run) -> None:
        self._machine = machine
        self._world = machine.world

    def bring(self) -> None:
        """All agents are there and obey, all jobs are ended; then check."""
        machine = self._machine
        deadline = time.monotonic() + REST_SECONDS
        while True:
            for site in machine.sites.values():
                machine.come_to(site, site.hub)
            self._serve()
            for job in machine.model.jobs:
                machine.end(job)
            self._serve()
            if not (left := self._left()):
                break
            assert time.monotonic() < deadline, f"no rest: {left}"
            machine.pass_time(20)
        for job in machine.model.jobs:
            machine.look(job)
        self._check()

    def _serve(self) -> None:
        """Have each agent do what it is told."""
        machine = self._machine
        for site in machine.sites.values():
            site.listen()
            for key in sorted(site.offered):
                machine.turn_down(site, key)
            for hand in list(site.journal.hands.values()):
                for what in ("accept", "start", "obey" if hand.stop else "fail"):
                    if hand.key in site.journal.hands and not (what == "accept" and hand.confirmed):
                        machine.act(site, hand, what)

    def _left(self) -> list[str]:
        """What is not at rest, and has no explanation."""
        jobs = list(self._machine.model.jobs)
        rows = self._world.sql(
            """
            SELECT j.job_id, j.status, j.stop_state, a.number,
                a.number IS NOT NULL AND a.sealed_at IS NULL, a.lost, e.job_id IS NOT NULL
            FROM queue.jobs j
            LEFT JOIN queue.attempts a ON a.job_id = j.job_id AND a.number = j.attempt
            LEFT JOIN queue.lease_ends e ON e.job_id = j.job_id
            WHERE j.job_id = ANY(%s)
            """,
            jobs,
        )
        left = []
        for job_id, status, stop, number, live, lost, ending in rows:
            said = f"job {job_id} attempt {number}"
            if status not in TERMINAL:
                left.append(f"{said} is {status}")
            elif stop == "PENDING":
                left.append(f"{said} has a stop that is pending")
            elif live and not lost:
                left.append(f"{said} is not sealed")
            elif ending:
                left.append(f"{said} has leases that do not end")
        return left

    def _check(self) -> None:
        machine = self._machine
        for watcher in machine.watchers:
            if watcher.failure is None:
                self._world.run(watcher.follow(self._world.async_clients[0]))
                self._world.run(watcher.ended())
            assert watcher.failure is None, watcher.failure
        faults = [line for server in (*self._world.queues, *self._world.hubs) for line in server.faults()]
        assert not faults, faults
        record = machine.check_rows()
        promises.check_heard(record)
        causes.check(record, machine.terms, machine.asked, machine.agents(), machine.starts())
        for watcher in machine.watchers:
            self._check_watcher(watcher, record)
        self._world.check_secrets(record)
        self._check_said(record)

    def _check_said(self, record: promises.Record) -> None:
        """The payloads that had the secret did say it, and were masked."""
        for job_id, terms in self._machine.terms.items():
            job = record.jobs.get(job_id)
            if job is None or terms.credential != CREDENTIAL or job["status"] != "SUCCEEDED":
                continue
            if job["agent"] == REAL_AGENT:
                output = record.output((job_id, job["attempt"]))
                assert output.count(MASK) == 2, f"job {job_id} should have said a secret twice: {output!r}"
                assert job["outputs"] == {"result": "***"}, f"job {job_id} should have put it out: {job['outputs']}"
                self._world.said += 1

    def _check_watcher(self, watcher: Watcher, record: promises.Record) -> None:
        """Who followed a job to its end was shown all of it, as it is stored."""
        job_id = watcher.job_id
        assert watcher.over, f"job {job_id} is over, and its watcher is not told"
        if watcher.deleted:
            return
        shown, stored = map(told, watcher.history), map(recorded, record.histories[job_id])
        for one, other in itertools.zip_longest(shown, stored):
            assert one == other, f"job {job_id}: a watcher was shown {one}, and {other} is stored"
        for number, seen in watcher.frames.items():
            rows = record.logs.get((job_id, number), ())
            assert [f.SerializeToString() for f in seen] == [bytes(r["body"]) for r in rows], f"job {job_id}"
        frames = sum(map(len, watcher.frames.values()))
        assert frames == sum(len(rows) for key, rows in record.logs.items() if key[0] == job_id), f"job {job_id}"
