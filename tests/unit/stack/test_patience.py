"""How long a start waits, and what is worth waiting for."""

from __future__ import annotations

from sis.stack.patience import RECOVERY_SECONDS, Patience

RECOVERS = 'connection to server on socket "/run/x" failed: FATAL: the database system is starting up'


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_ends_and_begins_anew() -> None:
    clock = _Clock()
    patience = Patience(55.0, clock)
    clock.now += 56
    assert patience.remaining == -1
    patience.renew()
    assert patience.remaining == 55


def test_what_is_merely_not_healthy_gets_no_more_time() -> None:
    clock = _Clock()
    patience = Patience(55.0, clock)
    clock.now += 56
    assert not patience.recovers("connection refused")
    assert patience.remaining == -1


def test_a_recovery_is_waited_for_up_to_an_hour() -> None:
    clock = _Clock()
    patience = Patience(55.0, clock)
    assert not patience.tried
    for _ in range(60):
        clock.now += 59
        assert patience.recovers(RECOVERS)
        assert patience.remaining == 55
    assert patience.tried
    clock.now += RECOVERY_SECONDS
    assert not patience.recovers(RECOVERS)
    assert patience.remaining < 0
