"""The lifecycle against its model: a few hundred steps, or thousands, and the runs that once failed.

They are in one file so that they share one world.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.acceptance.lifecycle.machine import Machine
from tests.acceptance.lifecycle.world import REAL_AGENT, World, until
from tests.support import promises
from tests.support.leaks import LeakSearch
from tests.support.numbered_job import shell_job


def of(world: World, *, kills: int = 2, left: int = 1) -> type[Machine]:
    """The machine in this world, which in each run kills so many processes at the most, and leaves the sweeping to the
    queues so often."""
    return type("Lifecycle", (Machine,), {"world": world, "most_kills": kills, "most_left": left})


def drive(world: World, *, runs: int, steps: int, kills: int, left: int, derandomize: bool, least: int) -> None:
    """Run machines of so many steps each, of which all together at least so many must have done something, and some
    payload must have had the secret."""
    before, said_before = world.steps, world.said
    run_state_machine_as_test(
        of(world, kills=kills, left=left),
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            # What processes do is not the same twice, so a failure is shown as it was: keep it as a named test.
            phases=(Phase.explicit, Phase.generate),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
        # Else Hypothesis ends many of them sooner.
        _min_steps=steps - 1,
    )
    acted = world.steps - before
    assert acted >= least, f"{acted} of {runs * steps} steps have done something"
    assert world.said > said_before, "nobody has said the secret"


@pytest.mark.timeout(900)
def test_a_few_hundred_steps(world: World) -> None:
    drive(world, runs=4, steps=80, kills=1, left=0, derandomize=True, least=300)


@pytest.mark.long
@pytest.mark.timeout(5_400)
def test_five_thousand_steps(world: World) -> None:
    drive(world, runs=52, steps=100, kills=2, left=1, derandomize=False, least=5_000)


# Runs that once failed, by what went wrong. What Hypothesis prints of a failure goes in as it is.


@contextmanager
def machine(world: World) -> Iterator[Machine]:
    """One that is brought to rest and checked at the end, unless a step has failed."""
    state = of(world)()
    try:
        yield state
    except BaseException:
        state.close()
        raise
    state.teardown()


def test_a_job_was_shown_with_the_attempt_that_followed_its_status(world: World) -> None:
    """Its row and that of its attempt were read one after the other, and the hub's refusal came between."""
    with machine(world) as state:
        for n in range(12):
            job: Any = state.create(
                client=n % 2, credential="missing", limit="run", payload="STOPPED", site="group", times=2, when="now"
            )
            state.look(job)
            state.look(job)


@pytest.mark.timeout(180)
def test_a_watcher_that_was_at_the_end_goes_on_when_more_is_recorded(world: World) -> None:
    with machine(world) as state:
        job: Any = state.create(
            client=0, credential="", limit="", payload="STOPPED", site="group", times=1, when="deferred"
        )
        state.watch(client=1, job=job)
        state.ask(client=1, job=job, name="CANCEL")
        state.bulk(chosen=[job], client=0, name="CANCEL")


@pytest.mark.timeout(180)
def test_an_attempt_that_came_home_by_its_acceptance_was_awol_again_with_the_next_sweep(world: World) -> None:
    with machine(world) as state:
        state.create(client=0, credential="", limit="", payload="STOPPED", site="a", times=1, when="now")
        state.elapse(seconds=70)
        state.answer_offer(which=0, how="accept")
        world.run(world.sweep())
        state.list_jobs(client=0)


@pytest.mark.timeout(180)
def test_an_agent_goes_on_with_a_journal_that_was_restored_as_it_was(world: World) -> None:
    """What it spooled from then on was not known to the checker."""
    with machine(world) as state:
        job: Any = state.create(
            client=0, credential="", limit="", payload="SUCCEEDED", site="a", times=1, when="now"
        )  # fmt: skip
        state.answer_one_of("a", "start")
        state.disturb(which="a", how="restore", hub=1, age=len(state.sites["a"].backups) - 1)
        state.go_on(which=0, what="print")
        state.finish(which=0, what="succeed")
        state.look(job)
        state.check_rows()
        assert state.record.jobs[job]["status"] == "SUCCEEDED"


# What the runs above rely on.


@pytest.mark.timeout(180)
def test_the_queues_sweep_by_themselves(world: World) -> None:
    """In most steps the world sweeps in their place. Here nobody else does what is due."""
    with machine(world) as state:

        def create(site: str, when: str = "now", limit: str = "") -> int:
            return state.create(site, when, "", limit, "STOPPED", 0, 1)

        state.disturb(which="a", how="drop", hub=0, age=0)
        released, unclaimed = create("a", "later"), create("a", "soon")
        unheard, unstarted = create("b"), create("c", limit="start")
        for letter, how in (("b", "start"), ("c", "accept")):
            state.answer_one_of(letter, how)
        state.disturb(which="b", how="hang", hub=0, age=0)
        state.leave(seconds=70)
        statuses = {job: state.record.jobs[job]["status"] for job in (released, unclaimed, unheard, unstarted)}
        assert statuses == {released: "WAITING", unclaimed: "EXPIRED", unheard: "AWOL", unstarted: "FAILED"}


@pytest.mark.timeout(180)
def test_what_is_searched_for_secrets_is_where_they_would_be(world: World) -> None:
    """What is no secret is found: what a payload prints, what somebody gives as a reason, and what is logged."""
    bait = token_hex(12)
    search = LeakSearch({"bait": bait.encode()})
    client = world.clients[0]
    # In two parts, so that it is not in the parameters of the job as well.
    script = f"echo {bait[:9]}''{bait[9:]}; while true; do sleep 1; done"
    job = client.jobs.create(shell_job(script, site=f"agent:{REAL_AGENT}")).job_id

    def found(*places: str) -> bool:
        places_found = world.leaks(search)
        return all(any(place in each for each in places_found) for place in places)

    until(lambda: found("table queue.log", "agent/attempts"), "what was printed to be found")
    client.jobs.cancel(job, bait)
    world.get_job(job, request_id=bait)
    until(lambda: found("table queue.history", "table queue.attempts", "queue-0.log"), "what was said to be found")
    with world.connect() as connection, pytest.raises(AssertionError, match="a secret is stored"):
        promises.check_secrets(promises.read(connection, [job]), search.find)
