"""The model of the lifecycle and its checkers can fail: what the design does not permit is refused, wherever it is
planted."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from services.runtime.tls import TlsFiles
from tests.acceptance.lifecycle import causes, deadlines, rulebook
from tests.acceptance.lifecycle.causes import Asked, Terms
from tests.acceptance.lifecycle.journals import Hello
from tests.acceptance.lifecycle.model import Model, Powers, Violation
from tests.acceptance.lifecycle.people import WHY
from tests.acceptance.lifecycle.rulebook import DONE, REFUSED, VERBS, State
from tests.acceptance.lifecycle.sites import Site
from tests.acceptance.lifecycle.world import REAL_AGENT
from tests.support.agreed_states import HELD_BY_AGENT, MOVES, TERMINAL
from tests.support.frames import Spool
from tests.support.promises import Key
from tests.unit.support.chronicle import Chronicle

JOB = 1
RUNS = 1, 1

# The rulebook of the model and the table


@pytest.mark.parametrize("verb", ["ACTIVATE", "CANCEL", "ABORT", "DELETE", "RERUN"])
@pytest.mark.parametrize("status", sorted({"DEFERRED", "WAITING", "AWOL"} | HELD_BY_AGENT | TERMINAL))
def test_the_model_has_the_verbs_as_the_table_has_them(status: str, verb: str) -> None:
    ((after, answer),) = VERBS[verb](State(status))
    agreed = MOVES.get((status, verb, False, False))
    assert (after.status, answer) == ((status, REFUSED) if agreed is None else (agreed, DONE))


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_no_report_has_the_model_leave_a_terminal_status(status: str) -> None:
    s = State(status, "a", 1, accepted=True, live=True)
    reports = [rulebook.first_process, rulebook.payload_ended, rulebook.timed_out, rulebook.accept, rulebook.decline]
    reports += [rulebook.finished(outcome, empty=True) for outcome in ("SUCCEEDED", "FAILED", "STOPPED", "TIMED_OUT")]
    reports += [rulebook.hello("a", held, trusted=trusted) for held in ((), (1,)) for trusted in (False, True)]
    assert {after.status for report in reports for after, _ in report(s)} == {status}


# The model


def model(powers: Powers | None = None, status: str = "WAITING") -> Model:
    found = Model()
    found.created(JOB, status)
    found.jobs[JOB].powers = powers or Powers()
    return found


def saw(found: Model, status: str) -> None:
    found.saw(JOB, f"is {status}", lambda s: s.status == status)


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED", "CANCELED", "AWOL", "DEFERRED", "EXPIRED", "STARTING"])
def test_a_job_for_which_nobody_does_anything_waits(status: str) -> None:
    found = model()
    saw(found, "WAITING")
    with pytest.raises(Violation, match=f"job 1: is {status}: the design has no way to that"):
        saw(found, status)


@pytest.mark.parametrize("status", ["WAITING", "STARTING"])
def test_what_was_acknowledged_is_not_undone(status: str) -> None:
    found = model(Powers(claimants=frozenset({"a"})))
    found.did(JOB, ("CANCEL", rulebook.cancel, DONE), ("ABORT", rulebook.abort, REFUSED))
    with pytest.raises(Violation):
        saw(found, status)


def test_an_answer_that_cannot_be_is_refused() -> None:
    for answer in (REFUSED, rulebook.NOT_FOUND, "SOMETHING"):
        with pytest.raises(Violation):
            model().did(JOB, ("CANCEL", rulebook.cancel, answer))


def test_of_two_that_exclude_each_other_only_one_is_done() -> None:
    found = model(status="DEFERRED")
    with pytest.raises(Violation):
        found.did(JOB, ("ABORT", rulebook.abort, DONE), ("CANCEL", rulebook.cancel, DONE))


def test_what_was_not_answered_may_have_been_done() -> None:
    for status in ("WAITING", "CANCELED"):
        found = model()
        found.did(JOB, ("CANCEL", rulebook.cancel, None))
        saw(found, status)
        with pytest.raises(Violation):
            saw(found, "WAITING" if status == "CANCELED" else "CANCELED")


def test_only_who_may_claim_claims() -> None:
    found = model(Powers(claimants=frozenset({"a"})))
    with pytest.raises(Violation):
        found.saw(JOB, "is at b", lambda s: s.agent == "b")
    found.saw(JOB, "is at a", lambda s: s.agent == "a")


def test_frames_before_the_acceptance_are_not_taken() -> None:
    found = model(Powers(claimants=frozenset({"a"})))
    saw(found, "STARTING")
    with pytest.raises(Violation):
        found.did(JOB, ("first process", rulebook.report("a", 1, rulebook.first_process), DONE))


def test_a_job_that_is_heard_is_not_awol() -> None:
    for silence in (False, True):
        found = model(Powers(claimants=frozenset({"a"}), silence=silence))
        saw(found, "STARTING")
        if silence:
            saw(found, "AWOL")
        else:
            with pytest.raises(Violation):
                saw(found, "AWOL")


# Causes


def site(name: str = "a") -> Site:
    files = Path("/nowhere")
    return Site(name, "group", TlsFiles(files, files, files), lambda: Chronicle().now)


class Story(Chronicle):
    """One job, who asked for it, and what its agent knows of it: it is deferred, activated, declined and given back,
    claimed again, runs, is canceled, and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.site = site()
        self.asked = {JOB: Asked()}
        self.create(JOB, "DEFERRED")
        self.terms = {JOB: Terms(frozenset({"a"}), self.now)}
        self.asks("ACTIVATE", "WAITING")
        self.given = self.claim(JOB)
        self.says(self.given, "decline")
        self.happens(JOB, "GIVE_BACK", "WAITING", message="declined: full")
        self.seal(self.given)
        self.key = self.claim(JOB)
        self.says(self.key, "accept")
        self.accept(self.key)
        self.spool = Spool()
        self.site.spools[self.key] = [self.spool]
        self.reports("first", "FIRST_PROCESS", "RUNNING", lambda: self.spool.process_started(7))
        self.site.starts[self.key] += 1
        self.asks("CANCEL", "CANCEL_REQUESTED")
        self.reports("finish STOPPED", "FINISH_STOPPED", "CANCELED", lambda: self.spool.finished("STOPPED"))
        self.seal(self.key, stop="CONFIRMED", tree_empty=True)

    def asks(self, verb: str, to: str = "") -> None:
        """Somebody asks for it, and is told that it is done."""
        self.asked[JOB].done[verb] += 1
        self.happens(JOB, verb, to, by="administrator", message=WHY)

    def says(self, key: Key, what: str) -> None:
        self.site.said[key, what] += 1

    def reports(self, what: str, event: str, to: str, cut: Callable[[], object]) -> None:
        cut()
        self.says(self.key, what)
        self.store(self.key, self.spool)
        self.happens(JOB, event, to)

    def of(self, event: str) -> dict[str, object]:
        """The last entry of it."""
        return next(row for row in reversed(self.histories[JOB]) if row["event"] == event)

    def check(self) -> None:
        causes.check(self.record(), self.terms, self.asked, {"a": self.site, "b": site("b")}, self.site.starts)


def otherwise(event: str, /, **columns: object) -> Callable[[Story], None]:
    """Another entry in the place of this one."""
    return lambda story: story.of(event).update(columns)


def unsaid(what: str) -> Callable[[Story], None]:
    def forget(story: Story) -> None:
        for key in (story.given, story.key):
            del story.site.said[key, what]

    return forget


def agreed(**terms: object) -> Callable[[Story], None]:
    def change(story: Story) -> None:
        for name, value in terms.items():
            setattr(story.terms[JOB], name, value)

    return change


def two(first: Callable[[Story], None], second: Callable[[Story], None]) -> Callable[[Story], None]:
    return lambda story: (first(story), second(story))[0]


def a_verb_that_nobody_asked_for(story: Story) -> None:
    story.happens(JOB, "DELETE", by="administrator", message=WHY)


def a_verb_that_is_recorded_twice(story: Story) -> None:
    story.asks("DELETE")
    a_verb_that_nobody_asked_for(story)


def a_verb_that_is_not_recorded(story: Story) -> None:
    story.asked[JOB].done["DELETE"] += 1


def a_frame_that_its_site_never_cut(story: Story) -> None:
    story.spool.bodies[0] = b"another"


def a_report_that_is_recorded_twice(story: Story) -> None:
    story.happens(JOB, "FIRST_PROCESS")


def a_start_of_what_was_given_back(story: Story) -> None:
    story.site.starts[story.given] += 1


def by_the_hub(**columns: object) -> Callable[[Story], None]:
    return otherwise("GIVE_BACK", actor="hub of agent a", **columns)


def lost(story: Story) -> None:
    story.happens(JOB, "JOURNAL_LOST")


def held_all_along(story: Story) -> None:
    story.site.hellos = [Hello(story.now, "journal", n, frozenset({story.key}), 3) for n in range(3)]
    lost(story)


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (agreed(agents=frozenset({"b"})), "CLAIM .* that agent may not take it"),
        (unsaid("accept"), "ACCEPT .* its agent never said so"),
        (unsaid("first"), "FIRST_PROCESS .* its agent never said so"),
        (unsaid("finish STOPPED"), "FINISH_STOPPED .* its agent never said so"),
        (otherwise("FINISH_STOPPED", event="FINISH_SUCCEEDED"), "FINISH_SUCCEEDED .* its agent never said so"),
        (otherwise("FINISH_STOPPED", event="FINISH_FAILED"), "FINISH_FAILED .* its agent never said so"),
        (otherwise("FINISH_STOPPED", event="PAYLOAD_ENDED"), "PAYLOAD_ENDED .* its agent never said so"),
        (otherwise("FINISH_STOPPED", event="RUN_TIMEOUT"), "RUN_TIMEOUT .* its agent never said so"),
        (a_report_that_is_recorded_twice, "FIRST_PROCESS .* it is recorded more than once"),
        (unsaid("decline"), "GIVE_BACK .* nothing proves that it never started"),
        (a_start_of_what_was_given_back, "GIVE_BACK .* it was started"),
        (two(agreed(agents=frozenset({"a", REAL_AGENT})), a_start_of_what_was_given_back), "it was started"),
        (by_the_hub(), "GIVE_BACK .* it wants no leases"),
        (two(agreed(credential="x"), by_the_hub()), "GIVE_BACK .* it wants no leases"),
        (two(agreed(credential="x"), unsaid("decline")), "nothing proves that it never started"),
        (otherwise("GIVE_BACK", event="LEASE_REFUSED"), "LEASE_REFUSED .* it wants no leases"),
        (otherwise("GIVE_BACK", event="UNRUNNABLE"), "UNRUNNABLE .* its credential is there"),
        (held_all_along, "JOURNAL_LOST .* its agent always had it in hand"),
        (otherwise("ACTIVATE", event="RELEASE"), "RELEASE .* it was due at None"),
        (otherwise("ACTIVATE", event="EXPIRE"), "EXPIRE .* it was due at"),
        (otherwise("CANCEL", event="SILENCE"), "SILENCE .* it was heard 0:00:01 before"),
        (otherwise("CANCEL", event="START_LIMIT"), "START_LIMIT .* only 0:00:03 had passed since CLAIM"),
        (otherwise("CANCEL", event="OUTPUT_LIMIT"), "OUTPUT_LIMIT .* there was no PAYLOAD_ENDED before it"),
        (otherwise("FINISH_STOPPED", event="STOP_LIMIT"), "STOP_LIMIT .* only 0:00:01 had passed since CANCEL"),
        (
            two(otherwise("CANCEL", event="RUN_TIMEOUT", actor="sweeper"), agreed(run_timeout=timedelta(seconds=9))),
            "RUN_TIMEOUT .* only 0:00:01 had passed since FIRST_PROCESS",
        ),
        (a_verb_that_nobody_asked_for, "DELETE was acknowledged 0 times .* is recorded 1 times"),
        (a_verb_that_is_recorded_twice, "DELETE was acknowledged 1 times .* is recorded 2 times"),
        (a_verb_that_is_not_recorded, "DELETE was acknowledged 1 times .* is recorded 0 times"),
        (otherwise("CANCEL", origin="somewhere"), "somewhere"),
        (otherwise("CANCEL", message="for no reason"), "for no reason"),
        (a_frame_that_its_site_never_cut, "its log has frames that its site never cut"),
    ],
)
def test_what_has_no_cause_is_refused(plant: Callable[[Story], None], complaint: str) -> None:
    story = Story()
    story.check()
    plant(story)
    with pytest.raises(AssertionError, match=re.compile(complaint, re.DOTALL)):
        story.check()


def test_what_nobody_answered_may_be_recorded_once_or_not() -> None:
    story = Story()
    story.asked[JOB].unknown["DELETE"] += 1
    story.check()
    a_verb_that_nobody_asked_for(story)
    story.check()
    a_verb_that_nobody_asked_for(story)
    with pytest.raises(AssertionError, match="DELETE"):
        story.check()


# Deadlines


def overdue(book: Chronicle, terms: Terms, agent: Site) -> list[str]:
    return list(deadlines.overdue(book.record(), {JOB: terms}, {"a": agent}, BEGUN))


BEGUN = Chronicle().now
LONG = timedelta(seconds=300)


def in_status(status: str) -> tuple[Chronicle, Terms, Site]:
    """A job that is so far, of an agent that is heard."""
    book, agent = Chronicle(), site()
    agent.silent = False
    book.now += LONG
    book.create(JOB, status if status in ("DEFERRED", "WAITING") else "WAITING")
    terms = Terms(frozenset({"a"}), book.now, run_timeout=timedelta(seconds=60))
    if status in HELD_BY_AGENT:
        book.accept(book.claim(JOB))
    if status in ("RUNNING", "PROCESSING_OUTPUT", "CANCEL_REQUESTED"):
        book.happens(JOB, "FIRST_PROCESS", "RUNNING")
    if status == "PROCESSING_OUTPUT":
        book.happens(JOB, "PAYLOAD_ENDED", "PROCESSING_OUTPUT")
    if status == "CANCEL_REQUESTED":
        book.happens(JOB, "CANCEL", "CANCEL_REQUESTED")
    return book, terms, agent


@pytest.mark.parametrize(
    ("status", "seconds", "what"),
    [
        ("STARTING", 300 + 30, "CLAIM"),
        ("RUNNING", 60 + 30, "FIRST_PROCESS"),
        ("PROCESSING_OUTPUT", 60 + 30, "PAYLOAD_ENDED"),
        ("CANCEL_REQUESTED", 10 + 30 + 30, "CANCEL"),
    ],
)
def test_a_limit_that_is_not_kept_is_seen(status: str, seconds: int, what: str) -> None:
    book, terms, agent = in_status(status)
    began = next(row["at"] for row in book.histories[JOB] if row["event"] == what)
    book.now = began + timedelta(seconds=seconds)
    assert overdue(book, terms, agent) == []
    book.now += 2 * causes.SLACK
    (found,) = overdue(book, terms, agent)
    assert found.startswith(f"job 1 is still {status}: {what} was at")
    # Who has just come back, or hands in what is old, has the margin again.
    for catches_up in (
        lambda: agent.caught_up.update({RUNS: book.now}),
        lambda: agent.hellos.append(Hello(book.now, "journal", 1, frozenset({RUNS}), 3)),
    ):
        catches_up()
        assert overdue(book, terms, agent) == []
        agent.caught_up.clear()
        agent.hellos.clear()
        assert overdue(book, terms, agent)
    # And nobody can say it who has not watched.
    assert not list(deadlines.overdue(book.record(), {JOB: terms}, {"a": agent}, book.now))


def test_a_job_that_stays_with_a_silent_agent_is_seen() -> None:
    book, terms, agent = in_status("RUNNING")
    agent.silent, agent.quiet_since = True, book.now
    book.now += terms.heartbeat_timeout + causes.SLACK
    assert overdue(book, terms, agent) == []
    book.now += timedelta(seconds=1)
    (found,) = overdue(book, terms, agent)
    assert "agent a is silent since" in found


@pytest.mark.parametrize(
    ("status", "term", "what"),
    [
        ("DEFERRED", "not_before", "it was to be released at"),
        ("DEFERRED", "latest_start", "it was to be started by"),
        ("WAITING", "latest_start", "it was to be started by"),
    ],
)
def test_a_time_that_has_come_in_vain_is_seen(status: str, term: str, what: str) -> None:
    book, terms, agent = in_status(status)
    setattr(terms, term, book.now)
    book.now += causes.SLACK
    assert overdue(book, terms, agent) == []
    book.now += timedelta(seconds=1)
    (found,) = overdue(book, terms, agent)
    assert what in found


def test_a_deferral_that_has_no_end_is_seen() -> None:
    book, terms, agent = in_status("DEFERRED")
    terms.deferral_limit = timedelta(seconds=90)
    book.now += timedelta(seconds=90)
    assert overdue(book, terms, agent) == []
    book.now += 2 * causes.SLACK
    (found,) = overdue(book, terms, agent)
    assert "it was to be held until" in found
