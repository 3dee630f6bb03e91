"""The pictures of a soak: small multiples over time, with the faults as vertical lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot

from tests.soak.faults import Fault, kind
from tests.soak.growth import Point
from tests.soak.samples import Series
from tests.soak.soak import Outcome
from tests.soak.verdicts import MEBIBYTE

_COLUMNS = 4
_PANEL_INCHES = (4.1, 2.0)
_MARGIN_INCHES = 1.1
_NAMED = ("WAL", "storage", "state directory", "logs", "supervisors")
"""Measures that are told beside whose they are, since a sheet has several of them."""
_BLUE, _RED, _GREY, _ORANGE = "#2166ac", "#c0392b", "#777777", "#e08214"
_FAULT_COLOURS: Mapping[str, str] = {"kill": _RED, "stop": _ORANGE, "cut": "#7b3294"}


@dataclass(frozen=True)
class Sheet:
    """One picture: every series that is wanted, each in a panel of its own."""

    name: str
    title: str
    wanted: Callable[[Series], bool]
    unit: str
    scale: float = 1.0
    by_measure: bool = False
    """Whether the panels differ by what is measured, not by whose it is."""


SHEETS = (
    Sheet("memory", "Resident memory", lambda s: s.measure in ("RSS", "highest RSS"), "MiB", MEBIBYTE),
    Sheet("shared-memory", "Proportional memory (PSS)", lambda s: s.measure == "PSS", "MiB", MEBIBYTE),
    Sheet("files", "Open file descriptors", lambda s: s.measure == "open files", "files"),
    Sheet("threads", "Threads", lambda s: s.measure == "threads", "threads"),
    Sheet("children", "Child processes", lambda s: s.measure in ("children", "supervisors"), "processes"),
    Sheet(
        "disk",
        "Directories: WAL, Vault's storage, agents' state, logs",
        lambda s: s.measure in ("WAL", "storage", "state directory", "logs"),
        "MiB",
        MEBIBYTE,
    ),
    Sheet("tables", "Tables with TOAST, on disk", lambda s: s.measure == "table", "MiB", MEBIBYTE),
    Sheet("indexes", "Indexes of each table, on disk", lambda s: s.measure == "indexes", "MiB", MEBIBYTE),
    Sheet("live", "Live tuples", lambda s: s.measure == "live tuples", "tuples"),
    Sheet("dead", "Dead tuples", lambda s: s.measure == "dead tuples", "tuples"),
    Sheet(
        "queue",
        "The queue: throughput, latency (ms), and what it has in hand",
        lambda s: s.subject == "queue",
        "",
        by_measure=True,
    ),
)


def draw(outcome: Outcome, out: Path) -> list[str]:
    """Draw all sheets as PNG files into a directory; their names."""
    lives = outcome.samples.lives()
    names = []
    for sheet in SHEETS:
        series = sorted(each for each in lives if sheet.wanted(each) and _speaks(lives[each]))
        if series:
            name = f"{sheet.name}.png"
            _draw(sheet, series, lives, outcome, out / name)
            names.append(name)
    return names


def _speaks(lives: Mapping[str, Sequence[Point]]) -> bool:
    """Whether a series has anything to show: a table that was always empty has not."""
    return any(value for life in lives.values() for _, value in life)


def _draw(
    sheet: Sheet,
    wanted: Sequence[Series],
    lives: Mapping[Series, Mapping[str, Sequence[Point]]],
    outcome: Outcome,
    to: Path,
) -> None:
    columns = min(_COLUMNS, len(wanted))
    rows = math.ceil(len(wanted) / columns)
    height = _PANEL_INCHES[1] * rows + _MARGIN_INCHES
    figure, axes = pyplot.subplots(rows, columns, figsize=(_PANEL_INCHES[0] * columns, height), squeeze=False)
    figure.subplots_adjust(0.06 / columns * 2, 0.45 / height, 0.99, 1 - 0.85 / height, 0.16, 0.42)
    for panel, series in zip(axes.flat, wanted, strict=False):
        _panel(panel, sheet, series, lives[series], outcome)
    for panel in axes.flat[len(wanted) :]:
        panel.set_visible(False)
    for panel in axes.flat[max(0, len(wanted) - columns) : len(wanted)]:
        panel.set_xlabel("minutes", fontsize=8, color=_GREY)
    unit = f" [{sheet.unit}]" if sheet.unit else ""
    at = 1 - 0.12 / height
    figure.text(0.01, at, f"{sheet.title}{unit}", fontsize=13, fontweight="bold", va="top")
    for number, (action, colour) in enumerate(_FAULT_COLOURS.items()):
        text = f"| {action}ed" if action != "cut" else "| connections cut"
        text = text.replace("stoped", "stopped for a while")
        figure.text(0.99, at - 0.17 * number / height, text, fontsize=8, color=colour, ha="right", va="top")
    figure.savefig(to, dpi=100)
    pyplot.close(figure)


def _panel(panel: Any, sheet: Sheet, series: Series, lives: Mapping[str, Sequence[Point]], outcome: Outcome) -> None:
    verdict = outcome.verdicts.get(series)
    bad = verdict is not None and verdict.outcome.bad
    top = 1.12 * max(value for life in lives.values() for _, value in life) / sheet.scale
    for action, colour in _FAULT_COLOURS.items():
        struck = [f.at / 60 for f in outcome.faults if f.action == action and _concerns(f, series)]
        panel.vlines(struck, 0, top, color=colour, linewidth=0.8, alpha=0.5)
    for points in lives.values():
        panel.plot(
            [at / 60 for at, _ in points],
            [value / sheet.scale for _, value in points],
            color=_RED if bad else _BLUE,
            linewidth=1.3,
            marker="." if len(points) == 1 else "",
        )
    title = series.measure if sheet.by_measure else series.subject
    if not sheet.by_measure and series.measure in _NAMED:
        title = f"{series.subject}: {series.measure}"
    title = f"{title}: {verdict.outcome}" if bad and verdict else title
    panel.set_title(title, fontsize=9, loc="left", color=_RED if bad else "black")
    panel.set_ylim(0, top)
    panel.set_xlim(0, outcome.seconds / 60)
    panel.tick_params(labelsize=7, colors=_GREY)
    panel.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _concerns(fault: Fault, series: Series) -> bool:
    """Whether a fault is drawn in a panel: in that of the process which it struck. What is no process shows the deaths
    of those that everything goes through."""
    if "." in series.subject or series.subject == "queue":
        return fault.victim == "connections" or (fault.action == "kill" and kind(fault.victim) in ("postgres", "queue"))
    if series.subject == "agents":
        return kind(fault.victim) == "agent"
    return fault.victim == series.subject or (fault.victim == "connections" and series.subject == "postgres")
