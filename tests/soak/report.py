"""The report of a soak, for people: what was done, what grew, what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.soak.samples import Series
from tests.soak.soak import Outcome
from tests.soak.verdicts import MEBIBYTE

_IN_BYTES = ("RSS", "highest RSS", "PSS", "WAL", "storage", "logs", "state directory", "table", "indexes")


def report(outcome: Outcome, pictures: list[str]) -> str:
    """As Markdown."""
    return "\n".join(
        [
            *_head(outcome),
            *_troubles(outcome),
            *_table(outcome),
            *_jobs(outcome),
            *_faults(outcome),
            *(f"![{name}]({name})" for name in pictures),
            "",
        ]
    )


def shown(series: Series, value: float) -> str:
    """A value with its unit."""
    if series.measure in _IN_BYTES:
        return f"{value / MEBIBYTE:,.1f} MiB"
    return f"{value:,.0f}"


def _head(outcome: Outcome) -> Iterator[str]:
    ledger, plan = outcome.ledger, outcome.plan
    verdict = "Nothing grows without bound, and nothing is wrong." if outcome.good else "**Something is wrong.**"
    yield "# Soak\n"
    yield verdict + "\n"
    yield (
        f"{plan.seconds / 60:.1f} minutes of churn, {outcome.seconds / 60:.1f} until everything was at rest; seed "
        f"{plan.seed}. {len(ledger.orders):,} jobs, {outcome.starts:,} payloads started, {len(outcome.faults)} faults. "
        f"The promises were checked {outcome.checks} times over all jobs, and once for each job before it was purged.\n"
    )
    restarts = ", ".join(f"{name} {count}" for name, count in outcome.restarts.items())
    yield f"Restarts by `sis up`: {restarts}.\n"


def _troubles(outcome: Outcome) -> Iterator[str]:
    if outcome.ledger.troubles:
        yield "## What must not be\n"
        yield from (f"- {' '.join(trouble.split())[:600]}" for trouble in outcome.ledger.troubles)
        yield ""


def _table(outcome: Outcome) -> Iterator[str]:
    yield "## What could grow\n"
    yield (
        "Medians of the second and the last quarter of the longest life that was judged; the slope is by Theil–Sen. "
        "What has a bound shows its median and its maximum.\n"
    )
    yield "| of | what | verdict | lives | judged for | second quarter | last quarter | slope per hour |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for series, verdict in outcome.verdicts.items():
        values = (verdict.second_quarter, verdict.last_quarter, verdict.per_hour)
        figures = " | ".join(shown(series, value) for value in values) if verdict.seconds else " | | "
        yield (
            f"| {series.subject} | {series.measure} | {verdict.outcome} | {verdict.lives} | {verdict.seconds:.0f} s "
            f"| {figures} |"
        )
    yield ""


def _jobs(outcome: Outcome) -> Iterator[str]:
    yield "## Jobs\n"
    yield "| kind | ended as | jobs |"
    yield "|---|---|---:|"
    for (kind, fate), count in sorted(outcome.ledger.tally().items()):
        yield f"| {kind} | {fate} | {count} |"
    yield ""


def _faults(outcome: Outcome) -> Iterator[str]:
    yield "## Faults\n"
    yield "| action | victim | times |"
    yield "|---|---|---:|"
    counted = Counter((fault.action, fault.victim) for fault in outcome.faults)
    for (action, victim), count in sorted(counted.items()):
        yield f"| {action} | {victim} | {count} |"
    yield ""
