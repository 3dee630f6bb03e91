"""The end of a stack with links."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.linked_stack import LinkedStack


def test_a_link_that_cannot_be_healed_keeps_nothing_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = LinkedStack(tmp_path / "data")
    told: list[str] = []

    def unable() -> None:
        raise TimeoutError("the proxy does not answer")

    def cli(*arguments: str) -> None:
        told.extend(arguments)

    monkeypatch.setattr(stack, "heal", unable)
    monkeypatch.setattr(stack, "cli", cli)
    with pytest.raises(TimeoutError, match="does not answer"):
        stack.close()
    assert told == ["down"]
    assert not any(link._thread.is_alive() for link in stack.links.values())
