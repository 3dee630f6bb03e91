"""A stack that is up, for all acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with one hub and one agent. The tests share it: leave it healthy."""
    stack = Stack(tmp_path_factory.mktemp("stack") / "data")
    try:
        stack.up()
        yield stack
    finally:
        stack.close()
