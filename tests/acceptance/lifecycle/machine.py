"""The machine: what people, agents, clocks and faults do, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from hypothesis.stateful import initialize, multiple, precondition, rule

from sis.client import from_status
from sis.queue.v1 import job_pb2, job_service_pb2
from tests.acceptance.lifecycle import journals, rulebook
from tests.acceptance.lifecycle.causes import Terms
from tests.acceptance.lifecycle.happenings import can_happen, gap
from tests.acceptance.lifecycle.journals import Key
from tests.acceptance.lifecycle.people import VERBS, WHY, Watcher, answer
from tests.acceptance.lifecycle.rulebook import DONE
from tests.acceptance.lifecycle.run import SITES, Run
from tests.acceptance.lifecycle.sites import Site
from tests.acceptance.lifecycle.world import CREDENTIAL, LONGEST_SILENCE, REAL_AGENT, until
from tests.support.numbered_job import shell_job

BEGIN = """\
echo "$SIS_ATTEMPT" >> {starts}
secret=$SIS_CREDENTIAL_SECRET_TOKEN
if [ -n "$secret" ]; then
    echo "it is $secret"
    printf %s "$secret" | base64 -w 0 >&2
    echo "50 with $secret" >> "$SIS_PROGRESS"
    echo "result=$secret" >> "$SIS_OUTPUT"
fi
"""
PAYLOADS = {
    "SUCCEEDED": BEGIN + "echo done",
    "FAILED": BEGIN + "exit 3",
    "STOPPED": BEGIN + "while true; do echo more; sleep 0.2; done",
}
"""Of the real agent, by how they end. Whoever has the secret says it, as often as it can."""

T = TypeVar("T")

clients = st.integers(0, 1)
hubs = st.integers(0, 1)
some = st.integers(0, 11)
"""One of several, however many there are."""


class Machine(Run):
    """One run: everything that may happen, in any order."""

    jobs = Run.jobs

    # People

    @initialize(target=jobs)
    def begin(self) -> Any:
        """There is something to do."""
        jobs = [self.create("group", "now", "", "", "SUCCEEDED", n % 2, 1) for n in range(2)]
        jobs += [self.create(REAL_AGENT, "now", CREDENTIAL, "", how, 0, 1) for how in ("STOPPED", "SUCCEEDED")]
        return multiple(*jobs)

    @rule(
        target=jobs,
        site=st.sampled_from(("group", "group", *SITES, REAL_AGENT)),
        when=st.sampled_from(("now", "now", "now", "deferred", "later", "soon")),
        credential=st.sampled_from(("", "", CREDENTIAL, "missing")),
        limit=st.sampled_from(("", "", "run", "start", "output", "grace")),
        payload=st.sampled_from(tuple(PAYLOADS)),
        client=clients,
        times=st.sampled_from((1, 1, 2)),
    )
    def create(self, site: str, when: str, credential: str, limit: str, payload: str, client: int, times: int) -> int:
        """Create a job, perhaps by repeating the request."""
        script = PAYLOADS[payload].format(starts=self.world.starts)
        name = self.tag if site == "group" else site if site == REAL_AGENT else f"{self.tag}-{site}"
        request = shell_job(script, site=f"{'group' if site == 'group' else 'agent'}:{name}")
        request.display_name = f"{self.tag} {when}"
        request.request_id = f"{self.tag}-{len(self.requests)}"
        request.heartbeat_timeout.FromTimedelta(LONGEST_SILENCE)
        now = self.world.now()
        agents = [f"{self.tag}-{each}" for each in SITES] if site == "group" else [name]
        terms = Terms(frozenset(agents), now, credential)
        if credential:
            request.credentials["secret"] = credential
        match when:
            case "deferred":
                request.deferred = True
                terms.deferral_limit = timedelta(seconds=90)
                request.deferral_limit.FromTimedelta(terms.deferral_limit)
            case "later":
                terms.not_before = now + timedelta(seconds=40)
                request.not_before.CopyFrom(_timestamp(terms.not_before))
            case "soon":
                terms.latest_start = now + timedelta(seconds=60)
                request.latest_start.CopyFrom(_timestamp(terms.latest_start))
        self._limit(limit, terms, request)
        found = {self.world.clients[(client + n) % 2].jobs.create(request).job_id for n in range(times)}
        (job_id,) = found
        self.terms[job_id], self.requests[job_id], self.payloads[job_id] = terms, request, payload
        self.model.created(job_id, "DEFERRED" if when in ("deferred", "later") else "WAITING")
        self.look(job_id, client)
        return job_id

    @staticmethod
    def _limit(which: str, terms: Terms, request: job_service_pb2.CreateJobRequest) -> None:
        match which:
            case "run":
                terms.run_timeout = timedelta(seconds=60)
                request.run_timeout.FromTimedelta(terms.run_timeout)
            case "start":
                terms.start_timeout = timedelta(seconds=20)
                request.start_timeout.FromTimedelta(terms.start_timeout)
            case "output":
                terms.output_timeout = timedelta(seconds=10)
                request.output_timeout.FromTimedelta(terms.output_timeout)
            case "grace":
                terms.cancel_grace = timedelta(0)
                request.cancel_grace.FromTimedelta(terms.cancel_grace)

    @rule(job=jobs, client=clients, same=st.booleans())
    def create_again(self, job: int, client: int, same: bool) -> None:
        """The same request gives the same job, whatever became of it; another one with its id is refused."""
        request = job_service_pb2.CreateJobRequest()
        if job not in self.requests:
            self.look(job, client)  # it is a rerun
            return
        request.CopyFrom(self.requests[job])
        if not same:
            request.labels["other"] = "yes"
        reason, found = answer(lambda: self.world.clients[client].jobs.create(request))
        self.acted = True
        if same and reason == DONE:
            assert found.job_id == job, f"job {job} was made again as {found.job_id}"
        elif same:
            self._did(job, ("create again", lambda s: [(s, rulebook.NOT_FOUND if s.hidden else DONE)], reason))
        else:
            assert reason == "REQUEST_ID_REUSED", f"{reason}: {found}"

    @rule(target=jobs, job=jobs, name=st.sampled_from(VERBS), client=clients)
    def ask(self, job: int, name: str, client: int) -> Any:
        """A verb."""
        made = self._ask(job, [(name, client)])
        self.look(job, 1 - client)
        return made[0] if made else job

    @rule(job=jobs, one=st.sampled_from(VERBS[:5]), other=st.sampled_from(VERBS[:5]))
    def race(self, job: int, one: str, other: str) -> None:
        """Two people at once, at different queues."""
        self._ask(job, [(one, 0), (other, 1)])
        self.look(job)

    @rule(chosen=st.lists(jobs, min_size=1, max_size=4, unique=True), name=st.sampled_from(VERBS[:5]), client=clients)
    def bulk(self, chosen: list[int], name: str, client: int) -> None:
        """One verb for several jobs."""
        chosen = sorted(set(chosen))
        number = job_pb2.JobVerb.Value(f"JOB_VERB_{'ABORT' if name == 'FORCE' else name}")
        apply = self.world.clients[client].jobs.apply
        responses = list(apply(number, job_ids=chosen, reason=WHY, force=name == "FORCE"))
        assert responses[0].total == len(chosen) == len(responses) - 1
        for job_id, response in zip(chosen, responses[1:], strict=True):
            result = response.result
            assert result.job_id == job_id
            reason = from_status(result.error).reason if result.HasField("error") else DONE
            self._note(job_id, name, reason)
            self._did(job_id, (f"bulk {name}", rulebook.VERBS[name], reason))

    @rule(client=clients)
    def list_jobs(self, client: int) -> None:
        """The list has each job that is there once, and its total is their number."""
        wanted = job_service_pb2.JobFilter(text=self.tag)
        found: list[job_pb2.Job] = []
        for page in self.world.clients[client].jobs.pages(wanted, page_size=5):
            found += page.jobs
            assert page.total_size == sum(not self._hidden(j) for j in self.model.jobs), page
        shown = {job.job_id: job for job in found}
        assert len(shown) == len(found)
        for job_id in self.model.jobs:
            if job_id in shown:
                self._saw(job_id, shown[job_id])
            else:
                self.model.saw(job_id, "is not in the list", lambda s: s.hidden)

    @rule(job=jobs, client=clients)
    def watch(self, job: int, client: int) -> None:
        """Follow a job, or go on with that elsewhere."""
        known = next((w for w in self.watchers if w.job_id == job), None)
        if known is None:
            known = Watcher(job)
            self.watchers.append(known)
            self._at_the_end(self._parts, known.cut)
        self.acted = True
        self.world.run(known.follow(self.world.async_clients[client]))
        assert known.failure is None, known.failure

    # Agents

    @rule(which=some, how=st.sampled_from(("accept", "start", "decline")))
    def answer_offer(self, which: int, how: str) -> None:
        """An agent answers one of its assignments."""
        if offers := self._offers():
            self._answer(*_one(offers, which), how)
        self._or_else(which)

    def answer_one_of(self, which: str, how: str) -> None:
        """This agent answers one of its assignments, when it has it."""
        site = self.sites[which]
        until(lambda: site in [each for each, _ in self._offers()], f"an assignment of {site.name}")
        self._answer(site, min(site.offered), how)

    def _answer(self, site: Site, key: Key, how: str) -> None:
        if how == "decline" or key in site.journal.declined:
            self.turn_down(site, key)
        elif how == "accept":
            site.take(key)
            self._accept(site, key)
        else:
            self._take_up(site, key)

    @rule()
    def take_up(self) -> None:
        """Each agent accepts and starts what it was assigned."""
        for site, key in self._offers():
            self._answer(site, key, "start")
        self._or_else(0)

    def _or_else(self, which: int) -> None:
        """Where a step has found nothing to do, whatever can happen does, so that there is more for the next ones."""
        if self.acted:
            return
        hands = [
            (site, hand, what)
            for site, hand in self._hands()
            for what in ("start", "obey", "end", "succeed")
            if can_happen(hand, what)
        ]
        if offers := self._offers(patient=False):
            self._answer(*_one(offers, which), "start")
        elif hands:
            self.act(*_one(hands, which))
        else:
            self.create("group", "now", "", "", "SUCCEEDED", which % 2, 1)

    @rule(which=some, what=st.sampled_from(("start", "start", "print", "end")))
    def go_on(self, which: int, what: str) -> None:
        """Something happens to an attempt at its site, and is reported."""
        if found := self._hand(which, what):
            self.act(*found, what)
        self._or_else(which)

    @rule(which=some, what=st.sampled_from(("succeed", "succeed", "fail", "time out")))
    def finish(self, which: int, what: str) -> None:
        """An attempt ends."""
        if found := self._hand(which, what):
            self.act(*found, what)
        self._or_else(which)

    @rule(which=some, what=st.sampled_from(("obey", "obey", "survive")))
    def obey(self, which: int, what: str) -> None:
        """A stop is done, or something has survived it."""
        if found := self._hand(which, what):
            self.act(*found, what)
        self._or_else(which)

    @rule(which=some, what=st.sampled_from(("start", "end", "succeed", "obey")), name=st.sampled_from(VERBS[:5]))
    def race_with(self, which: int, what: str, name: str) -> None:
        """Something is reported while somebody asks for something else."""
        if (found := self._hand(which, what)) is None:
            self._or_else(which)
            return
        site, hand = found
        asking = self.pool.submit(self._call, hand.key[0], name, 1 - site.hub)
        self.act(site, hand, what, [(name, asking.result)])

    @rule(which=some, how=st.sampled_from(("repeat", "conflict", "gap", "accept again", "decline late")))
    def misbehave(self, which: int, how: str) -> None:
        """What is said twice is answered again, what contradicts or skips is refused, and neither changes anything."""
        hands = [(site, hand) for site, hand in self._hands() if site.connected and hand.confirmed]
        if not hands:
            self._or_else(which)
            return
        site, hand = _one(hands, which)
        done, key = hand.spool.bodies[: hand.acknowledged], hand.key
        same: rulebook.Operation = rulebook.report(
            site.name, key[1], lambda s: [(rulebook.home(s) if s.live else s, DONE)]
        )
        match how:
            case "repeat" if done:
                (found,) = self._run(site.say(journals.frames(key, done)))
                assert found.reason != DONE or found.sequence >= hand.acknowledged, found
            case "conflict" if done:
                other = journals.other_frame(len(done), b"something else")
                (found,) = self._run(site.say(journals.frames(key, [other])))
                same = rulebook.report(
                    site.name, key[1], lambda s: [(rulebook.home(s) if s.live else s, "CONFLICTING_FRAME")]
                )
            case "gap":
                ahead = journals.other_frame(len(hand.spool.bodies) + 2, b"too early")
                (found,) = self._run(site.say(journals.frames(key, [ahead])))
                same = rulebook.report(site.name, key[1], gap)
            case "accept again":
                found = self._run(site.accept(key))
            case "decline late":
                (found,) = self._run(site.say(journals.declined(key)))
                same = rulebook.report(site.name, key[1], rulebook.decline)
            case _:
                self._or_else(which)
                return
        self._did(key[0], (f"{site.name} {how} {key}", same, found.reason))
        if found.reason in journals.ENDED and how != "decline late":
            site.forget(key)

    @rule(
        which=st.sampled_from(SITES),
        how=st.sampled_from(
            ("hang", "drop", "return", "return", "return twice", "return twice", "restore", "new journal")
        ),
        hub=hubs,
        age=some,
    )
    def disturb(self, which: str, how: str, hub: int, age: int) -> None:
        """An agent is not heard any more, or comes back, at either hub: with its journal, an older one, or another; or
        while its older stream is still open at its end. What it had started lives on."""
        site = self.sites[which]
        match how:
            case "hang" | "drop":
                self.acted = True
                self._run(site.fall_silent(hang=how == "hang"))
                return
            case "restore":
                site.restore(age)
            case "new journal":
                site.new_journal()
        self.come_to(site, 1 - site.hub if how == "return twice" else hub, keep=how == "return twice")
        if how == "return twice":
            self._haunt(site)

    def _haunt(self, site: Site) -> None:
        """What comes over an older stream has no effect: neither what was delivered over it and is accepted too late,
        nor frames that its journal does not have."""
        site.listen()
        frames = {
            key: journals.other_frame(hand.spool.sequence + 1, b"late") for key, hand in site.journal.hands.items()
        }
        reports = [journals.frames(key, [body]) for key, body in frames.items()]
        reports += [journals.accepted(key) for key in site.late if key not in frames]
        for report in reports:
            (found,) = self._run(site.say(report, ghost=True))
            assert found.reason != DONE, f"a report over an older stream was taken: {report}"

    # Time and faults

    @rule(seconds=st.sampled_from((5, 20, 20, 70, 70, 130, 200)))
    def elapse(self, seconds: int) -> None:
        """Time passes, agents that can be heard are, and sweepers sweep."""
        self.pass_time(seconds)

    @precondition(lambda self: self.left < self.most_left)
    @rule(seconds=st.sampled_from((30, 70)))
    def leave(self, seconds: int) -> None:
        """Time passes, and nobody sweeps but the queues."""
        self.left += 1
        self.leave_to_the_queues(seconds)

    @precondition(lambda self: self.kills < self.most_kills)
    @rule(
        victim=st.sampled_from(("queue", "hub", "agent")),
        which=st.integers(0, 1),
        job=jobs,
        name=st.sampled_from(VERBS[:5]),
    )
    def kill(self, victim: str, which: int, job: int, name: str) -> None:
        """kill -9 of a server, or of the real agent, whose supervisors go on, while somebody asks for something."""
        self.kills += 1
        asking = self.pool.submit(self._call, job, name, which)
        if victim == "agent":
            self.world.agent.kill()
            self.world.agent.start()
        else:
            server = (self.world.queues if victim == "queue" else self.world.hubs)[which]
            server.kill()
            server.spawn()
            server.wait_healthy()
        reason, _ = asking.result()
        self._note(job, name, reason)
        self._did(job, (f"{name} while a {victim} is killed", rulebook.VERBS[name], reason))
        self.look(job)
        for site in self.sites.values():
            if not site.silent and not site.connected:
                self.come_to(site, site.hub)
        now = self.world.now()
        until(lambda: self.world.heard(REAL_AGENT, now), "the real agent to be back")

    @rule(which=hubs)
    def cut(self, which: int) -> None:
        """Every connection between a hub and its queue is reset, and those of all watchers."""
        self.acted = True
        self.world.run(_do(self.world.links[which].cut))
        for watcher in self.watchers:
            self.world.run(watcher.cut())
            self.world.run(watcher.follow(self.world.async_clients[which]))


async def _do(act: Callable[[], object]) -> None:
    act()


def _one(found: Sequence[T], which: int) -> T:
    return found[which % len(found)]


def _timestamp(at: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(at)
    return found
