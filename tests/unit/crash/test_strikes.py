"""What is left of a case ends: by itself with the directory of the case, or by force."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from sis.client import Client
from tests.crash import scenarios, strikes
from tests.crash.scenarios import CanceledJob
from tests.support.numbered_job import until
from tests.support.stack import Stack

SCRIPTS = {"gated": scenarios._GATED, "stubborn": scenarios._STUBBORN, "frozen": scenarios._FROZEN}


@contextmanager
def payload(scenario: CanceledJob, text: str) -> Iterator[subprocess.Popen[bytes]]:
    """A payload that is up, with its token."""
    token = f"{os.getpid()}.1.test"
    environment = {**os.environ, "SIS_ATTEMPT": token, "SIS_OUTPUT": "/dev/null", "SIS_CREDENTIAL_SECRET_PASSWORD": "x"}
    with subprocess.Popen(
        ["/bin/sh", "-c", scenario.script(text)], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        try:
            until(scenario.up, "the payload")
            assert scenario.starts() == [token]
            yield process
        finally:
            strikes.end([token])
            assert not strikes.living([token])


@pytest.fixture
def scenario(tmp_path: Path) -> CanceledJob:
    return CanceledJob(Stack(tmp_path / "data"), cast("Client", None), tmp_path / "case")


@pytest.mark.parametrize("script", ["gated", "stubborn"])
@pytest.mark.parametrize("how", ["released", "gone"])
def test_what_waits_goes_on_when_it_is_released_and_with_its_directory(
    scenario: CanceledJob, script: str, how: str
) -> None:
    with payload(scenario, SCRIPTS[script]) as process:
        if how == "released":
            scenario.release()
            scenario.release()
        else:
            shutil.rmtree(scenario.directory)
        assert process.wait(20) == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_left_is_ended_also_if_it_is_stopped_or_ignores_signals(scenario: CanceledJob, script: str) -> None:
    with payload(scenario, SCRIPTS[script]) as process:
        if script == "frozen":
            until(lambda: bool(strikes.living(scenario.starts(), stopped=True)), "it to stop itself")
        scenario.leave()
        process.wait(20)
        assert not strikes.living(scenario.starts())


def test_to_strike_nobody_is_said() -> None:
    assert not strikes._kill(0)
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert not strikes._kill(process.pid)
