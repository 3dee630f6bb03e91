"""What a soak says of all its series."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.growth import Outcome
from tests.soak.samples import Sample, Samples, Series
from tests.soak.verdicts import LONG_SECONDS, judge_all

MEASURES = ("RSS", "open files", "threads")


def told(directory: Path, lives: int, seconds: float) -> dict[Series, Outcome]:
    """Of a queue that lived so many times, and a hub of which nothing was seen."""
    with Samples(directory / "samples.csv") as samples:
        for at in range(0, int(seconds), 5):
            life = str(int(lives * at / seconds))
            samples.add(Sample(at, "queue-1", measure, life, 100.0) for measure in MEASURES)
            samples.add([Sample(at, "zygote of local-1", "RSS", str(at), 100.0)])
        verdicts = judge_all(samples, seconds, ["queue-1", "hub-1"])
    return {series: verdict.outcome for series, verdict in verdicts.items()}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_long_soak_must_tell_whether_a_server_grows(tmp_path: Path, measure: str) -> None:
    found = told(tmp_path, 3, LONG_SECONDS)
    assert found[Series("queue-1", measure)] is Outcome.STEADY
    assert found[Series("hub-1", measure)] is Outcome.UNJUDGED
    found = told(tmp_path, 10, LONG_SECONDS)
    assert found[Series("queue-1", measure)] is Outcome.UNJUDGED
    assert Outcome.UNJUDGED.bad


def test_a_short_one_need_not(tmp_path: Path) -> None:
    found = told(tmp_path, 10, LONG_SECONDS - 100)
    assert set(found.values()) == {Outcome.SHORT}
    assert not Outcome.SHORT.bad


def test_of_what_lives_shortly_nothing_must_be_told(tmp_path: Path) -> None:
    assert told(tmp_path, 1, LONG_SECONDS)[Series("zygote of local-1", "RSS")] is Outcome.SHORT
