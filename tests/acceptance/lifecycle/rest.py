"""The end of a machine: everything is brought to rest, then everything that is written down is checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tests.acceptance.lifecycle import causes
from tests.acceptance.lifecycle.journals import Key
from tests.acceptance.lifecycle.rulebook import TERMINAL
from tests.acceptance.lifecycle.world import living_payloads
from tests.support import promises

if TYPE_CHECKING:
    from tests.acceptance.lifecycle.run import Run

REST_SECONDS = 60.0


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
        promises.check_sites(record, self._sites())
        agents = {site.name: site for site in machine.sites.values()}
        causes.check(record, machine.terms, machine.asked, agents)
        for watcher in machine.watchers:
            self._check_watcher(watcher.job_id, record)

    def _check_watcher(self, job_id: int, record: promises.Record) -> None:
        """Who followed a job to its end was shown all of it."""
        (watcher,) = (w for w in self._machine.watchers if w.job_id == job_id)
        assert watcher.over, f"job {job_id} is over, and its watcher is not told"
        if watcher.deleted:
            return
        assert len(watcher.history) == record.jobs[job_id]["history_sequence"], f"job {job_id}: {watcher.history}"
        for number, seen in watcher.frames.items():
            rows = record.logs.get((job_id, number), ())
            assert [f.SerializeToString() for f in seen] == [bytes(r["body"]) for r in rows], f"job {job_id}"
        told = sum(map(len, watcher.frames.values()))
        assert told == sum(len(rows) for key, rows in record.logs.items() if key[0] == job_id), f"job {job_id}"

    def _sites(self) -> promises.Sites:
        sites = self._machine.sites.values()
        starts: Counter[Key] = Counter()
        found = promises.Sites(starts, living=self._living)
        for site in sites:
            starts.update(site.starts)
            found.written.update(site.written)
        mine = self._machine.model.jobs
        starts.update(key for key, _ in self._world.tokens_of_payloads() if key[0] in mine)
        for watcher in self._machine.watchers:
            for number, seen in watcher.frames.items():
                found.seen[watcher.job_id, number] = b"".join(f.chunk.data for f in seen if f.HasField("chunk"))
        return found

    def _living(self, key: Key) -> Iterable[int]:
        tokens = [token for of, token in self._world.tokens_of_payloads() if of == key]
        yield from (pid for token in tokens for pid in living_payloads(token))
        yield from (pid for site in self._machine.sites.values() for pid in site.living.get(key, ()))
