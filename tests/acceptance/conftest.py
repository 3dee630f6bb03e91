"""A stack that is up, for all acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack import Stack


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with one hub and one agent. The tests share it: leave it healthy. It ends with the last of them, as what
    idles beside the tests that follow costs them time."""
    stack = Stack(tmp_path_factory.mktemp("stack") / "data")
    try:
        stack.up()
        yield stack
    finally:
        stack.close()
