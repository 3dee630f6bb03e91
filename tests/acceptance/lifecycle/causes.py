"""Whether everything in the histories has a cause: somebody asked for it, an agent said it, or it was due.

The checker of the model: it reads the rows, and compares them with what people and sites know that they did. That
histories follow the rulebook, logs are whole and stops are proven is `tests.support.promises`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.acceptance.lifecycle.journals import Hello, Key
from tests.acceptance.lifecycle.people import VERBS, WHY
from tests.acceptance.lifecycle.sites import Site
from tests.acceptance.lifecycle.world import LONGEST_SILENCE, REAL_AGENT
from tests.support.promises import Record

MARGIN = timedelta(seconds=30)
"""The sweeper steps in this much later than the agent."""
KILL_LIMIT = timedelta(seconds=30)
SLACK = timedelta(seconds=3)
"""Between a time that a site noted and the transaction that it belongs to."""


@dataclass
class Terms:
    """What was asked of a job when it was created."""

    agents: frozenset[str]
    made_at: datetime
    """Not after its creation."""
    credential: str = ""
    not_before: datetime | None = None
    latest_start: datetime | None = None
    run_timeout: timedelta | None = None
    heartbeat_timeout: timedelta = LONGEST_SILENCE
    start_timeout: timedelta = timedelta(minutes=5)
    output_timeout: timedelta = timedelta(seconds=60)
    cancel_grace: timedelta = timedelta(seconds=10)
    deferral_limit: timedelta | None = None


@dataclass
class Asked:
    """How often people asked for what, by the answer."""

    done: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def check(
    record: Record,
    terms: Mapping[int, Terms],
    asked: Mapping[int, Asked],
    sites: Mapping[str, Site],
    starts: Mapping[Key, int],
) -> None:
    """Assert that each row of these histories has a cause, and each request that was acknowledged its row. `starts` are
    those of all sites, the real one too."""
    for job_id, of_job in terms.items():
        if job_id in record.jobs:
            _History(record, job_id, of_job, asked[job_id], sites, starts).check()
    for site in sites.values():
        _check_log(record, site)


def _check_log(record: Record, site: Site) -> None:
    """What is committed is a prefix of what one spool of the site holds: nothing was said by anybody else."""
    for key, spools in site.spools.items():
        if key[0] in record.jobs and key in record.attempts and record.attempts[key]["agent"] == site.name:
            bodies = [bytes(row["body"]) for row in record.logs.get(key, ())]
            whole = any(bodies == spool.bodies[: len(bodies)] for spool in spools)
            assert whole, f"attempt {key}: its log has frames that its site never cut"


class _History:
    def __init__(
        self,
        record: Record,
        job_id: int,
        terms: Terms,
        asked: Asked,
        sites: Mapping[str, Site],
        starts: Mapping[Key, int],
    ) -> None:
        self._job = record.jobs[job_id]
        self._rows = record.histories[job_id]
        self._record, self._terms, self._asked, self._sites, self._starts = record, terms, asked, sites, starts

    def check(self) -> None:
        for row in self._rows:
            self._row = row
            cause = getattr(self, f"_{row['event'].lower()}", None)
            if cause is not None:
                cause()
        self._check_people()

    def _must(self, holds: object, why: str) -> None:
        told = "\n  ".join(
            f"{e['at']:%H:%M:%S.%f} {e['event']} -> {e['to_status']} by {e['actor']}: {e['message']}"
            for e in self._rows
        )
        assert holds, f"job {self._job['job_id']}: {self._row['event']} at {self._row['at']}: {why}\n  {told}"

    def _check_people(self) -> None:
        """Each verb that was acknowledged is recorded once, with who and why and from where; one of which nobody knows
        at most once. (A job that holds nothing is let go of without a word.)"""
        found = Counter(e["event"] for e in self._rows if e["event"] in VERBS and e["actor"] == "administrator")
        for row in self._rows:
            if row["event"] in VERBS and row["actor"] == "administrator":
                assert row["origin"] == "127.0.0.1" and WHY in row["message"], row
        for verb in VERBS:
            least = self._asked.done[verb] if verb != "FORCE" else 0
            assert least <= found[verb] <= self._asked.done[verb] + self._asked.unknown[verb], (
                f"job {self._job['job_id']}: {verb} was acknowledged {least} times and not answered"
                f" {self._asked.unknown[verb]} times, and is recorded {found[verb]} times"
            )

    # The clock

    def _release(self) -> None:
        due = self._terms.not_before
        self._must(due is not None and due <= self._row["at"], f"it was due at {due}")

    def _expire(self) -> None:
        limit = self._terms.deferral_limit
        due = [self._terms.latest_start, limit and self._rows[0]["at"] + limit]
        self._must(any(each and each <= self._row["at"] for each in due), f"it was due at {due}")

    def _silence(self) -> None:
        site = self._site()
        heard = self._at("CLAIM")
        if site is not None:
            # Whoever says hello with it is heard.
            told = [h.at for h in site.hellos if self._key in h.held and h.at <= self._row["at"]]
            heard = max([heard, *(at - SLACK for at in told)])
        for row in self._rows:
            before = row["attempt"] == self._key[1] and row["sequence"] < self._row["sequence"]
            if before and row["actor"] == f"agent {self._agent}":
                heard = max(heard, row["at"])
        silent = self._row["at"] - heard
        self._must(silent > self._terms.heartbeat_timeout, f"it was heard {silent} before")

    def _start_limit(self) -> None:
        self._limit("CLAIM", self._terms.start_timeout)

    def _output_limit(self) -> None:
        self._limit("PAYLOAD_ENDED", self._terms.output_timeout)

    def _stop_limit(self) -> None:
        self._limit("CANCEL", self._terms.cancel_grace + KILL_LIMIT)

    def _run_timeout(self) -> None:
        if self._row["actor"] == "sweeper":
            assert self._terms.run_timeout is not None
            self._limit("FIRST_PROCESS", self._terms.run_timeout)
        else:
            self._must(self._said("stop TIME_OUT") or self._said("finish TIMED_OUT"), "its agent never said so")

    def _limit(self, since: str, limit: timedelta) -> None:
        passed = self._row["at"] - self._at(since)
        self._must(passed >= limit + MARGIN, f"only {passed} had passed since {since}")

    # Hubs and agents

    def _claim(self) -> None:
        agent = self._row["actor"].removeprefix("agent ")
        self._must(agent in self._terms.agents, "that agent may not take it")

    def _lease_refused(self) -> None:
        self._must(self._terms.credential, "it wants no leases")

    def _unrunnable(self) -> None:
        self._must(self._terms.credential == "missing", "its credential is there")

    def _give_back(self) -> None:
        """A decline, an acceptance that came too late, or a later hello without it of a journal that would know it; a
        hub that got no leases for it has not delivered it."""
        self._must(not self._starts.get(self._key), "it was started")
        if self._row["actor"] == f"hub of agent {self._agent}":
            self._must(self._terms.credential and self._row["from_status"] == "AWOL", "it wants no leases")
        elif (site := self._site()) is not None:  # what the real one has said is not known here
            proven = self._said("decline") or self._said("accept") or self._absent(site)
            self._must(proven, "nothing proves that it never started")

    def _absent(self, site: Site) -> bool:
        claimed = self._at("CLAIM")
        return any(
            self._key not in hello.held and hello.at + SLACK >= claimed and _trusted(site.hellos[:n], hello)
            for n, hello in enumerate(site.hellos)
        )

    def _journal_lost(self) -> None:
        site = self._site()
        if site is not None:
            known = any(
                self._key not in hello.held or not _trusted(site.hellos[:n], hello)
                for n, hello in enumerate(site.hellos)
            )
            self._must(known, "its agent always had it in hand, in the same journal")

    def _accept(self) -> None:
        self._must(self._site() is None or self._said("accept"), "its agent never said so over its newest stream")

    def _first_process(self) -> None:
        self._once("first")

    def _payload_ended(self) -> None:
        self._once("ended")

    def _finish_succeeded(self) -> None:
        self._once("finish SUCCEEDED")

    def _finish_failed(self) -> None:
        if "does not follow" not in self._row["message"]:
            self._once("finish FAILED")

    def _finish_stopped(self) -> None:
        self._once("finish STOPPED")

    def _once(self, what: str) -> None:
        self._must(self._site() is None or self._said(what), "its agent never said so over its newest stream")
        again = [e for e in self._rows if (e["event"], e["attempt"]) == (self._row["event"], self._row["attempt"])]
        self._must(len(again) == 1, "it is recorded more than once")

    # What is asked of the rows

    @property
    def _key(self) -> Key:
        return self._job["job_id"], self._row["attempt"]

    @property
    def _agent(self) -> str:
        return str(self._record.attempts[self._key]["agent"])

    def _site(self) -> Site | None:
        """The simulated agent of the attempt; None for a real one."""
        return None if self._agent == REAL_AGENT else self._sites[self._agent]

    def _said(self, what: str) -> int:
        return self._sites[self._agent].said[self._key, what] if self._agent in self._sites else 1

    def _at(self, event: str) -> datetime:
        """When it was recorded first, before this row, of the same attempt."""
        times = [
            e["at"]
            for e in self._rows
            if e["event"] == event and e["attempt"] == self._key[1] and e["sequence"] < self._row["sequence"]
        ]
        self._must(times, f"there was no {event} before it")
        found: datetime = times[0]
        return found


def _trusted(before: list[Hello], hello: Hello) -> bool:
    if not before:
        return True
    return before[-1].journal == hello.journal and hello.record >= before[-1].record
