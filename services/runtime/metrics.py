"""Measurements: the instruments that all server processes have, and how others are made. OpenTelemetry's, with the
attributes of `tracing`, so that their number is bounded: no ids, no names that people choose.

Without an exporter (`exporting`) nothing is kept, and to measure costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from services.runtime.tracing import Attribute, Attributes, plain

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Bounds for what somebody waits for …"""
LONG: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)
"""… and for what may take a day."""

NONE: Final[Attributes] = {}

_meter: Final = metrics.get_meter("sis")


class Duration:
    """A histogram of seconds."""

    def __init__(self, name: str, what: str, bounds: Sequence[float] = SECONDS) -> None:
        self._histogram = _meter.create_histogram(name, "s", what, explicit_bucket_boundaries_advisory=bounds)

    def record(self, seconds: float, attributes: Attributes = NONE) -> None:
        """Something has taken so long."""
        self._histogram.record(seconds, plain(attributes))


class Count:
    """Something that is counted for as long as the process lives. The unit is "By", or a word in braces."""

    def __init__(self, name: str, unit: str, what: str) -> None:
        self._counter = _meter.create_counter(name, unit, what)

    def add(self, amount: int, attributes: Attributes = NONE) -> None:
        """There was so much more of it."""
        self._counter.add(amount, plain(attributes))


def observe(name: str, unit: str, what: str, look: Callable[[], Iterable[tuple[float, Attributes]]]) -> None:
    """Something that is looked at whenever somebody asks, in a thread of its own: `look` only reads what is there, each
    value with its attributes. Where nobody will ask, nothing."""
    if not kept():
        return

    def observed(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, plain(attributes)) for value, attributes in look()]

    _meter.create_observable_gauge(name, [observed], unit, what)


def kept() -> bool:
    """Whether somebody asks for measurements, so that what only they need can be left out. Known before a process
    serves."""
    return _Process.kept


def keep() -> None:
    """Somebody asks for them, for the rest of the process's life."""
    _Process.kept = True


class _Process:
    kept = False


RPC: Final = Duration("rpc.server.call.duration", "How long calls took, by method and status code.")
HTTP: Final = Duration("http.server.request.duration", "How long requests took, by route and status.")
TRANSACTION: Final = Duration(
    "sis.database.transaction.duration", "How long transactions took, the wait for a connection included."
)


def failure(kind: str) -> Attributes:
    """What is said of something that has failed."""
    return {Attribute.ERROR_TYPE: kind}
