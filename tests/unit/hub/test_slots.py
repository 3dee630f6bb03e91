"""The bookkeeping of slots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.sis_agent.hub.slots import UNANSWERED_SECONDS, AttemptKey, Slots

A, B, C = (AttemptKey(n, 1) for n in (1, 2, 3))


def slots(total: int = 2, *held: AttemptKey, draining: bool = False) -> Slots:
    return Slots(total, held, draining=draining)


def test_what_is_in_hand_at_the_hello_takes_slots() -> None:
    assert slots(2, A).free == 1
    assert slots(2, A, B, C).free == 0


def test_a_draining_agent_has_no_free_slot() -> None:
    assert slots(draining=True).free == 0
    found = slots()
    found.beat([], 0, draining=True, now=1)
    assert found.free == 0 and found.draining


def test_an_assignment_takes_a_slot_once() -> None:
    found = slots()
    assert found.assign(A, now=0)
    assert not found.assign(A, now=0)
    found.answered(A)
    assert not found.assign(A, now=0)
    assert found.free == 1
    assert found.held == {A}


def test_a_beat_that_was_sent_before_the_assignment_arrived_does_not_free_its_slot() -> None:
    found = slots()
    found.assign(A, now=0)
    found.beat([], 2, draining=False, now=1)
    assert found.free == 1


def test_a_beat_without_an_attempt_that_was_answered_frees_its_slot() -> None:
    found = slots()
    found.assign(A, now=0)
    found.answered(A)
    found.beat([], 2, draining=False, now=1)
    assert found.free == 2


def test_a_beat_that_names_an_assignment_answers_it() -> None:
    found = slots()
    found.assign(A, now=0)
    found.beat([A], 1, draining=False, now=1)
    found.beat([], 2, draining=False, now=1)
    assert found.free == 2


def test_a_settled_attempt_does_not_come_back_with_a_late_beat() -> None:
    found = slots()
    found.assign(A, now=0)
    found.answered(A)
    found.settle(A)
    assert found.free == 2
    found.beat([A], 1, draining=False, now=1)
    assert found.free == 2 and found.held == set()
    found.beat([], 2, draining=False, now=1)
    assert found.free == 2


def test_an_assignment_of_which_an_agent_says_nothing_does_not_take_a_slot_for_ever() -> None:
    found = slots()
    found.assign(A, now=10)
    found.beat([], 2, draining=False, now=10 + UNANSWERED_SECONDS - 1)
    assert found.free == 1
    found.beat([], 2, draining=False, now=10 + UNANSWERED_SECONDS)
    assert found.free == 2
    assert found.assign(A, now=30)


def test_an_agent_may_withhold_slots() -> None:
    found = slots(4, A)
    found.beat([A], 1, draining=False, now=1)
    assert found.free == 1
    found.beat([A], 3, draining=False, now=1)
    assert found.free == 3


def test_the_agents_own_count_never_raises_the_hubs() -> None:
    found = slots(2)
    found.assign(A, now=0)
    found.assign(B, now=0)
    found.beat([], 9, draining=False, now=1)
    assert found.free == 0


def test_what_is_reserved_has_a_slot_until_it_is_assigned_or_released() -> None:
    found = slots(3)
    assert found.reserve(A) and found.reserve(B)
    assert not found.reserve(A)
    assert found.free == 1
    found.beat([], 3, draining=False, now=1 + UNANSWERED_SECONDS)
    assert found.free == 1
    assert found.held == set()
    assert found.assign(A, now=20)
    assert not found.reserve(A)
    assert found.free == 1
    found.release(B)
    assert found.free == 2
    found.release(A)  # it is not reserved any more
    assert found.free == 2


def test_what_the_agent_has_after_all_is_not_assigned_again() -> None:
    found = slots(3)
    found.reserve(A)
    found.beat([A], 2, draining=False, now=1)
    assert found.free == 2
    assert not found.assign(A, now=1)
    assert found.free == 2
    assert not found.reserve(A)


_KEYS = st.sampled_from([AttemptKey(job, 1) for job in range(6)])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["reserve", "release", "assign", "answered", "settle"]), _KEYS),
            st.tuples(st.just("beat"), st.lists(_KEYS, max_size=4)),
        )
    )
)
def test_free_slots_stay_within_bounds_whatever_happens(
    events: list[tuple[str, AttemptKey | list[AttemptKey]]],
) -> None:
    found = slots(3)
    for name, argument in events:
        if isinstance(argument, list):
            found.beat(argument, 3 - len(set(argument)), draining=False, now=1)
        else:
            before = found.free
            arguments = (argument, 0) if name == "assign" else (argument,)
            changed = getattr(found, name)(*arguments)
            if name == "reserve":
                assert found.free == max(0, before - 1) or not changed
            if name == "assign":
                assert found.free in (before, max(0, before - 1)) or not changed
        assert 0 <= found.free <= 3
