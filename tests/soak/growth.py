"""Whether a series grows without bound: pure, and robust against outliers, steps and saw-teeth.

A process grows while it warms up, jumps when it has carried something big, and goes up and down as it collects
garbage. None of that is a leak. What leaks goes on growing: in each part of a life it stands higher than in the one
before, and a line through all of it rises.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

Point = tuple[float, float]
"""Seconds, and the value then."""

FEWEST_POINTS: Final = 16
"""A life with fewer is not judged."""
_MOST_POINTS: Final = 160
"""The slope is of all pairs of points, so a long life is thinned out."""
_STEP_SHARE: Final = 0.25
"""The part of the allowance that a life must grow by in each half of what is looked at."""


class Outcome(StrEnum):
    """What is said of a series."""

    STEADY = "steady"
    GROWS = "GROWS"
    OVER = "OVER ITS BOUND"
    UNJUDGED = "NOT SEEN FOR LONG ENOUGH"
    """Too short to tell, where it was to be told."""
    SHORT = "too short to tell"

    @property
    def bad(self) -> bool:
        return self in (Outcome.GROWS, Outcome.OVER, Outcome.UNJUDGED)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a series may gain between the second and the last quarter of a life: `absolute`, or `relative` to what it
    was, whichever is more. With a `bound` it may do as it likes below that, and must not be above."""

    absolute: float
    relative: float = 0.1
    bound: float | None = None

    def of(self, value: float) -> float:
        return max(self.absolute, self.relative * value)


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one series, and the figures that led to it: medians of the quarters of the life that decided."""

    outcome: Outcome
    lives: int
    seconds: float = 0.0
    second_quarter: float = 0.0
    last_quarter: float = 0.0
    per_hour: float = 0.0
    """By a Theil–Sen line through everything behind the first quarter."""


def judge(lives: Sequence[Sequence[Point]], allowance: Allowance, least_seconds: float) -> Verdict:
    """Judge a series by the lives of its process that lasted `least_seconds`; the worst one decides.

    The first quarter of a life is its warming up. A life grows if its last quarter's median is above the second's by
    more than the allowance, a fair part of that came in each of the two steps between them, and the slope agrees.
    """
    if allowance.bound is not None:
        return _below(lives, allowance.bound)
    verdicts = [_one(life, allowance, len(lives)) for life in lives if _lasted(life) >= least_seconds]
    known = [verdict for verdict in verdicts if verdict.outcome is not Outcome.SHORT]
    if not known:
        return Verdict(Outcome.SHORT, len(lives))
    grown = [verdict for verdict in known if verdict.outcome is Outcome.GROWS]
    return max(grown or known, key=lambda verdict: verdict.seconds)


def slope(points: Sequence[Point]) -> float:
    """Theil–Sen: the median of the slopes of all pairs, per second. An outlier hardly moves it."""
    every = max(1, -(-len(points) // _MOST_POINTS))
    thinned = points[::every]
    slopes = [
        (late[1] - early[1]) / (late[0] - early[0])
        for number, early in enumerate(thinned)
        for late in thinned[number + 1 :]
        if late[0] > early[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def _lasted(life: Sequence[Point]) -> float:
    return life[-1][0] - life[0][0] if life else 0.0


def _below(lives: Sequence[Sequence[Point]], bound: float) -> Verdict:
    values = [value for life in lives for _, value in life]
    if not values:
        return Verdict(Outcome.SHORT, len(lives))
    outcome = Outcome.OVER if max(values) > bound else Outcome.STEADY
    return Verdict(outcome, len(lives), max(map(_lasted, lives)), statistics.median(values), max(values))


def _one(life: Sequence[Point], allowance: Allowance, lives: int) -> Verdict:
    if len(life) < FEWEST_POINTS:
        return Verdict(Outcome.SHORT, lives)
    begin, length = life[0][0], _lasted(life)
    quarters: list[list[float]] = [[], [], [], []]
    for at, value in life:
        quarters[min(3, int(4 * (at - begin) / length))].append(value)
    if not all(quarters):  # the machine stood still
        return Verdict(Outcome.SHORT, lives)
    _, second, third, fourth = map(statistics.median, quarters)
    later = [point for point in life if point[0] - begin >= length / 4]
    per_second = slope(later)
    allowed = allowance.of(second)
    grows = (
        fourth - second > allowed
        and third - second > _STEP_SHARE * allowed
        and fourth - third > _STEP_SHARE * allowed
        and per_second * length / 2 > allowed / 2
    )
    outcome = Outcome.GROWS if grows else Outcome.STEADY
    return Verdict(outcome, lives, length, second, fourth, per_second * 3600)
