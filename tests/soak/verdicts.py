"""What each kind of series may do, and what is said of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from tests.soak.growth import Allowance, Outcome, Verdict, judge
from tests.soak.samples import Samples, Series

MEBIBYTE: Final = 1 << 20
WAL_LIMIT: Final = 128 * MEBIBYTE
"""What PostgreSQL is set to keep its WAL below, so that a short soak comes to the point where it is recycled."""
LEAST_SHARE: Final = 0.25
LEAST_SECONDS: Final = 150.0
"""A life that is shorter than this part of the soak, or than this, is not judged: most of it is warming up."""

_BY_MEASURE: Final[Mapping[str, Allowance]] = {
    "RSS": Allowance(6 * MEBIBYTE),
    "highest RSS": Allowance(0, bound=128 * MEBIBYTE),
    "PSS": Allowance(24 * MEBIBYTE, 0.2),
    "open files": Allowance(10, 0.2),
    "threads": Allowance(4, 0.1),
    "children": Allowance(8, 0.3),
    "supervisors": Allowance(12, 0.5),
    # PostgreSQL may exceed its limit for a moment: while a checkpoint runs.
    "WAL": Allowance(0, bound=3 * WAL_LIMIT),
    "storage": Allowance(4 * MEBIBYTE, 0.25),
    # Each file is put aside once at its limit of 16 MiB.
    "logs": Allowance(0, bound=16 * 2 * 16 * MEBIBYTE),
    # A noisy job's spool is in it until it has ended.
    "state directory": Allowance(40 * MEBIBYTE, 0.5),
    "attempts kept": Allowance(10, 0.5),
    "table": Allowance(4 * MEBIBYTE, 0.3),
    "indexes": Allowance(4 * MEBIBYTE, 0.3),
    "live tuples": Allowance(300, 0.3),
    "dead tuples": Allowance(4_000, 0.5),
    "unsealed attempts": Allowance(10, 0.3),
    "lease ends to deliver": Allowance(10, 0.3),
    "open sessions": Allowance(2),
    "jobs waiting": Allowance(40, 0.5),
    "jobs AWOL": Allowance(3),
    "jobs ended": Allowance(150, 0.5),
    "jobs deleted, not purged": Allowance(150, 0.5),
    "connections": Allowance(10, 0.3),
}
_BY_SERIES: Final[Mapping[Series, Allowance]] = {
    # Each backend opens the files of what it looks at.
    Series("postgres", "open files"): Allowance(200, 0.5),
    # The output of ten noisy jobs.
    Series("queue.log", "table"): Allowance(100 * MEBIBYTE, 0.3),
}
LONG_SECONDS: Final = 1200.0
"""In a soak that is as long as this, each server has a life that is long enough (`faults.GROUPS`)."""
_TOLD_OF_SERVERS: Final = ("RSS", "open files", "threads")
"""What must be judged then."""
_SHOWN_ONLY: Final = frozenset({"jobs ended per second", "queued to started, p50", "queued to started, p95"})


def allowance(series: Series) -> Allowance | None:
    """What a series may do; None for one that is only shown. PSS is judged where processes share what they have."""
    if series.measure in _SHOWN_ONLY or (series.measure == "PSS" and series.subject != "postgres"):
        return None
    return _BY_SERIES.get(series, _BY_MEASURE[series.measure])


def judge_all(samples: Samples, seconds: float, servers: Iterable[str]) -> dict[Series, Verdict]:
    """The verdict on each series of a soak that lasted so long, the bad ones first. A long one must tell of each of
    these servers whether it grows."""
    found = {}
    for series, lives in samples.lives().items():
        allowed = allowance(series)
        if allowed is not None:
            found[series] = judge(list(lives.values()), allowed, max(LEAST_SECONDS, LEAST_SHARE * seconds))
    if seconds >= LONG_SECONDS:
        for series in (Series(server, measure) for server in servers for measure in _TOLD_OF_SERVERS):
            told = found.get(series, Verdict(Outcome.SHORT, 0))
            if told.outcome is Outcome.SHORT:
                found[series] = replace(told, outcome=Outcome.UNJUDGED)
    order = list(Outcome)
    return dict(
        sorted(found.items(), key=lambda each: (not each[1].outcome.bad, order.index(each[1].outcome), each[0]))
    )
