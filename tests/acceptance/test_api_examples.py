"""The examples of docs/api.md do what the page says, on a real stack."""

from __future__ import annotations

from pathlib import Path

from tests.support import console_examples
from tests.support.stack import Stack

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_every_example_of_the_guide_to_the_api(stack: Stack, tmp_path: Path) -> None:
    examples = console_examples.read(PAGE.read_text(encoding="utf-8"))
    assert len(examples) > 30
    console_examples.run(examples, {"SIS": stack.gateway, "TOKEN": stack.token}, tmp_path)
