"""The checker of the promises can fail: a record in which all is well passes, and each of its assertions refuses it
once one thing in it is otherwise."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.support import promises
from tests.support.frames import Spool
from tests.support.promises import Key, Record, Row, Sites
from tests.unit.support.chronicle import SECOND, Chronicle

DECLINED = 1, 1
RAN = 1, 2
RUNS = 2, 1
ABORTED = 3, 1
OUTPUT = b"one\ntwo\n"


def good() -> Chronicle:
    """Job 1 was declined, then ran and succeeded; job 2 runs; job 3 was aborted before it was accepted; job 4 was
    canceled when it waited, and deleted."""
    book = Chronicle()
    book.create(1, "DEFERRED")
    book.happens(1, "ACTIVATE", "WAITING", by="alice")
    book.seal(_given_back(book, 1))
    _run(book, book.claim(1), OUTPUT)
    book.happens(1, "RERUN", by="alice")

    key = book.claim(book.create(2))
    spool = Spool()
    book.accept(key)
    book.happens(2, "FINISH_SUCCEEDED", message="ignored: it has not begun")
    spool.process_started(8)
    spool.output(b"more\n")
    book.store(key, spool)
    book.happens(2, "FIRST_PROCESS", "RUNNING")

    key = book.claim(book.create(3))
    book.happens(3, "ABORT", "ABORTED", by="alice")
    book.seal(key, stop="CONFIRMED")

    book.create(4)
    book.happens(4, "CANCEL", "CANCELED", by="alice")
    book.happens(4, "DELETE", by="alice")
    book.jobs[4]["hidden_at"] = book.now
    return book


def _given_back(book: Chronicle, job_id: int) -> Key:
    key = book.claim(job_id)
    book.happens(job_id, "GIVE_BACK", "WAITING", message="declined: it is full")
    return key


def _run(book: Chronicle, key: Key, output: bytes) -> None:
    spool = Spool()
    book.accept(key)
    spool.process_started(7)
    book.happens(key[0], "FIRST_PROCESS", "RUNNING")
    for line in output.splitlines(keepends=True):
        spool.output(line)
    spool.payload_ended(0)
    book.happens(key[0], "PAYLOAD_ENDED", "PROCESSING_OUTPUT")
    spool.finished("SUCCEEDED")
    book.happens(key[0], "FINISH_SUCCEEDED", "SUCCEEDED")
    book.store(key, spool)
    book.seal(key, stop="CONFIRMED", tree_empty=True)


Corruption = Callable[[Chronicle], object]


def entry(book: Chronicle, job_id: int, event: str) -> Row:
    """The last one of that event."""
    return next(e for e in reversed(book.histories[job_id]) if e["event"] == event)


def renumber(book: Chronicle, job_id: int) -> None:
    """What is left of a history has no gap."""
    for number, each in enumerate(book.histories[job_id], 1):
        each["sequence"] = number
    book.jobs[job_id]["history_sequence"] = len(book.histories[job_id])


def another_end(book: Chronicle) -> None:
    book.happens(1, "FINISH_FAILED", "FAILED")


def a_gap_in_the_history(book: Chronicle) -> None:
    del book.histories[1][2]


def an_end_of_the_history_that_is_gone(book: Chronicle) -> None:
    del book.histories[1][-1]


def an_entry_that_was_left_out(book: Chronicle) -> None:
    book.histories[1].remove(entry(book, 1, "PAYLOAD_ENDED"))
    renumber(book, 1)


def a_beginning_without_creation(book: Chronicle) -> None:
    del book.histories[1][0]
    book.histories[1][0]["from_status"] = None
    renumber(book, 1)


def a_second_claim(book: Chronicle) -> None:
    book.claim(2)


def two_claims_for_one_attempt(book: Chronicle) -> None:
    book.create(5)
    book.claim(5)
    book.happens(5, "GIVE_BACK", "WAITING")
    book.happens(5, "CLAIM", "STARTING")


def two_claims_that_are_counted_once(book: Chronicle) -> None:
    a_second_attempt(book)
    del book.attempts[5, 2]
    book.jobs[5]["attempt"] = 1


def a_second_attempt(book: Chronicle) -> None:
    book.seal(_given_back(book, book.create(5)))
    book.claim(5)


def a_second_acceptance(book: Chronicle) -> None:
    key = book.claim(book.create(5))
    book.accept(key)
    book.accept(key)


def a_give_back_of_what_was_accepted(book: Chronicle) -> None:
    key = book.claim(book.create(5))
    book.accept(key)
    book.happens(5, "GIVE_BACK", "WAITING")
    book.seal(key)


def a_requeue_of_what_was_canceled(book: Chronicle) -> None:
    key = book.claim(book.create(5))
    book.happens(5, "SILENCE", "AWOL", by="sweeper")
    book.happens(5, "CANCEL", by="alice")
    book.happens(5, "GIVE_BACK", "WAITING")
    book.seal(key)


def a_report_that_is_ignored_though_it_moves(book: Chronicle) -> None:
    book.happens(2, "PAYLOAD_ENDED", message="ignored")


def a_frame_that_is_gone(book: Chronicle) -> None:
    del book.logs[RAN][1]


def an_end_of_the_log_that_is_gone(book: Chronicle) -> None:
    del book.logs[RAN][-1]


def other_bytes(book: Chronicle) -> None:
    row = book.logs[RAN][1]
    row["body"] = row["body"].replace(b"one", b"two")


def frames_in_another_order(book: Chronicle) -> None:
    log = book.logs[RAN]
    log[1]["body"], log[2]["body"] = log[2]["body"], log[1]["body"]


def a_log_that_its_site_did_not_cut(book: Chronicle) -> None:
    """Whole, with a digest that is right, and not what the last frame says that there was before it."""
    spool = Spool()
    spool.output(b"something else\n")
    spool.finished("SUCCEEDED", digest=b"another digest")
    book.logs[RAN].clear()
    book.attempts[RAN] |= {"sequence": 0, "digest": bytes(32), "output_bytes": 0}
    book.store(RAN, spool)


def a_log_that_was_cut_off_and_is_called_complete(book: Chronicle) -> None:
    spool = Spool()
    spool.finished("SUCCEEDED", discarded_bytes=9)
    book.logs[RAN].clear()
    book.attempts[RAN] |= {"sequence": 0, "digest": bytes(32), "output_bytes": 0}
    book.store(RAN, spool)


def a_log_that_was_cut_with_its_supervisor_and_is_called_complete(book: Chronicle) -> None:
    spool = Spool()
    spool.finished("SUCCEEDED", output_cut=True)
    book.logs[RAN].clear()
    book.attempts[RAN] |= {"sequence": 0, "digest": bytes(32), "output_bytes": 0}
    book.store(RAN, spool)


def of_job(job_id: int, /, **columns: object) -> Corruption:
    return lambda book: book.jobs[job_id].update(columns)


def of_attempt(key: Key, /, **columns: object) -> Corruption:
    return lambda book: book.attempts[key].update(columns)


def of_entry(job_id: int, event: str, /, **columns: object) -> Corruption:
    return lambda book: entry(book, job_id, event).update(columns)


@pytest.mark.parametrize(
    ("corrupt", "complaint"),
    [
        # 1: one start for each attempt
        (a_second_claim, "CLAIM does nothing in RUNNING"),
        (two_claims_for_one_attempt, "CLAIM is of attempt 1, not 2"),
        (two_claims_that_are_counted_once, "it is at attempt 1"),
        (a_second_acceptance, re.escape("attempt (5, 1): 2 ACCEPT")),
        (lambda book: book.accept(RUNS), "ACCEPT does nothing in RUNNING"),
        (of_entry(1, "CLAIM", attempt=1), "CLAIM is of attempt 1, not 2"),
        (lambda book: book.attempts.pop(DECLINED), re.escape("job 1 has the attempts [2]")),
        (of_job(1, attempt=3), "it is at attempt 3"),
        (of_attempt(DECLINED, accepted_at=1), re.escape("attempt (1, 1): 0 ACCEPT")),
        (of_attempt(RAN, accepted_at=None), re.escape("attempt (1, 2): 1 ACCEPT")),
        (of_attempt(ABORTED, sequence=1), re.escape("attempt (3, 1) has a log, and no acceptance")),
        (of_attempt(DECLINED, sealed_at=None), re.escape("attempt (1, 1) is over, and not sealed")),
        (a_give_back_of_what_was_accepted, "GIVE_BACK does nothing in STARTING"),
        (lambda book: book.attempts.update({(4, 1): {}}), re.escape("job 4 has the attempts [1]")),
        # 2: terminal is final, and the history tells how it came to that
        (another_end, "a terminal status was left"),
        (of_job(1, status="FAILED"), "it is FAILED"),
        (of_job(2, status="SUCCEEDED"), "it is SUCCEEDED"),
        (of_job(1, completed_at=None), "completed None"),
        (of_job(2, completed_at=1), "completed 1"),
        (a_gap_in_the_history, "a gap: job 1"),
        (an_end_of_the_history_that_is_gone, "a gap: job 1"),
        (an_entry_that_was_left_out, "FINISH_SUCCEEDED is from PROCESSING_OUTPUT"),
        (a_beginning_without_creation, "it begins with ACTIVATE"),
        (of_entry(1, "CREATE", event="RELEASE"), "it begins with RELEASE"),
        (of_entry(1, "ACTIVATE", event="RELEASE", to_status="STARTING"), "RELEASE leads from DEFERRED to WAITING"),
        (of_entry(1, "FIRST_PROCESS", event="PAYLOAD_ENDED"), "PAYLOAD_ENDED does nothing in STARTING"),
        (
            of_entry(1, "FINISH_SUCCEEDED", event="FINISH_FAILED"),
            "FINISH_FAILED leads from .* to FAILED, not to SUCCEEDED",
        ),
        (of_entry(1, "RERUN", event="CANCEL"), "CANCEL does nothing in SUCCEEDED"),
        (of_entry(2, "FINISH_SUCCEEDED", message=""), "FINISH_SUCCEEDED does nothing in STARTING"),
        (of_entry(2, "FINISH_SUCCEEDED", event="CANCEL"), "CANCEL leads from STARTING to CANCEL_REQUESTED"),
        (of_entry(1, "RERUN", event="START_LIMIT", message="ignored"), "START_LIMIT does nothing in SUCCEEDED"),
        (a_report_that_is_ignored_though_it_moves, "PAYLOAD_ENDED leads from RUNNING to PROCESSING_OUTPUT"),
        (a_requeue_of_what_was_canceled, "GIVE_BACK leads from AWOL to CANCELED, not to WAITING"),
        (of_entry(1, "CLAIM", actor=""), "nobody did it"),
        (lambda book: entry(book, 1, "RERUN").update(at=entry(book, 1, "CLAIM")["at"]), "RERUN is at .*, after"),
        # 3: no byte is lost
        (a_frame_that_is_gone, re.escape("attempt (1, 2): a gap")),
        (an_end_of_the_log_that_is_gone, re.escape("attempt (1, 2): a gap")),
        (lambda book: book.logs.pop(RAN), re.escape("attempt (1, 2): a gap")),
        (lambda book: book.logs.update({(9, 1): []}), "a log without an attempt"),
        (other_bytes, "its digest is not that of its frames"),
        (frames_in_another_order, "frame 2 says 3"),
        (of_attempt(RAN, digest=b"0" * 32), "its digest is not that of its frames"),
        (of_attempt(RAN, output_bytes=9), "8 bytes, its row says 9"),
        (lambda book: book.logs[RAN][2].update(output_offset=1), "frame 3 begins elsewhere"),
        (of_attempt(RUNS, verdict="COMPLETE", sealed_at=1), "its log is COMPLETE, and has no last frame"),
        (of_attempt(RUNS, verdict="TRUNCATED", sealed_at=1), "its log is TRUNCATED, and has no last frame"),
        (a_log_that_its_site_did_not_cut, "its log is COMPLETE, and not what its site cut"),
        (a_log_that_was_cut_off_and_is_called_complete, "COMPLETE, 9 left out"),
        (a_log_that_was_cut_with_its_supervisor_and_is_called_complete, "is COMPLETE, and was cut at its site"),
        (of_attempt(RAN, verdict="TRUNCATED"), "TRUNCATED, 0 left out"),
        (of_attempt(RUNS, sealed_at=1), "OPEN, sealed True"),
        (of_attempt(RUNS, verdict="GAPPED"), "GAPPED, sealed False"),
        # 5: a stop that is confirmed is true
        (of_attempt(RAN, evidence=None), "job 1: its stop is CONFIRMED by None"),
        (of_attempt(RAN, evidence={"treeEmpty": False}), "job 1: its stop is CONFIRMED by {'treeEmpty': False}"),
        (of_job(2, stop_state="CONFIRMED"), "job 2: its stop is CONFIRMED, and more may be heard of it"),
        (of_job(1, stop_state="PENDING"), "job 1: its stop is PENDING, and its log is sealed"),
        (of_job(4, stop_state="CONFIRMED"), "job 4: a stop of nothing is CONFIRMED"),
    ],
)
def test_what_no_database_may_say_is_refused(corrupt: Corruption, complaint: str) -> None:
    book = good()
    promises.check(book.record())
    corrupt(book)
    with pytest.raises(AssertionError, match=complaint):
        promises.check(book.record())


def test_only_growth_is_no_change() -> None:
    book = good()
    before = copy.deepcopy(book.record())
    promises.check_kept(before, before)
    spool = Spool()
    spool.bodies = [row["body"] for row in book.logs[RUNS]]
    spool.sequence, spool.digest = len(spool.bodies), book.attempts[RUNS]["digest"]
    spool.payload_ended(0)
    spool.finished("FAILED")
    book.store(RUNS, spool)
    book.happens(2, "PAYLOAD_ENDED", "PROCESSING_OUTPUT")
    book.happens(2, "FINISH_FAILED", "FAILED")
    book.seal(RUNS, stop="CONFIRMED", tree_empty=True)
    book.happens(1, "DELETE", by="alice")
    del book.jobs[4], book.histories[4]
    promises.check(book.record())
    promises.check_kept(before, book.record())


def the_same_history_with_another_entry(book: Chronicle) -> None:
    entry(book, 1, "CLAIM")["actor"] = "agent b"


def a_shorter_history(book: Chronicle) -> None:
    book.histories[1].pop()
    renumber(book, 1)


def a_shorter_log(book: Chronicle) -> None:
    book.logs[RUNS].pop()
    book.attempts[RUNS]["sequence"] -= 1


@pytest.mark.parametrize(
    ("corrupt", "complaint"),
    [
        (lambda book: book.jobs.pop(1), "job 1 is gone, and nobody deleted it"),
        (the_same_history_with_another_entry, "the history of job 1 says"),
        (a_shorter_history, "the history of job 1 says None"),
        (of_job(1, status="FAILED"), "job 1 had ended: status was SUCCEEDED, and is FAILED"),
        (of_job(1, completed_at=1), "job 1 had ended: completed_at"),
        (of_job(1, stop_state="UNCONFIRMED"), "job 1: its stop was CONFIRMED: stop_state"),
        (lambda book: book.attempts.pop(RUNS), re.escape("attempt (2, 1) is gone, and its job is not")),
        (other_bytes, re.escape("the log of attempt (1, 2) says")),
        (a_shorter_log, re.escape("the log of attempt (2, 1) says None")),
        (of_attempt(RUNS, accepted_at=None), re.escape("attempt (2, 1) was accepted: accepted_at")),
        (of_attempt(RUNS, agent="b"), re.escape("attempt (2, 1) was accepted: agent was a, and is b")),
        (of_attempt(RAN, sealed_at=None), re.escape("attempt (1, 2) was sealed: sealed_at")),
        (of_attempt(RAN, verdict="GAPPED"), re.escape("attempt (1, 2) was sealed: verdict was")),
        (of_attempt(RAN, sequence=99), re.escape("attempt (1, 2) was sealed: sequence")),
    ],
)
def test_what_was_said_is_not_unsaid(corrupt: Corruption, complaint: str) -> None:
    book = good()
    before = copy.deepcopy(book.record())
    corrupt(book)
    with pytest.raises(AssertionError, match=complaint):
        promises.check_kept(before, book.record())


def test_a_job_of_which_nobody_is_heard_is_refused() -> None:
    book = good()
    promises.check_heard(book.record())
    book.attempts[RUNS]["last_heard_at"] = book.now - timedelta(seconds=60) - promises.HEARD_MARGIN
    promises.check_heard(book.record())
    book.now += SECOND
    with pytest.raises(AssertionError, match="job 2 is RUNNING, and nothing was heard of it for 0:01:16"):
        promises.check_heard(book.record())


def sites() -> Sites:
    """What those know of the good record that were there."""
    return Sites(
        starts=Counter({RAN: 1, RUNS: 1}),
        seen={RAN: OUTPUT[:4], RUNS: b"more\n"},
        acknowledged={RAN: 5, RUNS: 2},
        written={RAN: OUTPUT, RUNS: b"more\nand more"},
        living=lambda key: [8] if key == RUNS else [],
    )


@pytest.mark.parametrize(
    ("tell", "complaint"),
    [
        (lambda told: told.starts.update({RAN: 1}), re.escape("attempt (1, 2) was started 2 times")),
        (lambda told: told.starts.update({DECLINED: 1}), re.escape("attempt (1, 1) was started and never accepted")),
        (lambda told: told.acknowledged.update({RUNS: 3}), "frame 3 was acknowledged, and 2 are there"),
        (lambda told: told.acknowledged.update({DECLINED: 1}), "frame 1 was acknowledged, and 0 are there"),
        (lambda told: told.seen.update({RUNS: b"more\nand more"}), "output that was shown is gone"),
        (lambda told: told.written.update({RAN: OUTPUT + b"three\n"}), "its log is COMPLETE, and not what it wrote"),
        (lambda told: setattr(told, "living", lambda _: [7]), re.escape("its stop is CONFIRMED, and [7] live")),
    ],
)
def test_what_the_sites_know_otherwise_is_refused(tell: Callable[[Sites], object], complaint: str) -> None:
    record, told = good().record(), sites()
    promises.check_sites(record, told)
    tell(told)
    with pytest.raises(AssertionError, match=complaint):
        promises.check_sites(record, told)


def said(book: Chronicle) -> None:
    entry(book, 1, "RERUN")["message"] = "because of hunter2hunter2"


def printed(book: Chronicle) -> None:
    book.logs[RUNS][1]["body"] = b"\x12\x0ehunter2hunter2"


@pytest.mark.parametrize(
    ("leak", "where"),
    [
        (said, "history of job 1"),
        (printed, "log of job 2"),
        (of_job(3, parameters={"script": {"plain": "login hunter2hunter2"}}), "jobs of job 3"),
        (of_attempt(RAN, evidence={"processes": [{"name": "hunter2hunter2"}]}), "attempts of job 1"),
    ],
)
def test_a_secret_in_any_row_is_refused(leak: Corruption, where: str) -> None:
    def find(data: bytes, where: str) -> set[str]:
        return {where} if b"hunter2hunter2" in data else set()

    book = good()
    promises.check_secrets(book.record(), find)
    leak(book)
    with pytest.raises(AssertionError, match=f"a secret is stored.*{where}"):
        promises.check_secrets(book.record(), find)


def test_the_output_of_an_attempt_is_what_its_payload_wrote() -> None:
    record: Record = good().record()
    assert record.output(RAN) == OUTPUT
    assert record.output(DECLINED) == b""
