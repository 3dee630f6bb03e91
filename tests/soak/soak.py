"""One soak: the stack is started, churned and hurt, brought to rest, and judged."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import psycopg

from services.queue.states import TERMINAL
from sis.stack.hangs import KINDS as SERVERS
from tests.soak import ageing, proc, verdicts
from tests.soak.actor import acting
from tests.soak.ageing import Ageing
from tests.soak.audience import Onlooker
from tests.soak.churn import CREDENTIAL, Customer, Market, token_credential
from tests.soak.faults import Fault, Faults, schedule
from tests.soak.growth import Verdict
from tests.soak.ledger import Ledger
from tests.soak.samples import Samples, Series
from tests.soak.sampling import Sampler, Subjects
from tests.support import promises
from tests.support.enrolled import EnrolledAgent, enrolled_agent
from tests.support.leaks import LeakSearch
from tests.support.promises import Key, Sites
from tests.support.stack import Stack

REPLICAS, AGENTS, SLOTS = 2, 2, 6
RETAINED = 50
"""Jobs that have ended and are kept; the bulk deletion takes most before retention does."""
FAR = "far-1"
"""An agent that the stack does not keep, in a group of its own."""
REST_SECONDS = 240.0
"""Within this time after the last fault everything is at rest."""
CHECK_EVERY = 120.0
FIRST_SWEEP = timedelta(seconds=30)
"""Within this time after its start a queue sweeps."""
BAIT = "bait"
"""The name of what the search for secrets must find."""

_log = logging.getLogger("soak")


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    seconds: float
    seed: int
    out: Path
    customers: int = 4
    onlookers: int = 5
    pause: float = 1.5
    """Between two jobs of one customer, on the average."""

    @property
    def interval(self) -> float:
        """Between two samples."""
        return min(5.0, max(0.5, self.seconds / 240))

    @property
    def ageing(self) -> float:
        """Seconds after which what has ended is deleted, and purged as long after that."""
        return min(45.0, max(4.0, self.seconds / 16))

    @property
    def long_seconds(self) -> int:
        return int(min(45.0, max(4.0, self.seconds / 12)))


@dataclass
class Outcome:
    """What came of it."""

    plan: Plan
    samples: Samples
    seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    faults: list[Fault] = field(default_factory=list)
    verdicts: dict[Series, Verdict] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    servers: list[str] = field(default_factory=list)
    checks: int = 0
    starts: int = 0

    @property
    def growing(self) -> dict[Series, Verdict]:
        """The series that grow without bound."""
        return {series: verdict for series, verdict in self.verdicts.items() if verdict.outcome.bad}

    @property
    def good(self) -> bool:
        return not self.growing and not self.ledger.troubles


def run(plan: Plan, data: Path) -> Outcome:
    """Soak a stack in a new directory, `data`, which is left for whoever wants to look if anything is wrong. Blocks;
    for the main thread."""
    plan.out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(plan, Samples(plan.out / "samples.csv"))
    stack = Stack(data / "stack")
    with ExitStack() as running:
        running.enter_context(outcome.samples)
        running.callback(shutil.copytree, stack.layout.log("up").parent, plan.out / "logs", dirs_exist_ok=True)
        running.callback(stack.close)
        chosen = {"replicas": REPLICAS, "agents": AGENTS, "slots": SLOTS, "retention-jobs": RETAINED}
        stack.up(*(word for name, value in chosen.items() for word in (f"--{name}", str(value))))
        far = running.enter_context(enrolled_agent(stack, data / FAR, name=FAR, group="far", slots=SLOTS))
        far.start()
        stack.wait_healthy()
        _Soak(plan, outcome, stack, far, data / "starts").run()
    outcome.verdicts = verdicts.judge_all(outcome.samples, outcome.seconds, outcome.servers)
    return outcome


class _Soak:
    def __init__(self, plan: Plan, outcome: Outcome, stack: Stack, far: EnrolledAgent, starts: Path) -> None:
        self._plan = plan
        self._outcome = outcome
        self._ledger = outcome.ledger
        self._stack = stack
        self._far = far
        self._starts = starts
        starts.touch()

    def run(self) -> None:
        plan = self._plan
        with ExitStack() as clients:
            connected = [
                clients.enter_context(self._stack.client()) for _ in range(plan.customers + plan.onlookers + 1)
            ]
            secret = secrets.token_hex(24)
            self._ledger.secret(CREDENTIAL, secret)
            connected[0].credentials.create(token_credential(CREDENTIAL, secret))
            self._prepare_postgres()
            began = time.monotonic()
            market = Market(
                self._ledger, self._starts, ("group:local", "group:far"), plan.pause, plan.long_seconds, plan.seed
            )
            customers = [Customer(n, client, market) for n, client in enumerate(connected[: plan.customers])]
            onlookers = [
                Onlooker(n, self._stack, client, self._ledger, plan.seed)
                for n, client in enumerate(connected[plan.customers : -1])
            ]
            names = [process.name for process in self._stack.state.processes]
            self._outcome.servers = [each.name for each in self._stack.state.processes if each.kind in SERVERS]
            victims = [*names, FAR, "zygote", "supervisor", "guardian"]
            planned = schedule(plan.seed, plan.seconds, victims)
            faults = Faults(self._stack, planned, self._ledger, began, self._others, {FAR: self._revive})
            agents = {name: self._stack.layout.agent(name) for name in names if name.startswith("local-")}
            subjects = Subjects(self._stack, {**agents, FAR: self._far.state}, self._others)
            sampler = Sampler(subjects, self._outcome.samples, self._ledger, began, plan.interval)
            time_passing = Ageing(self._stack, connected[-1], self._ledger, plan.ageing)
            self._outcome.faults = faults.done
            with acting(sampler, time_passing):
                with acting(*customers, *onlookers), acting(faults):
                    self._wait(began)
                self._come_to_rest()
            self._outcome.seconds = time.monotonic() - began
            self._judge()

    def _others(self) -> Mapping[str, int]:
        process = self._far.process
        return {FAR: process.pid} if process is not None and process.pid else {}

    def _revive(self) -> None:
        assert self._far.process is not None
        self._far.process.kill()
        self._far.start()

    def _prepare_postgres(self) -> None:
        with self._stack.database() as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")
            connection.execute(f"ALTER SYSTEM SET max_wal_size = '{verdicts.WAL_LIMIT >> 20}MB'".encode())
            connection.execute("SELECT pg_reload_conf()")

    def _wait(self, began: float) -> None:
        """Let it go on, and check the promises now and then."""
        end = began + self._plan.seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, CHECK_EVERY, max(5.0, self._plan.seconds / 3)))
            with contextlib.suppress(psycopg.OperationalError, StopIteration):
                self._check_promises(Sites())
            _log.info("%.0f s left, %d troubles", end - time.monotonic(), len(self._ledger.troubles))

    def _check_promises(self, sites: Sites) -> promises.Record:
        with self._stack.database() as connection:
            kept = connection.execute(ageing.KEPT_WHOLE).fetchall()
            record = promises.read(connection, [job_id for (job_id,) in kept])
        watched = self._watched()
        heard = {job_id: job for job_id, job in record.jobs.items() if job["heartbeat_timeout"] <= watched}
        try:
            promises.check(record)
            promises.check_heard(replace(record, jobs=heard))
            promises.check_sites(record, sites)
        except AssertionError as error:
            self._ledger.trouble(f"a promise is broken: {error}")
        self._outcome.checks += 1
        return record

    def _watched(self) -> timedelta:
        """For how long the sweeper has watched, at the least: what is shorter than its gap does not count."""
        queue = self._stack.process("queue").identity
        if not queue.alive:
            return timedelta()
        started = queue.start_ticks / os.sysconf("SC_CLK_TCK")
        return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME) - started) - FIRST_SWEEP

    def _come_to_rest(self) -> None:
        """Wait until everybody is healthy and no job goes on."""
        deadline = time.monotonic() + REST_SECONDS
        try:
            self._stack.wait_healthy(REST_SECONDS / 2)
        except AssertionError as error:
            self._ledger.trouble(f"not healthy again: {error}")
        while (left := self._unsettled()) and time.monotonic() < deadline:
            time.sleep(1.0)
        for job in left:
            self._ledger.trouble(f"not at rest after {REST_SECONDS:.0f} s: {job}")

    def _unsettled(self) -> list[str]:
        with self._stack.database() as connection:
            rows = connection.execute(
                """
                SELECT j.job_id, j.display_name, j.status, j.stop_state, a.verdict, j.status_message, j.wait_message
                FROM queue.jobs j LEFT JOIN queue.attempts a ON a.job_id = j.job_id AND a.number = j.attempt
                WHERE j.status <> ALL(%s) OR j.stop_state = 'PENDING' OR a.verdict = 'OPEN' ORDER BY 1 LIMIT 50
                """,
                [sorted(TERMINAL)],
            ).fetchall()
        return [str(row) for row in rows]

    def _judge(self) -> None:
        """Everything is at rest: hold what the suite says against what the sites know."""
        tokens = self._starts.read_text().splitlines()
        starts = Counter(map(_attempt, tokens))
        self._outcome.starts = starts.total()
        living = {_attempt(token): pids for token, pids in proc.payloads(set(tokens)).items()}
        record = self._check_promises(Sites(starts=starts, living=lambda key: living.get(key, ())))
        for key, pids in living.items():
            self._ledger.trouble(f"everything is at rest, and processes of attempt {key} live: {pids}")
        self._ledger.settle(record)
        self._ledger.close()
        self._search()
        self._outcome.restarts = {process.name: process.restarts for process in self._stack.state.processes}

    def _search(self) -> None:
        """Look for every secret that was stored where none may be, and for what must be found there."""
        search = LeakSearch({**self._ledger.secrets, BAIT: CREDENTIAL.encode()})
        layout = self._stack.layout
        with self._stack.database() as connection:
            places = {"the database": search.database(connection)}
        places["files"] = search.files(layout.data, self._far.state, excluding=[layout.vault / "storage"])
        for place, found in places.items():
            if BAIT not in search.named(found):
                self._ledger.trouble(f"the search of {place} does not find what is there")
            for each in sorted(found):
                if not each.startswith(f"{BAIT} as "):
                    self._ledger.trouble(f"a secret lies open: {each}")


def _attempt(token: str) -> Key:
    """The attempt of a token, `<job>.<attempt>.<nonce>`."""
    job, number, _ = token.split(".", 2)
    return int(job), int(number)
