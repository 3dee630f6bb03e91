"""Figures and how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: what, how much, and compared with what."""

    what: str
    value: str
    remark: str = ""


def quantiles(seconds: Sequence[float]) -> str:
    """Median and 99th percentile, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms"


def rate(count: int, seconds: float, unit: str) -> str:
    return f"{count / seconds:,.0f} {unit}/s"


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print a section as it is finished."""
    print(f"\n{title}")
    for figure in figures:
        print(f"  {figure.what:<58} {figure.value:<30} {figure.remark}".rstrip(), flush=True)
