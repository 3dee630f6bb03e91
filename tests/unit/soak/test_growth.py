"""The verdict on growth: it catches what leaks, and nothing else."""

from __future__ import annotations

import random

import pytest

from tests.soak.growth import FEWEST_POINTS, Allowance, Outcome, Point, judge, slope

MIB = 1 << 20
MEMORY = Allowance(6 * MIB)
SECONDS = 600


def _life(value: object, *, seconds: int = SECONDS, every: int = 5, noise: float = 0.0) -> list[Point]:
    dice = random.Random(20261122)
    assert callable(value)
    return [(float(at), value(at) + noise * dice.uniform(-1, 1)) for at in range(0, seconds, every)]


@pytest.mark.parametrize("leak", [2 * MIB / 60, 10 * MIB / 60])
def test_a_leak_is_caught_in_noise(leak: float) -> None:
    life = _life(lambda at: 80 * MIB + leak * at, noise=3 * MIB)
    verdict = judge([life], MEMORY, 300)
    assert verdict.outcome is Outcome.GROWS
    assert verdict.per_hour == pytest.approx(3600 * leak, rel=0.1)


def test_a_leak_is_caught_although_outliers_hide_it() -> None:
    life = _life(lambda at: 80 * MIB + at * MIB / 20)
    life[10] = (life[10][0], 500 * MIB)
    life[-1] = (life[-1][0], 1 * MIB)
    assert judge([life], MEMORY, 300).outcome is Outcome.GROWS


def test_a_leak_in_one_life_of_several_is_caught() -> None:
    lives = [
        _life(lambda at: 80 * MIB),
        [(at + SECONDS, value) for at, value in _life(lambda at: 80 * MIB + at * MIB / 10)],
        [(at + 2 * SECONDS, value) for at, value in _life(lambda at: 80 * MIB)],
    ]
    verdict = judge(lives, MEMORY, 300)
    assert verdict.outcome is Outcome.GROWS
    assert verdict.lives == 3


def test_a_leak_of_files_one_at_a_time_is_caught() -> None:
    assert judge([_life(lambda at: 40 + at // 15)], Allowance(10, 0.2), 300).outcome is Outcome.GROWS


@pytest.mark.parametrize("period", [30, 77, 120])
def test_a_saw_tooth_passes(period: int) -> None:
    life = _life(lambda at: 80 * MIB + 40 * MIB * (at % period) / period)
    assert judge([life], MEMORY, 300).outcome is Outcome.STEADY


def test_warming_up_passes() -> None:
    life = _life(lambda at: 120 * MIB - 80 * MIB * 0.97**at, noise=MIB)
    assert judge([life], MEMORY, 300).outcome is Outcome.STEADY


@pytest.mark.parametrize("when", [150, 290, 310, 450, 560])
def test_one_step_passes_whenever_it_comes(when: int) -> None:
    life = _life(lambda at: 80 * MIB + (50 * MIB if at > when else 0), noise=MIB)
    assert judge([life], MEMORY, 300).outcome is Outcome.STEADY


def test_what_shrinks_or_stands_passes() -> None:
    assert judge([_life(lambda at: 300 * MIB - at * MIB / 10)], MEMORY, 300).outcome is Outcome.STEADY
    assert judge([_life(lambda at: 0)], MEMORY, 300).outcome is Outcome.STEADY


def test_short_lives_are_not_judged() -> None:
    short = [_life(lambda at: at * MIB, seconds=100) for _ in range(5)]
    assert judge(short, MEMORY, 300).outcome is Outcome.SHORT
    few = _life(lambda at: at * MIB, every=SECONDS // (FEWEST_POINTS - 2))
    assert judge([few], MEMORY, 300).outcome is Outcome.SHORT
    assert judge([], MEMORY, 300).outcome is Outcome.SHORT


def test_a_life_with_a_hole_is_not_judged() -> None:
    life = [point for point in _life(lambda at: at * MIB) if not 280 < point[0] < 460]
    assert judge([life], MEMORY, 300).outcome is Outcome.SHORT


def test_a_bound_is_all_that_counts_where_there_is_one() -> None:
    bounded = Allowance(0, bound=100)
    assert judge([_life(lambda at: at / 7)], bounded, 300).outcome is Outcome.STEADY
    over = judge([_life(lambda at: at / 5)], bounded, 300)
    assert over.outcome is Outcome.OVER
    assert over.outcome.bad


def test_the_slope_is_the_median_of_all_slopes() -> None:
    assert slope([(0, 0), (1, 2), (2, 4), (3, 6), (4, 1000)]) == 2
    assert slope([(float(at), 3.0 * at) for at in range(5_000)]) == 3
    assert slope([(1, 1)]) == 0
    assert slope([]) == 0
