"""The lifecycle against its model: a few hundred steps, or thousands, and the runs that once failed.

They are in one file so that they share one world.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.acceptance.lifecycle.machine import Machine
from tests.acceptance.lifecycle.world import World


def of(world: World, *, kills: int = 2) -> type[Machine]:
    """The machine in this world, which kills so many processes in each run at the most."""
    return type("Lifecycle", (Machine,), {"world": world, "most_kills": kills})


def drive(world: World, *, runs: int, steps: int, kills: int, derandomize: bool) -> None:
    """Run machines of so many steps each."""
    run_state_machine_as_test(
        of(world, kills=kills),
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
    )


@pytest.mark.timeout(300)
def test_a_few_hundred_steps(world: World) -> None:
    drive(world, runs=5, steps=60, kills=1, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_five_thousand_steps(world: World) -> None:
    drive(world, runs=50, steps=100, kills=2, derandomize=False)


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
