from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.backoff import Backoff


@given(st.floats(0.001, 10), st.floats(1, 1_000), st.integers(1, 100))
def test_delays_grow_within_their_bounds(initial: float, factor: float, tries: int) -> None:
    maximum = initial * factor
    backoff = Backoff(initial, maximum)
    step = initial
    for _ in range(tries):
        assert step / 2 <= backoff.next_delay() <= step
        step = min(step * 2, maximum)


def test_a_success_starts_again() -> None:
    backoff = Backoff(1, 64)
    for _ in range(10):
        backoff.next_delay()
    assert backoff.next_delay() >= 32
    backoff.reset()
    assert backoff.next_delay() <= 1


@pytest.mark.parametrize(("initial", "maximum"), [(0, 1), (2, 1), (-1, 1)])
def test_steps_that_make_no_sense_are_refused(initial: float, maximum: float) -> None:
    with pytest.raises(ValueError, match="0 < initial <= maximum"):
        Backoff(initial, maximum)
