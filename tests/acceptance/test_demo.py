"""`sis demo`, the first thing that anybody runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stack import Stack


def test_the_demo_on_a_stack_that_is_up(stack: Stack) -> None:
    done = stack.cli("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_demo_brings_up_a_stack_of_its_own(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data")
    done = stack.cli("demo", "--data", tmp_path / "demo", timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "demo" / "stack.json").exists(), "it takes down what it brought up"
