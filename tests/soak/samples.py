"""What was measured: who, what, when, how much; kept in memory and in a CSV file."""

from __future__ import annotations

import csv
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.soak.growth import Point


class Series(NamedTuple):
    """What is measured: of a process, a table, or the stack as a whole."""

    subject: str
    measure: str


class Sample(NamedTuple):
    """One measurement. `life` tells a process from the one that was in its place before."""

    at: float
    """Seconds from the beginning."""
    subject: str
    measure: str
    life: str
    value: float


class Samples:
    """All samples of a run. Use it as a context manager, which keeps the file open; for many threads."""

    def __init__(self, file: Path) -> None:
        self._path = file
        self._lock = threading.Lock()
        self._all: list[Sample] = []

    def __enter__(self) -> Self:
        self._file = self._path.open("w", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(Sample._fields)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, samples: Iterable[Sample]) -> None:
        with self._lock:
            for sample in samples:
                self._all.append(sample)
                self._csv.writerow((f"{sample.at:.2f}", *sample[1:4], f"{sample.value:.6g}"))
            self._file.flush()

    def lives(self) -> Mapping[Series, Mapping[str, list[Point]]]:
        """Each series, by the lives of its subject."""
        found: defaultdict[Series, defaultdict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
        with self._lock:
            for sample in self._all:
                found[Series(sample.subject, sample.measure)][sample.life].append((sample.at, sample.value))
        return found

    def last(self, subject: str, measure: str) -> float:
        """The latest value of a series; 0 if there is none."""
        with self._lock:
            values = (s.value for s in reversed(self._all) if (s.subject, s.measure) == (subject, measure))
            return next(values, 0.0)
