"""The schedule of faults: the same for the same seed, and with a long life for everybody."""

from __future__ import annotations

from tests.soak.faults import GROUPS, HANG, kind, schedule

VICTIMS = [
    "vault",
    "postgres",
    "credentials-1",
    "credentials-2",
    "queue-1",
    "queue-2",
    "hub-1",
    "hub-2",
    "gateway-1",
    "gateway-2",
    "local-1",
    "far-1",
    "zygote",
    "supervisor",
    "guardian",
]


def test_a_seed_says_it_all() -> None:
    assert schedule(1, 1800, VICTIMS) == schedule(1, 1800, VICTIMS)
    assert schedule(1, 1800, VICTIMS) != schedule(2, 1800, VICTIMS)


def test_everybody_is_struck_and_spared_for_a_third() -> None:
    planned = schedule(1, 1800, VICTIMS)
    assert {fault.victim for fault in planned} == {*VICTIMS, "connections"}
    assert {fault.victim for fault in planned if fault.action == "kill"} == set(VICTIMS)
    for third, spared in enumerate(GROUPS):
        ends = {
            kind(fault.victim)
            for fault in planned
            if third * 600 <= fault.at < (third + 1) * 600 and (fault.action == "kill" or fault.seconds >= HANG)
        }
        assert not ends & set(spared)


def test_a_short_soak_has_faults_too_and_time_to_come_to_rest() -> None:
    for seconds in (20, 60, 600):
        planned = schedule(1, seconds, VICTIMS)
        assert planned
        assert all(fault.at < seconds for fault in planned)


def test_servers_hang_in_a_soak_of_some_length() -> None:
    hung = [fault.victim for fault in schedule(1, 1800, VICTIMS) if fault.seconds >= HANG]
    assert sorted(hung) == ["credentials-1", "gateway-1", "hub-1", "queue-1"]
