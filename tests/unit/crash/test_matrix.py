"""The samples of the matrix, and what its table says of cases that have shown nothing."""

from __future__ import annotations

from collections import Counter

from tests.crash import matrix
from tests.crash.matrix import FAULTS, Case, Matrix, Result
from tests.crash.points import Passage, passages
from tests.crash.strikes import LINKS, PROCESSES


def test_everything_that_can_be_stopped_or_cut_is_so_several_times() -> None:
    cases = matrix.sample(11, 4)
    assert 150 <= len(cases) <= 160
    struck = Counter(fault for case in cases for _, fault in case.struck)
    wanted = {(kind, process) for kind in ("stop", "hang") for process in PROCESSES}
    wanted |= {(kind, link) for kind in ("cut", "hole", "lapse") for link in LINKS}
    assert {tuple(fault.split(":")): count for fault, count in struck.items()} == dict.fromkeys(wanted, 4)
    assert len(set(map(str, cases))) == len(cases) and set(map(str, cases)) <= set(map(str, matrix.more()))


def test_a_seed_says_it_all() -> None:
    for draw in (matrix.sample, matrix.pairs):
        assert draw(1, 10) == draw(1, 10) != draw(2, 10)


def test_a_case_is_what_is_written_of_it() -> None:
    for case in (*matrix.sample(3, 1), *matrix.pairs(3, 20)):
        assert Case.parse(str(case)) == case


def test_every_moment_has_every_fault_of_a_process() -> None:
    for passage in passages():
        faults = {fault for case in matrix.alone() for found, fault in case.struck if found == passage}
        assert faults == set(FAULTS) - {f"kill:{passage.process}"}


def ran(*results: Result) -> Matrix:
    def fresh() -> None:
        raise NotImplementedError

    return Matrix(fresh, print, list(results))  # type: ignore[arg-type]


NOTIFIED = Passage("queue.notified", "job", "start")
CLAIMED = Passage("hub.claimed", "job", "start")


def test_the_table_and_the_last_line_say_what_has_shown_nothing() -> None:
    found = ran(
        Result(Case(((NOTIFIED, "kill"),)), "SUCCEEDED", 1.0),
        Result(Case(((NOTIFIED, "kill:supervisor"),)), "SUCCEEDED", 1.0, idle=[0]),
        Result(Case(((CLAIMED, "stop:vault"),)), "SUCCEEDED", 1.0),
        Result(
            Case(((NOTIFIED, "kill:vault"), (CLAIMED, "stop"))),
            "SUCCEEDED",
            1.0,
            unreached=[1],
            idle=[0],
        ),
        Result(Case(((CLAIMED, "kill"),)), "VIOLATION", 1.0, "it was\nwrong"),
    )
    table = list(found.table())
    assert table[:4] == [
        "| moment | kill | kill:supervisor |",
        "|---|---|---|",
        "| job: queue.notified | SUCCEEDED | SUCCEEDED (nobody) |",
        "| job: hub.claimed | VIOLATION |  |",
    ]
    assert "| stop:vault | job: hub.claimed | SUCCEEDED |" in table
    told = "SUCCEEDED (hub.claimed not reached, nobody at queue.notified)"
    assert f"| job | queue.notified kill:vault | hub.claimed stop | {told} |" in table
    assert table[-5:-2] == ["it was", "wrong", "```"]
    assert table[-1] == (
        "5 cases, 1 violations, 2 in which a fault struck nobody, 1 in which a moment was not reached; "
        "nobody was ever struck by stop, kill:supervisor, kill:vault"
    )


def test_a_fault_that_has_struck_somebody_once_is_shown() -> None:
    found = ran(
        Result(Case(((NOTIFIED, "kill:supervisor"),)), "SUCCEEDED", 1.0, idle=[0]),
        Result(Case(((NOTIFIED, "kill:supervisor"), (CLAIMED, "kill:supervisor"))), "SUCCEEDED", 1.0, idle=[1]),
    )
    assert found.unproven == []
    assert found.summary().endswith("2 in which a fault struck nobody, 0 in which a moment was not reached")
