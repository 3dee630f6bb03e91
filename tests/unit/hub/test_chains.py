"""The chain of resume secrets: what an agent may show, and that a copy of it is noticed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.channels import KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS
from services.sis_agent.agent.connection import WELCOME_SECONDS
from services.sis_agent.hub.chains import LATE_SECONDS, OFFERS, Chain, Standing

NOTHING = b"nothing"
FIRST = Chain(NOTHING, (b"1",))


def test_the_secret_shown_last_and_the_one_offered_are_taken() -> None:
    assert FIRST.standing(NOTHING) is Standing.SOUND
    assert FIRST.standing(b"1") is Standing.SOUND
    assert FIRST.standing(b"0") is Standing.DOUBTFUL


def test_what_was_shown_before_the_last_one_is_not_taken() -> None:
    chain = FIRST.followed_by(b"1", b"2")
    assert chain == Chain(b"1", (b"2",))
    assert chain.standing(NOTHING) is Standing.DOUBTFUL


def test_lost_welcomes_leave_every_offer_that_may_have_arrived() -> None:
    chain = FIRST.followed_by(b"1", b"2").followed_by(b"1", b"3").followed_by(b"1", b"4")
    assert all(chain.standing(each) is Standing.SOUND for each in (b"1", b"2", b"3", b"4"))
    assert chain.followed_by(b"3", b"5") == Chain(b"3", (b"5",))


def test_offers_are_bounded() -> None:
    chain = FIRST
    for number in range(20):
        chain = chain.followed_by(NOTHING, b"%d" % number)
    assert chain.offered == tuple(b"%d" % number for number in range(20 - OFFERS, 20))


def test_the_doubt_outlasts_a_call_that_is_half_dead_and_not_the_agents_patience() -> None:
    assert (KEEPALIVE_MS + KEEPALIVE_TIMEOUT_MS) / 1000 < LATE_SECONDS < WELCOME_SECONDS - 10


def test_a_quarantine_and_a_replacement_refuse_whatever_is_shown() -> None:
    assert replace(FIRST, quarantined=True).standing(b"1") is Standing.QUARANTINED
    assert replace(FIRST, replaced=True).standing(b"1") is Standing.REPLACED
    assert replace(FIRST, quarantined=True, replaced=True).standing(b"1") is Standing.QUARANTINED


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_one_agent_is_never_taken_for_two(hellos: list[tuple[bool, bool]]) -> None:
    """Whichever welcomes are lost, and if hellos that it has given up come late."""
    chain, persisted = FIRST, NOTHING
    for number, (lost, late) in enumerate(hellos):
        assert chain.standing(persisted) is Standing.SOUND
        shown = persisted
        offer = b"offer %d" % number
        chain = chain.followed_by(shown, offer)
        persisted = persisted if lost else offer
        if late:
            assert chain.standing(shown) is Standing.SOUND
            chain = chain.followed_by(shown, b"late %d" % number)


@given(st.lists(st.booleans(), max_size=10))
def test_two_programs_with_one_identity_are_noticed(turns: list[bool]) -> None:
    """As soon as each of them has been welcomed and has come back."""
    chain = FIRST
    persisted = {False: NOTHING, True: NOTHING}
    noticed = False
    for number, which in enumerate([False, True, *turns, False, True]):
        if chain.standing(persisted[which]) is not Standing.SOUND:
            noticed = True
            break
        offer = b"%d" % number
        chain, persisted[which] = chain.followed_by(persisted[which], offer), offer
    assert noticed
