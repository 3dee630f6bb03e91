"""Which hub an agent tries next: each in its turn, and another one after the one that was left."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.sis_agent.agent.hubs import Turns

HUBS = ["a:1", "b:1", "c:1", "d:1"]


def test_the_first_is_where_somebody_said() -> None:
    assert {Turns("c:1").next(HUBS) for _ in range(20)} == {"c:1"}
    assert {Turns().next(HUBS) for _ in range(200)} == set(HUBS)


@given(st.integers(1, 4), st.booleans())
def test_every_hub_is_tried_once_before_any_is_tried_again(count: int, told: bool) -> None:
    hubs = HUBS[:count]
    turns = Turns(hubs[0] if told else "")
    if told:
        turns.next(hubs)
    for _ in range(5):
        assert Counter(turns.next(hubs) for _ in hubs) == Counter(hubs)


def test_those_that_a_hub_sends_away_are_spread_over_all_others() -> None:
    found = Counter()
    for _ in range(600):
        turns = Turns("a:1")
        turns.next(HUBS)
        turns.welcomed()
        found[turns.next(HUBS)] += 1
    assert set(found) == {"b:1", "c:1", "d:1"}
    assert min(found.values()) > 100


def test_the_only_hub_is_tried_again() -> None:
    turns = Turns("a:1")
    assert [turns.next(HUBS[:1]) for _ in range(3)] == ["a:1"] * 3


def test_hubs_that_are_told_of_later_are_tried_and_others_no_more() -> None:
    turns = Turns()
    turns.next(["a:1", "b:1", "c:1"])
    tried = {turns.next(["d:1", "e:1"]) for _ in range(2)}
    assert tried == {"d:1", "e:1"}
