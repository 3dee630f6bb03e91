"""One run of the machine: how each step is held against the model."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant

from sis.queue.v1 import job_pb2, job_service_pb2
from tests.acceptance.lifecycle import causes, deadlines, rulebook
from tests.acceptance.lifecycle.causes import Asked, Terms
from tests.acceptance.lifecycle.happenings import can_happen, happen, perhaps
from tests.acceptance.lifecycle.journals import Answer, Hand, Key
from tests.acceptance.lifecycle.model import Model, Powers
from tests.acceptance.lifecycle.people import Watcher, answer, status, stop_state, verb
from tests.acceptance.lifecycle.rest import Rest
from tests.acceptance.lifecycle.rulebook import DONE, State
from tests.acceptance.lifecycle.sites import Site
from tests.acceptance.lifecycle.world import LONGEST_SILENCE, REAL_AGENT, STEP, World, living_payloads, until
from tests.support import promises

SITES = ("a", "b", "c")
SMALL_STEP = timedelta(seconds=10)
"""A sweeper that misses one of two steps has no gap."""
WAIT_SECONDS, LEFT_SECONDS = 60.0, 120.0


class _AllRules:
    """Instead of some rules for each run, as Hypothesis has it: a life of a job takes most of them."""

    def is_enabled(self, name: str) -> bool:
        return True


class Run(RuleBasedStateMachine):
    """A group of simulated agents, and jobs for them and for the real agent."""

    world: ClassVar[World]
    most_kills: ClassVar[int] = 2
    most_left: ClassVar[int] = 1
    jobs: Bundle[int] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.acted = False
        """Whether this step has done something."""
        self._rules_strategy.enabled_rules_strategy = st.just(_AllRules())  # type: ignore[arg-type]
        self.tag = f"m{self.world.number()}"
        self.model = Model()
        self.terms: dict[int, Terms] = {}
        self.asked: defaultdict[int, Asked] = defaultdict(Asked)
        self.requests: dict[int, job_service_pb2.CreateJobRequest] = {}
        self.payloads: dict[int, str] = {}
        self.watchers: list[Watcher] = []
        self.named: dict[tuple[str, tuple[int, int]], datetime] = {}
        """When an agent was heard last with an attempt."""
        self.kills = 0
        self.left = 0
        self.record = promises.read(self.world.connection, [])
        """As it was checked last."""
        self.sites: dict[str, Site] = {}
        with ExitStack() as parts:
            self.pool = parts.enter_context(ThreadPoolExecutor(4))
            for n, letter in enumerate(SITES):
                name = f"{self.tag}-{letter}"
                identity = self.world.enrol(name, self.tag, self.world.directory / name)
                site = self.sites[letter] = Site(name, self.tag, identity.tls, self.world.now)
                self._at_the_end(parts, site.end)
                self.come_to(site, n % 2)
            self._parts = parts.pop_all()
        self.acted = False

    def _at_the_end(self, parts: ExitStack, end: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        parts.callback(lambda: self._run(end()))

    @invariant()
    def count(self) -> None:
        """Each step that has done something is one."""
        self.world.steps += self.acted
        self.acted = False

    def pass_time(self, seconds: int) -> None:
        """As `elapse`; what was due must have happened."""
        left = timedelta(seconds=seconds)
        while left:
            step = min(left, STEP)
            left -= step
            self._move(step)
            self.world.run(self.world.sweep())
        deadline = time.monotonic() + WAIT_SECONDS
        # One sweep passes over what another has in hand.
        while late := self._late(self.world.watched_since):
            assert time.monotonic() < deadline, late
            self.world.run(self.world.sweep())
        self._look_at_all()

    def leave_to_the_queues(self, seconds: int) -> None:
        """As `pass_time`, but the queues themselves must do what is due."""
        since, end = self.world.now(), self.world.now() + timedelta(seconds=seconds)
        deadline = time.monotonic() + LEFT_SECONDS
        late: list[str] = []
        with self.world.left_to_the_queues():
            # Their sweepers begin to watch with this, and anew where one is so slow that it misses some steps.
            while self.world.now() < end or (late := self._late(since)):
                assert time.monotonic() < deadline, late
                with self.world.swept():
                    self._move(SMALL_STEP)
        self._look_at_all()

    def _move(self, step: timedelta) -> None:
        for site in self.sites.values():
            if not site.silent and not site.connected:
                self.come_to(site, site.hub)
        self._until_heard(self.world.move(step.total_seconds()))

    def _late(self, watched_since: datetime) -> list[str]:
        """What should have happened by now, done by those who have swept since then."""
        record = promises.read(self.world.connection, list(self.model.jobs))
        late = list(deadlines.overdue(record, self.terms, self.agents(), watched_since))
        if record.now - watched_since > LONGEST_SILENCE + promises.HEARD_MARGIN:
            late += promises.unheard(record)
        return late

    def _look_at_all(self) -> None:
        for job in self.model.jobs:
            self.look(job)
        self.check_rows()

    def check_rows(self) -> promises.Record:
        """Hold the rows of all jobs against the promises, against what they were before, and against what the sites
        know."""
        sites = self._what_sites_know()
        record = promises.read(self.world.connection, list(self.model.jobs))
        promises.check(record)
        promises.check_kept(self.record, record)
        promises.check_sites(record, sites)
        self.record = record
        return record

    def agents(self) -> dict[str, Site]:
        """The simulated ones, by their names."""
        return {site.name: site for site in self.sites.values()}

    def _what_sites_know(self) -> promises.Sites:
        found = promises.Sites(self.starts(), living=self._living)
        for site in self.sites.values():
            found.written |= site.written
            found.acknowledged |= site.acknowledged
        for watcher in self.watchers:
            # What goes on to be shown meanwhile comes in a thread of its own.
            for number, seen in list(watcher.frames.items()):
                chunks = [frame.chunk.data for frame in list(seen) if frame.HasField("chunk")]
                found.seen[watcher.job_id, number] = b"".join(chunks)
        return found

    def starts(self) -> Counter[Key]:
        """How often each attempt was started, at whichever site."""
        found = Counter(key for key, _ in self.world.tokens_of_payloads() if key[0] in self.model.jobs)
        for site in self.sites.values():
            found.update(site.starts)
        return found

    def _living(self, key: Key) -> Iterator[int]:
        tokens = [token for of, token in self.world.tokens_of_payloads() if of == key]
        yield from (pid for token in tokens for pid in living_payloads(token))
        yield from (pid for site in self.sites.values() for pid in site.living.get(key, ()))

    def _until_heard(self, now: datetime) -> None:
        deadline = time.monotonic() + 60
        for site in self.sites.values():
            while not site.silent and not self.world.heard(site.name, now):
                assert time.monotonic() < deadline, f"agent {site.name} beats and is not heard"
                if not site.connected:
                    self.come_to(site, site.hub)
                time.sleep(0.02)
            if not site.silent:
                site.heard_at = now
                self.named |= {(site.name, key): now for key in site.journal.hands}
        until(lambda: self.world.heard(REAL_AGENT, now), "the real agent to be heard")

    # How a step is held against the model

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.world.run(coroutine)

    def _call(self, job: int, name: str, client: int) -> tuple[str | None, Any]:
        return answer(verb(self.world.clients[client], name, job))

    def _note(self, job: int, name: str, reason: str | None) -> None:
        if reason == DONE:
            self.asked[job].done[name] += 1
        elif reason is None:
            self.asked[job].unknown[name] += 1

    def _ask(self, job: int, wanted: Sequence[tuple[str, int]]) -> list[int]:
        """Make calls at once; the jobs that reruns have made."""
        calls = [(name, self.pool.submit(self._call, job, name, client)) for name, client in wanted]
        made, steps = [], []
        for name, call in calls:
            reason, found = call.result()
            self._note(job, name, reason)
            steps.append((name, rulebook.VERBS[name], reason))
            if name == "RERUN" and reason == DONE:
                made.append(self._reran(job, found))
        self._did(job, *steps)
        return made

    def end(self, job: int) -> None:
        """Have a job end, if anybody still can."""
        self.look(job)
        if not self._hidden(job) and not all(s.terminal for s in self.model.jobs[job].states):
            self._ask(job, [("ABORT", job % 2)])

    def _reran(self, job: int, new: job_pb2.Job) -> int:
        before = self.terms[job]
        # Of its times, a rerun takes over the limits alone.
        self.terms[new.job_id] = replace(before, not_before=None, latest_start=None, deferral_limit=None)
        self.payloads[new.job_id] = self.payloads[job]
        self.model.created(new.job_id, "WAITING")
        return new.job_id

    def _did(self, job: int, *steps: tuple[str, rulebook.Operation, str | None]) -> None:
        self.acted = True
        self._empower(job)
        self.model.did(job, *steps)

    def look(self, job: int, client: int = 0) -> None:
        """Look at a job; what is seen must be possible."""
        self.acted = True
        reason, found = answer(lambda: self.world.clients[client].jobs.get(job))
        if reason == DONE:
            self._saw(job, found)
        else:
            self._empower(job)
            assert reason == rulebook.NOT_FOUND, f"job {job}: {found}"
            self.model.saw(job, "is not found", lambda s: s.hidden)

    def _saw(self, job: int, found: job_pb2.Job) -> None:
        self.acted = True
        self._empower(job)
        seen, stop = status(found), stop_state(found)
        is_open = found.log.verdict == job_pb2.LOG_VERDICT_OPEN

        def holds(s: State) -> bool:
            return (
                not s.hidden
                and (s.status, s.attempt, s.stop, s.agent) == (seen, found.attempt, stop, found.agent)
                and s.cancel == found.cancel_requested
                and (s.live == is_open or not found.attempt or not found.log.verdict)
            )

        self.model.saw(job, f"is {seen}, attempt {found.attempt} of {found.agent!r}, stop {stop}", holds)

    def _hidden(self, job: int) -> bool:
        return all(s.hidden for s in self.model.jobs[job].states)

    def _empower(self, job: int) -> None:
        """Tell the model what may happen to a job by itself now."""
        terms, now = self.terms[job], self.world.now()
        states = self.model.jobs[job].states
        self.model.jobs[job].powers = Powers(
            claimants=terms.agents,
            refused=bool(terms.credential),
            release=terms.not_before is not None and terms.not_before <= now,
            expire=terms.latest_start is not None and terms.latest_start <= now,
            held_too_long=terms.deferral_limit is not None and terms.made_at + terms.deferral_limit <= now,
            silence=any(self._unheard(s, job, now) for s in states),
            limits=frozenset(self._limits(job, now)),
            acting=self.payloads[job] if REAL_AGENT in terms.agents else "",
        )

    def _unheard(self, s: State, job: int, now: datetime) -> bool:
        if s.agent == REAL_AGENT:
            return False
        named = self.named.get((s.agent, (job, s.attempt)))
        return named is None or named + self.terms[job].heartbeat_timeout < now

    def _limits(self, job: int, now: datetime) -> list[str]:
        terms = self.terms[job]
        passed = now - terms.made_at - causes.MARGIN
        limits = {
            "STARTING": terms.start_timeout,
            "PROCESSING_OUTPUT": terms.output_timeout,
            "STOP": terms.cancel_grace + causes.KILL_LIMIT,
        }
        if terms.run_timeout is not None:
            limits["RUN"] = terms.run_timeout
        return [name for name, limit in limits.items() if passed >= limit]

    # How agents act

    def come_to(self, site: Site, hub: int, *, keep: bool = False) -> None:
        trusted = not site.hellos or (
            site.hellos[-1].journal == site.journal.id and site.journal.record >= site.hellos[-1].record
        )
        before = {key: hand.acknowledged for key, hand in site.journal.hands.items()}
        hello = self._run(site.connect(self.world.hub_endpoint(hub), hub, keep=keep))
        self.named |= {(site.name, key): hello.at for key in before}
        for job in self.model.jobs:
            held = frozenset(number for of, number in hello.held if of == job)
            operation = rulebook.hello(site.name, held, trusted=trusted)
            self._did(job, (f"hello of {site.name} with {sorted(held)}, trusted {trusted}", operation, DONE))

    def _offers(self, *, patient: bool = True) -> list[tuple[Site, Key]]:
        """What was delivered and is in no journal, after a moment for what may come."""
        for _ in range(8):
            for site in self.sites.values():
                site.listen()
            found = [(site, key) for site in self.sites.values() if site.connected for key in sorted(site.offered)]
            if found or not patient or not self._may_be_offered():
                return found
            time.sleep(0.02)
        return []

    def _may_be_offered(self) -> bool:
        """Whether a job waits that a simulated agent can take, or so it seems."""
        return any(
            any(s.status == "WAITING" for s in known.states)
            for job, known in self.model.jobs.items()
            if self.terms[job].credential != "missing" and REAL_AGENT not in self.terms[job].agents
        )

    def _hands(self) -> list[tuple[Site, Hand]]:
        """All attempts that the sites have in hand."""
        for site in self.sites.values():
            site.listen()
        return [(site, hand) for site in self.sites.values() for hand in site.journal.hands.values()]

    def _hand(self, which: int, what: str = "") -> tuple[Site, Hand] | None:
        """One of the attempts at the sites, of those to which this can happen, if there are any."""
        hands = self._hands()
        fitting = [(site, hand) for site, hand in hands if can_happen(hand, what)] or hands
        return fitting[which % len(fitting)] if fitting else None

    def _reported(
        self,
        site: Site,
        key: Key,
        what: str,
        act: rulebook.Operation,
        found: Answer,
        beside: Sequence[tuple[str, rulebook.Operation, str | None]] = (),
    ) -> None:
        if found.reason is not None:
            self.named[site.name, key] = site.heard_at
        report = (f"{site.name} reports {what} of {key}", rulebook.report(site.name, key[1], act), found.reason)
        self._did(key[0], report, *beside)

    def _take_up(self, site: Site, key: Key) -> None:
        site.take(key)
        self._accept(site, key)
        if (hand := site.journal.hands.get(key)) and hand.confirmed:
            self.act(site, hand, "start")

    def turn_down(self, site: Site, key: Key) -> None:
        """An agent declines."""
        self._reported(site, key, "decline", rulebook.decline, self._run(site.decline(key)))

    def _accept(self, site: Site, key: Key) -> None:
        self._reported(site, key, "accept", rulebook.accept, self._run(site.accept(key)))

    def act(
        self,
        site: Site,
        hand: Hand,
        what: str,
        beside: Sequence[tuple[str, Callable[[], tuple[str | None, Any]]]] = (),
    ) -> None:
        """Do one thing at a site that its attempt permits, report it, and hold the answers against the rulebook."""
        site.listen()
        happened = happen(site, hand, what)
        hand.happened += happened
        self.acted |= bool(happened)
        found: Answer | None = None
        done: rulebook.Operation = rulebook.accept
        if site.connected and not hand.confirmed:
            found, what = self._run(site.accept(hand.key)), "accept"
        elif site.connected and hand.acknowledged < len(hand.spool.bodies):
            # What was sent before, and not answered, may have arrived.
            unsure = [perhaps(each) for each in hand.happened[: hand.unsure]]
            done = rulebook.in_turn(*unsure, *hand.happened[hand.unsure :])
            found = self._run(site.ship(hand))
            if found.reason == DONE:
                hand.happened, hand.unsure = [], 0
            else:
                hand.unsure = len(hand.happened)
        asked = []
        for name, result in beside:
            reason, _ = result()
            self._note(hand.key[0], name, reason)
            asked.append((name, rulebook.VERBS[name], reason))
        if found is not None:
            self._reported(site, hand.key, what, done, found, asked)
        elif asked:
            self._did(hand.key[0], *asked)

    # The end

    def teardown(self) -> None:
        """Bring everything to rest and check it, unless a step has failed."""
        try:
            if sys.exc_info()[0] is None:
                Rest(self).bring()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of everything, also of what is left when something cannot be let go of."""
        self._parts.close()
