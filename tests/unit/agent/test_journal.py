"""The journal keeps what it said was durable, and says so when it cannot."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.sis_agent.agent import journal as module
from services.sis_agent.agent.attempts import AttemptKey
from services.sis_agent.agent.errors import IllegalStep, JournalDamaged, JournalUnwritable
from services.sis_agent.agent.journal import Entry, Journal, Step
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.records import sealed

FIRST, SECOND, THIRD = AttemptKey(41, 1), AttemptKey(42, 1), AttemptKey(42, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def steps(journal: Journal) -> dict[AttemptKey, Step]:
    return {key: entry.step for key, entry in journal.entries.items()}


def filled(path: Path) -> Journal:
    journal = Journal.create(path)
    journal.append(Step.ACCEPTED, [FIRST, SECOND])
    journal.append(Step.SPAWNING, [FIRST])
    journal.append(Step.DECLINED, [THIRD], "all 8 slots are taken")
    return journal


def test_reopened_it_knows_everything(path: Path) -> None:
    before = filled(path)
    before.close()
    after = Journal.open(path)
    assert after.journal_id == before.journal_id
    assert after.record_number == before.record_number == 5
    assert after.entries == before.entries
    assert after.entries[THIRD].reason == "all 8 slots are taken"
    after.append(Step.FORGOTTEN, [FIRST])
    after.close()
    assert Journal.open(path).record_number == 6


def test_cut_at_every_byte_of_the_last_record_it_keeps_those_before(path: Path) -> None:
    journal = filled(path)
    whole = path.read_bytes()
    journal.append(Step.SPAWNING, [SECOND])
    longer = path.read_bytes()
    for end in range(len(whole), len(longer)):
        for tail in (b"", bytes(len(longer) - end)):
            path.write_bytes(longer[:end] + tail)
            opened = Journal.open(path)
            assert opened.record_number == 5, end
            assert opened.entries[SECOND].step is Step.ACCEPTED
            assert path.read_bytes() == whole
            opened.append(Step.SPAWNING, [SECOND])
            opened.close()
            assert path.read_bytes() == longer
    journal.close()


def test_cut_at_any_byte_it_is_as_it_was_earlier_or_begins_anew(path: Path) -> None:
    journal = Journal.create(path)
    earlier = {len(path.read_bytes()): (journal.journal_id, 1, dict(journal.entries))}
    for step, keys in ((Step.ACCEPTED, [FIRST]), (Step.SPAWNING, [FIRST]), (Step.DECLINED, [THIRD])):
        journal.append(step, keys)
        earlier[len(path.read_bytes())] = (journal.journal_id, journal.record_number, dict(journal.entries))
    journal.close()
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        opened = Journal.open_or_create(path, lambda: None)
        state = (opened.journal_id, opened.record_number, dict(opened.entries))
        opened.close()
        if size < min(earlier):
            assert state[0] != journal.journal_id
            assert state[1:] == (1, {})
        else:
            assert state == earlier[max(end for end in earlier if end <= size)]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.long), 7])
def test_with_any_bit_flipped_it_is_damaged(path: Path, step: int) -> None:
    filled(path).close()
    content = path.read_bytes()
    for bit in range(0, len(content) * 8, step):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(JournalDamaged):
            Journal.open(path)


def test_any_changed_byte_is_damage_or_an_unfinished_end(path: Path) -> None:
    filled(path).close()
    content = path.read_bytes()
    last = content.rfind(b"\n", 0, -1) + 1
    chance = random.Random(5)
    for position in range(len(content)):
        for changed in {0, ord(chance.choice("\r\n")), chance.randrange(256)} - {content[position]}:
            path.write_bytes(content[:position] + bytes([changed]) + content[position + 1 :])
            # What ends with a block may not have been written.
            if changed == 0 and position >= last and (position + 1) % 512 in (0, len(content) % 512):
                assert Journal.open(path).record_number == 4
            else:
                with pytest.raises(JournalDamaged):
                    Journal.open(path)


def test_a_missing_record_is_damage(path: Path) -> None:
    filled(path).close()
    lines = path.read_bytes().splitlines(keepends=True)
    for missing in range(len(lines) - 1):
        path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
        with pytest.raises(JournalDamaged):
            Journal.open(path)


@pytest.mark.parametrize("content", [b"", b"no journal", b"no journal\n", b"\0" * 100])
def test_what_is_no_journal_is_damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalDamaged):
        Journal.open(path)


def test_a_damaged_journal_is_set_aside_and_another_begins(path: Path) -> None:
    filled(path).close()
    damaged = path.read_bytes().replace(b"SPAWNING", b"SPAWNINK")
    path.write_bytes(damaged)
    seen: list[bytes] = []
    journal = Journal.open_or_create(path, lambda: seen.append(path.read_bytes()))
    assert seen == [damaged], "the site must be warned while the damage can still be found again"
    assert (journal.record_number, steps(journal)) == (1, {})
    assert journal.journal_id.encode() not in damaged
    (aside,) = path.parent.glob("journal.damaged-*")
    assert aside.read_bytes() == damaged
    journal.close()
    assert Journal.open_or_create(path, pytest.fail).journal_id == journal.journal_id


def test_an_attempt_is_spawned_once_and_never_after_it_was_declined_or_forgotten(path: Path) -> None:
    journal = filled(path)
    number = journal.record_number
    for step, keys in (
        (Step.SPAWNING, [FIRST]),  # again
        (Step.SPAWNING, [THIRD]),  # was declined
        (Step.SPAWNING, [AttemptKey(9, 1)]),  # was never accepted
        (Step.ACCEPTED, [AttemptKey(9, 1), SECOND]),  # the first could, the second cannot
        (Step.SPAWNING, [SECOND, SECOND]),
    ):
        with pytest.raises(IllegalStep):
            journal.append(step, keys)
    journal.append(Step.FORGOTTEN, [SECOND])
    with pytest.raises(IllegalStep):
        journal.append(Step.ACCEPTED, [SECOND])
    assert journal.record_number == number + 1
    journal.close()
    assert Journal.open(path).entries == journal.entries


def test_it_tells_in_which_life_of_the_machine_a_supervisor_was_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.create(path)
    journal.append(Step.ACCEPTED, [FIRST])
    assert journal.entries[FIRST].spawned_in == ""
    journal.append(Step.SPAWNING, [FIRST])
    journal._rewrite()
    journal.close()
    before = processes.boot_id()
    monkeypatch.setattr(processes, "boot_id", lambda: "another")
    journal = Journal.open(path)
    assert journal.entries[FIRST].spawned_in == before
    journal.append(Step.FORGOTTEN, [FIRST])
    assert journal.entries[FIRST].spawned_in == before
    journal.close()


def test_a_journal_of_before_that_is_read(path: Path) -> None:
    records: list[dict[str, object]] = [
        {"n": 1, "journal": "j", "kept": 0},
        {"n": 2, "step": "ACCEPTED", "job": 41, "attempt": 1, "at": 1.5, "reason": ""},
        {"n": 3, "step": "SPAWNING", "job": 41, "attempt": 1, "at": 1.5, "reason": ""},
    ]
    path.write_bytes(b"".join(map(sealed, records)))
    journal = Journal.open(path)
    assert journal.entries == {FIRST: Entry(Step.SPAWNING, 1.5)}
    journal.close()


def test_a_damaged_journal_is_set_aside_once_however_often_no_other_can_be_begun(path: Path) -> None:
    filled(path).close()
    damaged = path.read_bytes().replace(b"SPAWNING", b"SPAWNINK")
    path.write_bytes(damaged)

    def refuse() -> None:
        raise OSError("the disk is full")

    for _ in range(3):
        with pytest.raises(OSError, match="full"):
            Journal.open_or_create(path, refuse)
    (aside,) = path.parent.glob("journal.damaged-*")
    assert aside.read_bytes() == path.read_bytes() == damaged


def test_compaction_keeps_numbers_and_what_matters(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACTION_BYTES", 20_000)
    monkeypatch.setattr(module, "FORGOTTEN_KEPT", 10)
    journal = filled(path)
    for number in range(1, 301):
        key = AttemptKey(1_000, number)
        for step in (Step.ACCEPTED, Step.SPAWNING, Step.FORGOTTEN):
            journal.append(step, [key])
    assert journal.record_number == 5 + 900
    assert path.stat().st_size < 40_000
    journal.close()
    after = Journal.open(path)
    assert (after.journal_id, after.record_number) == (journal.journal_id, 905)
    assert after.entries == journal.entries
    assert steps(after)[FIRST] is Step.SPAWNING
    with pytest.raises(IllegalStep):
        after.append(Step.ACCEPTED, [AttemptKey(1_000, 300)])
    after.append(Step.SPAWNING, [SECOND])
    after.close()
    assert Journal.open(path).record_number == 906


def test_a_record_that_cannot_be_written_is_not_there_and_can_be_tried_again(path: Path) -> None:
    journal = filled(path)
    descriptor = journal._descriptor
    with Path("/dev/full").open("wb") as full:
        journal._descriptor = full.fileno()
        with pytest.raises(JournalUnwritable):
            journal.append(Step.SPAWNING, [SECOND])
    journal._descriptor = descriptor
    assert (journal.record_number, journal.entries[SECOND].step) == (5, Step.ACCEPTED)
    journal.append(Step.SPAWNING, [SECOND])
    journal.close()
    assert Journal.open(path).entries[SECOND].step is Step.SPAWNING
